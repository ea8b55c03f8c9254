"""Ours against the authors' formulation, stage by stage, each in a process of its own.

    python benchmarks/bench.py                    # all; writes results.json, and the table in README.md
    python benchmarks/bench.py --stage mining     # some; the others stay as they are
    python benchmarks/bench.py --quick            # a smoke test: small, one round, printed or written to --output

Both forms get the same inputs and weights and must give the same, alternately: the straightforward one with the C
library's default allocator, ours with `keep_large_buffers`, as the scripts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import av
import formulation
import numpy as np
import steps  # first of all that finds the modules of the tasks
import torch
import torch.nn.functional as F
import torchvision
from classifier import ClassifierSettings, build_classifier, save_classifier
from descriptors import describe
from miou import count_confusion
from PIL import Image
from place_images import PlaceFiles
from place_network import PlaceSettings, build_place_network
from stages import HERE, Stage, Work, measure, seconds, table, time_on_demand
from tuple_mining import mine_negatives

from darkening.darkener_files import NIGHT_TO_LOOK_AT, STARTING_POINT, load_darkener
from darkening.night_view import NightConfig, build_night_view
from media.video_frames import read_frames
from media.video_writer import VideoOptions
from media.videos import darken_video
from minmax.features import FeatureModel, InputNormalization, independent_copy
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.seeding import generator_for

RESULTS, README = HERE / "results.json", HERE / "README.md"
MARKERS = "<!-- the table is written by bench.py -->", "<!-- end of the table -->"
CPU = Runtime(torch.device("cpu"))


def darkener_resnet18(quick, _, view="pixels"):
    """A step against the last map."""
    network = FeatureModel(torchvision.models.resnet18(weights=None), ["layer4"], InputNormalization.imagenet())
    return steps.darkener(network, (2, 64, 64) if quick else (8, 112, 112), CPU, view)


def darkener_resnet101(quick, _):
    """A step against four maps."""
    return steps.darkener(steps.TASKS["segmentation"].network(), (1, 64, 64) if quick else (2, 128, 256), CPU)


def darken_image(quick, _, name):
    """The plain form is that of the starting point, whatever ours is."""
    plain, ours = load_darkener(STARTING_POINT), CPU.place(load_darkener(name))
    images = steps.smooth((1, 64, 128) if quick else (1, 512, 1024))
    placed = CPU.to_device(images)

    @torch.no_grad()
    def straightforward():
        return formulation.darken(plain, images, 0.1).image.clamp(0, 1)

    check = torch.testing.assert_close if name == STARTING_POINT else lambda *_: None
    return Work(lambda: ours.darken(placed, 0.1), straightforward, check)


def darken_file(quick, folder, name):
    """The plain loop does a quarter of the frames, and its time is multiplied."""
    height, width, frames, few = (48, 64, 8, 2) if quick else (240, 320, 48, 12)
    source, plain, ours = (folder / file for file in ("day.mp4", "plain.mp4", "ours.mp4"))
    wide = steps.smooth((1, height, width + frames))[0].permute(1, 2, 0).mul(255).byte().numpy()
    with av.open(str(source), "w") as out:  # the view moves to the right
        stream = out.add_stream("libx264", rate=25, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            pixels = np.ascontiguousarray(wide[:, number : number + width])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    authors, options = load_darkener(STARTING_POINT), VideoOptions()
    view = build_night_view(NightConfig(exposure=(0.1, 0.1), noise=0.0), load_darkener(name), CPU)

    def ours_file():
        darken_video(source, ours, lambda *size: view.for_video(*size, generator_for("bench")), CPU, options)

    def plain_file():
        loop = lambda: formulation.darken_video(source, plain, authors, 0.1, few, options.crf)  # noqa: E731
        return seconds(loop) * frames / few

    def check(*_):
        if name == STARTING_POINT:
            first, second = (read_frames(file, range(few)).float() for file in (plain, ours))
            # Grain is encoded differently in a film of other length: single pixels differ by some levels of 255.
            assert (first - second).abs().mean() < 4, "the two do not darken alike"
            assert (first.mean() - second.mean()).abs() < 0.5, "the two are not equally dark"

    return Work(ours_file, plain_file, check)


def adapt(quick, _, task, small, full):
    """A step of adaptation at one of two shapes."""
    return steps.adaptation(task, small if quick else full, CPU)


def extraction(quick, folder):
    """JPEGs of several formats, in no order."""
    count, formats = 8 if quick else 200, ((224, 168), (168, 224), (224, 149), (149, 224), (224, 126), (200, 224))
    rng = np.random.default_rng(0)
    files = [folder / f"{i:03d}.jpg" for i in range(count)]
    for file in files:
        coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        coarse.resize(formats[int(rng.integers(6))], Image.Resampling.BICUBIC).save(file, quality=90)
    images = PlaceFiles("bench", folder, files, is_night=False)
    plain = build_place_network(PlaceSettings("resnet18"))
    ours = CPU.place(independent_copy(plain))
    return Work(
        lambda: describe(ours, images, 224, CPU),
        lambda: formulation.describe(plain, images, 224),
        lambda found, expected: torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4),
    )


def mining(quick, _):
    """Descriptors around those of their places."""
    queries, pool_size, width, places, negatives = (20, 500, 64, 50, 5) if quick else (2000, 20000, 2048, 700, 5)
    pool_places = torch.randint(places, (pool_size,))
    pool = F.normalize(torch.randn(places, width)[pool_places] + 3 * torch.randn(pool_size, width), dim=1)
    chosen = torch.randperm(pool_size)[:queries]
    given = (pool[chosen], pool, pool_places[chosen], pool_places, negatives)
    return Work(lambda: mine_negatives(*given), lambda: formulation.mine(*given))


def miou(quick, _):
    """A few large regions with noisy borders, as argmax (int64) and as labels (uint8)."""
    scores = F.interpolate(torch.rand(2, 20, 8, 16), size=(64, 128) if quick else (512, 1024), mode="bilinear")
    labels = scores.argmax(dim=1).to(torch.uint8)
    predictions = (scores + 0.1 * torch.rand(scores.shape)).argmax(dim=1)

    def ours():
        return sum(count_confusion(*image) for image in zip(predictions, labels, strict=True))

    return Work(ours, lambda: formulation.count_confusion(predictions, labels), counted=False)


def first_step(quick, folder):
    """One encoded picture under many names; every run checks all of them anew."""
    classes = tuple(f"class{number}" for number in range(10))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    picture.save(folder / "one.jpg")
    encoded = (folder / "one.jpg").read_bytes()
    for split, count in (("train", 20 if quick else 10_000), ("val", 2)):
        for name in classes:
            (folder / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                (folder / "data" / split / name / f"{number:05d}.jpg").write_bytes(encoded)
    settings, day, runs = ClassifierSettings("resnet18", classes), folder / "day.pt", iter(range(100))
    save_classifier(build_classifier(settings), settings, day)

    def until_first_step():
        where = folder / f"runs{next(runs)}"
        command = [sys.executable, str(steps.REPOSITORY / "classification" / "train.py"), "--checkpoint", str(day)]
        command += ["--data", str(folder / "data"), "--runs", str(where), "--device", "cpu"]
        metrics = where / "classification" / "adapt" / "metrics.jsonl"
        start = time.perf_counter()
        with (folder / "log.txt").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                while not (metrics.is_file() and metrics.stat().st_size):
                    if process.poll() is not None:
                        raise RuntimeError(f"train.py ended without a step: {(folder / 'log.txt').read_text()}")
                    time.sleep(0.01)
                return time.perf_counter() - start
            finally:
                process.kill()

    return Work(until_first_step, counted=False)


def two_processes(quick, _):
    """What torchrun starts is this file again."""

    def step(processes):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [__file__, "--processes", str(processes), *(["--quick"] if quick else [])]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])

    return Work(lambda: step(2), lambda: step(1), lambda *_: None, counted=False)


def one_of(processes, quick):
    """One of so many processes: prints the median seconds of a step of all together."""
    with open_runtime("cpu", threads=2 // processes) as runtime:
        batch, side = (4, 64) if quick else (16, 112)
        ours = steps.adaptation("classification", (batch // processes, side, side), runtime).ours
        ours()
        found = statistics.median(seconds(ours) for _ in range(2 if quick else 10))
        if runtime.is_main:
            print(found)


VIDEO = {"rounds": 3, "environment": {"OMP_WAIT_POLICY": "PASSIVE"}}  # as darkening.apply sets it; here for both
RESNET = partial(adapt, task="classification", small=(4, 64, 64), full=(8, 112, 112))
REFINENET = partial(adapt, task="segmentation", small=(2, 64, 64), full=(2, 96, 192))
I3D = partial(adapt, task="action", small=(2, 4, 32, 32), full=(2, 16, 112, 112))
CAMERA = partial(darkener_resnet18, view="camera")
IMAGE, IMAGE_LOOK = (partial(darken_image, name=name) for name in (STARTING_POINT, NIGHT_TO_LOOK_AT))
FILE, FILE_LOOK = (partial(darken_file, name=name) for name in (STARTING_POINT, NIGHT_TO_LOOK_AT))
LOOK = "the same, nights to look at: curves of a small copy"
STAGES = {
    "darkener-resnet18": Stage("darkener step, ResNet-18 features, 8x3x112x112", darkener_resnet18, 3.5),
    "darkener-resnet18-camera": Stage("the same, classification's default: a camera", CAMERA),
    "darkener-resnet101": Stage("darkener step, four maps of ResNet-101, 2x3x128x256", darkener_resnet101, 3),
    "darken": Stage("darken 1x3x512x1024, a curve for each pixel", IMAGE, 20),
    "darken-look": Stage(LOOK, IMAGE_LOOK),
    "video": Stage("darken 48 frames of 320x240, file to file, a curve for each pixel", FILE, 15, **VIDEO),
    "video-look": Stage(LOOK, FILE_LOOK, **VIDEO),
    "adapt-resnet18": Stage("adaptation step, ResNet-18, 8 + 8 of 3x112x112", RESNET, 1.6),
    "adapt-refinenet101": Stage("adaptation step, RefineNet-101, 2 + 2 of 3x96x192", REFINENET, 1.2, rounds=3),
    "adapt-i3d50": Stage("adaptation step, I3D-50, 2 + 2 clips of 3x16x112x112", I3D, 1.3, rounds=3),
    "extraction": Stage("descriptors of 200 JPEGs of 6 formats up to 224, ResNet-18 with GeM", extraction, 2.2),
    "mining": Stage("5 negatives each of 2,000 queries in a pool of 20,000 x 2048", mining, 4.5, rounds=3),
    "miou": Stage("confusion matrices of 2 images of 512x1024", miou, 8, rounds=15),
    "first-step": Stage("train.py to the end of its first step, 100,000 JPEGs", first_step, asked_seconds=15, rounds=3),
    "two-processes": Stage("a step of 16 + 16 by two gloo processes, plainly by one", two_processes, rounds=3),
}


def run_in_own_process(name, arguments):
    """The record of a stage."""
    command = [sys.executable, __file__, "--here", name, "--threads", str(arguments.threads)]
    command += ["--quick"] if arguments.quick else []
    environment = {**os.environ, "PYTHONPATH": str(steps.REPOSITORY), **STAGES[name].environment}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Measure the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), help=", ".join(STAGES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, help="results.json beside this file by default, and README.md's table")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # a stage, in this process
    parser.add_argument("--side", choices=("ours", "plain"), help=argparse.SUPPRESS)  # the form that is timed there
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)  # this is one of so many
    arguments = parser.parse_args()
    if arguments.side:
        time_on_demand(STAGES[arguments.here], arguments.side, arguments.quick, arguments.threads)
        return
    if arguments.here:
        print(json.dumps(measure(arguments.here, STAGES[arguments.here], arguments.quick, arguments.threads)))
        return
    if arguments.processes:
        one_of(arguments.processes, arguments.quick)
        return
    output = arguments.output or (None if arguments.quick else RESULTS)
    for name in arguments.stage:
        record = run_in_own_process(name, arguments)
        print(json.dumps(record), flush=True)
        if output:
            old = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else []
            known = {entry["stage"]: entry for entry in old} | {name: record}
            records = [known[name] for name in STAGES if name in known]
            output.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        if output == RESULTS:
            before, _, rest = README.read_text(encoding="utf-8").partition(MARKERS[0])
            after = rest.partition(MARKERS[1])[2]
            README.write_text("\n".join([before + MARKERS[0], table(records), MARKERS[1] + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
