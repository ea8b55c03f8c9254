"""Shares `i/n` of one piece of work, on several GPUs or machines that need not know of each other."""

import re

from minmax.runtime.errors import require


def read_share(shard: str) -> tuple[int, int]:
    """The number, from 0, of a share and how many there are, of `i/n` as typed, from 1; (0, 1) where none is typed.

    Raises:
        UsageError: when it is anything else.
    """
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard or "1/1")
    number, count = map(int, found.groups()) if found else (1, 0)
    require(number <= count, "--shard", shard, "i/n, such as 1/3, 2/3 and 3/3")
    return number - 1, count
