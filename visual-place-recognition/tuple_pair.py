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
from minmax.runtime.errors import UsageError

ItemT = TypeVar("ItemT")


class ImagesOfManyShapes(nn.Module):
    """Runs a network on lists of images `(3, H, W)` of any shape; those of equal shape go together."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

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
    """Runs a `ViewPair` on day and darkened queries, and describes their positives and negatives."""

    def __init__(self, pair: ViewPair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, days: Sequence[Tensor], nights: Sequence[Tensor], others: Sequence[Tensor]) -> TupleOutputs:
        """Describe queries by day and by night, and their others, each `(3, H, W)` in [0, 1], of any shapes."""
        order: list[int] = []
        found: list[Pair] = []
        for positions, batch in by_shape(days):
            found.append(self.pair(batch, torch.stack([nights[i] for i in positions])))
            order += positions
        back = _back(order, days[0].device)
        pair = Pair(*(torch.cat(parts)[back] for parts in zip(*found, strict=True)))
        return TupleOutputs(pair, _described(self.pair.online, others))


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


def refuse_data_parallel(runtime: Runtime) -> None:
    """Raise UsageError for several devices in one process: DataParallel cannot share out images of many shapes."""
    if len(runtime.device_ids) > 1:
        raise UsageError("images of places have many shapes, which DataParallel cannot share out; start with torchrun")
