"""Pictures of segmentation: image, truth and predictions side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from miou import StreetScore
from street_images import StreetImages
from street_labels import CLASSES, COLOURS, VOID, colour_labels
from torch import Tensor

from media.pictures import as_intensities
from minmax.runtime.report import GAMMA, Cell, draw_sheet, shorten

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
    rows = []
    for number, (name, image) in enumerate(zip(names, images, strict=True)):
        shown = [image, image**GAMMA, *(colour_labels(labels[number]) for labels in columns.values())]
        rows.append((shorten(Path(name).stem, 28), [*map(Cell, shown)]))
    seen = sorted({int(c) for labels in columns.values() for value in labels for c in torch.unique(value)})
    shades = (COLOURS / 255.0).tolist()
    legend = {"void" if c == VOID else CLASSES[c]: tuple(shades[c]) for c in seen}
    draw_sheet(title, ["image", f"brightened (gamma {GAMMA})", *columns], rows, picture, WIDTH, legend)
