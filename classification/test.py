"""Day and night accuracy of a classifier checkpoint, beside those of a second one if wished.

    python classification/test.py --checkpoint runs/classification/adapt/last-epoch.pt \
        --before runs/classification/day/best.pt

Prints a table and writes it as JSON, with confusion matrices, beside the checkpoint (or into --output); with --before
also a picture of night images whose verdict changed.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from class_accuracy import ClassAccuracy, measure
from class_folders import DEFAULT_DATA, ImageConfig, Split, has_split, open_split
from classifier import load_classifier
from image_views import WholeImages

from minmax.runtime.config import require, run_script
from minmax.runtime.devices import Precision, open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import markdown_table, picture_grid, save_picture, write_json

log = logging.getLogger(__name__)
SPLITS: tuple[Split, ...] = ("test_day", "test_night")
SHOWN = 10  # images per row of the picture


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure a classifier by day and by night."""

    checkpoint: Path
    """The classifier to measure: best.pt or last-epoch.pt of a run."""
    before: Path | None = None
    """A second classifier to compare with, such as the daytime one."""
    data: str = str(DEFAULT_DATA)
    """Folder with test_day/ and test_night/ in class folders, or `scenes` for the built-in data."""
    output: Path | None = None
    """Folder of the results; by default test/ beside the checkpoint."""
    images: ImageConfig = field(default_factory=ImageConfig)
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1."""
    precision: Precision = "fp32"
    """Arithmetic of the forward passes (autocast)."""
    threads: int = 0
    """CPU threads of torch; 0 keeps torch's choice."""
    batch_size: int = 64
    """Images per forward pass; the result does not depend on it."""
    workers: int = 0
    """Processes that decode images."""
    quick: bool = False
    """A few images only."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "1 or more")
        require(self.workers >= 0, "--workers", self.workers, "0 or more")
        require(self.threads >= 0, "--threads", self.threads, "0 or more")


def main(config: Config) -> dict[str, dict[str, ClassAccuracy]]:
    """Measure, report, and return the accuracies by checkpoint (`before`, `checkpoint`) and split."""
    checkpoints = {"before": config.before, "checkpoint": config.checkpoint}
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        networks = {name: load_classifier(path) for name, path in checkpoints.items() if path is not None}
        known = {settings.classes for _, settings in networks.values()}
        if len(known) > 1:
            raise UsageError(f"{config.before} and {config.checkpoint} know different classes")
        (classes,) = known
        present = [split for split in SPLITS if has_split(config.data, split)]
        if not present:
            raise UsageError(f"no test_day/ or test_night/ in {config.data}")
        splits = {split: open_split(config.data, split, config.images, classes, config.quick) for split in present}
        output = config.output or config.checkpoint.parent / "test"
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output {output}: cannot make this folder ({error})") from error
        found: dict[str, dict[str, ClassAccuracy]] = {}
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
    summary = summary_table(found, checkpoints)
    details = per_class_table(found["checkpoint"], classes)
    print(f"{summary}\n\n{details}")  # noqa: T201  (the result of the command)
    write_json(as_plain(found, checkpoints, classes, config), output / "results.json")
    (output / "results.md").write_text(f"{summary}\n\n{details}\n", encoding="utf-8")
    if "before" in found and "test_night" in splits:
        night = splits["test_night"]
        truth = torch.tensor(night.labels)
        before = found["before"]["test_night"].predictions == truth
        after = found["checkpoint"]["test_night"].predictions == truth
        whole = WholeImages(night, config.images)
        rows = []
        for mask in (~before & after, before & ~after):
            chosen = torch.nonzero(mask).flatten()
            chosen = chosen[:: max(1, len(chosen) // SHOWN)][:SHOWN]
            if len(chosen):
                rows.append(torch.stack([whole[int(index)][0] for index in chosen]))
        if rows:
            save_picture(picture_grid(rows), output / "night_verdicts.png")
    log.info("written to %s", output)
    return found


def summary_table(found: dict[str, dict[str, ClassAccuracy]], checkpoints: dict[str, Path | None]) -> str:
    """Top-1 and balanced accuracy of each checkpoint on each split, in percent."""
    splits = list(found["checkpoint"])
    header = ["checkpoint", *(f"{split} {kind}" for split in splits for kind in ("top-1", "balanced"))]
    rows = [
        [str(checkpoints[name]), *(f"{100 * v:.1f}" for s in splits for v in (by_split[s].top1, by_split[s].balanced))]
        for name, by_split in found.items()
    ]
    return markdown_table(header, rows)


def per_class_table(by_split: dict[str, ClassAccuracy], classes: tuple[str, ...]) -> str:
    """Share of each class that is recognised, in percent; a class without images shows `-`."""
    rows = [
        [name, *(f"{100 * a.per_class[i]:.1f}" if a.confusion[i].sum() else "-" for a in by_split.values())]
        for i, name in enumerate(classes)
    ]
    return markdown_table(["class", *by_split], rows)


def as_plain(
    found: dict[str, dict[str, ClassAccuracy]],
    checkpoints: dict[str, Path | None],
    classes: tuple[str, ...],
    config: Config,
) -> dict[str, object]:
    """Everything measured, for JSON."""
    return {
        "data": config.data,
        "classes": list(classes),
        "results": {
            name: {
                "file": str(checkpoints[name]),
                **{
                    split: {
                        "top1": accuracy.top1,
                        "balanced": accuracy.balanced,
                        "confusion": accuracy.confusion.tolist(),
                        "predictions": accuracy.predictions.tolist(),
                    }
                    for split, accuracy in by_split.items()
                },
            }
            for name, by_split in found.items()
        },
    }


if __name__ == "__main__":
    run_script(Config, main, __doc__)
