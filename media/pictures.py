"""Picture files in and out."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.errors import RunError, UsageError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"})
DECODING_ERRORS = (
    *(OSError, ValueError, SyntaxError, Image.DecompressionBombError),
    *(TypeError, AttributeError, LookupError, ArithmeticError, struct.error),  # for metadata of an unexpected type
)
"""What Pillow raises for files that are no picture, or a damaged one."""

_WRITTEN_AS = {".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff"}
# PNG is lossless at every level; 2 takes a fifth of the time of Pillow's own 6 for a file of a fifth more.
_OPTIONS = {"jpeg": {"quality": 95, "subsampling": 0}, "png": {"compress_level": 2}}
_Turn = Image.Transpose
_TO_UPRIGHT = {
    **{2: _Turn.FLIP_LEFT_RIGHT, 3: _Turn.ROTATE_180, 4: _Turn.FLIP_TOP_BOTTOM},
    **{5: _Turn.TRANSPOSE, 6: _Turn.ROTATE_270, 7: _Turn.TRANSVERSE, 8: _Turn.ROTATE_90},
}


def files_below(folder: Path, ending: str | tuple[str, ...]) -> list[Path]:
    """All files with an ending (any case) below a folder, links to folders followed, hidden ones left out, sorted.

    Each folder is read once, however many links lead to it; by its own path if that is below the folder too.
    """
    found, seen, starts = [], set(), [folder]
    for start in starts:  # which grows by the links that are met
        for place, folders, names in os.walk(start):
            status = Path(place).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            # Hidden: macOS writes a ._photo.jpg, no picture, beside photo.jpg, and editors keep copies of files.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
            found += [Path(place, name) for name in names if name.lower().endswith(ending) and name[0] != "."]
    return sorted(file for file in found if file.is_file())


def find_pictures(source: Path, kinds: frozenset[str] = PICTURE_SUFFIXES) -> list[Path]:
    """The picture file itself, or all below a folder, sorted.

    Args:
        source: a file or a folder.
        kinds: endings of the files to look for; may include those of videos.

    Raises:
        UsageError: when there is nothing, or no such file.
    """
    what = "picture" if kinds == PICTURE_SUFFIXES else "picture or video"
    if source.is_file():
        if source.suffix.lower() not in kinds:
            raise UsageError(f"{source} is not a {what}; expected one of {', '.join(sorted(kinds))}")
        return [source]
    if not source.is_dir():
        raise UsageError(f"no file or folder {source}")
    found = files_below(source, tuple(kinds))
    if not found:
        raise UsageError(f"no {what.replace('e or', 'es or')}s below {source} ({', '.join(sorted(kinds))})")
    return found


def decode_picture(file: Path, size: tuple[int, int] | None = None, upright: bool = True) -> Tensor:
    """Decode a file to uint8 RGB `(3, H, W)`; raises one of DECODING_ERRORS when it is broken.

    Args:
        file: the picture.
        size: height and width to resize to, by Lanczos; None keeps its own.
        upright: turn it as its EXIF entry says; off where labels of its pixels are in another file.
    """
    with Image.open(file) as opened:
        image = as_rgb(upright_picture(opened) if upright else opened)
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = np.array(image)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened picture: 5 to 8 lie on a side, 1 is upright or unknown."""
    try:
        told = image.getexif().get(ExifTags.Base.Orientation)
    except DECODING_ERRORS:  # the entries are damaged, which says nothing of the pixels
        return 1
    return told if isinstance(told, int) and told in _TO_UPRIGHT else 1


def upright_picture(image: Image.Image) -> Image.Image:
    """A picture turned as its EXIF entry says; Pillow's own function rewrites all entries, and fails on odd ones."""
    image.load()  # after which a TIFF is upright already
    turn = _TO_UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture in 8-bit RGB; grey of 16 bits is brought to that range, where Pillow would clip it to white.

    Raises:
        ValueError: for grey of 32 bits, whose range is unknown.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits and no known range; save it with 8 or 16 bits")
    return image.convert("RGB")


def as_intensities(codes: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1], of the same shape and memory layout."""
    return codes.to(torch.float32).div_(255.0)  # twice as fast as a division of bytes


def as_codes(images: Tensor) -> Tensor:
    """Intensities rounded to bytes, those outside [0, 1] clamped, not wrapped around."""
    return images.mul(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)


def read_picture(file: Path) -> Tensor:
    """Read a file as float RGB `(1, 3, H, W)` in [0, 1].

    Raises:
        RunError: when it cannot be decoded.
    """
    try:
        return as_intensities(decode_picture(file)[None])
    except DECODING_ERRORS as error:
        raise RunError(f"cannot read {file}: {error}") from error


def write_picture(image: Tensor, file: Path) -> None:
    """Write `(3, H, W)` in [0, 1] in the format of the file's ending, atomically and clamped, not wrapped around."""
    pixels = as_codes(image).cpu().permute(1, 2, 0).numpy()
    kind = _WRITTEN_AS.get(file.suffix.lower(), file.suffix.lower()[1:])
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    write_atomically(file, lambda temporary: picture.save(temporary, format=kind, **_OPTIONS.get(kind, {})))


def listed_below(problems: Sequence[str]) -> str:
    """All problems, a line each, for the end of a message."""
    return "".join(f"\n  {problem}" for problem in problems)
