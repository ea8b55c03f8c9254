"""Counts the trials of the table of faults, and writes it where `make reliability` asks for it."""

import os
import time
from pathlib import Path

import pytest
from faults import OUTCOMES, REPORT

ROWS = pytest.StashKey()
BEGAN = time.monotonic()


def pytest_configure(config):
    """Make room for the rows."""
    config.addinivalue_line("markers", "fault(kind, situation, expected): a row of the table of faults")
    config.stash[ROWS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add the row of a test, and how it failed, to its report, which travels from workers to the main process."""
    report = yield
    marker = item.get_closest_marker("fault")
    if marker is not None and call.when == "call":
        failed = call.excinfo.type if call.excinfo else None
        how = next((name for kind, name in OUTCOMES.items() if failed and issubclass(failed, kind)), "another message")
        report.user_properties.append(("fault", [*marker.args, how if report.failed else "", report.outcome]))
    return report


class Counter:
    """Collects reports in the main process."""

    def __init__(self, config):
        self.rows = config.stash[ROWS]

    def pytest_runtest_logreport(self, report):
        """Count a trial."""
        for name, value in report.user_properties:
            if name == "fault" and report.when == "call" and value[-1] != "skipped":
                kind, situation, expected, how, _ = value
                self.rows.setdefault((kind, situation, expected), []).append(how)


def pytest_sessionstart(session):
    """Count in the main process only."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(Counter(session.config), "fault-counter")


def pytest_sessionfinish(session):
    """Write the table."""
    rows = session.config.stash[ROWS]
    if REPORT and rows and not hasattr(session.config, "workerinput"):
        Path(REPORT).write_text(report_text(rows, time.monotonic() - BEGAN), encoding="utf-8")


def report_text(rows, seconds):
    """The page of the documentation."""
    trials = [how for found in rows.values() for how in found]
    counts = {name: trials.count(name) for name in (*OUTCOMES.values(), "another message")}
    lines = [
        "# Reliability",
        "",
        "What users' files, sizes and habits bring, tried on purpose. `make reliability` makes every trial anew and",
        "writes this page; `make test` makes two of each row.",
        "",
        f"**{len(trials)} trials of {len(rows)} situations**, in {seconds / 60:.0f} minutes on {os.cpu_count()} cores: "
        + ", ".join(f"{count} {name}" for name, count in counts.items())
        + ".",
        "",
        "Where a file is cut, which byte is changed and after which step a process is killed is drawn at random, by",
        "seed. *Refused* means: nothing was done, exit code 2, one line that says what is wrong, where, and what was",
        "expected.",
        "",
        "What no trial can show to be noticed: bytes changed within pixels or weights that still decode; copies of",
        "night images in another size or format among those of training; networks whose outputs are finite and wrong.",
    ]
    for kind in dict.fromkeys(sorted(kind for kind, _, _ in rows)):
        lines += [
            "",
            f"## {kind.capitalize()}",
            "",
            "| situation | what must come | trials | right |",
            "|---|---|---:|---:|",
        ]
        for (of, situation, expected), found in sorted(rows.items()):
            if of == kind:
                lines.append(f"| {situation} | {expected} | {len(found)} | {found.count('')} |")
    return "\n".join(lines) + "\n"
