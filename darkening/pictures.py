"""Picture files in and out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.errors import RunError, UsageError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"})
DECODING_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that are not, or not wholly, a picture."""

_WRITTEN_AS = {".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff"}
_OPTIONS = {"jpeg": {"quality": 95, "subsampling": 0}}


def find_pictures(source: Path) -> list[Path]:
    """The picture file itself, or all below a folder, sorted.

    Raises:
        UsageError: when there is nothing, or no picture.
    """
    if source.is_file():
        if source.suffix.lower() not in PICTURE_SUFFIXES:
            raise UsageError(f"{source} is not a picture; expected one of {', '.join(sorted(PICTURE_SUFFIXES))}")
        return [source]
    if not source.is_dir():
        raise UsageError(f"no file or folder {source}")
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    if not found:
        raise UsageError(f"no pictures below {source} ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return found


def decode_picture(file: Path) -> Tensor:
    """Decode a file to uint8 RGB `(3, H, W)`; one of DECODING_ERRORS when it is broken."""
    with Image.open(file) as image:
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_picture(file: Path) -> Tensor:
    """Read a file as float RGB `(1, 3, H, W)` in [0, 1].

    Raises:
        RunError: when it cannot be decoded.
    """
    try:
        return decode_picture(file)[None] / 255.0
    except DECODING_ERRORS as error:
        raise RunError(f"cannot read {file}: {error}") from error


def write_picture(image: Tensor, file: Path) -> None:
    """Write `(3, H, W)` in [0, 1] in the format of the file's ending, atomically and clamped, not wrapped around."""
    pixels = (image.clamp(0.0, 1.0) * 255.0).round().to("cpu", torch.uint8).permute(1, 2, 0).numpy()
    kind = _WRITTEN_AS.get(file.suffix.lower(), file.suffix.lower()[1:])
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    write_atomically(file, lambda temporary: picture.save(temporary, format=kind, **_OPTIONS.get(kind, {})))


def listed_below(problems: Sequence[str]) -> str:
    """All problems, a line each, for the end of a message."""
    return "".join(f"\n  {problem}" for problem in problems)
