"""Unpack CODaN, Common Objects Day and Night, as it is distributed, into class folders.

    python classification/codan.py --archives ~/Downloads --output classification/data

https://github.com/Attila94/CODaN holds one archive per split: codan_val.tar.bz2, codan_test_day.tar.bz2,
codan_test_night.tar.bz2, and codan_train.tar.bz2 cut into .part0, .part1 and .part2. Inside are
SPLIT/<Class>/*.jpg and *.JPEG, 224x224. The archives are only read. A split appears in the output when it is complete.
"""

import bz2
import io
import json
import logging
import re
import shutil
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from class_folders import DEFAULT_DATA, Split, unpacking_folder
from tqdm import tqdm

from media.pictures import PICTURE_SUFFIXES
from minmax.runtime.config import run_script
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.report import write_json

log = logging.getLogger(__name__)

SOURCE = "https://github.com/Attila94/CODaN"
SPLITS: tuple[Split, ...] = get_args(Split)
CODAN_CLASSES = ("Bicycle", "Boat", "Bottle", "Bus", "Car", "Cat", "Chair", "Cup", "Dog", "Motorbike")
CODAN_IMAGES: dict[Split, int] = {"train": 10_000, "val": 500, "test_day": 2_500, "test_night": 2_500}

RECORD = ".codan.json"
BZIP2_START = b"BZh"

# What an archive may unpack to. CODaN stays far below each limit; a decompression bomb does not.
MAX_MEMBERS = 50_000  # the largest split has 10,000 images
MAX_FILE_BYTES = 16 * 2**20  # an image is 224x224, 150 kB even without any compression
MAX_HEADER_BYTES = 2**20  # between two files; tarfile holds them in memory
MAX_BYTES = 4 * 2**30  # all 15,500 images together have 2.2 GiB even without any compression
MAX_RATIO = 20  # JPEGs hardly compress
HARMLESS_BYTES = 16 * 2**20  # below this the ratio does not matter: the headers of a few small files compress well

SPACE_RATIO = 1.5  # free space per byte of archive: JPEGs hardly compress, files fill whole blocks of the disk

# What tarfile raises for bytes that are no tar archive.
TAR_ERRORS = (tarfile.TarError, ValueError, RecursionError)
KINDS = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Unpack the archives of CODaN into class folders."""

    archives: Path
    """Folder with the downloaded codan_*.tar.bz2 and codan_train.tar.bz2.part*; they are only read."""
    output: Path = DEFAULT_DATA
    """Folder that gets train/, val/, test_day/ and test_night/."""


@dataclass(frozen=True)
class Archive:
    """The archive of a split: a file, or the parts that make it up, in order."""

    split: Split
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files)

    def __str__(self) -> str:
        return f"{', '.join(file.name for file in self.files)} (in {self.files[0].parent})"


def main(config: Config) -> None:
    """Unpack the splits whose archives are there, but for those that are unpacked already."""
    source, output = config.archives.expanduser(), config.output.expanduser()
    archives = find_archives(source)
    present = [split for split in SPLITS if (output / split).exists()]
    for split in present:
        check_unpacked(output / split)
        log.info("%s is complete already", output / split)
    wanted = [archive for archive in archives if archive.split not in present]
    for archive in wanted:
        check_archive(archive)
    for archive in wanted:
        _remove_leftover(unpacking_folder(output, archive.split))
    check_space(wanted, output)
    for archive in wanted:
        unpack(archive, output)
    missing = [split for split in SPLITS if split not in {*present, *(archive.split for archive in wanted)}]
    for split in missing:
        log.warning("no %s: there is no codan_%s.tar.bz2 in %s; it comes from %s", split, split, source, SOURCE)


def find_archives(folder: Path) -> list[Archive]:
    """The archives of CODaN in a folder, whole or in parts.

    Raises:
        UsageError: when there is none.
    """
    if not folder.is_dir():
        raise UsageError(f"--archives {folder}: no such folder")
    found = []
    for split in SPLITS:
        whole = folder / f"codan_{split}.tar.bz2"
        parts = {int(file.suffix[5:]): file for file in folder.glob(f"{whole.name}.part*") if _is_part(file)}
        files = [whole] if whole.is_file() else [parts[number] for number in sorted(parts)]
        if files:
            found.append(Archive(split, tuple(files)))
    if not found:
        raise UsageError(
            f"--archives {folder}: no archive of CODaN there; expected codan_SPLIT.tar.bz2 for one or more of "
            f"{', '.join(SPLITS)}, or its parts codan_SPLIT.tar.bz2.part0, .part1, ...; download them from {SOURCE}"
        )
    return found


def _is_part(file: Path) -> bool:
    return file.is_file() and re.fullmatch(r"\.part(0|[1-9][0-9]*)", file.suffix) is not None


def check_archive(archive: Archive) -> None:
    """Refuse what cannot be unpacked, as far as names and first bytes tell.

    Raises:
        UsageError: when a part in between is missing, a file cannot be read, or it is not bzip2.
    """
    first = archive.files[0]
    if _is_part(first):
        numbers = [int(file.suffix[5:]) for file in archive.files]
        gap = next((n for n in range(numbers[-1]) if n not in numbers), None)
        if gap is not None:
            raise UsageError(f"{first.with_suffix(f'.part{gap}')} is missing; found {archive}")
    try:
        start = b"".join(_first_bytes(file) for file in archive.files)
    except OSError as error:
        raise UsageError(f"cannot read {archive}: {error}") from error
    if not start.startswith(BZIP2_START):
        raise UsageError(
            f"{first} is not a bzip2 archive (a web page or a Git LFS pointer in its place?); download it again "
            f"from {SOURCE}"
        )


def _first_bytes(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(len(BZIP2_START))


def check_space(archives: list[Archive], output: Path) -> None:
    """Refuse a disk that cannot hold what the archives unpack to.

    Raises:
        UsageError: when there is too little space, or the output cannot be a folder.
    """
    existing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UsageError(f"--output {output}: {existing} is not a folder")
    needed = SPACE_RATIO * sum(archive.size for archive in archives)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UsageError(
            f"--output {output}: unpacking needs about {needed / 2**30:.2f} GiB, but {existing} has "
            f"{free / 2**30:.2f} GiB free; free some space or choose another --output"
        )


def _remove_leftover(folder: Path) -> None:
    if not folder.exists():
        return
    log.warning("removing %s, which an interrupted run left behind", folder)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise RunError(f"cannot remove {folder}, which an interrupted run left behind: {error}") from error


def unpack(archive: Archive, output: Path) -> None:
    """Unpack an archive into OUTPUT/SPLIT, which appears when it is complete or not at all.

    Raises:
        RunError: when the archive is truncated, damaged or unsafe, or the disk is full.
    """
    folder, final = unpacking_folder(output, archive.split), output / archive.split
    try:
        folder.mkdir(parents=True)
        written = _extract(archive, folder)
        count, size = len(written), sum(written.values())
        if _measured(folder) != (count, size):
            raise RunError(f"{folder} was changed by somebody else; is this command running twice?")
        files = [{"name": file.name, "bytes": file.stat().st_size} for file in archive.files]
        write_json({"archive": files, "files": count, "bytes": size}, folder / RECORD)
        folder.rename(final)
    except OSError as error:
        raise RunError(
            f"could not unpack {archive} to {final}: {error}; free some space or choose another --output"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # after the renaming there is none
    classes = sorted({file.relative_to(folder).parts[0] for file in written})
    log.info("%s: %d images in %d classes", final, count, len(classes))
    if classes != list(CODAN_CLASSES):
        log.warning("%s holds the classes %s; CODaN has %s", final, ", ".join(classes), ", ".join(CODAN_CLASSES))
    if count != CODAN_IMAGES[archive.split]:
        log.warning("%s holds %d images; CODaN as published has %d", final, count, CODAN_IMAGES[archive.split])


def check_unpacked(folder: Path) -> None:
    """Refuse a split that is not, or no longer, as complete as `unpack` made it.

    Raises:
        UsageError: when the record of what was unpacked is missing, or files are.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        expected = (int(record["files"]), int(record["bytes"]))
    except (OSError, ValueError, LookupError, TypeError):
        why = f"was not made by this command, or not completely: it has no valid record {RECORD}"
    else:
        count, size = _measured(folder)
        if count >= expected[0] and size >= expected[1]:
            return
        why = f"is incomplete: {count} files of {size} bytes, where {expected[0]} of {expected[1]} were unpacked"
    raise UsageError(f"{folder} {why}; remove or rename it and run this command again")


def _measured(folder: Path) -> tuple[int, int]:
    """Number of files below a folder and their bytes, without hidden files."""
    sizes = [file.stat().st_size for file in folder.rglob("[!.]*") if file.is_file()]
    return len(sizes), sum(sizes)


def _extract(archive: Archive, folder: Path) -> dict[Path, int]:
    """Write the pictures of an archive below a folder and return them with their sizes."""
    written: dict[Path, int] = {}
    left_out: list[str] = []
    with ExitStack() as stack:
        stream = stack.enter_context(_TarStream(archive))
        # Not tarfile's extract and its filters, which need Python 3.11.4: they would make links and set permissions,
        # where here nothing but a plain file is ever created, under a name built from checked parts.
        try:
            stream.allow(MAX_HEADER_BYTES)
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
            for count, member in enumerate(iter(tar.next, None), 1):
                if count > MAX_MEMBERS:
                    raise RunError(f"refused {archive}: it holds more than {MAX_MEMBERS} members")
                _refuse_unsafe(member, archive)
                stream.allow(member.size + MAX_HEADER_BYTES)
                inside = _path_in_split(member, archive.split)
                content = tar.extractfile(member)
                if inside is not None and content is not None:
                    target = folder / inside
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    written[target] = member.size
                elif member.isreg():
                    left_out.append(member.name)
            stream.check_end(tar.offset)
        except TAR_ERRORS as error:
            raise stream.failure(error) from error
    if not written:
        raise RunError(
            f"{archive} holds no pictures in {archive.split}/<Class>/; it holds {_examples(left_out) or 'no files'}"
        )
    if left_out:
        log.info(
            "left out %d files of %s that are no pictures in %s/<Class>/: %s",
            *(len(left_out), archive, archive.split, _examples(left_out)),
        )
    return written


def _examples(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def _refuse_unsafe(member: tarfile.TarInfo, archive: Archive) -> None:
    name = member.name
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        why = "its path leads out of the archive"
    elif "\\" in name or ":" in name:
        why = "its path may lead out of the archive on Windows"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        why = f"it is {KINDS.get(member.type, 'neither a plain file nor a folder')}"
    elif not 0 <= member.size <= MAX_FILE_BYTES:
        why = f"it has {member.size} bytes; expected {MAX_FILE_BYTES} at most, far more than an image has"
    else:
        return
    raise RunError(f"refused {archive}: unsafe member {name!r}, {why}")


def _path_in_split(member: tarfile.TarInfo, split: Split) -> PurePosixPath | None:
    """The part <Class>/<file> of a picture's path, or None for anything else."""
    parts = PurePosixPath(member.name).parts
    if not member.isreg() or split not in parts[:-2]:
        return None
    inside = PurePosixPath(*parts[parts.index(split) + 1 :])
    hidden = any(part.startswith(".") for part in inside.parts)  # macOS puts ._NAME beside NAME
    if hidden or not member.name.isprintable() or inside.suffix.lower() not in PICTURE_SUFFIXES:
        return None
    return inside


class _JoinedFiles(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, files: tuple[Path, ...], bar: "tqdm[Any]") -> None:
        with ExitStack() as stack:
            self.handles = [stack.enter_context(file.open("rb")) for file in files]
            self.stack = stack.pop_all()
        self.bar = bar

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, `size` at most; none at the end of the last file."""
        while self.handles:
            data = self.handles[0].read(size)
            if data:
                self.bar.update(len(data))
                return data
            self.handles.pop(0)
        return b""

    def close(self) -> None:
        """Close all files."""
        self.stack.close()
        super().close()


class _TarStream(io.RawIOBase):
    """The tar archive inside the bzip2 archive: never more of it than was allowed, and whole to its end."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.most = min(MAX_BYTES, max(MAX_RATIO * archive.size, HARMLESS_BYTES))
        self.position = 0
        self.allowed = 0
        self.content_end = 0  # behind the last byte that is not zero
        self.ended = False
        with ExitStack() as stack:
            bar = stack.enter_context(
                tqdm(
                    total=archive.size,
                    desc=f"unpacking {archive.split}",
                    unit="B",
                    unit_scale=True,
                    unit_divisor=1024,
                    disable=None,
                    leave=False,
                )
            )
            joined = stack.enter_context(_JoinedFiles(archive.files, bar))
            self.bzip2 = stack.enter_context(bz2.BZ2File(joined))
            self.stack = stack.pop_all()

    def allow(self, size: int) -> None:
        """Let `size` more bytes be read, from here."""
        self.allowed = self.position + size

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, `size` at most.

        Raises:
            RunError: when the archive is truncated, damaged, or a bomb.
        """
        try:
            data = self.bzip2.read(size)
        except (OSError, EOFError) as error:
            self.ended = isinstance(error, EOFError)
            raise self.failure(error) from error
        stripped = data.rstrip(b"\0")
        if stripped:
            self.content_end = self.position + len(stripped)
        self.position += len(data)
        self.ended = not data
        if self.position > min(self.allowed, self.most):
            raise RunError(
                f"refused {self.archive}: it unpacks to far more than images do (more than {self.most} bytes, or than "
                f"{MAX_HEADER_BYTES} between two files); this looks like a decompression bomb"
            )
        return data

    def check_end(self, end: int) -> None:
        """Refuse an archive that does not end, with the zeros that a tar archive ends with, where tarfile stopped.

        tarfile takes the end of the bytes, or a header that is none, for the end of the archive.

        Args:
            end: where the last member ends.

        Raises:
            RunError: when the archive is truncated or damaged.
        """
        while self.read(tarfile.RECORDSIZE):
            pass
        if self.position < end + tarfile.BLOCKSIZE or self.content_end > end:
            self.ended = self.position < end + tarfile.BLOCKSIZE
            raise self.failure("no end of archive behind the last file")

    def failure(self, reason: object) -> RunError:
        """What to raise when the bytes do not make sense, or there are no more of them."""
        if self.ended:
            return RunError(f"{self.archive} ends too early: a part is missing or a download incomplete ({reason})")
        return RunError(f"{self.archive} is damaged ({reason}); download it again from {SOURCE}")

    def close(self) -> None:
        """Close the files and the progress bar."""
        self.stack.close()
        super().close()


if __name__ == "__main__":
    run_script(Config, main, __doc__)
