"""Files that are decoded once before a training starts, so that a broken one is not met after hours."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.errors import RunError

log = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")


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
