"""Blur, cutout and colour of day and night views, on their device and after darkening."""

import math
from dataclasses import dataclass

import torch
from street_labels import VOID
from torch import Tensor
from torchvision.transforms.v2 import functional

from minmax.photometric_jitter import jitter
from minmax.runtime.config import require

_SIGMA = (0.1, 2.0)  # of the blur, pixels of the paper's crops; smaller images are blurred in proportion
_CROP_HEIGHT = 384
_AREA = (0.02, 0.4)  # of a cutout, share of the image
_ASPECT = (0.3, 1 / 0.3)  # of a cutout, height by width
_TRIES = 10  # draws until a cutout fits


@dataclass(frozen=True)
class PhotometryConfig:
    """How the views of an image are changed; every image is drawn for separately."""

    blur: float = 0.5
    """Share of images that are blurred, day and night by different amounts."""
    cutout: float = 0.5
    """Share of images with a rectangle of noise, the same in both views, that counts as void."""
    jitter: float = 0.3
    """Strength of the random brightness, contrast, saturation and hue, different for day and night."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(0 <= self.blur <= 1, "--photometry.blur", self.blur, "a share in [0, 1]")
        require(0 <= self.cutout <= 1, "--photometry.cutout", self.cutout, "a share in [0, 1]")
        require(0 <= self.jitter <= 0.5, "--photometry.jitter", self.jitter, "0 to 0.5")


def change_views(
    views: list[Tensor], labels: Tensor, config: PhotometryConfig, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Blur, cut out and jitter one or several views `(N, 3, H, W)` of the same images, drawn from a CPU generator.

    The train ids `(N, H, W)` come back void where views were cut out.
    """
    changed, labels = [view.clone() for view in views], labels.clone()
    for i in range(len(labels)):
        blurred, cut = torch.rand(2, generator=generator).tolist()
        if blurred < config.blur:
            for view in changed:
                view[i] = _blur(view[i], generator)
        if cut < config.cutout:
            _cut_out([view[i] for view in changed], labels[i], generator)
        for view in changed:
            view[i] = jitter(view[i : i + 1], config.jitter, generator)[0]
    return changed, labels


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    sigma = _uniform(*_SIGMA, generator) * image.shape[-2] / _CROP_HEIGHT
    reach = min(math.ceil(3 * sigma), min(image.shape[-2:]) - 1)  # padding by reflection takes no more
    blurred: Tensor = functional.gaussian_blur(image, kernel_size=[2 * reach + 1] * 2, sigma=[sigma] * 2)
    return blurred


def _cut_out(views: list[Tensor], labels: Tensor, generator: torch.Generator) -> None:
    """Overwrite a rectangle of each view `(3, H, W)` by the same noise, and of the labels `(H, W)` by void."""
    rows, columns = labels.shape
    for _ in range(_TRIES):
        area = _uniform(*_AREA, generator) * rows * columns
        aspect = math.exp(_uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1]), generator))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < rows and 0 < width < columns:
            top = int(torch.randint(rows - height + 1, (), generator=generator))
            left = int(torch.randint(columns - width + 1, (), generator=generator))
            noise = torch.rand(3, height, width, generator=generator)
            for view in views:
                view[:, top : top + height, left : left + width] = noise.to(view)
            labels[top : top + height, left : left + width] = VOID
            return
