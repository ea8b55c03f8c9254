"""Images of places: files on disk and built-in ones under one interface."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from media.pictures import DECODING_ERRORS, as_rgb, is_file, listed_below, upright_picture
from minmax.runtime.errors import RunError, UsageError, check, printable
from minmax.runtime.file_checks import find_problems, fingerprint_files, taken_once
from minmax.runtime.splits import Examples

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the stored image."""

SCENES = "scenes"
DEFAULT_DATA = Path(__file__).resolve().parent / "dataset"
QUICK_PLACES = 6


@dataclass(frozen=True)
class PlaceConfig:
    """How images are read."""

    size: int = 362
    """Longest side in pixels; larger images are shrunk in proportion. Built-in scenes are squares of this side
    (64 to 128 suit them)."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self, "size", self.size >= 32, "32 or more")


class PlaceImages(Examples):
    """Images of places, numbered from 0."""

    @abstractmethod
    def load(self, index: int, size: int) -> Tensor:
        """One image as uint8 RGB `(3, H, W)`, its longest side at most `size`."""

    @abstractmethod
    def check(self, records: Path) -> None:
        """Decode every file once, unless a record in this folder says that it was done before.

        Raises:
            UsageError: when files are missing or broken; names the first ones.
        """


class PlaceFiles(PlaceImages):
    """Image files, or a rectangle of each.

    Args:
        title: what they are called in reports.
        root: folder that all files are below.
        files: the file of each image.
        is_night: night images are for reporting only.
        boxes: the part of each image that counts, None for the whole.
    """

    def __init__(
        self, title: str, root: Path, files: Sequence[Path], is_night: bool, boxes: Sequence[Box | None] | None = None
    ) -> None:
        super().__init__(title, is_night, len(files))
        self.root, self.files = root, list(files)
        self.boxes = list(boxes) if boxes is not None else [None] * len(self.files)

    def load(self, index: int, size: int) -> Tensor:
        """One image; raises RunError when its file has vanished or broken since the check."""
        try:
            return decode_shrunk(self.files[index], size, self.boxes[index])
        except DECODING_ERRORS as error:
            raise RunError(f"cannot read {printable(self.files[index])} any more: {error}") from error

    def check(self, records: Path) -> None:
        """Decode every file once; raises UsageError when some are missing or broken."""
        missing = [printable(file)[:300] for file in self.files if not is_file(file)]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(self)} images of {self.title} are missing; unpack all of them below "
                f"{self.root}, where they are listed as{listed_below(missing[:5])}"
            )

        def problem(index: int) -> str | None:
            try:
                decode_shrunk(self.files[index], 64, self.boxes[index])
            except DECODING_ERRORS as error:
                return f"{self.name(index)}: {error}"
            return None

        record = records / f"places-{self.fingerprint()}"
        bad = find_problems(range(len(self)), problem, record, f"checking {self.title}")
        if bad:
            raise UsageError(
                f"{len(bad)} of {len(self)} images of {self.root} cannot be used:{listed_below([*bad.values()])}"
            )

    def name(self, index: int) -> str:
        """Path below the root."""
        return printable(self.files[index].relative_to(self.root).as_posix())

    @taken_once
    def fingerprint(self) -> str:
        """Hash of the files and of rectangles in them."""
        return fingerprint_files(self.files, self.root, self.boxes)


class ScenePlaces(PlaceImages):
    """Built-in places `(N, H, W, 3)`, kept in memory."""

    def __init__(self, title: str, pixels: NDArray[np.uint8], is_night: bool) -> None:
        super().__init__(title, is_night, len(pixels))
        self.pixels = pixels

    def load(self, index: int, size: int) -> Tensor:
        """One image."""
        image = Image.fromarray(self.pixels[index])
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def check(self, records: Path) -> None:
        """Nothing to check."""

    def name(self, index: int) -> str:
        """Title and number."""
        return f"{self.title}/{index:04d}"

    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()[:16]


def decode_shrunk(file: Path, size: int, box: Box | None = None) -> Tensor:
    """Decode a file, cut out the box and shrink the longest side to `size`.

    Raises one of DECODING_ERRORS when the file is broken.

    The box is in pixels of the stored image; without one the image is turned upright by its EXIF entry.
    """
    with Image.open(file) as opened:
        if box is None:  # decode a large JPEG at a fraction of its size, yet at twice `size`, as thumbnail does
            opened.draft(None, (2 * size, 2 * size))
        elif not (box[0] >= 0 and box[1] >= 0 and box[2] <= opened.width and box[3] <= opened.height):
            raise ValueError(f"its box {box} leads out of its {opened.width}x{opened.height} pixels")
        image = as_rgb(upright_picture(opened) if box is None else opened.crop(box))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
