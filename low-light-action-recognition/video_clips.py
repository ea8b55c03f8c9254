"""Clips in video files: checked once, then read frame by frame; and the same videos darkened in advance."""

import logging
from collections.abc import Sequence
from pathlib import Path

from clips import LabelledClips
from torch import Tensor
from video_trees import Video

from media.data_files import refuse_day
from media.pictures import files_below, listed_below
from media.video_frames import VIDEO_SUFFIXES, BrokenVideo, count_frames, read_frames
from minmax.runtime.errors import RunError, UsageError, printable
from minmax.runtime.file_checks import check_once, fingerprint_files, taken_once
from minmax.runtime.splits import Split

log = logging.getLogger(__name__)


class VideoClips(LabelledClips):
    """Video files.

    Args:
        root: folder that names are below.
        split: which split they are.
        classes: in the order of the labels.
        videos: the files.
        interval: from one frame of a clip to the next.
    """

    def __init__(
        self, root: Path, split: Split, classes: tuple[str, ...], videos: Sequence[Video], interval: int
    ) -> None:
        labels, counts = [video.label for video in videos], [video.frames for video in videos]
        super().__init__(split, classes, labels, counts, interval)
        self.root, self.videos = root, list(videos)

    def load(self, index: int, frames: Sequence[int]) -> Tensor:
        """Frames of one video; raises RunError when the file has vanished or broken since the check."""
        try:
            return read_frames(self.videos[index].file, frames)
        except (BrokenVideo, OSError) as error:
            raise RunError(f"cannot read {printable(self.videos[index].file)} any more: {error}") from error

    def name(self, index: int) -> str:
        """Path below the root, or what its list calls it."""
        return self.videos[index].name

    @taken_once
    def fingerprint(self) -> str:
        """Hash of the files and their labels."""
        labels = [video.label for video in self.videos]
        return fingerprint_files([video.file for video in self.videos], self.root, labels)


def count_all(clips: VideoClips, skip_corrupt: float, cache: Path) -> VideoClips:
    """The same videos with the number of frames of each, without those that cannot be read.

    Every file is decoded once, by one of torchrun's processes; the counts are kept in the cache for later runs.

    Args:
        clips: videos of which the frames are not counted yet.
        skip_corrupt: largest share of videos that may be left out.
        cache: folder of the records.

    Raises:
        UsageError: names the broken videos and why, when there are more of them than that share.
    """

    def frames_or_fault(video: Video) -> int | str:
        try:
            return count_frames(video.file)
        except (BrokenVideo, OSError) as error:
            return f"{video.name}: {error}"

    record = cache / "checked" / f"clips-{clips.fingerprint()}.json"
    found = check_once(clips.videos, frames_or_fault, record, f"checking {clips.split}")
    bad = [fault for fault in found if isinstance(fault, str)]
    if len(bad) > skip_corrupt * len(clips) or len(bad) == len(clips):
        raise UsageError(
            f"{len(bad)} of {len(clips)} videos of {clips.split} in {clips.root} cannot be read (mend or remove them, "
            f"or leave out up to a share of them with --clips.skip-corrupt):{listed_below(bad)}"
        )
    if bad:
        log.warning("left out %d unreadable videos of %s:%s", len(bad), clips.split, listed_below(bad))
    both = zip(clips.videos, found, strict=True)
    videos = [video._replace(frames=count) for video, count in both if isinstance(count, int)]
    return VideoClips(clips.root, clips.split, clips.classes, videos, clips.interval)


def find_darkened(clips: LabelledClips, folder: Path, cache: Path) -> VideoClips:
    """Find the darkened copy of each video in a folder that `python -m darkening.apply` made.

    Paths are compared by their last two parts, `<Class>/name.avi`.

    Args:
        clips: the day videos.
        folder: their darkened copies, with any folders below it.
        cache: folder for the records of what was checked.

    Raises:
        UsageError: names a video that is missing, there twice or broken, or has another number of frames than by day.
    """
    if not isinstance(clips, VideoClips):
        raise UsageError(
            f"--darkened {folder}: the built-in clips are not files; drop --darkened and name a --darkener"
        )
    if not folder.is_dir():
        raise UsageError(f"--darkened {folder}: no such folder; make it with python -m darkening.apply")
    copies: dict[tuple[str, ...], Path] = {}
    for file in files_below(folder, tuple(VIDEO_SUFFIXES)):
        if (twin := copies.setdefault(file.parts[-2:], file)) != file:
            name = "/".join(file.parts[-2:])
            raise UsageError(f"--darkened {folder}: {name} is there twice, {twin} and {file}")
    missing = ["/".join(v.file.parts[-2:]) for v in clips.videos if v.file.parts[-2:] not in copies]
    if missing:
        raise UsageError(f"--darkened {folder}: lacks {len(missing)} of {len(clips)} videos: {', '.join(missing[:3])}")
    videos = [video._replace(file=copies[video.file.parts[-2:]]) for video in clips.videos]
    refuse_day([video.file for video in clips.videos], [video.file for video in videos], f"--darkened {folder}")
    dark = count_all(VideoClips(folder, clips.split, clips.classes, videos, clips.interval), 0.0, cache)
    for video, day, night in zip(dark.videos, clips.counts, dark.counts, strict=True):
        if day != night:
            raise UsageError(f"--darkened {folder}: {video.file} has {night} frames, by day it has {day}")
    return dark
