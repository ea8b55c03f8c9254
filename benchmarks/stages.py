"""What all benchmarks share: a stage, and how it is timed, put into relation to the machine, and recorded."""

import ctypes
import datetime
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from minmax.runtime.devices import keep_large_buffers


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


def default_allocator() -> None:
    """Undo keep_large_buffers: glibc's defaults (mallopt(3))."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 65536)
        libc.mallopt(-1, 128 * 1024)


def measure(name: str, stage: Stage, quick: bool, threads: int) -> dict[str, Any]:
    """The record of a stage: medians of both forms, alternately, after one warm-up each that is compared."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        work = stage.build(quick, Path(folder))
        sides = {"ours": (work.ours, keep_large_buffers)}
        keep_large_buffers()
        found = work.ours()
        memory = peak_memory()  # before the other form takes its own
        if work.plain is not None:
            sides["plain"] = (work.plain, default_allocator)
            default_allocator()
            work.check(found, work.plain())
        operations = count_operations(work.ours) if work.counted else None
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(1 if quick else stage.rounds):
            for side, (function, prepare) in sides.items():
                prepare()
                if work.plain is not None:  # untimed: the first call gets its memory anew, in a run it does so once
                    function()
                times[side].append(seconds(function))
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
