"""The two ways in which a script stops because of what it was given, not because of a bug of ours."""


class UsageError(Exception):
    """Refused before any work was done: a wrong flag, a missing folder, a foreign checkpoint (exit code 2)."""


class RunError(Exception):
    """Failed during work that had begun: a non-finite loss, a full disk, a file that vanished (exit code 1)."""
