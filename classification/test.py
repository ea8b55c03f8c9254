"""Day and night accuracy of a classifier checkpoint, and of a second one to compare with.

    python classification/test.py --checkpoint runs/classification/adapt/last-epoch.pt \
        --before runs/classification/day/best.pt

Prints tables and writes them into test/ beside the checkpoint (or into --output): results.md, everything down to the
verdict on each image in results.json, confusion matrices in confusion.png; with --before also night_wrong_to_right.png
and night_right_to_wrong.png, night images whose verdict changed.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from class_accuracy import ClassAccuracy, measure
from class_folders import DEFAULT_DATA, ImageConfig, LabelledImages, WholeImages, has_split, open_split
from classifier import ForeignFlags, load_classifiers
from torch import Tensor, nn
from verdict_pictures import CHANGES, changed_verdicts, draw_verdicts

from darkening.brightening import brighten_inputs
from darkening.selection_nights import by_day
from minmax.adabn import with_statistics_of
from minmax.runtime.comparison import as_trained, compare, shared_classes
from minmax.runtime.config import MeasuringFlags, run_script
from minmax.runtime.devices import open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_confusion
from minmax.runtime.splits import TEST_SPLITS, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(ForeignFlags, MeasuringFlags):
    """Measure a classifier by day and by night."""

    checkpoint: Path
    """The classifier to measure: best.pt or last-epoch.pt of a run, a released one, or foreign weights with --model."""
    data: str = str(DEFAULT_DATA)
    """Folder with test_day/ and test_night/ in class folders, or `scenes` for the built-in data."""
    splits: tuple[Split, ...] = ()
    """The splits to measure, such as `val`; by default test_day and test_night, or the one of them that exists."""
    images: ImageConfig = field(default_factory=ImageConfig)


def main(config: Config) -> dict[str, dict[str, ClassAccuracy]]:
    """Measure, report, and return the accuracies by checkpoint (`before`, `checkpoint`) and split."""
    config = as_trained(config, "images", ["size"])
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        wanted, files = splits_to_measure(config), config.checkpoints
        loaded = load_classifiers(list(files.values()), config, config.data, wanted[0], config.images.size)
        classes = shared_classes(config, [settings.classes for _, settings in loaded])
        networks = {name: runtime.place(network) for name, (network, _) in zip(files, loaded, strict=True)}
        for network in networks.values():
            brighten_inputs(network, config.brighten)
        splits: dict[str, LabelledImages] = {}
        for split in wanted:
            splits[split] = open_split(config.data, split, config.images, classes, config.quick)
        output = config.open_output()

        def measure_one(name: str, network: nn.Module, images: LabelledImages) -> ClassAccuracy:
            if config.adabn:
                whole = WholeImages(images, config.images)
                network = with_statistics_of(network, whole, images.split, config.batch_size, config.workers, runtime)
            how = (config.batch_size, config.workers, str(files[name]))
            [accuracy] = measure(network, images, config.images, runtime, (by_day,), *how)
            return accuracy

        found = compare(config, networks, splits, measure_one)
    tables = [
        found.summary(
            ["images", "top-1 %", "balanced %", "calibration error %"],
            lambda accuracy: [len(accuracy.labels), accuracy.top1, accuracy.balanced, accuracy.calibration_error],
        ),
        found.by_class("class, recognised %", classes, lambda accuracy: accuracy.per_class),
    ]
    settings: dict[str, Any] = {
        "data": config.data,
        "size": config.images.size,
        "evaluation": config.images.evaluation,
        "classes": list(classes),
    }
    by_night: dict[str, list[int]] = {}
    if config.before is not None:
        settings["changes"] = {}
        for title in splits:
            changes = changed_verdicts(*found.of(title, "").values())
            settings["changes"][title] = {change: len(changed) for change, changed in changes.items()}
            if title == "test_night":
                by_night = changes
    print(found.write(output, tables, settings, lambda split, a: a.as_plain(splits[split])))  # noqa: T201
    draw_confusion(found.panels(confusion_panel), classes, output / "confusion.png")
    for change in CHANGES:
        picture, changed = output / f"night_{change}.png", by_night.get(change, [])
        if by_night:
            log.info("night images whose verdict changed: %d %s", len(changed), change.replace("_", " "))
        if changed:
            title, both = f"Night images, {change.replace('_to_', ' → ')}", list(found.of("test_night", "").values())
            draw_verdicts(title, changed, both, splits["test_night"], config.images, picture)
        else:
            picture.unlink(missing_ok=True)  # of an earlier call
    return found.found


def splits_to_measure(config: Config) -> list[Split]:
    """The splits that were asked for, or else the test splits that exist.

    Raises:
        UsageError: when one that was asked for does not exist, or neither test split does.
    """
    absent = [split for split in config.splits if not has_split(config.data, split)]
    if absent:
        raise UsageError(f"--splits {' '.join(absent)}: no such folder in {config.data}")
    chosen = config.splits or [split for split in TEST_SPLITS if has_split(config.data, split)]
    if not chosen:
        raise UsageError(f"no test_day/ or test_night/ in {config.data}; name a split to measure, as --splits val")
    return list(dict.fromkeys(chosen))


def confusion_panel(title: str, accuracy: ClassAccuracy) -> tuple[str, Tensor]:
    """A confusion matrix with its accuracy in the title."""
    return f"{title}: {len(accuracy.labels)} images\nbalanced {100 * accuracy.balanced:.1f} %", accuracy.confusion


if __name__ == "__main__":
    run_script(Config, main, __doc__)
