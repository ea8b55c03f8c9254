"""Opening the splits of a data set of clips: folders of videos with or without list files, or the built-in clips."""

import logging
from pathlib import Path

from clips import QUICK_CLIPS, SCENE_COUNTS, SCENES, ClipConfig, LabelledClips, SceneClips
from video_clips import VideoClips, count_all
from video_trees import find_videos

from minmax.runtime.config import DEFAULT_RUNS
from minmax.runtime.errors import UsageError
from minmax.runtime.splits import Split, check_split, evenly_spaced
from scenes import MOTIONS

log = logging.getLogger(__name__)
_DARK = 0.12  # ARID's mean intensity is 0.08, Kinetics' 0.4


def open_clips(
    data: str,
    split: Split,
    config: ClipConfig,
    classes: tuple[str, ...] | None = None,
    quick: bool = False,
    cache: Path = DEFAULT_RUNS,
) -> LabelledClips:
    """Open one split of a data set, or of the built-in clips when `data` is `scenes`.

    Args:
        data: folder of the data set in one of the layouts of `video_trees.find_videos`, or `scenes`.
        split: which.
        config: length and size of built-in clips; share of corrupt videos to leave out.
        classes: the classes that a network knows, in its order; None takes them from the data.
        quick: only a few clips.
        cache: folder for rendered clips and for the record of what the videos hold.

    Raises:
        UsageError: when a folder or file is missing or laid out otherwise, classes differ, or videos are corrupt.
    """
    if data == SCENES:
        if classes is not None and classes != MOTIONS:
            raise UsageError(f"the network knows {', '.join(classes)}, the scenes show {', '.join(MOTIONS)}")
        count = min(QUICK_CLIPS, SCENE_COUNTS[split]) if quick else SCENE_COUNTS[split]
        return check_split(SceneClips(split, count, config, cache / "scenes"), split)
    root = Path(data).expanduser()
    known, videos = find_videos(root, split, config, classes)
    shown = evenly_spaced(videos, QUICK_CLIPS) if quick else videos
    clips = VideoClips(root, split, known, shown, config.interval)
    clips = check_split(count_all(clips, config.skip_corrupt, cache), split)
    if split in ("train", "val"):
        _refuse_dark(clips)
    return clips


def _refuse_dark(clips: VideoClips) -> None:
    """Refuse videos as dark as ARID's for training: a list or folder does not say when they were taken."""
    chosen = evenly_spaced(range(len(clips)), 8)
    means = [float(clips.load(index, [clips.counts[index] // 2]).float().mean()) / 255 for index in chosen]
    if sorted(means)[len(means) // 2] >= _DARK:
        return
    states_split = (clips.root / "train").is_dir()
    said = f"the videos of {clips.split} in {clips.root} are dark (mean intensity {min(means):.2f} to {max(means):.2f})"
    if not states_split:
        raise UsageError(
            f"{said}; zero-shot adaptation trains on day videos: give NormalLight or others by day; if these are, put "
            f"their class folders into {clips.root / 'train'}"
        )
    log.warning("%s; training must see day videos alone", said)
