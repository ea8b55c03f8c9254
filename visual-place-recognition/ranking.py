"""Ranking by descriptors, and how good a ranking is: mean average precision and recall.

Source: the evaluation protocol of Philbin et al., "Object retrieval with large vocabularies and fast spatial matching",
CVPR 2007: images that may or may not show the place (junk) are taken out of a ranking before it is scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

RECALLS = (1, 5, 10, 20)
_CHUNK = 512  # queries at a time


@dataclass(frozen=True)
class Relevance:
    """What a query should find: positions in the data base of its place, and of `junk`, which counts neither way."""

    ok: tuple[int, ...]
    junk: tuple[int, ...] = ()


def nearest(queries: Tensor, database: Tensor) -> Tensor:
    """Positions in the data base by decreasing similarity, `(Q, N)`.

    Args:
        queries: descriptors `(Q, D)` of unit length.
        database: descriptors `(N, D)` of unit length.
    """
    return torch.cat([(chunk @ database.T).topk(len(database), dim=1).indices for chunk in queries.split(_CHUNK)])


def without_junk(ranking: Sequence[int], relevance: Relevance) -> list[int]:
    """The ranking with its junk taken out."""
    junk = set(relevance.junk)
    return [position for position in ranking if position not in junk]


def average_precision(ranking: Sequence[int], ok: Sequence[int]) -> float:
    """Area under the precision-recall curve of a ranking without junk, trapezoidal; NaN without anything to find."""
    if not ok:
        return float("nan")
    wanted, total, found = set(ok), 0.0, 0
    for rank, position in enumerate(ranking):
        if position in wanted:
            before = found / rank if rank else 1.0
            found += 1
            total += (before + found / (rank + 1)) / 2
    return total / len(wanted)


@dataclass(frozen=True)
class RetrievalScore:
    """How well queries were answered.

    `rankings` is `(Q, N)`. `average_precisions` has a number per query, NaN where there is nothing to find. `recalls`
    maps n to the share of the answerable queries that find their place among the first n results. `by_place` maps a
    place to the mean average precision and recall at 1 of its queries, and their number.
    """

    rankings: Tensor
    average_precisions: list[float]
    recalls: dict[int, float]
    by_place: dict[str, tuple[float, float, int]] = field(default_factory=dict)

    @property
    def answerable(self) -> int:
        """Queries with something to find."""
        return sum(value == value for value in self.average_precisions)

    @property
    def mean_average_precision(self) -> float:
        """Mean over the queries with something to find."""
        return _mean(self.average_precisions)

    @property
    def by_place_mean(self) -> tuple[float, float]:
        """Mean average precision and recall at 1, where every place weighs the same."""
        return _mean([found[0] for found in self.by_place.values()]), _mean([f[1] for f in self.by_place.values()])


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanmean())


def score_rankings(
    rankings: Tensor, relevances: Sequence[Relevance], places: Sequence[str], count: int | None = None
) -> RetrievalScore:
    """Score rankings, complete but for what comes behind `count` results, of which one has something to find.

    Args:
        rankings: positions in the data base `(Q, N)`, best first.
        relevances: what each query should find.
        places: what each query's place is called.
        count: results that are looked at once junk is taken out; what comes behind them is not found. None for all.
    """
    precisions: list[float] = []
    heads: list[list[int]] = []  # all that recall looks at
    for ranking, wanted in zip(rankings, relevances, strict=True):
        counted = without_junk(ranking.tolist(), wanted)[:count]
        precisions.append(average_precision(counted, wanted.ok))
        heads.append(counted[: max(RECALLS)])
    answerable = [i for i, wanted in enumerate(relevances) if wanted.ok]
    hits = {n: [not set(relevances[i].ok).isdisjoint(heads[i][:n]) for i in answerable] for n in RECALLS}
    first = dict(zip(answerable, hits[1], strict=True))
    by_place = {}
    for place in dict.fromkeys(places[i] for i in answerable):
        of_place = [i for i in answerable if places[i] == place]
        recall = sum(first[i] for i in of_place) / len(of_place)
        by_place[place] = (_mean([precisions[i] for i in of_place]), recall, len(of_place))
    return RetrievalScore(rankings, precisions, {n: sum(h) / len(h) for n, h in hits.items()}, by_place)
