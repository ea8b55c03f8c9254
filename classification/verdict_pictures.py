"""Pictures of images whose verdict changed from one classifier to another."""

import math
from pathlib import Path

import torch
from class_accuracy import ClassAccuracy
from class_folders import ImageConfig, LabelledImages
from image_views import WholeImages
from matplotlib.figure import Figure

from media.pictures import as_intensities
from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.report import shortened
from minmax.runtime.splits import evenly_spaced

CHANGES = ("wrong_to_right", "right_to_wrong")
SHOWN = 16  # images per picture
COLUMNS = 8
SIDE = 1.4  # width of an image, inches
GAMMA = 0.5


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
    count = len(chosen)
    whole = WholeImages(images, config)
    height, width = whole[chosen[0]][0].shape[-2:]
    rows, columns = math.ceil(count / COLUMNS), min(COLUMNS, max(count, 4))
    size = (SIDE * columns + 0.6, rows * (2 * SIDE * height / width + 0.72) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{title}: {len(changed)} of {len(images)} images, {count} shown", fontsize=11)
    panels = figure.subplots(2 * rows, columns, squeeze=False)
    for panel in panels.flatten():
        panel.set_axis_off()
    for place, index in enumerate(chosen):
        row, column = 2 * (place // columns), place % columns
        image = as_intensities(whole[index][0]).permute(1, 2, 0)
        for panel, pixels in ((panels[row, column], image), (panels[row + 1, column], image**GAMMA)):
            panel.set_axis_on()
            panel.set_xticks([])
            panel.set_yticks([])
            panel.imshow(pixels.numpy())
        if column == 0:
            panels[row, 0].set_ylabel("as it is", fontsize=8)
            panels[row + 1, 0].set_ylabel(f"brightened\n(gamma {GAMMA})", fontsize=8)
        verdicts = {
            "truth": images.labels[index],
            "before": int(before.predictions[index]),
            "after": int(after.predictions[index]),
        }
        caption = [
            shortened(images.name(index).rpartition("/")[2], 22),
            *(f"{who}: {shortened(images.classes[verdict], 15)}" for who, verdict in verdicts.items()),
        ]
        # Names come from files and folders: a dollar sign is no formula.
        panels[row + 1, column].set_xlabel("\n".join(caption), fontsize=7.5, parse_math=False)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
