"""Files of data sets: found, called by names that are text, kept below their folder, and apart from nights."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from media.pictures import is_file, names_below
from minmax.runtime.checkpoints import file_digest
from minmax.runtime.errors import RunError, UsageError, printable


def data_files(folder: Path, endings: tuple[str, ...] | str) -> list[Path]:
    """`files_below`, but for links to nothing: left out silently, they would make another data set.

    Raises:
        UsageError: names such a link.
    """
    names = names_below(folder)
    files = [name for name in names if is_file(name)]
    _refuse_dangling(sorted(set(names).difference(files)))
    return sorted(file for file in files if file.name.lower().endswith(endings))


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, which are classes or places, sorted; hidden ones and files are left out.

    Raises:
        UsageError: for a link to nothing, and for a name that is not text of one line.
    """
    entries = sorted(entry for entry in folder.iterdir() if entry.name[0] != ".")
    _refuse_dangling(entries)
    names = [entry.name for entry in entries if entry.is_dir()]
    for name in names:
        if name != printable(name):
            raise UsageError(
                f"the folder {printable(folder / name)} has a name that is not text of one line; it goes into tables "
                "and checkpoints, so rename it"
            )
    return names


def _refuse_dangling(links: Iterable[Path]) -> None:
    for link in links:
        if link.name[0] != "." and link.is_symlink() and not link.exists():
            raise UsageError(
                f"{printable(link)} is a link to {printable(link.readlink())}, which is not there; mount what it "
                "leads to, or remove it"
            )


def listed_file(folder: Path, name: str, where: object, root: Path | None = None) -> Path:
    """The file that a list calls `name`, below the folder; it need not be there.

    Raises:
        UsageError: when the name leads out of the folder by its own steps, or by a link out of `root` as well, by
            default the folder; `where` is the list.
    """
    steps = Path(name)
    inside = not steps.is_absolute() and ".." not in steps.parts and "\0" not in name
    # The folder itself may be a link, as to another disk.
    bounds = [place.resolve() for place in (folder, root or folder)]
    if not inside or not any((folder / steps).resolve().is_relative_to(bound) for bound in bounds):
        raise UsageError(
            f"{printable(where)}: {printable(name)[:200]!r} leads out of {printable(folder)}; expected a name below it"
        )
    return folder / steps


def refuse_day(day: Sequence[Path], darkened: Sequence[Path], flag: str) -> None:
    """Refuse day images or videos given as their own darkened copies.

    Raises:
        UsageError: names the first of them; `flag` is to blame.
    """
    inodes = {_inode(file) for file in day}
    for copy in darkened:
        if _inode(copy) in inodes:
            raise UsageError(f"{flag}: {printable(copy)} is the day's own, not a darkened copy of it")


def _inode(file: Path) -> tuple[int, int]:
    status = _status(file)
    return status.st_dev, status.st_ino


def _status(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise RunError(f"cannot read {printable(file)} any more: {error.strerror}") from error


def refuse_two_labels(files: Sequence[Path], labels: Sequence[int], classes: Sequence[str]) -> None:
    """Refuse a file that is of two classes, as where the folder of one holds a link to that of another.

    Raises:
        UsageError: names the first such file and its classes.
    """
    known: dict[tuple[int, int], int] = {}
    for file, label in zip(files, labels, strict=True):
        first = known.setdefault(_inode(file), label)
        if first != label:
            raise UsageError(
                f"{printable(file)} is of the classes {classes[first]} and {classes[label]} at once; take one link out"
            )


def refuse_shared(day: Sequence[Path], night: Sequence[Path], split: str) -> None:
    """Refuse a split for training or choosing that holds files of the night, as such, by links or as copies.

    Args:
        day: files of the split.
        night: files of the test data by night.
        split: what to call the first.

    Raises:
        UsageError: names the first of them.
    """
    if not day or not night:
        return
    by_size: dict[int, list[Path]] = {}
    by_inode: dict[tuple[int, int], Path] = {}
    for file in night:
        status = _status(file)
        by_size.setdefault(status.st_size, []).append(file)
        by_inode[status.st_dev, status.st_ino] = file
    by_content: dict[int, dict[str, Path]] = {}  # of the sizes that are met: small files share few of them
    for file in day:
        status = _status(file)
        size, twin = status.st_size, by_inode.get((status.st_dev, status.st_ino))
        if twin is None and size in by_size:
            if size not in by_content:
                by_content[size] = {_digest(other): other for other in by_size[size]}
            twin = by_content[size].get(_digest(file))
        if twin is not None:
            raise UsageError(
                f"{printable(file)} of {split} is {printable(twin)} of the night; zero-shot adaptation must not see "
                "nights in training or choosing: take it, and all others that are from there, out"
            )


def _digest(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise RunError(f"cannot read {printable(file)} any more: {error.strerror}") from error
