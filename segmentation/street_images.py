"""Street images with a class for every pixel, files or scenes, and what training and evaluation see of them."""

import hashlib
import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from street_labels import LABEL_IDS, VOID, to_train_ids, told_train_ids
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Image as ImageTensor
from torchvision.tv_tensors import Mask

from media.pictures import DECODING_ERRORS, check_picture, decode_picture, listed_below
from minmax.runtime.config import require
from minmax.runtime.errors import RunError, UsageError, printable
from minmax.runtime.file_checks import find_problems, fingerprint_files, taken_once
from minmax.runtime.seeding import derive_seed
from minmax.runtime.splits import NIGHT_SPLITS, Examples, OnePerExample, Split, Views, evenly_spaced, refuse_night
from scenes import render_segmented

log = logging.getLogger(__name__)
Size = tuple[int, int]
"""Height and width in pixels."""

SCENES = "scenes"
SCENE_SEEDS: dict[Split, int] = {"train": 21, "val": 22, "test_day": 23, "test_night": 24}
SCENE_COUNTS: dict[Split, int] = {"train": 640, "val": 128, "test_day": 256, "test_night": 256}
QUICK_IMAGES = 16
_SAMPLE = 32  # label files that are looked at to tell label ids from train ids


@dataclass(frozen=True)
class StreetConfig:
    """How images are read."""

    size: Size = (512, 1024)
    """Height and width in pixels that whole images are resized to; scenes must be square, such as 96 96."""
    crop: Size | None = None
    """Height and width of the crops in training, in pixels; by default three quarters of the size, as in the paper."""
    scale: tuple[float, float] = (0.7, 1.3)
    """Random zoom before the crop in training; what lies outside the image is void."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(min(self.size) >= 32, "--images.size", self.size, "two numbers, 32 or more each")
        fits = all(16 <= crop <= side for crop, side in zip(self.crop_size, self.size, strict=True))
        largest = " ".join(map(str, self.size))
        require(fits, "--images.crop", self.crop_size, f"two numbers, 16 or more and at most {largest}")
        low, high = self.scale
        require(0.1 <= low <= high <= 10, "--images.scale", self.scale, "two numbers, 0.1 <= LOW <= HIGH <= 10")

    @property
    def crop_size(self) -> Size:
        """Height and width of the crops."""
        return self.crop or (self.size[0] * 3 // 4, self.size[1] * 3 // 4)


class Street(NamedTuple):
    """An image, uint8 RGB `(3, H, W)`, the train ids of its pixels, uint8 `(H, W)`, and its position in the data set.

    Images whose labels are not public have None.
    """

    image: Tensor
    labels: Tensor | None
    position: int


class StreetImages(Examples):
    """Street images with the classes of their pixels."""

    @abstractmethod
    def load(self, index: int, size: Size | None = None, label_size: Size | None = None) -> Street:
        """One image and its labels, each resized: the image by Lanczos, labels by the nearest pixel."""


class StreetFile(NamedTuple):
    """Where an image and its label ids are; None for those that are not public."""

    image: Path
    labels: Path | None


class StreetFiles(StreetImages):
    """Image files below a root with files of label ids."""

    def __init__(self, title: str, root: Path, files: Sequence[StreetFile], is_night: bool) -> None:
        super().__init__(title, is_night, len(files))
        self.root, self.files = root, list(files)

    def load(self, index: int, size: Size | None = None, label_size: Size | None = None) -> Street:
        """One image and its labels; raises RunError when a file has vanished or broken since the check."""
        file = self.files[index]
        try:
            image = decode_picture(file.image, size, upright=False)
            return Street(image, None if file.labels is None else read_labels(file.labels, label_size), index)
        except DECODING_ERRORS as error:
            raise RunError(f"cannot read {printable(file.image)} or its labels any more: {error}") from error

    def name(self, index: int) -> str:
        """Path below the root."""
        return printable(self.files[index].image.relative_to(self.root).as_posix())

    @taken_once
    def fingerprint(self) -> str:
        """Hash of the files and those of their labels."""
        return fingerprint_files(filter(None, chain.from_iterable(self.files)), self.root)

    @property
    def labels_folder(self) -> Path:
        """The folder that holds all labels, where links are followed."""
        folders = {file.labels.parent for file in self.files if file.labels}
        return Path(os.path.commonpath([folder.resolve() for folder in folders]))

    def subset(self, count: int) -> "StreetFiles":
        """At most `count` images, evenly spread."""
        return StreetFiles(self.title, self.root, evenly_spaced(self.files, count), self.is_night)


class SceneStreets(StreetImages):
    """Built-in scenes with a label for every pixel; square, kept in memory."""

    def __init__(self, split: Split, count: int, size: int, cache: Path) -> None:
        night = split in NIGHT_SPLITS
        super().__init__(f"scenes, {split}", night, count)
        self.split = split
        self.images, self.labels = render_segmented("night" if night else "day", count, size, SCENE_SEEDS[split], cache)

    def load(self, index: int, size: Size | None = None, label_size: Size | None = None) -> Street:
        """One scene and its labels, as they were rendered or resized."""
        image, labels = Image.fromarray(self.images[index]), Image.fromarray(self.labels[index])
        pixels = _resized(image, size, Image.Resampling.LANCZOS).permute(2, 0, 1)
        return Street(pixels, _resized(labels, label_size), index)

    def name(self, index: int) -> str:
        """Split and number."""
        return f"scenes/{self.split}/{index:04d}"

    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()[:16]


class TrainingStreets(OnePerExample[Views]):
    """Augmented day images for training, indexed by (epoch, image), labelled by the train ids of pixels (int64).

    Zoom, crop and flip are drawn once for image, night and labels, from (seed, epoch, image) alone, so the number of
    workers and restarts change nothing; nor does `flip`, by which half are mirrored, change zoom and crop. What the
    zoom leaves empty is black and void. The night is the same image, or that of `darkened`.

    Raises:
        ValueError: for night images; nothing is ever trained on them.
    """

    def __init__(
        self,
        images: StreetImages,
        config: StreetConfig,
        seed: int,
        darkened: StreetImages | None = None,
        flip: bool = True,
    ) -> None:
        refuse_night(images)
        super().__init__(images)
        self.images, self.size, self.seed, self.darkened = images, config.size, seed, darkened
        fill = {ImageTensor: 0, Mask: VOID}
        zoom = v2.RandomAffine(0, scale=config.scale, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
        self.geometry = v2.Compose([zoom, v2.RandomCrop(config.crop_size), v2.RandomHorizontalFlip(0.5 * flip)])

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


class WholeStreets(OnePerExample[Street]):
    """Whole images of a size without augmentation; with `full_labels` their labels keep a size of their own."""

    def __init__(self, images: StreetImages, size: Size, full_labels: bool = False) -> None:
        super().__init__(images)
        self.images, self.size, self.full_labels = images, size, full_labels

    def __getitem__(self, index: int) -> Street:
        """One image and its labels."""
        return self.images.load(index, self.size, None if self.full_labels else self.size)


def read_labels(file: Path, size: Size | None = None) -> Tensor:
    """Decode label ids, or train ids in a file named so, to train ids, uint8 `(H, W)`, resized to the nearest pixel.

    Raises:
        ValueError: when the file holds colours or unknown ids; one of DECODING_ERRORS, as for broken files.
    """
    return _resized(Image.fromarray(to_train_ids(_read_ids(file), _is_trained(file))), size)


def _is_trained(file: Path) -> bool:
    return file.name.lower().endswith("trainids.png")


def _read_ids(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"holds {image.mode} pixels; expected one byte of label id per pixel")
        return np.array(image)


def _refuse_train_ids(images: StreetFiles) -> None:
    """Refuse train ids under the name of label ids: each would be taken for another class or for none."""
    ids: set[int] = set()
    labelled = [file.labels for file in images.files if file.labels is not None and not _is_trained(file.labels)]
    for file in evenly_spaced(labelled, _SAMPLE):
        try:
            ids |= set(np.unique(_read_ids(file)).tolist())
        except DECODING_ERRORS as error:
            raise RunError(f"cannot read {printable(file)} any more: {error}") from error
    told = told_train_ids(ids)
    if told:
        raise UsageError(
            f"{printable(images.root)}: a sample of its label files {told}: these look like train ids (*labelTrainIds) "
            "under the name of label ids (*labelIds); give those of Cityscapes' gtFine, or map 0 ... 18 back to 7, 8, "
            "11, ..., 33 with cityscapesscripts' labels.py"
        )
    if labelled and not any(VOID <= label_id < LABEL_IDS for label_id in ids):
        log.warning(
            "%s: no label id above 18 in a sample of its files (no vegetation, sky or car); if these are train ids, "
            "scores are wrong: label ids are expected",
            printable(images.root),
        )


def check_files(images: StreetFiles, records: Path) -> StreetFiles:
    """Decode every file once, unless a record says that it was done before.

    Raises:
        UsageError: names every image or label file that is broken, of another size than its partner, or holds unknown
            ids.
    """

    def problem(file: StreetFile) -> str | None:
        where = file.image
        try:
            size = check_picture(file.image)
            if file.labels is None:
                return None
            where = file.labels
            labels = read_labels(file.labels)
        except DECODING_ERRORS as error:
            return f"{printable(where.relative_to(images.root))}: {error}"
        if tuple(labels.shape) != size:
            sizes = " and ".join(f"{width}x{height}" for height, width in (labels.shape, size))
            return f"{printable(where.relative_to(images.root))}: labels and image are of different sizes, {sizes}"
        return None

    bad = find_problems(images.files, problem, records / images.fingerprint(), f"checking {images.title}")
    if bad:
        raise UsageError(
            f"{len(bad)} of {len(images)} images of {printable(images.root)} cannot be used:"
            f"{listed_below([*bad.values()])}"
        )
    _refuse_train_ids(images)
    return images


def _resized(image: Image.Image, size: Size | None, how: Image.Resampling = Image.Resampling.NEAREST) -> Tensor:
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), how)
    return torch.from_numpy(np.array(image))
