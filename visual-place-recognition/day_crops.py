"""Crops of day images of one size: what a darkener is trained on."""

from dataclasses import dataclass

import torch
from place_images import PlaceImages
from torch import Tensor
from torch.utils.data import Dataset

from minmax.runtime.errors import check
from minmax.runtime.seeding import generator_for
from minmax.runtime.splits import refuse_night


@dataclass(frozen=True)
class CropConfig:
    """How images are read."""

    short_side: int = 256
    """Shorter side of the resized images in pixels; built-in scenes are squares of this side."""
    crop: int = 224
    """Side of the random square crops."""
    per_epoch: int = 8000
    """Images per epoch; all of them if there are fewer."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self, "short_side", self.short_side >= 32, "32 or more")
        check(self, "crop", 16 <= self.crop <= self.short_side, f"16 to {self.short_side}, the short side")
        check(self, "per_epoch", self.per_epoch >= 1, "1 or more")


class DayCrops(Dataset[Tensor]):
    """Random square crops, uint8 `(3, S, S)`, indexed by (epoch, number); each epoch draws its own images.

    Raises:
        ValueError: for night images.
    """

    def __init__(self, images: PlaceImages, config: CropConfig, seed: int = 0) -> None:
        refuse_night(images)
        self.images, self.config, self.seed = images, config, seed

    def __len__(self) -> int:
        """Images per epoch."""
        return min(self.config.per_epoch, len(self.images))

    def __getitem__(self, position: tuple[int, int]) -> Tensor:
        """The crop of number `position[1]` in epoch `position[0]`."""
        epoch, number = position
        index = number
        if len(self) < len(self.images):
            order = torch.randperm(len(self.images), generator=generator_for(self.seed, "images", epoch))
            index = int(order[number])
        image = self._resized(index)
        generator = generator_for(self.seed, "crop", epoch, index)
        free = [side - self.config.crop for side in image.shape[-2:]]
        top, left = (int(torch.randint(most + 1, (1,), generator=generator)) for most in free)
        return image[:, top : top + self.config.crop, left : left + self.config.crop]

    def central(self, index: int) -> Tensor:
        """The middle of an image."""
        image, crop = self._resized(index), self.config.crop
        top, left = (round((side - crop) / 2) for side in image.shape[-2:])
        return image[:, top : top + crop, left : left + crop]

    def _resized(self, index: int) -> Tensor:
        from torchvision.transforms.v2 import functional  # here, as it takes a second to import

        # A panorama of more than four to one is enlarged again; others are only ever shrunk.
        image = self.images.load(index, 4 * self.config.short_side)
        resized: Tensor = functional.resize(image, [self.config.short_side], antialias=True)
        return resized
