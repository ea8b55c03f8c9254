"""What training and evaluation see of street images: pairs of views under one geometry, or whole images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from cityscapes import StreetConfig
from PIL import Image
from street_images import (
    Size,
    StreetFile,
    StreetFiles,
    StreetImages,
    check_files,
)
from street_labels import VOID
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.tv_tensors import Image as ImageTensor
from torchvision.tv_tensors import Mask

from media.pictures import DECODING_ERRORS, PICTURE_SUFFIXES, decode_picture, files_below, orientation
from minmax.runtime.errors import RunError, UsageError
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
        darkened: the file that was darkened in advance for each image; None for nights made online.
        flip: share of the images that are mirrored; nothing else depends on it.

    Raises:
        ValueError: for night images; nothing is ever trained on them.
    """

    def __init__(
        self,
        images: StreetImages,
        config: StreetConfig,
        seed: int,
        darkened: Sequence[Path] | None = None,
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
        image, labels = self.images.load(index, self.size, self.size)
        assert labels is not None
        views = [ImageTensor(image)]
        if self.darkened is not None:
            views.append(ImageTensor(self._load_darkened(index)))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(derive_seed(self.seed, "geometry", epoch, index))
            *views, labels = self.geometry(*views, Mask(labels))
        day, night = (view.as_subclass(Tensor) for view in (views[0], views[-1]))
        return Views(day, night, labels.as_subclass(Tensor).long())

    def _load_darkened(self, index: int) -> Tensor:
        assert self.darkened is not None
        try:
            return decode_picture(self.darkened[index], self.size)
        except DECODING_ERRORS as error:
            raise RunError(f"cannot read {self.darkened[index]}: {error}") from error


def find_darkened(images: StreetImages, folder: Path, size: Size, cache: Path, quick: bool = False) -> list[Path]:
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
    if not isinstance(images, StreetFiles):
        raise UsageError(
            f"--darkened {folder}: the built-in scenes are not files; drop --darkened and name a --darkener"
        )
    if not folder.is_dir():
        raise UsageError(f"--darkened {folder}: no such folder; make it with python -m darkening.apply")
    day: dict[str, Path] = {}
    for street in images.files:
        if street.image.name in day:
            raise UsageError(
                f"--darkened pairs by file name, and two day images have the same: {day[street.image.name]} and "
                f"{street.image}; rename one, or name a --darkener instead"
            )
        day[street.image.name] = street.image
    found: dict[str, Path] = {}
    for file in files_below(folder, tuple(PICTURE_SUFFIXES)):
        if file.name in found:
            raise UsageError(f"--darkened {folder}: {file.name} is there twice, {found[file.name]} and {file}")
        found[file.name] = file
    missing, surplus = sorted(day.keys() - found.keys()), sorted(found.keys() - day.keys())
    if missing:
        raise UsageError(f"--darkened {folder}: lacks {len(missing)} of {len(day)} images: {', '.join(missing[:3])}")
    if surplus and not quick:
        raise UsageError(
            f"--darkened {folder}: holds {len(surplus)} files that are no training image: {', '.join(surplus[:3])}"
        )
    files = [found[name] for name in day]
    for original, file in zip(day.values(), files, strict=True):
        try:
            (there, is_turned), (here, _) = map(_read_header, (original, file))
        except DECODING_ERRORS:
            continue  # named below, with all others that are broken
        if is_turned:
            raise UsageError(
                f"--darkened {folder}: {original} has an EXIF entry that turns it; its copy is turned, its labels "
                "are not; save it without that entry, or name a --darkener instead"
            )
        if here not in (there, f"{size[1]}x{size[0]}"):
            raise UsageError(
                f"--darkened {folder}: {file.name} is {here}, its day image {there}; expected that, or the "
                f"{size[1]}x{size[0]} of --images.size"
            )
    copies = StreetFiles("darkened images", folder, [StreetFile(file, None) for file in files], is_night=False)
    check_files(copies, cache / "checked")
    return files


def _read_header(file: Path) -> tuple[str, bool]:
    """Size of a picture, and whether its EXIF entry turns it."""
    with Image.open(file) as image:  # decodes nothing
        return f"{image.width}x{image.height}", orientation(image) != 1


class WholeStreet(NamedTuple):
    """A whole image, uint8 RGB `(3, H, W)`, the train ids of its pixels (None if unpublished), and its position."""

    image: Tensor
    labels: Tensor | None
    position: int


class WholeStreets(Dataset[WholeStreet]):
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

    def __getitem__(self, index: int) -> WholeStreet:
        """One image and its labels."""
        return WholeStreet(*self.images.load(index, self.size, None if self.full_labels else self.size), index)
