"""Which verdicts changed from one classifier to another, and pictures of these images."""

from collections.abc import Sequence
from pathlib import Path

from class_accuracy import ClassAccuracy
from class_folders import ImageConfig, LabelledImages, WholeImages

from media.pictures import as_intensities
from minmax.runtime.report import GAMMA, Cell, draw_sheet, shorten
from minmax.runtime.splits import evenly_spaced

CHANGES = ("wrong_to_right", "right_to_wrong")
SHOWN = 16  # images per picture
COLUMNS = 8


def changed_verdicts(before: ClassAccuracy, after: ClassAccuracy) -> dict[str, list[int]]:
    """Positions of the images that one of two classifiers recognises and the other does not, by change.

    Images that both mistake, even for different classes, are in neither list.
    """
    was_right, is_right = before.predictions == before.labels, after.predictions == after.labels
    return {
        "wrong_to_right": (~was_right & is_right).nonzero().flatten().tolist(),
        "right_to_wrong": (was_right & ~is_right).nonzero().flatten().tolist(),
    }


def draw_verdicts(
    title: str,
    changed: list[int],
    both: Sequence[ClassAccuracy],
    images: LabelledImages,
    config: ImageConfig,
    picture: Path,
) -> None:
    """Draw images as they are and brightened, each with the truth and what both classifiers say.

    `changed` are the positions of the images, at least one; more than 16 are thinned out evenly.
    """
    chosen = evenly_spaced(changed, SHOWN)
    whole = WholeImages(images, config)
    rows: list[tuple[str, list[Cell]]] = []
    for start in range(0, len(chosen), COLUMNS):
        plain, brightened = [], []
        for index in chosen[start : start + COLUMNS]:
            said = [images.labels[index], *(int(verdicts.predictions[index]) for verdicts in both)]
            lines = [shorten(images.name(index).rpartition("/")[2], 22)]
            for who, verdict in zip(("truth", "before", "after"), said, strict=True):
                lines.append(f"{who}: {shorten(images.classes[verdict], 15)}")
            image = as_intensities(whole[index][0])
            plain.append(Cell(image))
            brightened.append(Cell(image**GAMMA, "\n".join(lines)))
        rows += [("as it is", plain), (f"brightened\n(gamma {GAMMA})", brightened)]
    draw_sheet(f"{title}: {len(changed)} of {len(images)} images, {len(chosen)} shown", [], rows, picture)
