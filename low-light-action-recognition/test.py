"""Top-1 and top-5 of an action recogniser by day and by night, and of a second one to compare with.

    python low-light-action-recognition/test.py --checkpoint runs/low-light-action-recognition/adapt/last-epoch.pt \
        --before runs/low-light-action-recognition/day/best.pt --night ARID

Each video is seen in several clips whose probabilities are averaged. Prints tables and writes them into test/ beside
the checkpoint (or into --output): results.md, everything down to the verdict on each video in results.json, confusion
matrices in confusion.png, strips of frames with the verdicts beside them in strips_*.png.
"""

from dataclasses import dataclass, field
from pathlib import Path

from clip_accuracy import ClipAccuracy, measure
from clip_pictures import draw_strips
from clip_sets import open_clips
from clip_views import WholeClips
from clips import SCENES, ClipConfig, LabelledClips
from recogniser import load_recogniser
from torch import nn
from video_trees import DEFAULT_DATA, has_split

from darkening.brightening import brighten_inputs
from darkening.selection_nights import by_day
from minmax.adabn import with_statistics_of
from minmax.runtime.comparison import as_trained, compare, shared_classes
from minmax.runtime.config import MeasuringFlags, run_script, shrink_settings
from minmax.runtime.devices import open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_confusion
from minmax.runtime.splits import TEST_SPLITS, Split


@dataclass(frozen=True, kw_only=True)
class Config(MeasuringFlags):
    """Measure an action recogniser by day and by night."""

    checkpoint: Path
    """The network to measure: best.pt or last-epoch.pt of a run, a released checkpoint, or torchvision's."""
    data: str = str(DEFAULT_DATA)
    """Folder of the data set (README.md has the layouts), or `scenes` for the built-in clips."""
    night: Path | None = None
    """Night videos in a folder of their own, such as ARID's; by default the split test_night of --data."""
    splits: tuple[Split, ...] = ()
    """The splits to measure, such as `val`; by default test_day and test_night, or the one of them that exists."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    batch_size: int = 16
    """Clips per forward pass; the result does not depend on it."""

    def __post_init__(self) -> None:
        """Refuse flags that contradict each other."""
        super().__post_init__()
        if self.data == SCENES and self.night is not None:
            raise UsageError("--data scenes brings its own nights; drop --night")


def main(config: Config) -> dict[str, dict[str, ClipAccuracy]]:
    """Measure, report, and return the accuracies by checkpoint (`before`, `checkpoint`) and split."""
    config = as_trained(config, "clips", ["size", "length", "interval"])
    if config.quick:
        config = shrink_settings(config, clips={"length": 4, "size": 32, "rounds": 1})
    expected = {} if config.quick else {name: getattr(config.clips, name) for name in ("length", "interval", "size")}
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        loaded = {name: load_recogniser(path, expected) for name, path in config.checkpoints.items()}
        classes = shared_classes(config, [settings.classes for _, settings in loaded.values()])
        networks = {name: runtime.place(network) for name, (network, _) in loaded.items()}
        for network in networks.values():
            brighten_inputs(network, config.brighten)
        splits = open_splits(config, classes)
        output = config.open_output()

        def measure_one(name: str, network: nn.Module, clips: LabelledClips) -> ClipAccuracy:
            if config.adabn:
                whole, at_once = WholeClips(clips, config.clips), max(1, config.batch_size // config.clips.rounds)
                network = with_statistics_of(network, whole, clips.split, at_once, config.workers, runtime)
            how = (config.batch_size, config.workers, str(config.checkpoints[name]))
            [accuracy] = measure(network, clips, config.clips, runtime, (by_day,), None, *how)
            return accuracy

        found = compare(config, networks, splits, measure_one)
    tables = [
        found.summary(
            ["videos", "top-1 %", "top-5 %"],
            lambda accuracy: [len(accuracy.labels), accuracy.top1, accuracy.top(5)],
        ),
        found.by_class("class, recognised %", classes, lambda accuracy: accuracy.per_class),
    ]
    settings = {
        "data": config.data,
        "night": None if config.night is None else str(config.night),
        "clips": {name: getattr(config.clips, name) for name in ("length", "interval", "size", "rounds", "sampling")},
        "classes": list(classes),
    }
    print(found.write(output, tables, settings, lambda split, a: a.as_plain(splits[split])))  # noqa: T201
    panels = found.panels(lambda title, a: (f"{title}: top-1 {100 * a.top1:.1f} %", a.confusion))
    draw_confusion(panels, classes, output / "confusion.png", "videos")
    for split, clips in splits.items():
        draw_strips(clips, config.clips, found.of(split, "prediction"), output / f"strips_{split}.png")
    return found.found


def open_splits(config: Config, classes: tuple[str, ...]) -> dict[str, LabelledClips]:
    """Open the splits that were asked for, or else the test splits that exist.

    Raises:
        UsageError: when one that was asked for does not exist, or neither test split does.
    """
    where = {split: config.data for split in config.splits or TEST_SPLITS}
    if config.night is not None and "test_night" in where:
        where["test_night"] = str(config.night)
    if not config.splits and config.data != SCENES:  # of the test splits, those that are there
        root = Path(config.data).expanduser()
        where = {s: p for s, p in where.items() if p != config.data or has_split(root, s, config.clips)}
    if not where:
        raise UsageError(
            f"no videos of test_day or test_night in {config.data}; name a split to measure, as --splits val, or a "
            "folder of night videos, as --night ARID"
        )
    return {split: open_clips(place, split, config.clips, classes, config.quick) for split, place in where.items()}


if __name__ == "__main__":
    run_script(Config, main, __doc__)
