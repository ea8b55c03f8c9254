"""Where the time of a training goes: how long it waits for data, and with --profile the parts of a step."""

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.autograd.profiler import record_function

from minmax.runtime.report import duration

log = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")

_PARTS = {
    "waiting for data": "in the main process; more --workers hide it",
    "night": "the darkened view",
    "networks": "online and target, forward",
    "backward": "",
    "optimizer": "",
}
"""The parts of a step that are marked by `record_function`, and a remark to each."""
_LEFT_OUT, _PROFILED = 3, 10  # steps
_OPERATORS = 15  # rows
_SECONDS_BETWEEN_LINES = 60.0


class Pace:
    """How an epoch goes: its loss, and for how long it waits for data.

    Args:
        title: of the lines of the log.
        total: steps that are left in the epoch.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self._began = self._told = time.monotonic()
        self._waited, self._steps = 0.0, 0
        self._losses: list[float] = []

    def batches(self, source: Iterable[ItemT]) -> Iterator[ItemT]:
        """The batches of `source`."""
        iterator = iter(source)
        while True:
            asked = time.monotonic()
            with record_function("waiting for data"):
                batch = next(iterator, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def step(self) -> None:
        """Count a step."""
        self._steps += 1

    def note_loss(self, loss: float) -> None:
        """The loss of a step, once it is known."""
        self._losses.append(loss)

    def tell_if_due(self) -> None:
        """Log a line a minute."""
        if time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self.tell()

    def tell(self) -> None:
        """Log the mean loss of the epoch so far, its time, the share that was waiting, and the time left in it."""
        self._told = time.monotonic()
        if self._steps == 0:
            return
        passed = self._told - self._began
        left = passed / self._steps * (self.total - self._steps)
        log.info(
            "%s: %sstep %d of %d in %s, %.0f %% of it waiting for data%s",
            self.title,
            f"loss {statistics.fmean(self._losses):.4f}, " if self._losses else "",
            self._steps,
            self.total,
            duration(passed),
            100 * self._waited / passed,
            f"; about {duration(left)} left" if left else "",
        )


@contextmanager
def step_profiler(folder: Path) -> Iterator[Callable[[], object]]:
    """Gives what is to be called after each step; after 13 of them `profile.txt` and `profile.json` are in the folder.

    The first three steps are left out: they warm up.
    """
    activities = torch.profiler.supported_activities() - {torch.profiler.ProfilerActivity.XPU}
    steps = torch.profiler.schedule(wait=_LEFT_OUT - 1, warmup=1, active=_PROFILED, repeat=1)

    def report(profiler: torch.profiler.profile) -> None:
        table = step_table(profiler.key_averages())
        (folder / "profile.txt").write_text(table + "\n", encoding="utf-8")
        profiler.export_chrome_trace(str(folder / "profile.json"))
        log.info("%s\n%s; as a trace for chrome://tracing: profile.json", table, folder / "profile.txt")

    with torch.profiler.profile(activities=list(activities), schedule=steps, on_trace_ready=report) as profiler:
        yield profiler.step
    if not (folder / "profile.txt").is_file():
        log.warning("--profile: the epoch ended before its step %d, so that nothing was profiled", _LEFT_OUT + 1)


def step_table(events: Any) -> str:
    """Parts of a step and the costliest operators, as text; `events` are torch's, averaged by key."""
    by_name = {event.key: event for event in events}
    steps = [event for event in events if event.key.startswith("ProfilerStep")]
    count, whole = sum(event.count for event in steps), sum(event.cpu_time_total for event in steps)
    rows = [(name, by_name[name].cpu_time_total, remark) for name, remark in _PARTS.items() if name in by_name]
    rows.append(("everything else", whole - sum(spent for _, spent, _ in rows), "views, losses, target, records"))
    lines = [
        f"{count} steps, {whole / count / 1e3:.1f} ms each (host)",
        "",
        f"{'part':<20}{'ms a step':>10}{'share':>8}",
    ]
    for name, spent, remark in rows:
        lines.append(f"{name:<20}{spent / count / 1e3:>10.1f}{spent / whole:>8.0%}  {remark}".rstrip())
    by = "self_device_time_total" if any(event.self_device_time_total for event in events) else "self_cpu_time_total"
    operators = events.table(sort_by=by, row_limit=_OPERATORS, max_name_column_width=48)
    return "\n".join([*lines, "", operators.rstrip()])
