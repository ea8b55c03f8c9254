"""Pictures of retrieval: a query and its first results before and after, right and wrong ones marked."""

from collections.abc import Mapping
from pathlib import Path

from ranking import RetrievalScore, without_junk
from retrieval_sets import RetrievalSet

from minmax.runtime.report import GAMMA, Cell, draw_sheet, shorten
from minmax.runtime.splits import evenly_spaced

SHOWN_QUERIES = 8
SHOWN_RESULTS = 5
_MARKS = {True: "#2a9d3a", False: "#c62828"}


def choose_queries(scores: Mapping[str, RetrievalScore], test: RetrievalSet) -> list[int]:
    """Choose queries to show; up to half are those whose first result changed from wrong to right or back."""
    answerable = [i for i, wanted in enumerate(test.relevances) if wanted.ok]
    firsts = [[_results(score, test, i)[0][1] for i in answerable] for score in scores.values()]
    changed = [i for i, verdicts in zip(answerable, zip(*firsts, strict=True), strict=True) if len(set(verdicts)) > 1]
    shown = evenly_spaced(changed, SHOWN_QUERIES // 2)
    shown += evenly_spaced([i for i in answerable if i not in changed], SHOWN_QUERIES - len(shown))
    return sorted(shown)


def _results(score: RetrievalScore, test: RetrievalSet, query: int) -> list[tuple[int, bool]]:
    """The first results without junk, each with whether it shows the place."""
    wanted = test.relevances[query]
    found = without_junk(score.rankings[query].tolist(), wanted)
    return [(position, position in wanted.ok) for position in found[:SHOWN_RESULTS]]


def draw_results(test: RetrievalSet, scores: Mapping[str, RetrievalScore], size: int, picture: Path) -> None:
    """Draw some queries, a row each: the query, brightened, and its first results by each network.

    Args:
        test: queries and data base.
        scores: what each network found, by caption.
        size: longest side of the images in pixels.
        picture: the .png file, written atomically.
    """
    rows = []
    for query in choose_queries(scores, test):
        image = test.queries.load(query, size) / 255.0
        cells: list[Cell | None] = [Cell(image), Cell(image**GAMMA)]
        for score in scores.values():
            results = _results(score, test, query)
            cells += [Cell(test.database.load(i, size) / 255.0, frame=_MARKS[right]) for i, right in results]
            cells += [None] * (SHOWN_RESULTS - len(results))
        rows.append((shorten(test.places[query], 22), cells))
    headings = ["query", f"gamma {GAMMA}"]
    for caption in scores:
        headings += [f"{caption} →", *[""] * (SHOWN_RESULTS - 1)]
    draw_sheet(f"{test.title}: first results, right ones framed green, wrong ones red", headings, rows, picture)
