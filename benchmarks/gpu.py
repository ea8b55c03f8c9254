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
from dataclasses import replace
from pathlib import Path

import formulation
import steps  # noqa: F401  (first of all that finds the modules of the tasks)
import torch
from place_network import PlaceSettings, build_place_network, parameter_groups
from stages import Work, machine, seconds
from steps import FOLDERS, TASKS, adaptation, darkener, script, smooth
from torch import nn
from tuple_pair import TuplePair

from minmax.byol import build_pair
from minmax.features import independent_copy
from minmax.runtime.batches import few_at_a_time
from minmax.runtime.devices import Runtime, open_runtime

RESULTS = Path(__file__).with_name("results-gpu.json")
SIZES = {
    "classification": ((32, 224, 224), (4, 64, 64)),
    "segmentation": ((4, 384, 768), (2, 64, 64)),
    "places": ((5, 272, 362), (1, 64, 64)),  # tuples of 8 images
    "action": ((4, 16, 224, 224), (2, 4, 32, 32)),
}
"""Of a batch: in the paper, and in a smoke test."""
MODES = {
    "fp32": ("fp32", False),
    "bf16": ("bf16", False),
    "fp32 compiled": ("fp32", True),
    "bf16 compiled": ("bf16", True),
}


def place_adaptation(shape, runtime) -> Work:
    """A step of visual-place-recognition/train.py without BYOL, as the authors: 5 tuples of 8 images."""
    train = script(FOLDERS[2])
    config = train.Config(checkpoint=Path("none"))
    config = replace(config, byol=replace(config.byol, weight=0.0))
    network = build_place_network(PlaceSettings())
    plain = independent_copy(network).to(runtime.device).eval()
    pair = runtime.place(build_pair(network, config.byol)).eval()
    groups = parameter_groups(pair.online, config.optim.lr, config.optim.weight_decay)
    optimizer, schedule = config.optim.build(pair, 1000, groups=groups)
    plain_optimizer = formulation.plain_optimizer(optimizer, plain)
    parallel = runtime.joined(TuplePair(pair, runtime))
    tuples = smooth((8 * shape[0], *shape[1:])).view(shape[0], 8, 3, *shape[1:]).to(runtime.device)
    tuples[:, 1] *= 0.3

    def ours():
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=runtime.device)
        for part in few_at_a_time(len(tuples), config.optim.at_once, parallel):
            days, nights = list(tuples[part, 0]), list(tuples[part, 1])
            others = list(tuples[part, 2:].flatten(0, 1))
            losses = train.step(parallel, nn.Identity(), days, nights, others, config, runtime)
            loss = torch.stack(list(losses.values())).sum()
            loss.backward()
            total += loss.detach()
        optimizer.step()
        schedule.step()
        return total

    def check(found, expected):
        torch.testing.assert_close(found, expected.view(()), rtol=1e-2, atol=1e-3)

    margin = config.tuples.margin
    return Work(ours, lambda: formulation.tuple_step(plain, plain_optimizer, tuples, margin), check)


def build(kind: str, task: str, shape: tuple[int, ...], runtime: Runtime) -> Work:
    """The work of a step."""
    if kind == "adaptation":
        return place_adaptation(shape, runtime) if task == "places" else adaptation(task, shape, runtime)
    if task == "places":  # 8 images a step, as the authors; the others have as many as adaptation
        shape = (8, *shape[1:])
    network = build_place_network(PlaceSettings()) if task == "places" else TASKS[task].network()
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
    measured = [(kind, task) for task in arguments.task for kind in ("darkener", "adaptation")]
    for mode, kind, task in [(mode, *step) for mode in MODES for step in measured]:
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
