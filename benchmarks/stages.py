"""What all benchmarks share: a stage, and how it is timed, put into relation to the machine, and recorded."""

import datetime
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from minmax.runtime.devices import keep_large_buffers

HERE = Path(__file__).resolve().parent


class Work(NamedTuple):
    """What a stage does once its inputs are there; a function that returns a float has measured its own seconds."""

    ours: Callable[[], Any]
    plain: Callable[[], Any] | None = None
    """The straightforward form of the same mathematics."""
    check: Callable[[Any, Any], object] = torch.testing.assert_close
    """Compares what the first calls of ours and of the straightforward form gave."""
    counted: bool = True
    """Whether its multiplications and additions can be counted: all are in this process, in torch's operators."""


@dataclass(frozen=True)
class Stage:
    """Something that is measured."""

    title: str
    build: Callable[[bool, Path], Work]
    """(whether this is a smoke test, an empty folder) to its work."""
    asked_ratio: float | None = None
    asked_seconds: float | None = None
    rounds: int = 5
    environment: dict[str, str] = field(default_factory=dict)
    """Of the process that measures it."""


@contextmanager
def _built(stage: Stage, quick: bool, threads: int) -> Iterator[Work]:
    """The same work in every process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        yield stage.build(quick, Path(folder))


def measure(name: str, stage: Stage, quick: bool, threads: int) -> dict[str, Any]:
    """The record of a stage: medians of both forms, alternately, each in a process of its own."""
    with _built(stage, quick, threads) as work:
        keep_large_buffers()
        found = work.ours()
        memory = peak_memory()  # before the other form takes its own
        if work.plain is not None:
            work.check(found, work.plain())
        del found
        operations = count_operations(work.ours) if work.counted else None
    times: dict[str, list[float]] = {side: [] for side in ("ours", "plain") if side == "ours" or work.plain}
    with ExitStack() as processes:
        # Only so has each its own allocator: what one form frees, the other would get without asking the system for it.
        command = [sys.executable, str(HERE / "bench.py"), "--here", name, "--threads", str(threads)]
        command += ["--quick"] if quick else []
        timed = {
            side: processes.enter_context(
                subprocess.Popen([*command, "--side", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for side in times
        }
        for _ in range(1 if quick else stage.rounds):
            for side, process in timed.items():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write("again\n")
                process.stdin.flush()
                times[side].append(float(process.stdout.readline()))
    ours, plain = (statistics.median(times[side]) if side in times else None for side in ("ours", "plain"))
    assert ours is not None
    peak = machine_peak() if operations else None
    return {
        "stage": name,
        "title": stage.title,
        "ours_seconds": round(ours, 5),
        "straightforward_seconds": plain and round(plain, 5),
        "ratio": plain and round(plain / ours, 2),
        "asked_ratio": stage.asked_ratio,
        "asked_seconds": stage.asked_seconds,
        "share_of_peak": peak and operations and round(operations / ours / peak, 3),
        "peak_gflops": peak and round(peak / 1e9, 1),
        "peak_memory_gib": round(memory, 2),
        "threads": threads,
        "machine": machine(),
    }


def time_on_demand(stage: Stage, side: str, quick: bool, threads: int) -> None:
    """Print the seconds of one form for every line that comes in, after a first call that is not timed."""
    with _built(stage, quick, threads) as work:
        if side == "ours":
            keep_large_buffers()
        function = work.ours if side == "ours" else work.plain
        assert function is not None
        function()
        for _ in sys.stdin:
            print(seconds(function), flush=True)


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call, or those that it has measured itself."""
    start = time.perf_counter()
    found = function()
    return found if isinstance(found, float) else time.perf_counter() - start


def count_operations(function: Callable[[], Any]) -> int:
    """Multiplications and additions of one call, in convolutions and matrix products."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward}) as counter:
        function()
    return counter.get_total_flops()


def _backward(gradient: Any, images: Any, weight: Any, *others: Any, out_shape: Any, **_: Any) -> int:
    # torch's own counts the gradient of a depthwise filter as if it were a full one.
    transposed, asked = others[4], others[7]
    return conv_flop_count(images, weight, gradient, transposed) * sum(asked[:2])


def machine_peak() -> float:
    """The most that matrix products and convolutions of convenient sizes reach here, in operations a second."""
    matrix = torch.rand(2048, 2048)
    sizes = ((4, 256, 56, 56), (256, 256, 3, 3))
    images, filters = (torch.rand(size).to(memory_format=torch.channels_last) for size in sizes)
    tried = (lambda: matrix @ matrix, lambda: F.conv2d(images, filters, padding=1))
    return max(count_operations(function) / min(seconds(function) for _ in range(5)) for function in tried)


def peak_memory() -> float:
    """The most memory that this process, or one that it started, has held so far, in GiB."""
    unit = 1 if platform.system() == "Darwin" else 1024
    held = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return held * unit / 2**30


def machine() -> dict[str, Any]:
    """What figures depend on beside the code."""
    models = Path("/proc/cpuinfo")
    lines = models.read_text().splitlines() if models.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": f"{named[0] if named else platform.processor()} ({platform.machine()})",
        "cores": len(named) or torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown."""
    columns = ("stage", "what", "straightforward", "ours", "ratio", "asked", "share of the peak", "peak memory", "on")
    rows = [columns, ("---", "---", *["---:"] * 6, "---")]
    for record in records:
        asked = record["asked_ratio"] or (record["asked_seconds"] and f"{record['asked_seconds']:g} s") or ""
        plain, share, machine = record["straightforward_seconds"], record["share_of_peak"], record["machine"]
        where = f"{machine['cpu']}, {record['threads']} of {machine['cores']} cores, torch {machine['torch']}"
        rows.append(
            (
                f"`{record['stage']}`",
                record["title"],
                f"{plain:.3g} s" if plain else "",
                f"{record['ours_seconds']:.3g} s",
                f"{record['ratio'] or ''}",
                f"{asked}",
                f"{share:.0%} of {record['peak_gflops']:.0f}" if share else "",
                f"{record['peak_memory_gib']:.2f} GiB",
                f"{where}, {machine['date']}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
