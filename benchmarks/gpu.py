"""Training steps of the four tasks on a GPU at the paper's sizes: ours in three precisions, against the authors' form.

    python benchmarks/gpu.py                         # writes results-gpu.json; compiled forms as long as --seconds last
    python benchmarks/gpu.py --device cpu --quick    # the same code at tiny sizes, only printed

Both forms start from the same weights; in fp32 their first losses are compared. Peak memory is what torch had allocated
while a form ran, the weights of both forms included.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from stages import Work, machine, seconds
from steps import TASKS, PlaceSettings, adaptation, build_place_network, darkener, place_adaptation, unnormalised

from minmax.runtime.devices import Runtime, open_runtime

RESULTS = Path(__file__).with_name("results-gpu.json")
SIZES = {
    "classification": ((32, 224, 224), (4, 64, 64)),
    "segmentation": ((4, 384, 768), (2, 64, 64)),
    "places": ((5, 272, 362), (1, 64, 64)),  # tuples of 8 images
    "action": ((4, 16, 224, 224), (2, 4, 32, 32)),
}
"""Of a batch: in the paper, and in a smoke test."""
MODES = {"fp32": ("fp32", False), "bf16": ("bf16", False), "fp32 compiled": ("fp32", True), "bf16 compiled": ("bf16", True)}


def build(kind: str, task: str, shape: tuple[int, ...], runtime: Runtime) -> Work:
    """The work of a step."""
    if kind == "adaptation":
        return place_adaptation(shape, runtime) if task == "places" else adaptation(task, shape, runtime)
    network = build_place_network(PlaceSettings()) if task == "places" else unnormalised(TASKS[task].network())
    if task == "places":  # 8 images a step, as the authors; the others have as many as adaptation
        shape = (8, *shape[1:])
    return darkener(network, shape, runtime)


def median_seconds(function, device: torch.device, rounds: int) -> tuple[float, float]:
    """Median seconds of a step that is waited for, and GiB that torch had allocated at most."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)

    def waited():
        function()
        if on_gpu:
            torch.cuda.synchronize(device)

    waited()
    found = statistics.median(seconds(waited) for _ in range(rounds))
    return found, torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else 0.0


def main():
    """Measure, eager forms first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=270, help="no measurement starts later than this")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--task", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    deadline, records = time.monotonic() + arguments.seconds, []
    steps = [(kind, task) for task in arguments.task for kind in ("darkener", "adaptation")]
    for mode, kind, task in [(mode, *step) for mode in MODES for step in steps]:
        precision, compiles = MODES[mode]
        if time.monotonic() > deadline:
            print(f"no time left for {kind} of {task}, {mode}")
            continue
        torch.manual_seed(0)
        with open_runtime(arguments.device, precision, compiles=compiles) as runtime:
            work = build(kind, task, SIZES[task][arguments.quick], runtime)
            began = time.monotonic()
            found = work.ours()
            first = time.monotonic() - began
            if mode == "fp32":
                work.check(found, work.plain())
            forms = {mode: work.ours} | ({"straightforward": work.plain} if mode == "fp32" else {})
            for form, function in forms.items():
                step, memory = median_seconds(function, runtime.device, 1 if arguments.quick else 8)
                name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "cpu"
                records.append(
                    {
                        "step": kind,
                        "task": task,
                        "form": form,
                        "shape": SIZES[task][arguments.quick],
                        "seconds": round(step, 5),
                        "first_call_seconds": round(first, 2) if form == mode else None,
                        "peak_memory_gib": round(memory, 2),
                        "machine": machine() | {"device": name},
                    }
                )
                print(json.dumps(records[-1]), flush=True)
        del work, found, forms, function
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not arguments.quick:
            RESULTS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
