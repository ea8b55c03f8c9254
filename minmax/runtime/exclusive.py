"""One process at a time in a folder: two trainings of one run would write over each other."""

import logging
from pathlib import Path

from filelock import FileLock, Timeout

from minmax.runtime.errors import UsageError

log = logging.getLogger(__name__)


def claim(folder: Path) -> FileLock:
    """Take a folder for this process until the lock is released, or dropped, or the process ends in any way.

    Raises:
        UsageError: when another process has it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"another process is training {folder}; stop it or wait for its end, then use --resume"
        ) from None
    except (OSError, NotImplementedError) as error:  # some network disks know no locks
        log.warning("cannot lock %s (%s): make sure that no other process trains it", folder, error)
    return lock
