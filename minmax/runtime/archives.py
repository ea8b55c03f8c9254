"""Archives of pictures, unpacked completely or not at all, into their folder and nowhere else."""

import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

from tqdm import tqdm

from minmax.runtime.errors import RunError, UsageError

_MOST_RATIO = 20  # bytes unpacked per byte of an archive: pictures hardly shrink, a decompression bomb does
_HARMLESS = 16 * 2**20  # bytes below which the ratio does not matter


def unpacking_folder(folder: Path) -> Path:
    """Where the files of a folder stand until all of them are unpacked."""
    return folder.with_name(f".{folder.name}.unpacking")


def unpack_archive(
    archive: BinaryIO, mode: Literal["r:gz", "r:bz2"], folder: Path, place: Callable[[str], str | None], name: str
) -> int:
    """Write the files of a tar archive below `folder`, which appears when it is complete or not at all.

    Args:
        archive: opened at its beginning; it can seek.
        mode: how tarfile opens it; not as a stream (r|gz), which takes truncated archives for whole ones.
        folder: must not be there yet.
        place: where in the folder a file goes, by its name in the archive; None leaves it out, a UsageError refuses it.
        name: what to call the archive in messages.

    Returns:
        How many files were written.

    Raises:
        RunError: when it is broken, holds links, devices, a path that leads out of the folder, no file with a place, or
            far more than pictures do; or when the disk is full.
    """
    growing, left = unpacking_folder(folder), _HARMLESS + _MOST_RATIO * archive.seek(0, 2)
    archive.seek(0)
    written: set[str] = set()

    def admit(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal left
        left -= member.size + tarfile.BLOCKSIZE
        if left < 0:
            raise RunError(f"refused {name}: it unpacks to far more than pictures do; is it a decompression bomb?")
        if member.isdir():
            return None
        if not member.isreg():
            raise RunError(f"refused {name}: {member.name!r} is a link or a device; expected plain files")
        target = place(member.name)
        if target is None:
            return None
        written.add(target)
        return tarfile.data_filter(member.replace(name=target, deep=False), path)

    try:
        if growing.exists():
            shutil.rmtree(growing)  # what a killed run left behind
        growing.mkdir(parents=True)
        with tarfile.open(fileobj=archive, mode=mode) as tar:
            members = tqdm(tar, desc=f"unpacking {name}", unit=" files", disable=None, leave=False)
            tar.extractall(growing, members, filter=admit)
            while tar.fileobj is not None and tar.fileobj.read(2**20):  # up to the checksum at the end
                pass
        if sum(file.is_file() for file in growing.rglob("*")) != len(written):
            raise RunError(f"{growing} was changed by somebody else; is this command running twice?")
        if not written:
            raise RunError(f"{name} holds no files that belong into {folder}")
        growing.rename(folder)
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, MemoryError, UsageError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"could not unpack {name} to {folder}: {reason}; download it again if it is broken, free some space if the "
            "disk is full"
        ) from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)  # after the renaming there is none
    return len(written)
