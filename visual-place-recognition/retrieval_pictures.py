"""What queries find, to look at: the query and its first results before and after, right and wrong ones marked."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from place_tests import RetrievalTest
from ranking import RetrievalScore, without_junk
from torch import Tensor

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.report import shortened
from minmax.runtime.splits import evenly_spaced

SHOWN_QUERIES = 8
SHOWN_RESULTS = 5
SIDE = 1.35  # of a picture, inches
GAMMA = 0.5
_MARKS = {True: "#2a9d3a", False: "#c62828"}


def choose_queries(scores: Mapping[str, RetrievalScore], test: RetrievalTest) -> list[int]:
    """Queries to show: half of them such whose first result changed from wrong to right or back, if there are any."""
    answerable = [i for i, wanted in enumerate(test.relevances) if wanted.ok]
    firsts = [[_results(score, test, i)[0][1] for i in answerable] for score in scores.values()]
    changed = [i for i, verdicts in zip(answerable, zip(*firsts, strict=True), strict=True) if len(set(verdicts)) > 1]
    shown = evenly_spaced(changed, SHOWN_QUERIES // 2)
    shown += evenly_spaced([i for i in answerable if i not in changed], SHOWN_QUERIES - len(shown))
    return sorted(shown)


def _results(score: RetrievalScore, test: RetrievalTest, query: int) -> list[tuple[int, bool]]:
    """The first results that are no junk, each with whether it shows the place."""
    wanted = test.relevances[query]
    found = without_junk(score.rankings[query].tolist(), wanted)
    return [(position, position in wanted.ok) for position in found[:SHOWN_RESULTS]]


def draw_results(test: RetrievalTest, scores: Mapping[str, RetrievalScore], size: int, picture: Path) -> None:
    """Draw some queries, a row each: the query, brightened, and its first results by each network.

    Args:
        test: queries and data base.
        scores: caption to what a network found.
        size: longest side that images are read with.
        picture: the .png file, written atomically.
    """
    queries = choose_queries(scores, test)
    columns = 2 + SHOWN_RESULTS * len(scores)
    figure = Figure(figsize=(SIDE * columns + 0.3, SIDE * len(queries) + 0.9), layout="constrained")
    figure.suptitle(f"{test.title}: first results, right ones framed green, wrong ones red", fontsize=11)
    panels = figure.subplots(len(queries), columns, squeeze=False)
    for row, query in zip(panels, queries, strict=True):
        image = test.queries.load(query, size)
        _show(row[0], image, shortened(test.places[query], 22))
        _show(row[1], image, "", GAMMA)
        column = 2
        for score in scores.values():
            results = _results(score, test, query)
            for panel, (position, right) in zip(row[column:], results, strict=False):
                _show(panel, test.database.load(position, size), "")
                for edge in panel.spines.values():
                    edge.set(color=_MARKS[right], linewidth=3)
            for panel in row[column + len(results) : column + SHOWN_RESULTS]:
                panel.set_axis_off()
            column += SHOWN_RESULTS
    panels[0, 0].set_title("query", fontsize=9)
    panels[0, 1].set_title(f"gamma {GAMMA}", fontsize=9)
    for number, caption in enumerate(scores):
        panels[0, 2 + SHOWN_RESULTS * number].set_title(f"{caption} →", fontsize=9, loc="left")
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=90, format="png"))


def _show(panel: Axes, image: Tensor, label: str, gamma: float = 1.0) -> None:
    panel.imshow(((image / 255.0) ** gamma).permute(1, 2, 0).numpy())
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_ylabel(label, fontsize=7, parse_math=False)
