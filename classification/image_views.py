"""What training and evaluation see of a split: augmented pairs of views, or whole images."""

import torch
from class_folders import ImageConfig, LabelledImages
from torch import Tensor
from torch.utils.data import Dataset

from minmax.runtime.seeding import derive_seed
from minmax.runtime.splits import Views, refuse_night


class TrainingViews(Dataset[Views]):
    """Views `(3, size, size)` of day images for training, indexed by (epoch, image).

    Each view is a RandomResizedCrop (area 0.5 to 1), mirrored or not. The draws of an image in an epoch depend on
    (seed, epoch, image) alone, so the number of workers and restarts change nothing; the crops do not depend on `flip`,
    the share that is mirrored.

    Raises:
        ValueError: for a night split; nothing is ever trained on one.
    """

    def __init__(self, images: LabelledImages, size: int, seed: int, flip: float = 0.5) -> None:
        from torchvision.transforms import v2

        refuse_night(images)
        self.images, self.seed = images, seed
        self.geometry = v2.Compose(
            [v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip(flip)]
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, position: tuple[int, int]) -> Views:
        """The views of image `position[1]` in epoch `position[0]`."""
        epoch, index = position
        image = self.images.load(index)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(derive_seed(self.seed, "views", epoch, index))
            day, night = self.geometry(image), self.geometry(image)
        return Views(day, night, torch.tensor(self.images.labels[index]))


class WholeImages(Dataset[tuple[Tensor, Tensor]]):
    """Whole images without augmentation, uint8 RGB `(3, H, W)`, with their labels."""

    def __init__(self, images: LabelledImages, config: ImageConfig) -> None:
        from torchvision.transforms import v2

        self.images = images
        self.geometry = (
            v2.Compose([v2.Resize(config.size, antialias=True), v2.CenterCrop(config.size)])
            if config.evaluation == "resize"
            else v2.Identity()
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image and its label."""
        return self.geometry(self.images.load(index)), torch.tensor(self.images.labels[index])
