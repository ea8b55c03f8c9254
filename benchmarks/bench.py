"""Ours against the authors' formulation, stage by stage, each in a process of its own.

    python benchmarks/bench.py                    # all; writes results.json, and the table in README.md
    python benchmarks/bench.py --stage mining     # some; the others stay as they are
    python benchmarks/bench.py --quick            # a smoke test: small, one round, only printed unless --output is given

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
from pathlib import Path

import av
import formulation
import numpy as np
import torch
import torchvision
from PIL import Image
from stages import STAGES, Work, default_allocator, measure, seconds, stage, table
from steps import (
    REPOSITORY,
    TASKS,
    ClassifierSettings,
    PlaceSettings,
    adaptation,
    build_classifier,
    build_place_network,
    darkener,
    smooth_images,
    unnormalised,
)

from darkening.darkener_files import NIGHT_TO_LOOK_AT, STARTING_POINT, load_darkener
from darkening.night_view import NightConfig, build_night_view
from media.pictures import as_intensities, decode_picture, write_picture
from media.video_frames import read_frames
from media.video_writer import VideoOptions
from media.videos import darken_video
from minmax.features import FeatureModel, InputNormalization
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.seeding import generator_for

from classifier import save_classifier  # isort: skip  (steps.py knows where it is)
from descriptors import describe  # isort: skip
from miou import count_confusion  # isort: skip
from place_images import PlaceFiles  # isort: skip
from tuple_mining import mine_negatives  # isort: skip

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / "results.json", HERE / "README.md"
MARKERS = "<!-- the table is written by bench.py -->", "<!-- end of the table -->"
CPU = Runtime(torch.device("cpu"))


def resnet18_darkener(quick, view):
    """The feature is the last map."""
    resnet = torchvision.models.resnet18(weights=None)
    network = FeatureModel(resnet, ["layer4"], InputNormalization.imagenet())
    return darkener(network, (2, 64, 64) if quick else (8, 112, 112), CPU, view)


@stage("darkener-resnet18", "darkener step, ResNet-18 features, 8x3x112x112", asked_ratio=3.5)
def _(quick, folder):
    return resnet18_darkener(quick, "pixels")


@stage("darkener-resnet18-camera", "the same, what classification trains by default: a camera, not a curve for each pixel")
def _(quick, folder):
    return resnet18_darkener(quick, "camera")


@stage("darkener-resnet101", "darkener step, four maps of ResNet-101, 2x3x128x256", asked_ratio=3)
def _(quick, folder):
    return darkener(unnormalised(TASKS["segmentation"].network()), (1, 64, 64) if quick else (2, 128, 256), CPU)


def darken_image(quick, name):
    """The plain form is that of the starting point, whatever ours is."""
    plain, ours = load_darkener(STARTING_POINT), CPU.place(load_darkener(name))
    images = smooth_images(1, 64, 128) if quick else smooth_images(1, 512, 1024)
    placed = CPU.to_device(images)

    @torch.no_grad()
    def straightforward():
        return formulation.darken(plain, images, 0.1).image.clamp(0, 1)

    check = torch.testing.assert_close if name == STARTING_POINT else lambda *_: None
    return Work(lambda: ours.darken(placed, 0.1), straightforward, check)


@stage("darken", "darken 1x3x512x1024, nights to learn from (a curve for each pixel)", asked_ratio=20)
def _(quick, folder):
    return darken_image(quick, STARTING_POINT)


@stage("darken-look", "the same, nights to look at (curves from a small copy of the image)")
def _(quick, folder):
    return darken_image(quick, NIGHT_TO_LOOK_AT)


def darken_file(quick, folder, name):
    """The plain loop does a quarter of the frames, and is multiplied."""
    height, width, frames, few = (48, 64, 8, 2) if quick else (240, 320, 48, 12)
    source, plain, ours = (folder / file for file in ("day.mp4", "plain.mp4", "ours.mp4"))
    sample_video(source, height, width, frames)
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


def sample_video(file, height, width, frames):
    """A moving pattern with grain, H.264 at 25 frames per second."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 4, (height + 64, width + 64, 3))
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        columns, rows = np.meshgrid(np.arange(width) * 320 / width, np.arange(height) * 240 / height)
        for number in range(frames):
            waves = [np.sin(columns / (9 + c) + number / 5) * np.cos(rows / (11 + c)) for c in range(3)]
            down, right = rng.integers(0, 64, 2)
            pixels = 120 + 80 * np.stack(waves, axis=-1) + grain[down : down + height, right : right + width]
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}  # as darkening.apply sets it; here for both


@stage("video", "darken 48 frames of 320x240, file to file, nights to learn from", asked_ratio=15, rounds=3, environment=PASSIVE)
def _(quick, folder):
    return darken_file(quick, folder, STARTING_POINT)


@stage("video-look", "the same, nights to look at", rounds=3, environment=PASSIVE)
def _(quick, folder):
    return darken_file(quick, folder, NIGHT_TO_LOOK_AT)


@stage("photo", "darken a JPEG of 12 megapixels, file to file, nights to look at", rounds=3)
def _(quick, folder):
    photo = folder / "day.jpg"
    write_picture(smooth_images(1, *((300, 400) if quick else (3000, 4000)))[0], photo)
    view = build_night_view(NightConfig(exposure=(0.1, 0.1)), load_darkener(NIGHT_TO_LOOK_AT), CPU)

    def convert():
        images = as_intensities(CPU.to_device(decode_picture(photo)[None]))
        write_picture(view(images, generator_for("bench"))[0], folder / "dark.jpg")

    return Work(convert, counted=False)


@stage("adapt-resnet18", "adaptation step, ResNet-18, 8 + 8 of 3x112x112", asked_ratio=1.6)
def _(quick, folder):
    return adaptation("classification", (4, 64, 64) if quick else (8, 112, 112), CPU)


@stage("adapt-refinenet101", "adaptation step, RefineNet-101, 2 + 2 of 3x96x192", asked_ratio=1.2, rounds=3)
def _(quick, folder):
    return adaptation("segmentation", (2, 64, 64) if quick else (2, 96, 192), CPU)


@stage("adapt-i3d50", "adaptation step, I3D-50, 2 + 2 clips of 3x16x112x112", asked_ratio=1.3, rounds=3)
def _(quick, folder):
    return adaptation("action", (2, 4, 32, 32) if quick else (2, 16, 112, 112), CPU)


@stage("extraction", "descriptors of 200 JPEGs of 6 formats, longest side 224, ResNet-18 with GeM", asked_ratio=2.2)
def _(quick, folder):
    count, formats = 8 if quick else 200, ((224, 168), (168, 224), (224, 149), (149, 224), (224, 126), (200, 224))
    rng = np.random.default_rng(0)
    files = [folder / f"{i:03d}.jpg" for i in range(count)]
    for file in files:
        coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        coarse.resize(formats[int(rng.integers(6))], Image.Resampling.BICUBIC).save(file, quality=90)
    images = PlaceFiles("bench", folder, files, is_night=False)
    plain = build_place_network(PlaceSettings("resnet18"))
    ours = build_place_network(PlaceSettings("resnet18"))
    ours.load_state_dict(plain.state_dict())
    CPU.place(ours)
    return Work(
        lambda: describe(ours, images, 224, CPU),
        lambda: formulation.describe(plain, images, 224),
        lambda found, expected: torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4),
    )


@stage("mining", "5 negatives each, 2,000 queries in a pool of 20,000 x 2048", asked_ratio=4.5, rounds=3)
def _(quick, folder):
    queries, pool_size, width, places, negatives = (20, 500, 64, 50, 5) if quick else (2000, 20000, 2048, 700, 5)
    pool_places = torch.randint(places, (pool_size,))
    centres = torch.randn(places, width)
    pool = torch.nn.functional.normalize(centres[pool_places] + 3 * torch.randn(pool_size, width), dim=1)
    chosen = torch.randperm(pool_size)[:queries]
    given = (pool[chosen], pool, pool_places[chosen], pool_places, negatives)
    return Work(lambda: mine_negatives(*given), lambda: formulation.mine(*given))


@stage("miou", "confusion matrices of 2 images of 512x1024", asked_ratio=8, rounds=15)
def _(quick, folder):
    size = (64, 128) if quick else (512, 1024)
    coarse = torch.rand(2, 20, 8, 16)
    scores = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    labels = scores.argmax(dim=1).to(torch.uint8)  # a few large regions; their borders are predicted noisily
    predictions = (scores + 0.1 * torch.rand(scores.shape)).argmax(dim=1)

    def ours():
        return sum(count_confusion(*image) for image in zip(predictions, labels, strict=True))

    return Work(ours, lambda: formulation.count_confusion(predictions, labels), counted=False)


@stage(
    "first-step",
    "from the start of classification/train.py to its first step, 100,000 images of 32x32 in class folders",
    asked_seconds=15,
    rounds=3,
)
def _(quick, folder):
    names = tuple(f"class{number}" for number in range(10))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "one.jpg")
    encoded = (folder / "one.jpg").read_bytes()
    for split, count in (("train", 20 if quick else 10_000), ("val", 2)):
        for name in names:
            (folder / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                (folder / "data" / split / name / f"{number:05d}.jpg").write_bytes(encoded)
    settings, day = ClassifierSettings("resnet18", names), folder / "day.pt"
    save_classifier(build_classifier(settings), settings, day)
    runs = (folder / f"runs{number}" for number in range(100))  # each checks its files anew

    def first_step():
        where = next(runs)
        command = [sys.executable, str(REPOSITORY / "classification" / "train.py"), "--data", str(folder / "data")]
        command += ["--checkpoint", str(day), "--runs", str(where), "--device", "cpu"]
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

    return Work(first_step, counted=False)


@stage("two-processes", "adaptation step, ResNet-18, 16 + 16 of 3x112x112: two gloo processes (ours) against one", rounds=3)
def _(quick, folder):
    def steps(processes):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [__file__, "--steps", str(processes), *(["--quick"] if quick else [])]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return float(found.split()[-1])

    return Work(lambda: steps(2), lambda: steps(1), lambda *_: None, counted=False)


def steps_of_a_process(processes, quick):
    """Prints the median seconds of a step of one of so many processes, started by torchrun."""
    with open_runtime("cpu", threads=2 // processes) as runtime:
        batch, side = (4, 64) if quick else (16, 112)
        ours = adaptation("classification", (batch // processes, side, side), runtime).ours
        ours()
        found = statistics.median(seconds(ours) for _ in range(2 if quick else 10))
        if runtime.is_main:
            print(found)


def run_in_own_process(name, arguments):
    """The record of a stage; a light parent matters, as Linux counts its memory as the child's own."""
    command = [sys.executable, __file__, "--here", name, "--threads", str(arguments.threads)]
    command += ["--quick"] if arguments.quick else []
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **STAGES[name].environment}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def write_table(records):
    """Replace what is between the markers of README.md."""
    text = README.read_text(encoding="utf-8")
    before, after = text.partition(MARKERS[0])[0], text.partition(MARKERS[1])[2]
    README.write_text(f"{before}{MARKERS[0]}\n{table(records)}\n{MARKERS[1]}{after}", encoding="utf-8")


def main():
    """Measure the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME", help=", ".join(STAGES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, help="default: results.json beside this file, and the table of README.md")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # a stage, in this process
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)  # of one of so many processes
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.here, arguments.quick, arguments.threads)))
        return
    if arguments.steps:
        steps_of_a_process(arguments.steps, arguments.quick)
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
                write_table(records)


if __name__ == "__main__":
    main()
