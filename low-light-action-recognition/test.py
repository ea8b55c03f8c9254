"""Top-1 and top-5 of an action recogniser by day and by night, beside those of a second one if wished.

    python low-light-action-recognition/test.py --checkpoint runs/low-light-action-recognition/adapt/last-epoch.pt \
        --before runs/low-light-action-recognition/day/best.pt --night ARID

Each video is seen in several clips whose probabilities are averaged. Prints tables and writes them into test/ beside
the checkpoint (or into --output): results.md, everything down to the verdict on each video in results.json, confusion
matrices in confusion.png, strips of frames with the verdicts beside them in strips_*.png.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from arid import DEFAULT_DATA, has_split
from clip_accuracy import ClipAccuracy, measure
from clip_pictures import draw_strips
from clip_sets import open_clips
from clips import SCENES, ClipConfig, LabelledClips, Split
from recogniser import load_recogniser

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.config import MeasuringFlags, replaced, run_script
from minmax.runtime.devices import open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_confusion, markdown_table, write_json

log = logging.getLogger(__name__)
TEST_SPLITS: tuple[Split, ...] = ("test_day", "test_night")


@dataclass(frozen=True, kw_only=True)
class Config(MeasuringFlags):
    """Measure an action recogniser by day and by night."""

    checkpoint: Path
    """The network to measure: best.pt or last-epoch.pt of a run, a released checkpoint, or torchvision's."""
    before: Path | None = None
    """A second network to compare with, such as the daytime one."""
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


def main(config: Config) -> dict[str, dict[Split, ClipAccuracy]]:
    """Measure, report, and return the accuracies by checkpoint (`before`, `checkpoint`) and split."""
    if config.quick:
        config = replaced(config, clips={"length": 4, "size": 32, "rounds": 1})
    paths = {"before": config.before, "checkpoint": config.checkpoint}
    shown = {} if config.quick else {name: getattr(config.clips, name) for name in ("length", "interval", "size")}
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        loaded = {name: load_recogniser(path, shown) for name, path in paths.items() if path is not None}
        known = {settings.classes for _, settings in loaded.values()}
        if len(known) > 1:
            raise UsageError(f"{config.before} and {config.checkpoint} know different classes")
        (classes,) = known
        splits = open_splits(config, classes)
        output = config.open_output(config.checkpoint)
        found: dict[str, dict[Split, ClipAccuracy]] = {}
        for name, (network, _) in loaded.items():
            placed = runtime.place(network)
            found[name] = {
                split: measure(
                    placed, clips, config.clips, runtime, batch_size=config.batch_size, workers=config.workers
                )
                for split, clips in splits.items()
            }
    words = {"before": " before", "checkpoint": " after"} if "before" in found else {"checkpoint": ""}
    titled = {f"{split}{word}": found[name][split] for split in splits for name, word in words.items()}
    files = "\n".join(f"{word.strip() or 'checkpoint'}: {paths[name]}" for name, word in words.items())
    report = f"{files}\n\n{summary_table(titled)}\n\n{per_class_table(titled, classes)}"
    print(report)  # noqa: T201  (the result of the command)
    write_json(as_plain(found, paths, splits, config), output / "results.json")
    write_atomically(output / "results.md", lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    panels = [
        [
            (f"{split}{word}: top-1 {100 * found[name][split].top(1):.1f} %", found[name][split].confusion)
            for split in splits
        ]
        for name, word in words.items()
    ]
    draw_confusion(panels, classes, output / "confusion.png", "videos")
    for split, clips in splits.items():
        verdicts = {word.strip() or "prediction": found[name][split] for name, word in words.items()}
        draw_strips(clips, config.clips, verdicts, output / f"strips_{split}.png")
    log.info("written to %s", output)
    return found


def open_splits(config: Config, classes: tuple[str, ...]) -> dict[Split, LabelledClips]:
    """The splits that were asked for, or else the test splits that exist.

    Raises:
        UsageError: when one that was asked for does not exist, or neither test split does.
    """
    where: dict[Split, str] = {}
    for split in config.splits or TEST_SPLITS:
        place = str(config.night) if config.night is not None and split == "test_night" else config.data
        if config.splits or place != config.data or has_split(place, split, config.clips):
            where[split] = place
    if not where:
        raise UsageError(
            f"no videos of test_day or test_night in {config.data}; name a split to measure, as --splits val, or a "
            "folder of night videos, as --night ARID"
        )
    return {split: open_clips(place, split, config.clips, classes, config.quick) for split, place in where.items()}


def summary_table(titled: dict[str, ClipAccuracy]) -> str:
    """Number of videos and accuracies, one line per split and checkpoint."""
    rows = [
        [title, str(len(accuracy.labels)), f"{100 * accuracy.top(1):.1f}", f"{100 * accuracy.top(5):.1f}"]
        for title, accuracy in titled.items()
    ]
    return markdown_table(["split", "videos", "top-1 %", "top-5 %"], rows)


def per_class_table(titled: dict[str, ClipAccuracy], classes: tuple[str, ...]) -> str:
    """Share of each class that is recognised, in percent; a class without videos shows `-`."""
    counts = {title: accuracy.confusion.sum(dim=1).tolist() for title, accuracy in titled.items()}
    rows = [
        [name, *(f"{100 * a.per_class[i]:.1f}" if counts[title][i] else "-" for title, a in titled.items())]
        for i, name in enumerate(classes)
    ]
    return markdown_table(["class, recognised %", *titled], rows)


def as_plain(
    found: dict[str, dict[Split, ClipAccuracy]],
    paths: dict[str, Path | None],
    splits: dict[Split, LabelledClips],
    config: Config,
) -> dict[str, object]:
    """Everything measured, for JSON; shares are in [0, 1], that of a class without videos is NaN."""
    classes = next(iter(splits.values())).classes
    return {
        "data": config.data,
        "night": None if config.night is None else str(config.night),
        "clips": {
            "length": config.clips.length,
            "interval": config.clips.interval,
            "size": config.clips.size,
            "rounds": config.clips.rounds,
            "sampling": config.clips.sampling,
        },
        "precision": config.precision,
        "quick": config.quick,
        "classes": list(classes),
        "results": {
            name: {
                "file": str(paths[name]),
                **{split: split_as_plain(accuracy, splits[split]) for split, accuracy in by_split.items()},
            }
            for name, by_split in found.items()
        },
    }


def split_as_plain(accuracy: ClipAccuracy, clips: LabelledClips) -> dict[str, object]:
    """What was measured on one split, down to each video."""
    classes = clips.classes
    verdicts = zip(
        clips.labels, accuracy.predictions.tolist(), accuracy.probabilities.amax(dim=1).tolist(), strict=True
    )
    return {
        "count": len(clips),
        "top1": accuracy.top(1),
        "top5": accuracy.top(5),
        "per_class": dict(zip(classes, accuracy.per_class, strict=True)),
        "confusion": accuracy.confusion.tolist(),
        "videos": [
            {
                "name": clips.name(i),
                "truth": classes[label],
                "prediction": classes[prediction],
                "confidence": confidence,
            }
            for i, (label, prediction, confidence) in enumerate(verdicts)
        ],
    }


if __name__ == "__main__":
    run_script(Config, main, __doc__)
