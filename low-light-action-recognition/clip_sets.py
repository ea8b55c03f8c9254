"""Opening the splits of a data set of clips: folders of videos with or without list files, or the built-in clips."""

from pathlib import Path

from clips import QUICK_CLIPS, SCENE_COUNTS, SCENES, ClipConfig, LabelledClips, SceneClips
from video_clips import VideoClips, count_all
from video_trees import find_videos

from minmax.runtime.config import DEFAULT_RUNS
from minmax.runtime.errors import UsageError
from minmax.runtime.splits import Split, check_split, evenly_spaced
from scenes import MOTIONS


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
    return check_split(count_all(clips, config.skip_corrupt, cache), split)
