"""What all kinds of darkener have in common: one module per kind, behind one interface."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Darkening(NamedTuple):
    """A darkened batch and the maps that made it, each `(N, 3, H, W)`; `image` is not clamped.

    Of view scene the curve map is small, `SceneCurves.maps`, and the scale map is the colour cast. Of view camera both
    are the draws that made each picture, `(N, SHARED_DRAWS)`.
    """

    image: Tensor
    curve_map: Tensor
    scale_map: Tensor


class View(nn.Module, ABC):
    """One way to darken images; it holds the weights of a `Darkener`."""

    def draw(
        self, images: Tensor, generator: torch.Generator | None, shared: Tensor | None = None, frames: int = 1
    ) -> tuple[Tensor, ...]:
        """Draw what is random about the nights of `(N, 3, H, W)` images, from a generator on the CPU.

        Args:
            images: what will be darkened.
            generator: None is torch's default one.
            shared: even draws `(N, SHARED_DRAWS)` that were made before, for instance for all frames of a clip.
            frames: so many images in a row are a clip and share them.
        """
        return ()

    @abstractmethod
    def forward(self, images: Tensor, exposure: Tensor, *drawn: Tensor) -> Darkening:
        """Darken for training: with gradients and without a clamp. Arguments as for `Darkener.forward`."""

    @abstractmethod
    def darken(self, images: Tensor, exposure: Tensor, memory: Any, drawn: Sequence[Tensor]) -> Tensor:
        """Darken for use: clamped to [0, 1]. Arguments as for `Darkener.darken`; called without gradients."""
