"""Pictures of retrieval: a tuple to train on; a query and its first results, right and wrong ones marked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ranking import RetrievalScore, without_junk
from retrieval_sets import RetrievalSet
from torch import Tensor

from minmax.runtime.report import GAMMA, Cell, draw_sheet, picture_grid, save_picture, shorten
from minmax.runtime.splits import evenly_spaced

SHOWN_QUERIES = 8
SHOWN_RESULTS = 5
_MARKS = {True: "#2a9d3a", False: "#c62828"}


def draw_results(test: RetrievalSet, scores: Mapping[str, RetrievalScore], size: int, picture: Path) -> None:
    """Draw some queries, a row each: the query, brightened, and its first results by each network.

    Args:
        test: queries and data base.
        scores: what each network found, by caption.
        size: longest side of the images in pixels.
        picture: the .png file, written atomically.
    """

    def results(score: RetrievalScore, query: int) -> list[tuple[int, bool]]:
        """The first ones without junk, each with whether it shows the place."""
        wanted = test.relevances[query]
        found = without_junk(score.rankings[query].tolist(), wanted)
        return [(position, position in wanted.ok) for position in found[:SHOWN_RESULTS]]

    # Up to half of those shown are queries whose first result changed from wrong to right or back.
    changed: list[int] = []
    same: list[int] = []
    for query, wanted in enumerate(test.relevances):
        if wanted.ok:
            verdicts = {results(score, query)[0][1] for score in scores.values()}
            (changed if len(verdicts) > 1 else same).append(query)
    shown = evenly_spaced(changed, SHOWN_QUERIES // 2)
    shown += evenly_spaced(same, SHOWN_QUERIES - len(shown))
    rows = []
    for query in sorted(shown):
        image = test.queries.load(query, size) / 255.0
        cells: list[Cell | None] = [Cell(image), Cell(image**GAMMA)]
        for score in scores.values():
            first = results(score, query)
            cells += [Cell(test.database.load(i, size) / 255.0, frame=_MARKS[right]) for i, right in first]
            cells += [None] * (SHOWN_RESULTS - len(first))
        rows.append((shorten(test.places[query], 22), cells))
    headings = ["query", f"gamma {GAMMA}"]
    for caption in scores:
        headings += [f"{caption} →", *[""] * (SHOWN_RESULTS - 1)]
    draw_sheet(f"{test.title}: first results, right ones framed green, wrong ones red", headings, rows, picture)


def draw_tuple(day: Tensor, night: Tensor, others: Sequence[Tensor], run: Path) -> None:
    """Draw a query by day and by night, its positive, and its negatives, into a run's pictures/first_tuple.png."""
    images = [day, night, *others]
    side = max(max(image.shape[-2:]) for image in images)
    framed = torch.ones(len(images), 3, side, side)
    for frame, image in zip(framed, images, strict=True):
        frame[:, : image.shape[1], : image.shape[2]] = image
    save_picture(picture_grid([framed]), run / "pictures" / "first_tuple.png")
