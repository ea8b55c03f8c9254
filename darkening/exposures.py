"""The exposure that a night is asked for: the mean intensity of an image, or a map of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minmax.runtime.errors import check, check_range

_NEARLY_BLACK = 0.01  # so that a black cell is not infinitely darker than its neighbours


@dataclass(frozen=True)
class RequestConfig:
    """What a darkener is asked for in training."""

    exposure: tuple[float, float] = (0.0, 0.5)
    """Range of requested mean intensities; wider than the one used for adaptation."""
    contrast: tuple[float, float] = (0.0, 0.0)
    """Power by which the request follows the day's brightness from cell to cell, drawn per image; 0: it is even."""
    cell: int = 8
    """Side of the cells of contrast, in pixels."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_range(self, "exposure", 0.0, 1.0)
        check_range(self, "contrast", 0.0, 4.0)
        check(self, "cell", self.cell >= 1, "1 or more")

    def draw(self, images: Tensor, generator: torch.Generator | None, frames: int = 1) -> Tensor:
        """One request for each of `images` `(N, 3, H, W)`: `(N, 1, 1, 1)`, or a map `(N, 1, H, W)` in [0, 1].

        None is brighter in the mean than its image.

        With `frames`, so many images in a row are a clip and share what is drawn.
        """
        count = len(images) // frames
        exposure = beside(uniform(self.exposure, count, generator).repeat_interleave(frames, dim=0), images)
        if self.contrast != (0.0, 0.0):
            power = uniform(self.contrast, count, generator).repeat_interleave(frames, dim=0)
            exposure = follow_day(images, exposure, power, self.cell)
        return self.bounded(images, exposure)

    def covers(self, low: float, high: float) -> bool:
        """Whether training asked for all mean intensities from `low` to `high`."""
        return self.exposure[0] <= low and high <= self.exposure[1]

    def bounded(self, images: Tensor, request: Tensor) -> Tensor:
        """The nearest request to one that training asks for: in its range, in the mean no brighter than the day.

        Args:
            images: day images `(N, 3, H, W)` in [0, 1].
            request: mean intensities `(N, 1, 1, 1)` or a map `(N, 1, H, W)`, with contrast and noise. With contrast
                in training, single cells may be asked for anything from black to white.

        Returns:
            Requests of the same shape, their mean at most that of the image.
        """
        low, high = (0.0, 1.0) if any(self.contrast) else self.exposure
        request = request.to(images).clamp(low, high)
        most = images.mean(dim=(1, 2, 3), keepdim=True) / request.mean(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        return request * most.clamp(max=1.0)


def uniform(bounds: tuple[float, float], count: int, generator: torch.Generator | None) -> Tensor:
    """One number for each image, `(count, 1, 1, 1)`, drawn on the CPU from [low, high]."""
    low, high = bounds
    return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low


def beside(drawn: Tensor, images: Tensor) -> Tensor:
    """What was drawn on the CPU, on the device of `images` and as their type; CUDA need not wait for it."""
    return drawn.to(images, non_blocking=images.is_cuda)


def follow_day(images: Tensor, exposure: Tensor, power: Tensor, cell: int) -> Tensor:
    """Requests that follow the day's brightness from cell to cell, their mean kept.

    Args:
        images: day images `(N, 3, H, W)` in [0, 1].
        exposure: requested mean intensities, `(N, 1, 1, 1)` or a map `(N, 1, H, W)`.
        power: of the day's brightness that the request follows, `(N, 1, 1, 1)`; 0 everywhere changes nothing.
        cell: side of the cells in pixels.

    Returns:
        A map `(N, 1, H, W)`; where the day is much brighter than its mean it may ask for more than 1.
    """
    if not power.any():
        return exposure
    height, width = images.shape[-2:]
    cells = (max(1, height // cell), max(1, width // cell))
    grey = images.mean(dim=1, keepdim=True)
    # On MPS cells must all be of one size (https://github.com/pytorch/pytorch/issues/96056).
    grey = grey.cpu() if grey.device.type == "mps" else grey
    brightness = F.adaptive_avg_pool2d(grey, cells).to(images.device) + _NEARLY_BLACK
    brightness = F.interpolate(brightness, size=(height, width), mode="bilinear", align_corners=False)
    share = brightness ** beside(power, images)
    return exposure * share / share.mean(dim=(2, 3), keepdim=True)


def as_images(batch: Tensor) -> tuple[Tensor, int]:
    """Images `(N, C, H, W)` as they are, or clips `(N, C, T, H, W)` as `(N T, C, H, W)`; and how many make a clip."""
    if batch.dim() == 4:
        return batch, 1
    return batch.transpose(1, 2).flatten(0, 1), batch.shape[2]


def as_clips(images: Tensor, frames: int) -> Tensor:
    """Images `(N T, C, H, W)`, so many `frames` in a row to a clip, as clips `(N, C, T, H, W)`."""
    return images.view(-1, frames, *images.shape[1:]).transpose(1, 2)
