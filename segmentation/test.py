"""Mean IoU of a segmentation checkpoint by day and by night, and of a second one to compare with.

    python segmentation/test.py --checkpoint runs/segmentation/adapt/last-epoch.pt \
        --before runs/segmentation/day/best.pt --night data/NighttimeDrivingTest data/Dark_Zurich_val_anon

Prints tables and writes them into test/ beside the checkpoint (or into --output): results.md, results.json, confusion
matrices in confusion.png, and for each data set a picture of images, truth and predictions. Of images without public
labels (Dark Zurich's test split) it makes the zip for the evaluation server instead.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cityscapes import DEFAULT_DATA, DEFAULT_FOLDER, DEFAULT_NIGHTS, open_nights, open_streets
from miou import ScoredClasses, StreetScore, measure
from segmenter import OwnFlags, load_segmenters
from street_images import SCENES, StreetConfig, StreetFiles, StreetImages, WholeStreets
from street_labels import CLASSES, VOID
from street_pictures import draw_predictions
from street_submission import write_submission
from torch import Tensor

from darkening.brightening import brighten_inputs
from darkening.selection_nights import by_day
from minmax.adabn import with_statistics_of
from minmax.features import FeatureModel
from minmax.pretrained import require_size
from minmax.runtime.comparison import as_trained, compare, file_name
from minmax.runtime.config import MeasuringFlags, run_script
from minmax.runtime.devices import open_runtime
from minmax.runtime.errors import UsageError, printable
from minmax.runtime.report import draw_confusion
from minmax.runtime.splits import TEST_SPLITS

log = logging.getLogger(__name__)
SHOWN = 5  # images per picture


@dataclass(frozen=True, kw_only=True)
class Config(OwnFlags, MeasuringFlags):
    """Measure a segmentation network by day and by night."""

    checkpoint: Path
    """The network to measure: best.pt or last-epoch.pt of a run, a released checkpoint, torchvision's DeepLabV3,
    or --model's."""
    data: str = str(DEFAULT_DATA)
    """Day data in Cityscapes' layout (its split val), or `scenes` for the built-in day and night."""
    night: tuple[Path, ...] = ()
    """Night data sets: Nighttime Driving, Dark Zurich (val, test), ACDC, NightCity (val), or Cityscapes' layout; by
    default those in segmentation/data."""
    classes: ScoredClasses = "all"
    """Means over all classes that occur or are predicted, or only over those occurring in a data set's truth."""
    labels: Literal["network", "full"] = "network"
    """Predictions are compared with labels brought to network size, as in the paper, or with those of full size."""
    images: StreetConfig = field(default_factory=StreetConfig)
    batch_size: int = 4
    """Images per forward pass; the result does not depend on it."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.data == SCENES and self.night:
            raise UsageError("--data scenes brings its own nights; drop --night")


def main(config: Config) -> dict[str, dict[str, StreetScore]]:
    """Measure, report, and return the scores by checkpoint (`before`, `checkpoint`) and data set."""
    config = as_trained(config, "images", ["size"])
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        networks = {}
        loaded = load_segmenters([*config.checkpoints.values()], config, config.images.size)
        for name, (network, _) in zip(config.checkpoints, loaded, strict=True):
            networks[name] = runtime.place(network)
            require_size(networks[name], "--images.size", *config.images.size)
            brighten_inputs(networks[name], config.brighten)
        sets = open_sets(config)
        output = config.open_output()
        size, loading = config.images.size, (config.batch_size, config.workers)

        def for_images(network: FeatureModel, images: StreetImages) -> FeatureModel:
            whole = WholeStreets(images, size)
            return with_statistics_of(network, whole, images.title, *loading, runtime) if config.adabn else network

        labelled: dict[str, StreetImages] = {}
        about = []
        for title, images in sets.items():
            if images.load(0).labels is not None:
                labelled[title] = images
                continue
            target = output / f"{file_name(title, '_')}-submission.zip"
            network = for_images(networks["checkpoint"], images)
            write_submission(network, images, size, runtime, target, *loading, str(config.checkpoint))
            about.append(
                f"{title} has no labels here; its evaluation server takes {printable(target)}, of {len(images)} images"
            )

        def measure_one(name: str, network: FeatureModel, images: StreetImages) -> StreetScore:
            how = (config.labels == "full", SHOWN, *loading, str(config.checkpoints[name]))
            [score] = measure(for_images(network, images), images, size, runtime, (by_day,), *how)
            return score

        found = compare(config, networks, labelled, measure_one)
    files = {title: images for title, images in labelled.items() if isinstance(images, StreetFiles)}
    folders = {title: printable(images.labels_folder) for title, images in files.items()}
    # Labels of several versions have the same names, such as Nighttime Driving's: only where they lie tells them.
    about += [f"labels of {title}: {folder}" for title, folder in folders.items()]
    tables = [
        found.summary(
            ["mean IoU %", "classes", "pixels right %"],
            lambda score: [score.mean(config.classes), score.count(config.classes), score.accuracy],
            "data",
        ),
        # A class that does not occur shows `-`; it counts as 0 where it is predicted.
        found.by_class("class, IoU %", CLASSES, lambda score: score.per_class("occurring")),
    ]
    settings = {
        "data": config.data,
        "size": list(config.images.size),
        "labels": config.labels,
        "label_folders": folders,
        "classes": list(CLASSES),
        "scored": config.classes,
    }
    tables = ["  \n".join(about), *(tables if labelled else [])]
    print(found.write(output, tables, settings, lambda _, score: score.as_plain(config.classes)))  # noqa: T201
    if labelled:
        draw_confusion(found.panels(confusion_panel), (*CLASSES, "void"), output / "confusion.png", "pixels")
    for title, images in labelled.items():
        draw_predictions(images, found.of(title, "prediction"), output / f"{file_name(title, '_')}.png")
    return found.found


def open_sets(config: Config) -> dict[str, StreetImages]:
    """Open the data sets to measure, by title; day first.

    Raises:
        UsageError: when one is missing or broken, or two have the same name.
    """
    if config.data == SCENES:
        opened = [open_streets(SCENES, split, config.images, config.quick) for split in TEST_SPLITS]
    else:
        there = [DEFAULT_FOLDER / name for name in DEFAULT_NIGHTS if (DEFAULT_FOLDER / name).is_dir()]
        nights = config.night or there
        opened = [images for root in nights for images in open_nights(root.expanduser().resolve(), config.quick)]
        if nights and config.data == str(DEFAULT_DATA) and not DEFAULT_DATA.exists():
            log.info("only by night: no --data given, and no %s", DEFAULT_DATA)
        else:
            opened.insert(0, open_streets(config.data, "val", config.images, config.quick))
        if not nights:
            log.info("only by day: no --night given, and none in segmentation/data")
    sets = {images.title: images for images in opened}
    if len(sets) < len(opened):
        raise UsageError("two data sets have the same name; rename a folder, as the results would overwrite each other")
    return sets


def confusion_panel(title: str, score: StreetScore) -> tuple[str, Tensor]:
    """A confusion matrix without the pixels that have no class."""
    confusion = score.confusion.clone()
    confusion[VOID] = 0
    return title, confusion


if __name__ == "__main__":
    run_script(Config, main, __doc__)
