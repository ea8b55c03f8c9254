"""Picture files in and out."""

import contextlib
import errno
import logging
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.errors import RunError, UsageError, printable

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"})
DECODING_ERRORS = (
    *(OSError, ValueError, SyntaxError, Image.DecompressionBombError),
    *(TypeError, AttributeError, LookupError, ArithmeticError, struct.error),  # for metadata of an unexpected type
    *(RuntimeError, EOFError, MemoryError),  # of AVIF, which may be inside of a .jpg; of sizes that are absurd
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


# What is wrong with one name or one size on a disk that takes others.
_OF_ONE_FILE = {
    *(errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ELOOP, errno.EILSEQ, errno.EINVAL, errno.EFBIG),
}
_SHOWN_KINDS = 8


class UnwritableFile(ValueError):
    """A file that cannot be written where others can; the message says why."""


def files_below(folder: Path, ending: str | tuple[str, ...]) -> list[Path]:
    """All files with an ending (any case) below a folder, links to folders followed, hidden ones left out, sorted.

    Each folder is read once, however many links lead to it; by its own path if that is below the folder too. Folders
    that cannot be read are told.
    """
    return sorted(file for file in names_below(folder) if file.name.lower().endswith(ending) and is_file(file))


def names_below(folder: Path, but: Path | None = None) -> list[Path]:
    """Everything below a folder that is no folder, as `files_below` finds it, without what is in the folder `but`."""
    found, seen, starts = [], set(), [folder]
    if but is not None and but.is_dir():
        seen.add(_identity(but))
    for start in starts:  # which grows by the links that are met
        for place, folders, names in os.walk(start, onerror=lambda error: log.warning("left out: %s", error)):
            here = Path(place)
            identity = _identity(here)
            if identity in seen:
                folders.clear()
                continue
            seen.add(identity)
            # Hidden: macOS writes a ._photo.jpg, no picture, beside photo.jpg, and editors keep copies of files.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [here / name for name in folders if (here / name).is_symlink()]
            found += [here / name for name in names if name[0] != "."]
    return found


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def is_file(path: Path) -> bool:
    """Whether it is a file, or a link to one; no, where a link leads nowhere or to what may not be looked at."""
    try:
        return path.is_file()
    except OSError:
        return False


def find_pictures(source: Path, kinds: frozenset[str] = PICTURE_SUFFIXES, but: Path | None = None) -> list[Path]:
    """The picture file itself, or all below a folder, sorted; what is there beside them is told in one line.

    Args:
        source: a file or a folder.
        kinds: endings of the files to look for; may include those of videos.
        but: a folder that is left out, though a link below the source may lead to it.

    Raises:
        UsageError: when there is nothing, or no such file.
    """
    what = "picture" if kinds == PICTURE_SUFFIXES else "picture or video"
    if is_file(source):
        if source.suffix.lower() not in kinds:
            listed = ", ".join(sorted(kinds))
            raise UsageError(f"{source} is of a kind that is not read; expected a {what}, one of {listed}")
        return [source]
    if not source.is_dir():
        raise UsageError(f"no file or folder {source}")
    names = names_below(source, but)
    found = sorted(file for file in names if file.name.lower().endswith(tuple(kinds)) and is_file(file))
    skipped = _skipped(names, set(found))
    if not found:
        hint = f"; {skipped}" if skipped else ""
        raise UsageError(f"no {what.replace('e or', 'es or')}s below {source} ({', '.join(sorted(kinds))}){hint}")
    if skipped:
        log.warning("%s", skipped)
    return found


def told_skipped(folder: Path, found: Iterable[Path]) -> str:
    """What is below a folder beside the files that were found there, in words; nothing if there is nothing."""
    return _skipped(names_below(folder), set(found))


def _skipped(names: Sequence[Path], found: set[Path]) -> str:
    """What is not read of a folder, as `skipped 3 files of kinds that are not read: 2 .heic, 1 .gif`."""
    others = [name for name in names if name not in found]
    files = [name for name in others if is_file(name)]
    counted = Counter(printable(name.suffix.lower()) or "without an ending" for name in files)
    counts = sorted(counted.items(), key=lambda kind: (-kind[1], kind[0]))
    kinds = [f"{count} {kind}" for kind, count in counts[:_SHOWN_KINDS]]
    if rest := sum(count for _, count in counts[_SHOWN_KINDS:]):
        kinds.append(f"{rest} others")
    parts = [f"{count_of(len(files), 'file')} of kinds that are not read: {', '.join(kinds)}"] if files else []
    if odd := len(others) - len(files):
        parts.append(f"{count_of(odd, 'link')} that {'leads' if odd == 1 else 'lead'} to no file")
    return f"skipped {' and '.join(parts)}" if parts else ""


def count_of(count: int, what: str, several: str = "") -> str:
    """A number of things, as `1 file` or `2 files`."""
    return f"{count} {what if count == 1 else several or f'{what}s'}"


def told_losses(losses: Counter[str]) -> str:
    """What is not kept of how many files, as `EXIF entries of 2 files, transparency of 1 file`."""
    return ", ".join(f"{what} of {count_of(count, 'file')}" for what, count in losses.most_common())


def decode_picture(file: Path, size: tuple[int, int] | None = None, upright: bool = True) -> Tensor:
    """Decode a file to uint8 RGB `(3, H, W)`; raises one of DECODING_ERRORS when it is broken.

    Args:
        file: the picture.
        size: height and width to resize to, by Lanczos; None keeps its own.
        upright: turn it as its EXIF entry says; off where labels of its pixels are in another file.
    """
    with Image.open(file) as opened:
        return _decode(opened, size, upright)


def check_picture(file: Path) -> tuple[int, int]:
    """Read a file to its end; raises what `decode_picture` would, of a JPEG in a tenth of the time.

    Gives its height and width as they are stored.
    """
    with Image.open(file) as opened:
        width, height = opened.size
        opened.draft("RGB", (1, 1))  # an eighth of its size; all of its data is read all the same
        opened.load()
        if opened.mode != "RGB":
            as_rgb(opened)
    return height, width


def decode_fully(file: Path, size: tuple[int, int] | None = None) -> tuple[Tensor, list[str]]:
    """As `decode_picture`, upright; and what of the file is not in the pixels, in words."""
    with Image.open(file) as opened:
        pixels = _decode(opened, size, upright=True)
        losses = []
        with contextlib.suppress(*DECODING_ERRORS):  # damage that the pixels do not meet
            losses = _losses(opened)
    return pixels, losses


def _decode(opened: Image.Image, size: tuple[int, int] | None, upright: bool) -> Tensor:
    image = as_rgb(upright_picture(opened) if upright else opened)
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _losses(image: Image.Image) -> list[str]:
    """What a decoded picture has beside 8-bit RGB pixels: profiles other than sRGB, which is meant without one, too."""
    profile = image.info.get("icc_profile") or b""
    return [
        what
        for what, there in {
            "EXIF entries": bool(image.info.get("exif")) and set(image.getexif()) != {ExifTags.Base.Orientation},
            "colour profiles (ICC)": bool(profile) and b"sRGB" not in profile and b"s\0R\0G\0B" not in profile,
            "transparency": image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
            "bits beyond 8": image.mode.startswith("I;16"),
            "further pages or frames": getattr(image, "n_frames", 1) > 1,
        }.items()
        if there
    ]


def reading_problem(error: BaseException) -> str:
    """What one of DECODING_ERRORS says, in one line and without the name of the file."""
    if isinstance(error, UnidentifiedImageError):
        return "is no picture, or a damaged one"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(said.split()) or type(error).__name__)


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
        raise RunError(f"cannot read {printable(file)}: {reading_problem(error)}") from error


def write_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write atomically.

    Raises:
        UnwritableFile: when only this file cannot be written, for its name or its size.
        RunError: when the disk is full or nothing can be written there.
    """
    try:
        write_atomically(file, write)
    except RunError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _OF_ONE_FILE:
            raise UnwritableFile(f"cannot be written as {printable(file)}: {cause.strerror}") from error
        raise


def write_picture(image: Tensor, file: Path) -> None:
    """Write `(3, H, W)` in [0, 1] in the format of the file's ending, atomically and clamped, not wrapped around.

    Raises:
        UnwritableFile: when only this file cannot be written: its format does not hold so large a picture, the disk
            does not take its name.
        RunError: when the disk is full or nothing can be written there.
    """
    pixels = as_codes(image).cpu().permute(1, 2, 0).numpy()
    kind = _WRITTEN_AS.get(file.suffix.lower(), file.suffix.lower()[1:])
    encoded = BytesIO()
    try:
        Image.fromarray(np.ascontiguousarray(pixels)).save(encoded, format=kind, **_OPTIONS.get(kind, {}))
    except (OSError, ValueError) as error:  # in memory: it is the picture's, not the disk's
        height, width = pixels.shape[:2]
        raise UnwritableFile(f"cannot be written as {kind} of {width}x{height} pixels: {error}") from error
    write_file(file, lambda temporary: temporary.write_bytes(encoded.getvalue()))


def listed_below(problems: Sequence[str]) -> str:
    """All problems, a line each, for the end of a message."""
    return "".join(f"\n  {problem}" for problem in problems)
