"""What all kinds of darkener have in common: one module per kind, behind one interface."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Darkening(NamedTuple):
    """A darkened batch and the maps that made it, each `(N, 3, H, W)`; `image` is not clamped.

    Of view scene the curve map is small, `SceneCurves.maps`, and the scale map is the colour cast. Of view camera both
    are the draws that made each picture, `(N, DRAWS)`.
    """

    image: Tensor
    curve_map: Tensor
    scale_map: Tensor


class View(nn.Module, ABC):
    """One way to darken images; it holds the weights of a `Darkener`, whose methods call those of the same name here.

    `draw`, where there is chance, then `forward` or `darken` with what it returned.
    """

    def draw(
        self, images: Tensor, generator: torch.Generator | None, draws: Tensor | None = None, frames: int = 1
    ) -> tuple[Tensor, ...]:
        """Nothing is random, but in a view that says so."""
        return ()

    @abstractmethod
    def forward(self, images: Tensor, exposure: Tensor, *drawn: Tensor) -> Darkening:
        """Darken for training: with gradients and without a clamp. Arguments as for `Darkener.forward`."""

    @abstractmethod
    def darken(self, images: Tensor, exposure: Tensor, memory: Any, drawn: Sequence[Tensor]) -> Tensor:
        """Darken for use: clamped to [0, 1]. Arguments as for `Darkener.darken`; called without gradients."""
