"""The way back, for networks that know the day alone: images brightened before they are shown to one."""

from collections.abc import Callable
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from darkening.exposures import as_clips, as_images
from darkening.heuristics import LARGEST_POWER, solve_power
from minmax.runtime.config import Brightening

_MEAN = 0.45  # of an image that is well exposed


def gamma_brightened(images: Tensor) -> Tensor:
    """Brighten by a power of 1/6 to 1 per image, or clip, to a mean of 0.45 or near it; nothing gets darker."""
    power = solve_power(images, images.new_full((len(images),), _MEAN), (1 / LARGEST_POWER, 1.0))
    return images ** power.view(-1, *[1] * (images.dim() - 1))


def clahe_brightened(images: Tensor) -> Tensor:
    """Equalise the lightness of each image, or frame, within 8 x 8 tiles, contrast limited to 2 (OpenCV's CLAHE).

    Source: Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.
    """
    flat, frames = as_images(images)
    pictures = (flat * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    equaliser = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
    for picture in pictures:
        lightness, *colours = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB))
        picture[:] = cv2.cvtColor(cv2.merge([equaliser.apply(lightness), *colours]), cv2.COLOR_LAB2RGB)
    found = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(images) / 255.0
    return found if images.dim() == 4 else as_clips(found, frames)


BRIGHTENINGS: dict[Brightening, Callable[[Tensor], Tensor]] = {"gamma": gamma_brightened, "clahe": clahe_brightened}
"""From images `(N, 3, H, W)` or clips `(N, 3, T, H, W)` in [0, 1] to the same shape."""


def brighten_inputs(network: nn.Module, how: Brightening) -> None:
    """Make a network brighten every batch that it is shown."""

    def brighten(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (BRIGHTENINGS[how](inputs[0]), *inputs[1:])

    if how != "none":
        network.register_forward_pre_hook(brighten)
