"""What tuples need of the networks: images of many shapes, and DDP's single forward pass over all images of a step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minmax.byol import Pair, ViewPair
from minmax.runtime.devices import Runtime


class ImagesOfManyShapes(nn.Module):
    """A module for lists of images `(3, H, W)` of any shapes; those of one shape go through it together.

    Args:
        module: one batch `(N, 3, H, W)` for each list, to a tensor or a NamedTuple of tensors.
        runtime: its devices share out the images of one shape.
    """

    def __init__(self, module: nn.Module, runtime: Runtime) -> None:
        super().__init__()
        self.module = runtime.spread(module)

    def forward(self, *lists: Sequence[Tensor]) -> Any:
        """What the module makes of the images, in their order; those at one position of all lists have one shape."""
        by_shape: dict[torch.Size, list[int]] = {}
        for position, image in enumerate(lists[0]):
            by_shape.setdefault(image.shape, []).append(position)
        found = [
            self.module(*(torch.stack([images[position] for position in positions]) for images in lists))
            for positions in by_shape.values()
        ]
        order = torch.tensor([position for positions in by_shape.values() for position in positions])
        back = order.argsort().to(lists[0][0].device)
        if isinstance(found[0], Tensor):
            return torch.cat(found)[back]
        return type(found[0])(*(torch.cat(parts)[back] for parts in zip(*found, strict=True)))


class TuplePair(nn.Module):
    """A `ViewPair` of day and darkened queries, beside the descriptors of their positives and negatives.

    Args:
        pair: of a retrieval network.
        runtime: the devices.
    """

    def __init__(self, pair: ViewPair, runtime: Runtime) -> None:
        super().__init__()
        self.pair, self.network = ImagesOfManyShapes(pair, runtime), ImagesOfManyShapes(pair.online, runtime)

    def forward(
        self, days: Sequence[Tensor], nights: Sequence[Tensor], others: Sequence[Tensor]
    ) -> tuple[Pair, Tensor]:
        """What BYOL needs of the queries by day and by night, and descriptors `(M, D)` of the tuples' other images."""
        return self.pair(days, nights), self.network(others)
