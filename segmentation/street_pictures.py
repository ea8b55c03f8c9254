"""Pictures of segmentation: image, truth and predictions side by side."""

from collections.abc import Mapping
from pathlib import Path

from miou import StreetScore
from street_images import StreetImages
from street_labels import CLASSES, COLOURS, VOID, colour_labels

from media.pictures import as_intensities
from minmax.runtime.report import GAMMA, Cell, draw_sheet, shorten

WIDTH = 2.6  # of a picture, inches


def draw_predictions(images: StreetImages, scores: Mapping[str, StreetScore], picture: Path) -> None:
    """Draw one row per image that was kept with the scores: as it is, brightened, its truth and its predictions.

    Args:
        images: the data set.
        scores: by caption, of the same images each.
        picture: the .png file, written atomically.
    """
    rows = []
    seen: set[int] = set()
    streets = [street for street, _ in next(iter(scores.values())).kept]
    for number, street in enumerate(streets):
        assert street.labels is not None
        maps = [street.labels, *(score.kept[number][1] for score in scores.values())]
        seen.update(*(labels.unique().tolist() for labels in maps))
        image = as_intensities(street.image)
        cells = [Cell(shown) for shown in (image, image**GAMMA, *map(colour_labels, maps))]
        rows.append((shorten(Path(images.name(street.position)).stem, 28), cells))
    legend = {"void" if c == VOID else CLASSES[c]: tuple((COLOURS[c] / 255.0).tolist()) for c in sorted(seen)}
    headings = ["image", f"brightened (gamma {GAMMA})", "truth", *scores]
    draw_sheet(images.title, headings, rows, picture, WIDTH, legend)
