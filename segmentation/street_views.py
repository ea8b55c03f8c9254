"""What training and evaluation see of street images: pairs of views under one geometry, or whole images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from cityscapes import StreetConfig
from PIL import Image
from street_images import Size, Street, StreetFile, StreetFiles, StreetImages, check_files
from street_labels import VOID
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.tv_tensors import Image as ImageTensor
from torchvision.tv_tensors import Mask

from media.pictures import PICTURE_SUFFIXES, files_below, orientation
from minmax.runtime.errors import UsageError
from minmax.runtime.seeding import derive_seed
from minmax.runtime.splits import Views, refuse_night


class TrainingStreets(Dataset[Views]):
    """Augmented day images for training, indexed by (epoch, image), labelled by the train ids of pixels (int64).

    Zoom, crop and flip are drawn once for image, night and labels, from (seed, epoch, image) alone, so the number of
    workers and restarts change nothing. What the zoom leaves empty is black and void.

    Args:
        images: a day split.
        config: sizes and zoom.
        seed: of the draws.
        darkened: the image that was darkened in advance for each; None for nights made online.
        flip: share of the images that are mirrored; nothing else depends on it.

    Raises:
        ValueError: for night images; nothing is ever trained on them.
    """

    def __init__(
        self,
        images: StreetImages,
        config: StreetConfig,
        seed: int,
        darkened: StreetImages | None = None,
        flip: float = 0.5,
    ) -> None:
        refuse_night(images)
        self.images, self.size, self.seed, self.darkened = images, config.size, seed, darkened
        fill = {ImageTensor: 0, Mask: VOID}
        zoom = v2.RandomAffine(0, scale=config.scale, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
        self.geometry = v2.Compose([zoom, v2.RandomCrop(config.crop_size), v2.RandomHorizontalFlip(flip)])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, position: tuple[int, int]) -> Views:
        """The views of image `position[1]` in epoch `position[0]`."""
        epoch, index = position
        street = self.images.load(index, self.size, self.size)
        views = [ImageTensor(street.image)]
        if self.darkened is not None:
            views.append(ImageTensor(self.darkened.load(index, self.size).image))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(derive_seed(self.seed, "geometry", epoch, index))
            *views, labels = self.geometry(*views, Mask(street.labels))
        day, night = (view.as_subclass(Tensor) for view in (views[0], views[-1]))
        return Views(day, night, labels.as_subclass(Tensor).long())


def find_darkened(images: StreetImages, folder: Path, size: Size, cache: Path, quick: bool = False) -> StreetFiles:
    """Find the darkened copy of each image, by its name, in a folder that `python -m darkening.apply` made.

    Args:
        images: the day images.
        folder: their darkened copies, with any folders below it.
        size: what images are resized to; the copies may have it already.
        cache: folder for the record of which files were checked.
        quick: `images` are only some of those that were darkened.

    Raises:
        UsageError: names a file that is missing, surplus, there twice, broken, or of neither its day image's size nor
            `size`.
    """
    flag = f"--darkened {folder}"
    if not isinstance(images, StreetFiles):
        raise UsageError(f"{flag}: the built-in scenes are not files; drop --darkened and name a --darkener")
    if not folder.is_dir():
        raise UsageError(f"{flag}: no such folder; make it with python -m darkening.apply")
    day = _by_name(f"{flag}: day images", [street.image for street in images.files])
    copies = _by_name(f"{flag}: its files", files_below(folder, tuple(PICTURE_SUFFIXES)))
    missing, surplus = sorted(day.keys() - copies.keys()), sorted(copies.keys() - day.keys())
    if missing:
        raise UsageError(f"{flag}: lacks {len(missing)} of {len(day)} images: {', '.join(missing[:3])}")
    if surplus and not quick:
        raise UsageError(f"{flag}: holds {len(surplus)} files that are no training image: {', '.join(surplus[:3])}")
    darkened = StreetFiles("darkened images", folder, [StreetFile(copies[name], None) for name in day], is_night=False)
    check_files(darkened, cache / "checked")
    for name, original in day.items():
        with Image.open(original) as there, Image.open(copies[name]) as here:  # decodes nothing
            if orientation(there) != 1:
                raise UsageError(
                    f"{flag}: {original} has an EXIF entry that turns it; its copy is turned, its labels are not; save "
                    "it without that entry, or name a --darkener instead"
                )
            if here.size not in (there.size, size[::-1]):
                has, day_has, asked = (f"{width}x{height}" for width, height in (here.size, there.size, size[::-1]))
                raise UsageError(
                    f"{flag}: {name} is {has}, its day image {day_has}; expected that, or the {asked} of --images.size"
                )
    return darkened


def _by_name(title: str, files: Sequence[Path]) -> dict[str, Path]:
    """Files by their names, which must differ."""
    named: dict[str, Path] = {}
    for file in files:
        if file.name in named:
            raise UsageError(
                f"{title} are paired by name, and {named[file.name]} and {file} have the same; rename one, or name a "
                "--darkener instead"
            )
        named[file.name] = file
    return named


class WholeStreets(Dataset[Street]):
    """Whole images at network size without augmentation.

    Args:
        images: any split.
        size: what images are brought to.
        full_labels: keep labels at their own size instead of bringing them to that of the images.
    """

    def __init__(self, images: StreetImages, size: Size, full_labels: bool = False) -> None:
        self.images, self.size, self.full_labels = images, size, full_labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Street:
        """One image and its labels."""
        return self.images.load(index, self.size, None if self.full_labels else self.size)
