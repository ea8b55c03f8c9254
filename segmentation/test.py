"""Mean IoU of a segmentation checkpoint by day and by night, beside that of a second one if wished.

    python segmentation/test.py --checkpoint runs/segmentation/adapt/last-epoch.pt \
        --before runs/segmentation/day/best.pt --night data/NighttimeDrivingTest data/Dark_Zurich_val_anon

Prints tables and writes them into test/ beside the checkpoint (or into --output): results.md, results.json, confusion
matrices in confusion.png, and for each data set a picture of images, truth and predictions. Of images without public
labels (Dark Zurich's test split) it makes the zip for the evaluation server instead.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from cityscapes import DEFAULT_DATA, StreetConfig, open_streets
from miou import ScoredClasses, StreetScore, count_confusion, predict
from night_streets import default_nights, open_night
from segmenter import load_segmenter
from street_images import SCENES, StreetImages
from street_labels import CLASSES, VOID
from street_pictures import draw_side_by_side
from street_submission import write_submission
from torch import Tensor, nn

from minmax.pretrained import require_size
from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.config import MeasuringFlags, run_script
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_confusion, markdown_table, write_json

log = logging.getLogger(__name__)
SHOWN = 5  # images per picture


@dataclass(frozen=True, kw_only=True)
class Config(MeasuringFlags):
    """Measure a segmentation network by day and by night."""

    checkpoint: Path
    """The network to measure: best.pt or last-epoch.pt of a run, a released checkpoint, or torchvision's DeepLabV3."""
    before: Path | None = None
    """A second network to compare with, such as the daytime one."""
    data: str = str(DEFAULT_DATA)
    """Day data in Cityscapes' layout (its split val), or `scenes` for the built-in day and night."""
    night: tuple[Path, ...] = ()
    """Night data sets: Nighttime Driving, Dark Zurich (val or test), or Cityscapes' layout; by default those that lie
    in segmentation/data."""
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


@dataclass
class Shown:
    """Images of one data set for a picture, with their label maps by caption."""

    names: list[str]
    images: list[Tensor]
    columns: dict[str, list[Tensor]]


def main(config: Config) -> dict[str, dict[str, StreetScore]]:
    """Measure, report, and return the scores by checkpoint (`before`, `checkpoint`) and data set."""
    paths = {"before": config.before, "checkpoint": config.checkpoint}
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        networks = {
            name: load_segmenter(path, config.images.size)[0] for name, path in paths.items() if path is not None
        }
        for network in networks.values():
            require_size(runtime.place(network), "--images.size", *config.images.size)
        sets = open_sets(config)
        output = config.open_output(config.checkpoint)
        words = {"before": "before", "checkpoint": "after"} if "before" in networks else {"checkpoint": "prediction"}
        found: dict[str, dict[str, StreetScore]] = {name: {} for name in networks}
        for title, images in sets.items():
            if images.load(0).labels is None:
                target = output / f"{file_name(title)}-submission.zip"
                network = runtime.place(networks["checkpoint"])
                write_submission(
                    network, images, config.images.size, runtime, target, config.batch_size, config.workers
                )
                log.info("%s has no labels here; its evaluation server takes %s", title, target)
                continue
            shown = Shown([], [], {"truth": []})
            for name, network in networks.items():
                placed = runtime.place(network)
                found[name][title] = measure_and_show(placed, images, config, runtime, shown, words[name])
            draw_side_by_side(title, shown.names, shown.images, dict(shown.columns), output / f"{file_name(title)}.png")
    report(found, {name: str(path) for name, path in paths.items() if path is not None}, words, config, output)
    log.info("written to %s", output)
    return found


def open_sets(config: Config) -> dict[str, StreetImages]:
    """The data sets to measure, by title; day first.

    Raises:
        UsageError: when one is missing or broken, or two have the same name.
    """
    if config.data == SCENES:
        opened = [open_streets(SCENES, split, config.images, config.quick) for split in ("test_day", "test_night")]
    else:
        nights = config.night or default_nights()
        opened = [open_night(root.expanduser().resolve(), config.quick) for root in nights]
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


def measure_and_show(
    network: nn.Module, images: StreetImages, config: Config, runtime: Runtime, shown: Shown, caption: str
) -> StreetScore:
    """The score on a data set; predictions of a few images are kept in `shown`, and the images with them."""
    confusion = torch.zeros(VOID + 1, VOID + 1, dtype=torch.int64, device=runtime.device)
    kept = {i * len(images) // SHOWN for i in range(SHOWN)}
    shown.columns[caption] = []
    options = {"batch_size": config.batch_size, "workers": config.workers}
    for street, logits in predict(network, images, config.images.size, runtime, config.labels == "full", **options):
        assert street.labels is not None
        prediction = logits.argmax(dim=0)
        confusion += count_confusion(prediction, street.labels.to(prediction.device))
        if street.position in kept:
            shown.columns[caption].append(prediction.cpu())
            if len(shown.images) < len(shown.columns[caption]):
                shown.names.append(images.name(street.position))
                shown.images.append(street.image)
                shown.columns["truth"].append(street.labels)
    return StreetScore(confusion.cpu())


def file_name(title: str) -> str:
    """A title as a file name."""
    return "".join(letter if letter.isalnum() else "_" for letter in title).strip("_")


def report(
    found: dict[str, dict[str, StreetScore]], files: dict[str, str], words: dict[str, str], config: Config, output: Path
) -> None:
    """Print the tables, and write them, the JSON and the confusion matrices."""
    sets = list(found["checkpoint"])
    titled = {
        f"{title} {words[name]}" if len(found) > 1 else title: found[name][title] for title in sets for name in found
    }
    where = "\n".join(f"{words[name]}: {path}" for name, path in files.items())
    text = f"{where}\n\n{summary_table(titled, config.classes)}\n\n{per_class_table(titled)}"
    print(text)  # noqa: T201  (the result of the command)
    write_atomically(output / "results.md", lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    write_json(as_plain(found, files, config), output / "results.json")
    if sets:
        panels = [[confusion_panel(f"{title}\n{words[name]}", found[name][title]) for title in sets] for name in found]
        draw_confusion(panels, (*CLASSES, "void"), output / "confusion.png", "pixels")


def summary_table(titled: dict[str, StreetScore], classes: ScoredClasses) -> str:
    """Mean IoU, the number of classes in it, and pixel accuracy, one line per data set and checkpoint."""
    rows = [
        [
            title,
            f"{100 * score.mean(classes):.1f}",
            str(score.scored(classes).count(True)),
            f"{100 * score.accuracy:.1f}",
        ]
        for title, score in titled.items()
    ]
    return markdown_table(["data", "mean IoU %", "classes", "pixels right %"], rows)


def per_class_table(titled: dict[str, StreetScore]) -> str:
    """IoU of each class in percent; `-` for one that does not occur, which counts as 0 where it is predicted."""
    rows = [
        [name, *(f"{100 * score.per_class[i]:.1f}" if score.occurring[i] else "-" for score in titled.values())]
        for i, name in enumerate(CLASSES)
    ]
    return markdown_table(["class, IoU %", *titled], rows)


def confusion_panel(title: str, score: StreetScore) -> tuple[str, Tensor]:
    """A confusion matrix without the pixels that have no class."""
    confusion = score.confusion.clone()
    confusion[VOID] = 0
    return title, confusion


def as_plain(found: dict[str, dict[str, StreetScore]], files: dict[str, str], config: Config) -> dict[str, Any]:
    """Everything measured, for JSON; shares are in [0, 1]."""
    return {
        "data": config.data,
        "size": list(config.images.size),
        "labels": config.labels,
        "classes": list(CLASSES),
        "scored": config.classes,
        "precision": config.precision,
        "quick": config.quick,
        "results": {
            name: {
                "file": files[name],
                **{
                    title: {
                        "mean_iou": score.mean(config.classes),
                        "mean_iou_all": score.mean("all"),
                        "mean_iou_occurring": score.mean("occurring"),
                        "accuracy": score.accuracy,
                        "per_class": dict(zip(CLASSES, score.per_class, strict=True)),
                        "confusion": score.confusion.tolist(),
                    }
                    for title, score in by_set.items()
                },
            }
            for name, by_set in found.items()
        },
    }


if __name__ == "__main__":
    run_script(Config, main, __doc__)
