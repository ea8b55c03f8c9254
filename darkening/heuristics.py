"""Hand-made nights, for ablations and for choosing checkpoints: each reaches a target mean intensity exactly.

All are one monotonic tone curve per image with one unknown, found by bisection on the image's histogram; the camera
model then adds the noise of a sensor.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

HeuristicName = Literal["gamma", "brightness", "camera"]

_DISPLAY_GAMMA = 2.2
_FULL_WELL = 2000.0  # photo-electrons at white after the gain of a night exposure: a small sensor at a high ISO
_READ_NOISE = 3.0  # electrons


def gamma_night(images: Tensor, exposure: Tensor, generator: torch.Generator) -> Tensor:
    """Darken by a power: v <- v^g, g solved per image; black and white stay.

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        exposure: target mean intensity, `(N, 1, 1, 1)` or a map `(N, 1, H, W)` whose mean counts.
        generator: unused; every night has the same interface.

    Returns:
        Images of the same shape in [0, 1].
    """
    # A power of exactly 0 would make black white.
    return images ** _solve(images, exposure, lambda v, g: v**g, low=1e-3, high=1e3).clamp_min(1e-3)


def brightness_night(images: Tensor, exposure: Tensor, generator: torch.Generator) -> Tensor:
    """Darken by a factor: v <- k v, clipped at 1, k solved per image; arguments as `gamma_night`."""
    # Bisection needs a falling function, so the unknown is 1 / k.
    factor = 1.0 / _solve(images, exposure, lambda v, inverse: (v / inverse).clamp(max=1.0), low=1e-3, high=1e3)
    return (images * factor).clamp(0.0, 1.0)


def camera_night(images: Tensor, exposure: Tensor, generator: torch.Generator) -> Tensor:
    """A short exposure of a noisy sensor: less linear light, shot and read noise, display gamma, 8 bits.

    The target mean is that of the noise-free picture; arguments as `gamma_night`.
    """

    def tone(value: Tensor, inverse: Tensor) -> Tensor:
        return (value**_DISPLAY_GAMMA / inverse).clamp(max=1.0) ** (1.0 / _DISPLAY_GAMMA)

    factor = 1.0 / _solve(images, exposure, tone, low=1e-3, high=1e6)
    light = (images**_DISPLAY_GAMMA * factor).clamp(max=1.0)
    noise = torch.randn(images.shape, generator=generator).to(images)
    # Shot noise is Poisson, here by its normal approximation; its variance is the number of electrons.
    deviation = (light * _FULL_WELL + _READ_NOISE**2).sqrt() / _FULL_WELL
    developed = (light + deviation * noise).clamp(0.0, 1.0) ** (1.0 / _DISPLAY_GAMMA)
    return (developed * 255.0).round() / 255.0


Night = Callable[[Tensor, Tensor, torch.Generator], Tensor]
HEURISTICS: dict[HeuristicName, Night] = {
    "gamma": gamma_night,
    "brightness": brightness_night,
    "camera": camera_night,
}


def _solve(
    images: Tensor, exposure: Tensor, tone: Callable[[Tensor, Tensor], Tensor], low: float, high: float
) -> Tensor:
    """The parameter per image, `(N, 1, 1, 1)`, at which the mean of `tone(image, parameter)`, falling, hits the target.

    Works on histograms of 256 levels: the error is below half a level whatever the size of the images.
    """
    count = images.shape[0]
    target = exposure.to(images).mean(dim=(1, 2, 3)).clamp_min(0.0).view(-1, 1).expand(count, 1)
    levels = torch.linspace(0.0, 1.0, 256, device=images.device)
    codes = (images.detach().clamp(0.0, 1.0) * 255.0).round().long().flatten(1)
    codes += 256 * torch.arange(count, device=images.device).view(-1, 1)
    share = torch.bincount(codes.flatten(), minlength=256 * count).view(count, 256) / codes.shape[1]
    # Bisection in the logarithm: the parameters span orders of magnitude.
    lower = torch.full((count, 1), low, device=images.device).log()
    upper = torch.full((count, 1), high, device=images.device).log()
    for _ in range(40):
        middle = (lower + upper) / 2
        too_bright = (share * tone(levels, middle.exp())).sum(dim=1, keepdim=True) > target
        lower, upper = torch.where(too_bright, middle, lower), torch.where(too_bright, upper, middle)
    return ((lower + upper) / 2).exp().to(images.dtype).view(-1, 1, 1, 1)
