"""Street images with a class for every pixel: files on disk and built-in scenes under one interface."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from street_labels import to_train_ids
from torch import Tensor

from media.pictures import DECODING_ERRORS, decode_picture, listed_below
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.file_checks import find_problems
from minmax.runtime.splits import NIGHT_SPLITS, Examples, Split, evenly_spaced
from scenes import HELD_OUT_NIGHT, render_segmented

Size = tuple[int, int]
"""Height and width in pixels."""

SCENES = "scenes"
SCENE_SEEDS: dict[Split, int] = {"train": 21, "val": 22, "test_day": 23, "test_night": 24}
SCENE_COUNTS: dict[Split, int] = {"train": 640, "val": 128, "test_day": 256, "test_night": 256}
QUICK_IMAGES = 16


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
            raise RunError(f"cannot read {file.image} or its labels any more: {error}") from error

    def name(self, index: int) -> str:
        """Path below the root."""
        return self.files[index].image.relative_to(self.root).as_posix()

    def fingerprint(self) -> str:
        """Hash of names below the root, sizes and modification times."""
        digest = hashlib.sha256()
        for pair in self.files:
            for file in filter(None, pair):
                status = file.stat()
                digest.update(f"{file.relative_to(self.root)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def subset(self, count: int) -> "StreetFiles":
        """At most `count` images, evenly spread."""
        return StreetFiles(self.title, self.root, evenly_spaced(self.files, count), self.is_night)


class SceneStreets(StreetImages):
    """Built-in scenes with a label for every pixel; square, kept in memory."""

    def __init__(self, split: Split, count: int, size: int, cache: Path) -> None:
        night = split in NIGHT_SPLITS
        super().__init__(f"scenes, {split}", night, count)
        self.split = split
        # The held-out lamps and cameras: nothing about the scenes' nights was tuned on them.
        settings = HELD_OUT_NIGHT if night else None
        self.images, self.labels = render_segmented(
            "night" if night else "day", count, size, SCENE_SEEDS[split], settings, cache
        )

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


def read_labels(file: Path, size: Size | None = None) -> Tensor:
    """Decode label ids to train ids, uint8 `(H, W)`, resized to the nearest pixel.

    Raises:
        ValueError: when the file holds colours or unknown ids; one of DECODING_ERRORS, as for broken files.
    """
    with Image.open(file) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"holds {image.mode} pixels; expected one byte of label id per pixel")
        train_ids = to_train_ids(np.array(image))
    return _resized(Image.fromarray(train_ids), size)


def check_files(images: StreetFiles, records: Path) -> StreetFiles:
    """Decode every file once, unless a record says that it was done before.

    Raises:
        UsageError: names every image or label file that is broken, of another size than its partner, or holds unknown
            ids.
    """

    def problem(file: StreetFile) -> str | None:
        where = file.image
        try:
            image = decode_picture(file.image, upright=False)
            if file.labels is None:
                return None
            where = file.labels
            labels = read_labels(file.labels)
        except DECODING_ERRORS as error:
            return f"{where.relative_to(images.root)}: {error}"
        if labels.shape != image.shape[-2:]:
            sizes = " and ".join(f"{width}x{height}" for height, width in (labels.shape, image.shape[-2:]))
            return f"{where.relative_to(images.root)}: labels and image are of different sizes, {sizes}"
        return None

    bad = find_problems(images.files, problem, records / images.fingerprint(), f"checking {images.title}")
    if bad:
        raise UsageError(
            f"{len(bad)} of {len(images)} images of {images.root} cannot be used:{listed_below([*bad.values()])}"
        )
    return images


def _resized(image: Image.Image, size: Size | None, how: Image.Resampling = Image.Resampling.NEAREST) -> Tensor:
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), how)
    return torch.from_numpy(np.array(image))
