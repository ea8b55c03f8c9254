"""The darkener that learns a camera: a dim night, photographed with settings that suit each image."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkening.camera import DRAWS, MOVED_DRAWS, TONE_DRAW, CameraConfig, draw_noise, photograph
from darkening.exposures import beside
from darkening.heuristics import dimmed
from darkening.views import Darkening, View

_SEEN = 32  # side of the copy that the network looks at
_BOLDNESS = 2.0  # the largest tilt: the mean of an even draw moves to 0.8, or to 0.2


class CameraView(View):
    """Looks at a small copy of each image, and tells which of the nights in range would hide most of it.

    Frames of a clip share draws, but each moves them by what it shows. The last layer starts at 0: all draws even, a
    night made by hand.
    """

    def __init__(self, camera: CameraConfig, width: int = 32) -> None:
        super().__init__()
        self.camera = camera
        self.layers = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4, padding_mode="replicate"),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, MOVED_DRAWS),
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def draw(
        self, images: Tensor, generator: torch.Generator | None, draws: Tensor | None = None, frames: int = 1
    ) -> tuple[Tensor, ...]:
        """Even draws, and the noise of each pixel."""
        if draws is None:
            draws = torch.rand(len(images) // frames, DRAWS, generator=generator).repeat_interleave(frames, dim=0)
        return beside(draws, images), draw_noise(images, generator)

    def forward(self, images: Tensor, exposure: Tensor, *drawn: Tensor) -> Darkening:
        """What one camera makes of each image; `drawn` comes from `draw`."""
        if not drawn:
            raise ValueError("a darkener of view camera needs what its method draw returns")
        draws, noise = drawn
        moved = self.moved(images, exposure, draws)
        dim = dimmed(images, exposure, moved[:, TONE_DRAW])
        image = photograph(dim, self.camera, moved, noise, quantised=not torch.is_grad_enabled())
        return Darkening(image, moved, moved)

    def darken(self, images: Tensor, exposure: Tensor, memory: Any, drawn: Sequence[Tensor]) -> Tensor:
        """Without draws what the camera in the middle of all would make of the images, without noise."""
        image: Tensor = self(images, exposure, *(drawn or self.middle(images))).image
        return image

    def middle(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Draws of the camera in the middle of all, for each image, and no noise."""
        middle = torch.full((1, DRAWS), 0.5)
        middle[:, -1] = 0.0  # photographed, whatever the share
        return middle.expand(images.shape[0], -1), torch.zeros_like(images)

    def moved(self, images: Tensor, exposure: Tensor, draws: Tensor) -> Tensor:
        """Move even draws towards the nights that hide most, none of them out of its range.

        Args:
            images: day images `(N, 3, H, W)` in [0, 1].
            exposure: requested mean intensities, `(N, 1, 1, 1)` or maps `(N, 1, H, W)` whose mean counts.
            draws: `(N, DRAWS)` in [0, 1].

        Returns:
            Draws of the same shape; every value that was possible still is.
        """
        small = F.interpolate(images, size=(_SEEN, _SEEN), mode="bilinear", antialias=True)
        asked = exposure.to(images).mean(dim=(1, 2, 3), keepdim=True).expand(images.shape[0], 1, _SEEN, _SEEN)
        tilt = _BOLDNESS * torch.tanh(self.layers(torch.cat([small - 0.5, 4.0 * asked - 0.8], dim=1)))
        even = draws[:, :MOVED_DRAWS].to(images)
        return torch.cat([torch.sigmoid(torch.logit(even, eps=1e-4) + tilt), draws[:, MOVED_DRAWS:].to(images)], dim=1)
