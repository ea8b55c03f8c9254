"""The ways in which we stop because of what we were given, not because of a bug of ours."""

import errno

import torch

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


class UsageError(Exception):
    """Refused before any work was done: a wrong flag, a missing folder, a foreign checkpoint (exit code 2)."""


class RunError(Exception):
    """Failed during work that had begun: a non-finite loss, a full disk, a file that vanished (exit code 1)."""


class SettingError(UsageError, ValueError):
    """A value that a group of settings cannot have. It names the field; `parse_flags` tells it by its flag.

    Args:
        owner: the class of the settings.
        name: of the field.
        problem: the value, and what was expected.
    """

    def __init__(self, owner: type, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.owner, self.name, self.problem = owner, name, problem


def problem_of_the_machine(error: BaseException | None) -> str | None:
    """What an error says of disk, memory or processes; None for one that may be a bug of ours."""
    said = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
        return f"out of memory ({said}); lower the batch size or the size of the images"
    # A worker's end is met where its data are awaited, or in a signal handler of torch, wherever the program is.
    if isinstance(error, ConnectionError | EOFError) or "DataLoader worker" in said:
        return f"a process that loads data was killed ({said}); lower --workers if memory ran out"
    return said if isinstance(error, OSError) and error.errno in _OF_THE_DISK else None


def require(condition: bool, flag: str, value: object, expected: str) -> None:
    """Raise a UsageError that names the flag, its value and what was expected, unless `condition` holds."""
    if not condition:
        raise UsageError(f"{flag} {_problem(value, expected)}")


def check(settings: object, name: str, condition: bool, expected: str) -> None:
    """Raise a SettingError about a field of `settings`, unless `condition` holds."""
    if not condition:
        raise SettingError(type(settings), name, _problem(getattr(settings, name), expected))


def check_range(settings: object, name: str, low: float, high: float) -> None:
    """Raise a SettingError unless a field of `settings` is an ascending pair within [low, high]."""
    first, last = getattr(settings, name)
    check(settings, name, low <= first <= last <= high, f"two numbers, {low} <= LOW <= HIGH <= {high}")


def printable(text: object) -> str:
    """A name as text of one line: what is no character of UTF-8, or cannot be printed, is written as an escape."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text))


def _problem(value: object, expected: str) -> str:
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"{shown}: expected {expected}"
