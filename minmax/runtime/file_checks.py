"""Files of data sets: told from others, and decoded once before a training, so that none breaks it after hours."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.errors import RunError

log = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
_END = 1024  # bytes; headers of pictures are often alike


def fingerprint_files(files: Iterable[Path], root: Path, more: object = "") -> str:
    """A short hash of files' names below a root, their sizes and their ends: the same when all were moved or touched.

    Args:
        files: in their order.
        root: of the names.
        more: what belongs to them, such as their labels.

    Raises:
        RunError: when a file has vanished since it was found.
    """
    digest = hashlib.sha256(repr(more).encode("utf-8", "surrogateescape"))
    for path in files:
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _END))
                end = file.read()
        except OSError as error:
            raise RunError(f"cannot read {path} any more: {error.strerror}") from error
        digest.update(os.fsencode(path.relative_to(root)) + f" {size} ".encode() + end)
    return digest.hexdigest()[:16]


def find_problems(
    items: Sequence[ItemT], problem: Callable[[ItemT], str | None], record: Path, title: str
) -> dict[int, str]:
    """Positions of the items that something is wrong with, and what.

    Args:
        items: what to check.
        problem: what is wrong with an item, None for nothing; called from several threads.
        record: a file that is made when nothing was wrong; while it exists, nothing is checked again.
        title: what the progress bar says.
    """
    if record.is_file():
        return {}
    with ThreadPoolExecutor() as pool:  # images are decoded without Python's lock
        found = list(
            tqdm(
                pool.map(problem, items),
                total=len(items),
                desc=title,
                disable=None,
                leave=False,
            )
        )
    bad = {position: why for position, why in enumerate(found) if why is not None}
    if not bad:
        try:
            write_atomically(record, lambda temporary: temporary.touch())
        except RunError as error:  # only costs the next run some time
            log.warning("%s", error)
    return bad
