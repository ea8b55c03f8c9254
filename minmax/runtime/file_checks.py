"""Files of data sets: told from others, and decoded once before a training, so that none breaks it after hours."""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from minmax.runtime.devices import joined_processes
from minmax.runtime.errors import RunError
from minmax.runtime.report import write_json

log = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
_END = 1024  # bytes; headers of pictures are often alike
_PARTS = 4096  # of the items, for threads: as many futures take no time and memory worth mentioning
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


def check_once(
    items: Sequence[ItemT], check: Callable[[ItemT], int | str], record: Path, title: str
) -> list[int | str]:
    """What a check finds in each item: a number, or a text that says what is wrong.

    The processes of torchrun check a share each. What was found is kept, and only what was wrong is checked again, as a
    fault may be the disk's and gone by then.

    Args:
        items: what to check.
        check: called from several threads.
        record: the file that keeps what was found, of the same items in the same order.
        title: what the progress bar says.
    """
    runtime = joined_processes()
    # The main process decides: what it writes, others may see already.
    found = runtime.collected(_recorded(record, len(items)) if runtime.is_main else [])
    unknown = [position for position, told in enumerate(found) if isinstance(told, str)]
    if unknown:
        mine = [items[position] for position in runtime.dealt(unknown)]
        checked = runtime.collected(_check_all(mine, check, title, runtime.hides_bar))
        for position, told in zip(unknown, checked, strict=True):
            found[position] = told
        if runtime.is_main:
            try:
                write_json({"found": found}, record)
            except RunError as error:  # only costs the next run some time
                log.warning("%s", error)
    return found


def find_problems(
    items: Sequence[ItemT], problem: Callable[[ItemT], str | None], record: Path, title: str
) -> dict[int, str]:
    """Positions of the items that something is wrong with, and what: `check_once` with None for nothing."""
    found = check_once(items, lambda item: problem(item) or 0, record, title)
    return {position: told for position, told in enumerate(found) if isinstance(told, str)}


def _recorded(record: Path, count: int) -> list[int | str]:
    """What a record tells of `count` items; an empty text for each where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        found = json.loads(record.read_text(encoding="utf-8"))["found"]
        if len(found) == count and all(type(told) in (int, str) for told in found):
            return list(found)
    return [""] * count


def _check_all(
    items: Sequence[ItemT], check: Callable[[ItemT], int | str], title: str, hides_bar: bool | None
) -> list[int | str]:
    found: list[int | str] = []
    bar = tqdm(total=len(items), desc=title, disable=hides_bar, leave=False)
    with ThreadPoolExecutor() as pool, bar:  # images and videos are decoded without Python's lock
        start, is_slow = time.perf_counter(), False
        while not is_slow and len(found) < min(_TIMED, len(items)):
            found.append(check(items[len(found)]))
            is_slow = time.perf_counter() - start > _WORTH_THREADS * _TIMED
        bar.update(len(found))
        size = len(items) // _PARTS + 1
        parts = (items[first : first + size] for first in range(len(found), len(items), size))
        for told in (pool.map if is_slow else map)(lambda part: [check(item) for item in part], parts):
            found += told
            bar.update(len(told))
    return found
