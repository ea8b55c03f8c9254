"""Pictures of images whose verdict changed from one classifier to another."""

from pathlib import Path

import torch
from class_accuracy import ClassAccuracy
from class_folders import ImageConfig, LabelledImages
from image_views import WholeImages

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
    masks = (~was_right & is_right, was_right & ~is_right)
    return {change: torch.nonzero(mask).flatten().tolist() for change, mask in zip(CHANGES, masks, strict=True)}


def draw_verdicts(
    title: str,
    changed: list[int],
    before: ClassAccuracy,
    after: ClassAccuracy,
    images: LabelledImages,
    config: ImageConfig,
    picture: Path,
) -> None:
    """Draw images as they are and brightened, each with the truth and both predictions.

    Args:
        title: says which images these are; how many there are and how many are shown is added.
        changed: positions of the images, at least one; more than 16 are thinned out evenly.
        before: verdicts of the first classifier.
        after: verdicts of the second one.
        images: the split.
        config: how its images are read.
        picture: the .png file, written atomically.
    """
    chosen = evenly_spaced(changed, SHOWN)
    whole = WholeImages(images, config)
    rows: list[tuple[str, list[Cell]]] = []
    for place, index in enumerate(chosen):
        if place % COLUMNS == 0:
            rows += [("as it is", []), (f"brightened\n(gamma {GAMMA})", [])]
        verdicts = {
            "truth": images.labels[index],
            "before": int(before.predictions[index]),
            "after": int(after.predictions[index]),
        }
        caption = [
            shorten(images.name(index).rpartition("/")[2], 22),
            *(f"{who}: {shorten(images.classes[verdict], 15)}" for who, verdict in verdicts.items()),
        ]
        image = as_intensities(whole[index][0])
        rows[-2][1].append(Cell(image))
        rows[-1][1].append(Cell(image**GAMMA, "\n".join(caption)))
    draw_sheet(f"{title}: {len(changed)} of {len(images)} images, {len(chosen)} shown", [], rows, picture)
