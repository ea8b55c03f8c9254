"""Hand-made nights, the rivals of a learned one: each reaches min(request, the day's mean) as nearly as its curve can.

No pixel becomes brighter than by day, but for the noise of the short exposure, and for black, which dim nights lift to
0.001 at most. Two controls share their interface: `day_view` and `augmix_view`, which darken nothing.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from darkening.camera import DISPLAY_GAMMA, TONE_DRAW, draw_noise, with_sensor_noise
from darkening.exposures import beside

Generator: TypeAlias = torch.Generator | None  # None: torch's default one
Night = Callable[..., Tensor]
"""What darkens images: (images, exposure, generator, draws) to images of the same shape, `(N, 3, H, W)` in [0, 1].

`exposure` is the requested mean intensity, `(N, 1, 1, 1)`, or a map `(N, 1, H, W)` whose mean counts here; `generator`
is of what is drawn anew for every frame; `draws` are the even draws of each image, `(N, DRAWS)`, which frames of a clip
share, or None. A night that needs neither takes them all the same.
"""

LARGEST_POWER = 6.0  # beyond it a photo with a burnt-out sky becomes black and white
_FULL_WELL = 2000.0  # photo-electrons at white after the gain of a night exposure: a small sensor at a high ISO
_READ_NOISE = 3.0  # electrons


def gamma_night(images: Tensor, exposure: Tensor, generator: Generator, draws: Tensor | None = None) -> Tensor:
    """Darken by a power: v <- v^g, g in [1, 6] solved per image; black and white stay.

    The mean is min(request, the day's mean) where g = 6 is dark enough for it, and otherwise, as under a burnt-out
    sky, that of v^6: brighter than asked for.
    """
    return images ** solve_power(images, _target(images, exposure))


def brightness_night(images: Tensor, exposure: Tensor, generator: Generator, draws: Tensor | None = None) -> Tensor:
    """Darken by a factor: v <- k v, k in [0, 1] per image. The mean is min(request, the day's mean), exactly."""
    mean = images.mean(dim=(1, 2, 3)).clamp_min(1e-6)
    return images * (_target(images, exposure) / mean).clamp(max=1.0).view(-1, 1, 1, 1)


def dim_night(images: Tensor, exposure: Tensor, generator: Generator, draws: Tensor | None = None) -> Tensor:
    """Darken by a power and a factor in a random proportion: between `brightness_night` and `gamma_night`.

    The mean is min(request, the day's mean), exactly. Without `draws` each image has its own.
    """
    share = torch.rand(len(images), generator=generator) if draws is None else draws[:, TONE_DRAW]
    return dimmed(images, exposure, share)


def dimmed(images: Tensor, exposure: Tensor, share: Tensor) -> Tensor:
    """Darken by v <- k v^p, p from 1 (share 0) to that of `gamma_night` (1), k in [0, 1] solved.

    Differentiable in the share.

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        exposure: as for every `Night`.
        share: `(N,)` in [0, 1].
    """
    target = _target(images, exposure).view(-1, 1, 1, 1)
    power = 1.0 + beside(share, images).view(-1, 1, 1, 1) * (solve_power(images, target) - 1.0)
    bent = images.clamp_min(1e-3) ** power  # the slope of a power is infinite at 0
    return bent * (target / bent.mean(dim=(1, 2, 3), keepdim=True)).clamp(max=1.0)


def short_exposure_night(images: Tensor, exposure: Tensor, generator: Generator, draws: Tensor | None = None) -> Tensor:
    """A short exposure of a noisy sensor: less linear light, shot and read noise, display gamma, 8 bits.

    Before noise the mean is min(request, the day's mean), exactly; noise makes the darkest images a little brighter.
    """
    # A factor of linear light is a factor behind the display's power as well.
    light = brightness_night(images, exposure, generator) ** DISPLAY_GAMMA
    light = with_sensor_noise(light, _FULL_WELL, _READ_NOISE, draw_noise(light, generator))
    return (light.clamp(0.0, 1.0) ** (1.0 / DISPLAY_GAMMA) * 255.0).round() / 255.0


def day_view(images: Tensor, exposure: Tensor, generator: Generator, draws: Tensor | None = None) -> Tensor:
    """The images as they are: the control in which nothing is darkened."""
    return images


def augmix_view(images: Tensor, exposure: Tensor, generator: Generator, draws: Tensor | None = None) -> Tensor:
    """AugMix (Hendrycks et al., ICLR 2020) of each image by itself, on the CPU: a rival told nothing of the night.

    It shifts, shears and turns as well, so it is no night for images whose pixels have labels; `exposure` is not used.
    """
    from torchvision.transforms import v2  # here, as it takes a second to import

    mix = v2.AugMix()
    codes = (images.cpu() * 255.0).round().to(torch.uint8)
    shares = torch.rand(len(images), generator=generator) if draws is None else draws[:, TONE_DRAW]
    mixed = []
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        for image, share in zip(codes, shares.tolist(), strict=True):
            torch.manual_seed(int(share * 2**24))  # the same for all frames of a clip
            mixed.append(mix(image))
    return torch.stack(mixed).to(images) / 255.0


HEURISTICS: dict[str, Night] = {
    "gamma": gamma_night,
    "brightness": brightness_night,
    "dim": dim_night,
    "short-exposure": short_exposure_night,
}
CONTROLS: dict[str, Night] = {"day": day_view, "augmix": augmix_view}


def _target(images: Tensor, exposure: Tensor) -> Tensor:
    """Requested mean of each image, `(N,)`."""
    return exposure.to(images).mean(dim=(1, 2, 3)).clamp_min(0.0).expand(images.shape[0])


def solve_power(images: Tensor, target: Tensor, ends: tuple[float, float] = (1.0, LARGEST_POWER)) -> Tensor:
    """The power per image, `(N, 1, 1, 1)`, at which its mean is the target `(N,)`, or the nearest of two ends.

    Works on histograms of 256 levels: the error is below half a level whatever the size of the images.
    """
    count = images.shape[0]
    levels = torch.linspace(0.0, 1.0, 256, device=images.device)
    codes = (images.detach().clamp(0.0, 1.0) * 255.0).round().long().flatten(1)
    if images.is_cuda or torch.compiler.is_exporting():  # ONNX has no bincount, and CUDA's waits for the codes
        found = codes.new_zeros(count, 256).scatter_add(1, codes, torch.ones_like(codes))
    else:
        codes += 256 * torch.arange(count, device=images.device).view(-1, 1)
        found = torch.bincount(codes.flatten(), minlength=256 * count).view(count, 256)
    share = found / codes.shape[1]
    lower, upper = (torch.full((count, 1), end, device=images.device) for end in ends)
    for _ in range(24):  # to the last bit of a float
        middle = (lower + upper) / 2
        too_bright = (share * levels**middle).sum(dim=1, keepdim=True) > target.view(-1, 1)
        lower, upper = torch.where(too_bright, middle, lower), torch.where(too_bright, upper, middle)
    return lower.to(images.dtype).view(-1, 1, 1, 1)
