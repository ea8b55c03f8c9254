"""What a camera adds to a dark scene: pale colours, little contrast, blur, the noise of few photons, a wrong white.

It comes behind every source of night, learned or made by hand. The ranges are photography's, not those of any test set:
behind the gain of a night exposure white is 200 electrons (a phone) to 5,000 (a large sensor), and 1 to 6 are misread;
lenses scatter light into the dark parts; sensors and their software lose colour in the dark; hands and cars move.

All that is random about the night of one image is decided by a row of even draws, numbers from 0 to 1: the first sets
the tone curve of a dim night, each of the others one setting of the camera, as far into its range as the draw says. The
noise of single pixels alone is drawn besides. To move draws is to move the picture: so `camera_view.CameraView` learns.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from darkening.exposures import beside
from minmax.runtime.errors import check, check_range

DISPLAY_GAMMA = 2.2
DRAWS = 11
"""Even draws for each image, or for all frames of a clip together; `photograph` names them in their order."""
TONE_DRAW = 0
"""Place of the one that is not the camera's but the tone curve's (`heuristics.dimmed`)."""
MOVED_DRAWS = 8
"""So many, from the first on, a learned camera moves; the last three say whether there is blur, noise, and a camera."""
_LARGEST_BLUR = 8.0  # pixels


@dataclass(frozen=True)
class CameraConfig:
    """What a camera adds to a night: drawn per image or clip, its noise per frame."""

    share: float = 0.0
    """Share of the nights that pass through the camera; 0: none."""
    saturation: tuple[float, float] = (0.2, 1.0)
    """Share of the colour that is left."""
    contrast: tuple[float, float] = (0.6, 1.0)
    """Share of the contrast that stray light leaves."""
    blur: tuple[float, float] = (0.3, 1.5)
    """Standard deviation of the blur in pixels ..."""
    blurred: float = 0.5
    """... and the share of the pictures that have any."""
    full_well: tuple[float, float] = (200.0, 5000.0)
    """Electrons that a pixel counts at white, drawn in the logarithm ..."""
    read_noise: tuple[float, float] = (1.0, 6.0)
    """... the standard deviation in electrons with which they are read ..."""
    noisy: float = 0.7
    """... and the share of the pictures with such noise."""
    white_balance: float = 0.1
    """Largest relative error of red and of blue in linear light."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("share", "blurred", "noisy"):
            check(self, name, 0 <= getattr(self, name) <= 1, "a share in [0, 1]")
        check_range(self, "saturation", 0.0, 1.0)
        check_range(self, "contrast", 0.0, 1.0)
        check_range(self, "blur", 0.0, _LARGEST_BLUR)
        check_range(self, "full_well", 1.0, 1e6)
        check_range(self, "read_noise", 0.0, 1e3)
        check(self, "white_balance", 0 <= self.white_balance < 1, "a share in [0, 1)")


def draw_noise(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise for each pixel of `images`, drawn on the CPU: the same on every device."""
    return beside(torch.randn(images.shape, generator=generator), images)


def photograph(images: Tensor, config: CameraConfig, draws: Tensor, noise: Tensor, quantised: bool = True) -> Tensor:
    """What each camera makes of a dark scene; differentiable, but for the rounding, in scene and draws.

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        config: ranges of the cameras.
        draws: `(N, DRAWS)` in [0, 1].
        noise: standard normal, of the shape of `images`.
        quantised: round to 8 bits.

    Returns:
        Images of the same shape in [0, 1]. Colour, contrast and blur leave the mean; a wrong white moves it a little,
        and noise raises that of black, since a sensor counts no fewer than no electrons.
    """
    columns = draws.view(*draws.shape, 1, 1).split(1, dim=1)
    _, saturation, contrast, deviation, well, read, red, blue, blurred, noisy, used = columns

    def between(draw: Tensor, bounds: tuple[float, float]) -> Tensor:
        return bounds[0] + draw * (bounds[1] - bounds[0])

    error = (1.0 - config.white_balance, 1.0 + config.white_balance)
    low, high = torch.tensor(config.full_well).log().tolist()
    settings = (
        between(saturation, config.saturation),
        between(contrast, config.contrast),
        between(deviation, config.blur) * (blurred < config.blurred),
        between(well, (low, high)).exp(),
        between(read, config.read_noise),
        torch.cat([between(red, error), torch.ones_like(red), between(blue, error)], dim=1),
        (noisy < config.noisy).to(draws),
        used < config.share,
    )
    saturation, contrast, deviation, full_well, read_noise, balance, noisy, used = (
        beside(part, images) for part in settings
    )

    grey = images.mean(dim=1, keepdim=True)
    seen = torch.lerp(grey.expand_as(images), images, saturation.expand_as(images))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    seen = torch.lerp(mean.expand_as(images), seen, contrast.expand_as(images))
    seen = blur(seen, deviation, config.blur[1])
    # The slope of a power is infinite at 0.
    light = (seen.clamp(1e-4, 1.0) ** DISPLAY_GAMMA * balance).clamp(max=1.0)
    light = with_sensor_noise(light, full_well, read_noise, noisy * noise)
    developed = light.clamp(1e-6, 1.0) ** (1.0 / DISPLAY_GAMMA)
    if quantised:
        developed = (developed * 255.0).round() / 255.0
    return torch.where(used > 0, developed, images)


def with_sensor_noise(light: Tensor, full_well: Tensor | float, read_noise: Tensor | float, noise: Tensor) -> Tensor:
    """Linear light with shot and read noise, not clamped; white is `full_well` electrons, `noise` standard normal."""
    # Shot noise is Poisson, here by its normal approximation; its variance is the number of electrons.
    return light + (light * full_well + read_noise**2).sqrt() / full_well * noise


def blur(images: Tensor, deviation: Tensor, most: float) -> Tensor:
    """Gaussian blur, edges repeated; as large as the images allow.

    Args:
        images: `(N, C, H, W)`.
        deviation: of each image in pixels, `(N, 1, 1, 1)`; 0 changes nothing.
        most: the largest there can be.
    """
    count, channels, height, width = images.shape
    flat = images.reshape(1, count * channels, height, width)
    for side, shape in ((width, (1, -1)), (height, (-1, 1))):
        reach = min(max(1, round(3 * most)), side - 1)
        steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
        kernel = torch.exp(-0.5 * (steps / deviation.view(count, 1).clamp_min(0.05)) ** 2)
        kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
        padded = F.pad(flat, (reach, reach, 0, 0) if shape == (1, -1) else (0, 0, reach, reach), mode="replicate")
        if torch.compiler.is_exporting():  # ONNX convolves in a fixed number of groups only; the same, slower
            axis = shape.index(-1) - 2
            taps = kernel.view(1, count * channels, *shape).split(1, dim=axis)
            parts = (padded.narrow(axis, step, side) * tap for step, tap in enumerate(taps))
            flat = sum(parts, torch.zeros_like(flat))
        else:
            flat = F.conv2d(padded, kernel.view(count * channels, 1, *shape), groups=count * channels)
    return flat.view_as(images)
