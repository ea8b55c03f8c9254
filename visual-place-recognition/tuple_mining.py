"""Tuples to train on: a query, an image of the same place, and the hardest images of other places.

Source: Radenović, Tolias and Chum, TPAMI 2019 (mining and contrastive loss); Luo et al., ICCV 2023 (the darkened query
as a second positive).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from descriptors import describe
from place_pairs import PlacePairs
from torch import Tensor
from torch.utils.data import Dataset

from minmax.features import FeatureModel
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError, check
from minmax.runtime.seeding import generator_for

_DISTANCE_FLOOR = 1e-6
_CHUNK = 256  # queries whose similarities to the pool are held at a time
QUICK = {
    "images": {"size": 64},
    "tuples": {"queries": 8, "pool": 24, "negatives": 2},
    "optim": {"epochs": 2, "batch_size": 2},
    "workers": 0,
}
"""What --quick makes of a training on tuples."""


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
        check(self, "queries", self.queries >= 1, "1 or more")
        check(self, "negatives", self.negatives >= 1, "1 or more")
        check(self, "pool", self.pool > self.negatives, f"more than the {self.negatives} negatives")
        check(self, "margin", 0 < self.margin <= 2, "more than 0, at most 2")


def contrastive_loss(query: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Sum of half the squared distances to positives, and half the squared shortfall of negatives from the margin.

    Args:
        query: descriptors `(T, D)`.
        positives: `(T, P, D)`.
        negatives: `(T, K, D)`.
        margin: distance beyond which a negative costs nothing.
    """

    def distances(others: Tensor) -> Tensor:
        # The floor is added to every component, as in the authors' code: the root has a slope at 0.
        length: Tensor = (query.unsqueeze(1) - others + _DISTANCE_FLOOR).norm(dim=2)
        return length

    near = distances(positives).square()
    far = (margin - distances(negatives)).clamp(min=0).square()
    return 0.5 * (near.sum() + far.sum())


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
    found = []
    for rows, own in zip(queries.split(_CHUNK), query_clusters.split(_CHUNK), strict=True):
        similarities = rows @ pool.T
        taken = own  # the place that each query may not find (again): first its own, then that of its last negative
        negatives = []
        for _ in range(count):
            similarities[taken.unsqueeze(1) == pool_clusters] = float("-inf")
            negatives.append(similarities.argmax(dim=1))
            taken = pool_clusters[negatives[-1]]
        found.append(torch.stack(negatives, dim=1))
    return torch.cat(found)


class PlaceTuple(NamedTuple):
    """A query and its positive and negatives, in this order, each uint8 RGB `(3, H, W)` of any size."""

    query: Tensor
    others: list[Tensor]


class EpochTuples(Dataset[Any]):
    """The tuples of the epoch in progress as a data set of `PlaceTuple`, indexed by (epoch, number).

    They depend on the network at the start of the epoch, so `mine` finds them anew and the run saves them: `members`
    `(T, 2 + K)`, positions of query, positive and negatives among the images, and the `epoch` they are of, -1 before
    the first. `start_score` is saved with them: what the network scored before the first step.

    Args:
        pairs: the training images.
        config: how many tuples, of what.
        size: longest side of the images in pixels.
        seed: of the draws.

    Raises:
        UsageError: when there are too few places; says how many.
    """

    def __init__(self, pairs: PlacePairs, config: TupleConfig, size: int, seed: int) -> None:
        places = int(pairs.clusters.unique().numel())
        if places <= config.negatives:
            raise UsageError(
                f"{pairs.images.title} has {places} places; --tuples.negatives {config.negatives} of other places than "
                "the query's need more"
            )
        self.pairs, self.config, self.size, self.seed = pairs, config, size, seed
        self.epoch, self.members = -1, torch.empty(0, 0, dtype=torch.int64)
        self.start_score = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Epoch, members and start score."""
        return {"epoch": self.epoch, "members": self.members, "start_score": self.start_score}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore what `state_dict` gave."""
        self.epoch, self.members, self.start_score = state["epoch"], state["members"], state["start_score"]

    def mine(self, network: FeatureModel, epoch: int, runtime: Runtime, workers: int) -> None:
        """Draw the queries of an epoch and find their negatives with the network as it is.

        Does nothing when this epoch's are there already, as after a resume in the middle of it.
        """
        if self.epoch == epoch:
            return
        pairs, images = self.pairs, self.pairs.images
        chosen = self._draw(self.config.queries, len(pairs.queries), "queries", epoch)
        pool = self._draw(self.config.pool, len(images), "pool", epoch)
        queries, positives = pairs.queries[chosen], pairs.positives[chosen]
        asked, row = queries.unique(return_inverse=True)
        described = describe(network, images, self.size, runtime, asked.tolist(), workers=workers)
        stored = describe(network, images, self.size, runtime, pool.tolist(), workers=workers)
        mine = torch.tensor(runtime.dealt(range(len(queries))), dtype=torch.int64)
        found = mine_negatives(
            described[row[mine]], stored, pairs.clusters[queries[mine]], pairs.clusters[pool], self.config.negatives
        )
        negatives = pool[torch.tensor(runtime.collected(found.tolist()))]
        self.epoch, self.members = epoch, torch.cat([queries.unsqueeze(1), positives.unsqueeze(1), negatives], dim=1)

    def _draw(self, count: int, of: int, purpose: str, epoch: int) -> Tensor:
        """Different positions below `of`: `count`, or all if there are fewer."""
        return torch.randperm(of, generator=generator_for(self.seed, purpose, epoch))[:count]

    def __len__(self) -> int:
        """Tuples of an epoch."""
        return min(self.config.queries, len(self.pairs.queries))

    def __getitem__(self, position: tuple[int, int]) -> PlaceTuple:
        """Tuple `position[1]`; those of epoch `position[0]` must have been mined."""
        epoch, number = position
        if epoch != self.epoch:
            raise ValueError(f"the tuples are of epoch {self.epoch}, not {epoch}")
        query, *others = [self.pairs.images.load(int(i), self.size) for i in self.members[number]]
        return PlaceTuple(query, others)
