"""What a segmentation network makes of images, to look at: image, truth and predictions side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from miou import StreetScore
from street_images import StreetImages
from street_labels import CLASSES, COLOURS, VOID, coloured
from torch import Tensor

from media.pictures import as_intensities
from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.report import shortened

GAMMA = 0.5
WIDTH = 2.6  # of a picture, inches


def draw_predictions(images: StreetImages, scores: Mapping[str, StreetScore], picture: Path) -> None:
    """Draw the images that were kept with the scores, with the truth and the predictions by caption.

    Args:
        images: the data set.
        scores: by caption, of the same images each.
        picture: the .png file, written atomically.
    """
    streets = [street for street, _ in next(iter(scores.values())).kept]
    columns = {"truth": [street.labels for street in streets if street.labels is not None]}
    columns |= {caption: [prediction for _, prediction in score.kept] for caption, score in scores.items()}
    names, pixels = [images.name(street.position) for street in streets], [as_intensities(s.image) for s in streets]
    draw_side_by_side(images.title, names, pixels, columns, picture)


def draw_side_by_side(
    title: str, names: Sequence[str], images: Sequence[Tensor], columns: Mapping[str, Sequence[Tensor]], picture: Path
) -> None:
    """Draw one row per image: as it is, brightened, and its label maps.

    Args:
        title: of the whole picture.
        names: of the images.
        images: each `(3, H, W)` in [0, 1].
        columns: caption to train ids `(H, W)` per image, of any size.
        picture: the .png file, written atomically.
    """
    captions = ["image", f"brightened (gamma {GAMMA})", *columns]
    height, width = images[0].shape[-2:]
    size = (WIDTH * len(captions) + 0.4, (WIDTH * height / width + 0.08) * len(images) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(images), len(captions), squeeze=False)
    for row, (name, image) in enumerate(zip(names, images, strict=True)):
        shown = [image, image**GAMMA, *(coloured(labels[row]) for labels in columns.values())]
        for panel, caption, pixels in zip(panels[row], captions, shown, strict=True):
            panel.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(caption, fontsize=9)
        panels[row, 0].set_ylabel(shortened(Path(name).stem, 28), fontsize=7, parse_math=False)
    seen = sorted({int(c) for labels in columns.values() for value in labels for c in torch.unique(value)})
    shades = (COLOURS / 255.0).tolist()
    patches = [Patch(color=tuple(shades[c]), label="void" if c == VOID else CLASSES[c]) for c in seen]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 10), fontsize=8, frameon=False)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=90, format="png"))
