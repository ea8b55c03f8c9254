"""Day and night accuracy of a classifier checkpoint, beside those of a second one if wished.

    python classification/test.py --checkpoint runs/classification/adapt/last-epoch.pt \
        --before runs/classification/day/best.pt

Prints tables and writes them into test/ beside the checkpoint (or into --output): results.md, everything down to the
verdict on each image in results.json, confusion matrices in confusion.png; with --before also night_wrong_to_right.png
and night_right_to_wrong.png, night images whose verdict changed.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from class_accuracy import ClassAccuracy, measure
from class_folders import DEFAULT_DATA, ImageConfig, LabelledImages, Split, has_split, open_split
from foreign_weights import ForeignFlags, load_classifiers
from torch import Tensor
from verdict_pictures import CHANGES, changed_verdicts, draw_verdicts

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.config import MeasuringFlags, run_script
from minmax.runtime.devices import open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_confusion, markdown_table, write_json

log = logging.getLogger(__name__)
TEST_SPLITS: tuple[Split, ...] = ("test_day", "test_night")


@dataclass(frozen=True, kw_only=True)
class Config(ForeignFlags, MeasuringFlags):
    """Measure a classifier by day and by night."""

    checkpoint: Path
    """The classifier to measure: best.pt or last-epoch.pt of a run, a released one, or foreign weights with --model."""
    before: Path | None = None
    """A second classifier to compare with, such as the daytime one."""
    data: str = str(DEFAULT_DATA)
    """Folder with test_day/ and test_night/ in class folders, or `scenes` for the built-in data."""
    splits: tuple[Split, ...] = ()
    """The splits to measure, such as `val`; by default test_day and test_night, or the one of them that exists."""
    images: ImageConfig = field(default_factory=ImageConfig)


def main(config: Config) -> dict[str, dict[Split, ClassAccuracy]]:
    """Measure, report, and return the accuracies by checkpoint (`before`, `checkpoint`) and split."""
    checkpoints = {"before": config.before, "checkpoint": config.checkpoint}
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        paths = {name: path for name, path in checkpoints.items() if path is not None}
        measured = splits_to_measure(config)
        loaded = load_classifiers(list(paths.values()), config, config.data, measured[0], config.images.size)
        networks = dict(zip(paths, loaded, strict=True))
        known = {settings.classes for _, settings in networks.values()}
        if len(known) > 1:
            raise UsageError(f"{config.before} and {config.checkpoint} know different classes")
        (classes,) = known
        splits: dict[Split, LabelledImages] = {
            split: open_split(config.data, split, config.images, classes, config.quick) for split in measured
        }
        output = config.open_output(config.checkpoint)
        found: dict[str, dict[Split, ClassAccuracy]] = {}
        for name, (network, _) in networks.items():
            network = runtime.place(network)
            found[name] = {
                split: measure(
                    network,
                    images,
                    config.images,
                    runtime,
                    batch_size=config.batch_size,
                    workers=config.workers,
                )
                for split, images in splits.items()
            }
    words = {"before": " before", "checkpoint": " after"} if "before" in found else {"checkpoint": ""}
    titled = {f"{split}{word}": found[name][split] for split in splits for name, word in words.items()}
    files = "\n".join(f"{word.strip() or 'checkpoint'}: {checkpoints[name]}" for name, word in words.items())
    report = f"{files}\n\n{summary_table(titled)}\n\n{per_class_table(titled, classes)}"
    print(report)  # noqa: T201  (the result of the command)
    changes = {}
    if "before" in found:
        changes = {split: changed_verdicts(found["before"][split], found["checkpoint"][split]) for split in splits}
    write_json(as_plain(found, checkpoints, changes, splits, config), output / "results.json")
    write_atomically(output / "results.md", lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    panels = [
        [confusion_panel(f"{split}{word}", found[name][split]) for split in splits] for name, word in words.items()
    ]
    draw_confusion(panels, classes, output / "confusion.png")
    draw_night_changes(found, changes.get("test_night", {}), splits, config.images, output)
    log.info("written to %s", output)
    return found


def splits_to_measure(config: Config) -> list[Split]:
    """The splits that were asked for, or else the test splits that exist.

    Raises:
        UsageError: when one that was asked for does not exist, or neither test split does.
    """
    absent = [split for split in config.splits if not has_split(config.data, split)]
    if absent:
        raise UsageError(f"--splits {' '.join(absent)}: no such folder in {config.data}")
    chosen = config.splits or tuple(split for split in TEST_SPLITS if has_split(config.data, split))
    if not chosen:
        raise UsageError(f"no test_day/ or test_night/ in {config.data}; name a split to measure, as --splits val")
    return list(dict.fromkeys(chosen))


def summary_table(titled: dict[str, ClassAccuracy]) -> str:
    """Number of images, accuracies and calibration error, one line per split and checkpoint."""
    rows = [
        [title, str(len(a.labels)), *(f"{100 * share:.1f}" for share in (a.top1, a.balanced, a.calibration_error))]
        for title, a in titled.items()
    ]
    return markdown_table(["split", "images", "top-1 %", "balanced %", "calibration error %"], rows)


def per_class_table(titled: dict[str, ClassAccuracy], classes: tuple[str, ...]) -> str:
    """Share of each class that is recognised, in percent; a class without images shows `-`."""
    rows = [
        [name, *(f"{100 * a.per_class[i]:.1f}" if a.confusion[i].sum() else "-" for a in titled.values())]
        for i, name in enumerate(classes)
    ]
    return markdown_table(["class, recognised %", *titled], rows)


def confusion_panel(title: str, accuracy: ClassAccuracy) -> tuple[str, Tensor]:
    """A confusion matrix, titled with what it comes to."""
    return f"{title}: {len(accuracy.labels)} images\nbalanced {100 * accuracy.balanced:.1f} %", accuracy.confusion


def draw_night_changes(
    found: dict[str, dict[Split, ClassAccuracy]],
    changes: dict[str, list[int]],
    splits: dict[Split, LabelledImages],
    config: ImageConfig,
    folder: Path,
) -> None:
    """Draw night images whose verdict changed; a picture of a former run with nothing to show now is removed."""
    if changes:
        counts = ", ".join(f"{len(changed)} {change.replace('_', ' ')}" for change, changed in changes.items())
        log.info("night images whose verdict changed: %s", counts)
    for change in CHANGES:
        picture = folder / f"night_{change}.png"
        if changes.get(change):
            title = f"Night images, {change.replace('_to_', ' → ')}"
            before, after = found["before"]["test_night"], found["checkpoint"]["test_night"]
            draw_verdicts(title, changes[change], before, after, splits["test_night"], config, picture)
        else:
            picture.unlink(missing_ok=True)


def as_plain(
    found: dict[str, dict[Split, ClassAccuracy]],
    checkpoints: dict[str, Path | None],
    changes: dict[Split, dict[str, list[int]]],
    splits: dict[Split, LabelledImages],
    config: Config,
) -> dict[str, object]:
    """Everything measured, for JSON; shares are in [0, 1], that of a class without images is NaN."""
    classes = next(iter(splits.values())).classes
    plain: dict[str, object] = {
        "data": config.data,
        "size": config.images.size,
        "evaluation": config.images.evaluation,
        "precision": config.precision,
        "quick": config.quick,
        "classes": list(classes),
        "results": {
            name: {
                "file": str(checkpoints[name]),
                **{split: split_as_plain(accuracy, splits[split]) for split, accuracy in by_split.items()},
            }
            for name, by_split in found.items()
        },
    }
    if changes:
        plain["changes"] = {
            split: {change: len(changed) for change, changed in by_change.items()}
            for split, by_change in changes.items()
        }
    return plain


def split_as_plain(accuracy: ClassAccuracy, images: LabelledImages) -> dict[str, object]:
    """What was measured on one split, down to each image."""
    classes = images.classes
    verdicts = zip(images.labels, accuracy.predictions.tolist(), accuracy.confidences.tolist(), strict=True)
    return {
        "count": len(images),
        "top1": accuracy.top1,
        "balanced": accuracy.balanced,
        "calibration_error": accuracy.calibration_error,
        "per_class": dict(zip(classes, accuracy.per_class, strict=True)),
        "class_counts": dict(zip(classes, accuracy.confusion.sum(dim=1).tolist(), strict=True)),
        "confusion": accuracy.confusion.tolist(),
        "predictions": accuracy.predictions.tolist(),
        "images": [
            {
                "name": images.name(i),
                "truth": classes[label],
                "prediction": classes[prediction],
                "confidence": confidence,
            }
            for i, (label, prediction, confidence) in enumerate(verdicts)
        ],
    }


if __name__ == "__main__":
    run_script(Config, main, __doc__)
