"""What tuples need of the networks, as modules with a single forward pass, as DDP requires."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from place_images import by_shape
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minmax.byol import Pair, ViewPair
from minmax.runtime.devices import Runtime

ItemT = TypeVar("ItemT")


class ImagesOfManyShapes(nn.Module):
    """A network for lists of images `(3, H, W)` of any shapes; equal ones go through it together.

    Args:
        network: images `(N, 3, H, W)` of one shape to descriptors `(N, D)`.
        runtime: its devices share out the images of one shape.
    """

    def __init__(self, network: nn.Module, runtime: Runtime) -> None:
        super().__init__()
        self.network = runtime.spread(network)

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Descriptors `(M, D)` in the order of the images."""
        return _described(self.network, images)


def _described(network: nn.Module, images: Sequence[Tensor]) -> Tensor:
    order, found = [], []
    for positions, batch in by_shape(images):
        found.append(network(batch))
        order += positions
    return torch.cat(found)[_back(order, images[0].device)]


class TupleOutputs(NamedTuple):
    """What BYOL needs of the queries by day and by night, and descriptors `(M, D)` of the tuples' other images."""

    pair: Pair
    others: Tensor


class TuplePair(nn.Module):
    """A `ViewPair` of day and darkened queries, beside the descriptors of their positives and negatives.

    Args:
        pair: of a retrieval network.
        runtime: its devices share out the images of one shape.
    """

    def __init__(self, pair: ViewPair, runtime: Runtime) -> None:
        super().__init__()
        self.pair, self.network = runtime.spread(pair), runtime.spread(pair.online)

    def forward(self, days: Sequence[Tensor], nights: Sequence[Tensor], others: Sequence[Tensor]) -> TupleOutputs:
        """Describe queries by day and by night, and their others, each `(3, H, W)` in [0, 1], of any shapes."""
        order: list[int] = []
        found: list[Pair] = []
        for positions, batch in by_shape(days):
            found.append(self.pair(batch, torch.stack([nights[i] for i in positions])))
            order += positions
        back = _back(order, days[0].device)
        pair = Pair(*(torch.cat(parts)[back] for parts in zip(*found, strict=True)))
        return TupleOutputs(pair, _described(self.network, others))


def _back(order: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(order, device=device).argsort()


def few_at_a_time(items: Sequence[ItemT], count: int, parallel: nn.Module) -> Iterator[tuple[int, Sequence[ItemT]]]:
    """Parts of a batch, each with the number of its first item, whose gradients add up.

    Under DDP only the last part's backward pass exchanges them (and takes their mean over the processes).
    """
    for start in range(0, len(items), count):
        last = start + count >= len(items)
        alone: AbstractContextManager[object] = nullcontext()
        if isinstance(parallel, DistributedDataParallel) and not last:
            alone = parallel.no_sync()
        with alone:
            yield start, items[start : start + count]
