"""Tuples to train on: a query, an image of the same place, and the hardest images of other places.

Source: Radenović, Tolias and Chum, TPAMI 2019 (mining and contrastive loss); Luo et al., ICCV 2023 (the darkened query
as a second positive).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from descriptors import describe, draw_positions
from place_images import PlaceImages
from place_pairs import PlacePairs
from torch import Tensor
from torch.utils.data import Dataset

from minmax.features import FeatureModel
from minmax.runtime.config import require
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError

_DISTANCE_FLOOR = 1e-6
_FIRST_LOOK = 8  # candidates per negative in the first look
_CHUNK = 256  # queries whose similarities to the pool are held at a time


@dataclass(frozen=True)
class TupleConfig:
    """What a training step compares."""

    queries: int = 22000
    """Queries per epoch; all pairs if there are fewer."""
    pool: int = 2000
    """Images that an epoch's negatives are searched in; all if there are fewer."""
    negatives: int = 5
    """Negatives per query, each of another place."""
    margin: float = 0.85
    """Distance beyond which a negative is far enough."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.queries >= 1, "--tuples.queries", self.queries, "1 or more")
        require(self.pool >= 2, "--tuples.pool", self.pool, "2 or more")
        require(self.negatives >= 1, "--tuples.negatives", self.negatives, "1 or more")
        require(self.pool > self.negatives, "--tuples.pool", self.pool, f"more than the {self.negatives} negatives")
        require(0 < self.margin <= 2, "--tuples.margin", self.margin, "more than 0, at most 2")


def contrastive_loss(query: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Sum of half the squared distances to positives, and half the squared shortfall of negatives from the margin.

    Args:
        query: descriptors `(T, D)`.
        positives: `(T, P, D)`.
        negatives: `(T, K, D)`.
        margin: distance beyond which a negative costs nothing.
    """
    near = _distances(query, positives).square()
    far = (margin - _distances(query, negatives)).clamp(min=0).square()
    return 0.5 * (near.sum() + far.sum())


def _distances(query: Tensor, others: Tensor) -> Tensor:
    # The floor is added to every component, as in the authors' code: the root has a slope at 0.
    distances: Tensor = (query.unsqueeze(1) - others + _DISTANCE_FLOOR).norm(dim=2)
    return distances


def mine_negatives(queries: Tensor, pool: Tensor, query_clusters: Tensor, pool_clusters: Tensor, count: int) -> Tensor:
    """The most similar images of other places, at most one of each place.

    Args:
        queries: descriptors `(Q, D)`.
        pool: descriptors `(P, D)`.
        query_clusters: places of the queries `(Q,)`.
        pool_clusters: places of the pool `(P,)`.
        count: negatives of each query.

    Returns:
        Positions in the pool `(Q, count)`, most similar first.

    Raises:
        RunError: when the pool holds too few places.
    """
    others = pool_clusters.unique().numel() - torch.isin(query_clusters, pool_clusters).long()
    if int(others.min()) < count:
        raise RunError(
            f"the pool of {len(pool)} images shows {int(others.min())} places beside a query's; {count} negatives need "
            "as many: raise --tuples.pool or lower --tuples.negatives"
        )
    found = torch.empty(len(queries), count, dtype=torch.int64)
    place_of, own_place = pool_clusters.tolist(), query_clusters.tolist()
    for start in range(0, len(queries), _CHUNK):
        rows = slice(start, start + _CHUNK)
        similarities = queries[rows] @ pool.T
        similarities[query_clusters[rows].unsqueeze(1) == pool_clusters] = float("-inf")
        missing, look = torch.arange(len(similarities)), min(len(pool), _FIRST_LOOK * count)
        while len(missing):
            candidates = similarities[missing].topk(look, dim=1).indices
            enough = []
            for row, positions in zip(missing.tolist(), candidates.tolist(), strict=True):
                chosen = _one_per_place(positions, place_of, own_place[start + row], count)
                if len(chosen) == count:
                    found[start + row] = torch.tensor(chosen)
                enough.append(len(chosen) == count)
            missing, look = missing[~torch.tensor(enough)], min(len(pool), 4 * look)
    return found


def _one_per_place(positions: Sequence[int], place_of: Sequence[int], own: int, count: int) -> list[int]:
    chosen, seen = [], {own}
    for position in positions:
        if place_of[position] not in seen:
            seen.add(place_of[position])
            chosen.append(position)
            if len(chosen) == count:
                break
    return chosen


@dataclass
class EpochTuples:
    """The tuples of the epoch in progress; saved with the run, as they depend on the network at its start.

    `epoch` is theirs, -1 before the first; `members` `(T, 2 + K)` positions of query, positive, negatives;
    `start_score` the selection score before the first step.
    """

    epoch: int = -1
    members: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    start_score: float = 0.0

    @staticmethod
    def check(pairs: PlacePairs, config: TupleConfig) -> None:
        """Refuse data of too few places, before a run is opened.

        Raises:
            UsageError: says how many there are.
        """
        places = int(pairs.clusters.unique().numel())
        if places <= config.negatives:
            raise UsageError(
                f"{pairs.images.title} has {places} places; --tuples.negatives {config.negatives} of other places than "
                "the query's need more"
            )

    def state_dict(self) -> dict[str, Any]:
        """Epoch, members and start score."""
        return {"epoch": self.epoch, "members": self.members, "start_score": self.start_score}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore what `state_dict` gave."""
        self.epoch, self.members, self.start_score = state["epoch"], state["members"], state["start_score"]

    def mine(
        self,
        network: FeatureModel,
        pairs: PlacePairs,
        config: TupleConfig,
        epoch: int,
        size: int,
        seed: int,
        runtime: Runtime,
        workers: int,
    ) -> None:
        """Draw the queries of an epoch and find their negatives with the network as it is.

        Does nothing when this epoch's are there already, as after a resume in the middle of it.
        """
        if self.epoch == epoch:
            return
        chosen = torch.tensor(draw_positions(config.queries, len(pairs.queries), seed, "queries", epoch))
        pool = torch.tensor(draw_positions(config.pool, len(pairs.images), seed, "pool", epoch))
        queries, positives = pairs.queries[chosen], pairs.positives[chosen]
        asked, row = queries.unique(return_inverse=True)
        described = describe(network, pairs.images, size, runtime, asked.tolist(), workers=workers)
        stored = describe(network, pairs.images, size, runtime, pool.tolist(), workers=workers)
        mine = torch.tensor(runtime.dealt(range(len(queries))), dtype=torch.int64)
        found = mine_negatives(
            described[row[mine]], stored, pairs.clusters[queries[mine]], pairs.clusters[pool], config.negatives
        )
        negatives = pool[torch.tensor(runtime.collected(found.tolist()))]
        members = torch.cat([queries.unsqueeze(1), positives.unsqueeze(1), negatives], dim=1)
        self.epoch, self.members = epoch, members


class PlaceTuple(NamedTuple):
    """A query and its positive and negatives, each uint8 RGB `(3, H, W)` of any size."""

    query: Tensor
    others: list[Tensor]


class TrainingTuples(Dataset[PlaceTuple]):
    """The tuples of an epoch, indexed by (epoch, number)."""

    def __init__(self, images: PlaceImages, tuples: EpochTuples, count: int, size: int) -> None:
        self.images, self.tuples, self.count, self.size = images, tuples, count, size

    def __len__(self) -> int:
        """Tuples of an epoch."""
        return self.count

    def __getitem__(self, position: tuple[int, int]) -> PlaceTuple:
        """Tuple `position[1]`; those of epoch `position[0]` must have been mined."""
        epoch, number = position
        if epoch != self.tuples.epoch:
            raise ValueError(f"the tuples are of epoch {self.tuples.epoch}, not {epoch}")
        query, *others = [self.images.load(int(i), self.size) for i in self.tuples.members[number]]
        return PlaceTuple(query, others)
