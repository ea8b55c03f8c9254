"""The table of faults: what may go wrong, how often it is tried, what must come. It is both tests and documentation.

A test marked with `fault` is one row. `make test` tries each row once or twice; `make reliability` tries all of it and
writes docs/reliability.md.
"""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from minmax.runtime.config import run_script

REPORT = os.environ.get("RELIABILITY")
"""The file that `make reliability` has the table written into; without it few trials are made."""
TRIALS_IN_SHORT = 2


def fault(kind, situation, expected, trials):
    """Mark a test as a row of the table.

    Args:
        kind: of what is at fault, as `checkpoints`.
        situation: what is wrong, in a few words.
        expected: what must come.
        trials: seeds (a number of them), or cases; the test's argument `trial` is one of them.
    """
    every = list(range(trials)) if isinstance(trials, int) else list(trials)
    step = 1 if REPORT else max(1, -(-len(every) // TRIALS_IN_SHORT))

    def mark(test):
        marked = pytest.mark.parametrize("trial", every[::step])(test)
        return pytest.mark.fault(kind, situation, expected)(marked)

    return mark


class TracebackSeen(AssertionError):
    """A program ended with a traceback, or said nothing of why it ended."""


class SilentlyWrong(AssertionError):
    """A program ended as if all were well, with a wrong result."""


class WorkLost(AssertionError):
    """What had been done is gone, half written, or another than it would have been."""


class CodeRun(AssertionError):
    """A file made us run what it holds."""


class WrittenOutside(AssertionError):
    """A file was written where none was to be."""


OUTCOMES = {
    TracebackSeen: "tracebacks",
    SilentlyWrong: "silent wrong results",
    WorkLost: "lost work",
    CodeRun: "code run",
    WrittenOutside: "files written outside",
}


class Said(NamedTuple):
    """How a command ended: its exit code, the one line of its error, and the rest of what it said."""

    code: int
    error: str
    out: str


def start(module, *flags):
    """Run a script or a module with a Config and a main in this process, as the shell would.

    Raises:
        TracebackSeen: when it ends with anything but exit code 0, 1 or 2 and, if not 0, a line that says why.
    """
    said, printed, code = io.StringIO(), io.StringIO(), 0
    arguments, sys.argv = sys.argv, [str(module.__file__), *map(str, flags)]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            run_script(module.Config, module.main, module.__doc__)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        raise TracebackSeen(f"{type(error).__name__}: {error}") from error
    finally:
        sys.argv = arguments
    # Names of files need not be text, but what travels between test processes must be.
    text = said.getvalue().encode("utf-8", "backslashreplace").decode()
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if code not in (0, 1, 2) or "Traceback" in text or (code and not text.strip()):
        raise TracebackSeen(f"exit code {code}: {text or 'it said nothing'}")
    out = printed.getvalue().encode("utf-8", "backslashreplace").decode()
    return Said(code, lines[-1] if lines else "", out + text)


def refused(said, *words, code=2):
    """Check that a command was refused, in one line with all of these words."""
    if said.code == 0:
        raise SilentlyWrong(f"it was accepted: {said.out[-500:]}")
    missing = [word for word in map(str, words) if word not in said.error]
    assert said.code == code and not missing, f"{said.error or said.out} lacks {missing}, or ended with {said.code}"


def files_in(folder):
    """All files below a folder with what they hold, to compare before and after."""
    return {file.relative_to(folder): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
