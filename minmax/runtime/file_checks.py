"""Files of data sets: told from others, and decoded once before a training, so that none breaks it after hours."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.devices import joined_processes
from minmax.runtime.errors import RunError

log = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
_END = 1024  # bytes; headers of pictures are often alike
_TOGETHER = 16  # items that a thread takes at a time
_TIMED, _WORTH_THREADS = 128, 1.5e-4  # seconds an item: below it, threads wait for each other for longer than they work


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
    start = f"{root}{os.sep}"
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _END))
                end = file.read()
        except OSError as error:
            raise RunError(f"cannot read {path} any more: {error.strerror}") from error
        # Of a hundred thousand files, relative_to would take longer than reading them.
        name = os.fspath(path)
        name = name.removeprefix(start) if name.startswith(start) else os.fspath(path.relative_to(root))
        digest.update(os.fsencode(name) + f" {size} ".encode() + end)
    return digest.hexdigest()[:16]


def taken_once(fingerprint: Callable[[ItemT], str]) -> Callable[[ItemT], str]:
    """A fingerprint that an object keeps, as its files are when it is first asked for: taking it reads all of them."""

    @wraps(fingerprint)
    def kept(owner: ItemT) -> str:
        if "_fingerprint" not in vars(owner):
            vars(owner)["_fingerprint"] = fingerprint(owner)
        found: str = vars(owner)["_fingerprint"]
        return found

    return kept


def find_problems(
    items: Sequence[ItemT], problem: Callable[[ItemT], str | None], record: Path, title: str
) -> dict[int, str]:
    """Positions of the items that something is wrong with, and what; the processes of torchrun check a share each.

    Args:
        items: what to check.
        problem: what is wrong with an item, None for nothing; called from several threads.
        record: a file that is made when nothing was wrong; while it exists, nothing is checked again.
        title: what the progress bar says.
    """
    runtime = joined_processes()
    if runtime.collected([record.is_file()])[0]:  # the main process decides: what it writes, others may see already
        return {}
    told = runtime.collected(_check_all(runtime.dealt(items), problem, title, runtime.hides_bar))
    bad = {position: why for position, why in enumerate(told) if why is not None}
    if not bad and runtime.is_main:
        try:
            write_atomically(record, lambda temporary: temporary.touch())
        except RunError as error:  # only costs the next run some time
            log.warning("%s", error)
    return bad


def _check_all(
    items: Sequence[ItemT], problem: Callable[[ItemT], str | None], title: str, hides_bar: bool | None
) -> list[str | None]:
    bar = tqdm(total=len(items), desc=title, disable=hides_bar, leave=False)
    with ThreadPoolExecutor() as pool, bar:  # images are decoded without Python's lock
        start = time.perf_counter()
        found = [problem(item) for item in items[:_TIMED]]
        each = pool.map if time.perf_counter() - start > _WORTH_THREADS * len(found) else map
        bar.update(len(found))
        parts = (items[first : first + _TOGETHER] for first in range(_TIMED, len(items), _TOGETHER))
        for told in each(lambda part: [problem(item) for item in part], parts):
            found += told
            bar.update(len(told))
    return found
