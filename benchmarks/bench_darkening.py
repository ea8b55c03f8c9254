"""Darkening of images and a darkener training step: ours against the straightforward form, alternately.

    python benchmarks/bench_darkening.py

Darkeners have the weights that ship: weights decide about speed where some are subnormal. The straightforward form is
the authors' formulation of the estimator with the starting point's weights: concatenated skip connections, a curve that
allocates in every round, default memory layout, a feature network whose parameters require gradients, the C library's
default allocator. Photos of 12 megapixels are darkened from file to file, each in a process of its own, which tells its
peak memory; the straightforward form would need more than 20 GiB for one.
"""

import ctypes
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision

from darkening.darkener import Darkener, DarkenerSettings
from darkening.darkener_files import NIGHT_TO_LOOK_AT, STARTING_POINT, load_darkener
from darkening.losses import DarkeningLoss
from darkening.night_view import LearnedNight, NightConfig, build_night_view
from darkening.views import Darkening
from media.pictures import as_intensities, decode_picture, write_picture
from minmax.features import InputNormalization, LayeredEncoder, freeze
from minmax.runtime.devices import Runtime, keep_large_buffers
from minmax.runtime.seeding import generator_for

DARKENERS = (("nights to learn from", STARTING_POINT), ("nights to look at", NIGHT_TO_LOOK_AT))
"""What they are for, and their names or paths."""
NAMES = tuple(name for _, name in DARKENERS)
ROUNDS = 5
THREADS = (1, 2)
RUNTIME = Runtime(torch.device("cpu"))


def default_allocator():
    """Undo keep_large_buffers: glibc's defaults (mallopt(3))."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 65536)
        libc.mallopt(-1, 128 * 1024)


def straightforward(darkener, images, exposure):
    """The darkener with concatenations."""
    units = darkener.estimator.units

    def unit(i, *parts):
        return units[i].pointwise(units[i].depthwise(torch.cat(parts, dim=1)))

    exposure = exposure.expand(len(images), 1, *images.shape[2:])
    z = F.relu(unit(0, images, exposure))
    a1 = F.relu(unit(1, z))
    a2 = F.relu(unit(2, a1))
    a3 = F.relu(unit(3, a2))
    a4 = F.relu(unit(4, a3))
    a5 = F.relu(unit(5, a3, a4))
    a6 = F.relu(unit(6, a2, a5))
    raw = unit(7, a1, a6)
    curve_map = torch.tanh(raw[:, :3])
    scale_map = torch.sigmoid(raw[:, 3:]) * 0.05 + 0.95
    value = images * scale_map
    for _ in range(8):
        value = value + curve_map * (value * value - value)
    return Darkening(value / scale_map, curve_map, scale_map)


def seconds(function):
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(title, plain, ours):
    """Median seconds of both, alternately, after one warm-up each; and their ratio."""
    times = {"plain": [], "ours": []}
    for round_number in range(ROUNDS + 1):
        for name, function, prepare in (("plain", plain, default_allocator), ("ours", ours, keep_large_buffers)):
            prepare()
            elapsed = seconds(function)
            if round_number:
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{title}, {torch.get_num_threads()} threads: {medians['plain']:.3f} s -> {medians['ours']:.3f} s, "
        f"ratio {medians['plain'] / medians['ours']:.2f}",
        flush=True,
    )


def smooth_images(count, height, width, seed=0):
    """Images with slopes, edges and grain, `(count, 3, height, width)`: noise alone is nothing that occurs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 16, generator=generator)
    grain = 0.04 * torch.rand(count, 3, height, width, generator=generator)
    return (F.interpolate(coarse, (height, width), mode="bicubic") + grain).clamp(0.0, 1.0)


@torch.no_grad()
def bench_image():
    """One image of Cityscapes' network size."""
    authors = load_darkener(STARTING_POINT)
    exposure, images = torch.tensor(0.1), smooth_images(1, 512, 1024)
    images_last = RUNTIME.to_device(images)
    for title, name in DARKENERS:
        darkener = RUNTIME.place(load_darkener(name))
        if name == STARTING_POINT:
            expected = straightforward(authors, images, exposure).image.clamp(0, 1)
            torch.testing.assert_close(darkener.darken(images_last, exposure), expected)
        for threads in THREADS:
            torch.set_num_threads(threads)
            compare(
                f"darken 1x3x512x1024, {title}",
                lambda: straightforward(authors, images, exposure).image.clamp(0, 1),
                lambda darkener=darkener: darkener.darken(images_last, exposure),
            )


def bench_batch():
    """The night of a small batch, as in adaptation: by a learned camera against a curve for each pixel, plainly."""
    authors = load_darkener(STARTING_POINT)
    images, exposure = smooth_images(32, 64, 64), torch.full((32, 1, 1, 1), 0.1)
    camera, generator = LearnedNight(Darkener(DarkenerSettings(view="camera"))), torch.Generator()
    with torch.no_grad():
        for threads in THREADS:
            torch.set_num_threads(threads)
            compare(
                "night of 32x3x64x64, learned camera",
                lambda: straightforward(authors, images, exposure).image.clamp(0, 1),
                lambda: camera(images, exposure, generator),
            )


def bench_step():
    """A training step of a darkener from the starting point."""
    darkener, fast = (load_darkener(STARTING_POINT) for _ in range(2))
    fast = fast.to(memory_format=torch.channels_last)
    exposure = torch.tensor(0.1)
    resnet = torchvision.models.resnet18(weights=None)
    layers = {name: layer for name, layer in resnet.named_children() if name not in ("avgpool", "fc")}
    encoder = LayeredEncoder(InputNormalization.imagenet(), layers, ["layer4"]).eval()
    day = smooth_images(8, 112, 112)
    day_last = day.contiguous(memory_format=torch.channels_last)
    loss = DarkeningLoss()

    def plain_step():
        darkening = straightforward(darkener, day, exposure)
        torch.stack(
            list(loss(day, darkening, exposure, encoder(darkening.image), encoder(day)).values())
        ).sum().backward()

    frozen = freeze(LayeredEncoder(InputNormalization.imagenet(), layers, ["layer4"]))

    def our_step():
        darkening = fast(day_last, exposure)
        with torch.no_grad():
            features = frozen(day_last)
        torch.stack(
            list(loss(day_last, darkening, exposure, frozen(darkening.image), features).values())
        ).sum().backward()

    def plain_with_gradients():
        encoder.requires_grad_(True)
        plain_step()

    def ours_frozen():
        frozen.requires_grad_(False)
        our_step()

    for threads in THREADS:
        torch.set_num_threads(threads)
        compare("darkener step, ResNet-18 features, 8x3x112x112", plain_with_gradients, ours_frozen)


def bench_photos():
    """Photos of 12 megapixels, file to file, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "day.jpg"
        write_picture(smooth_images(1, 3000, 4000)[0], photo)
        for threads in THREADS:
            nights = [("brightness", "dark.png"), *((night, "dark.jpg") for night in ("brightness", *NAMES))]
            for night, target in nights:
                command = [sys.executable, __file__, night, str(photo), str(Path(folder) / target), str(threads)]
                subprocess.run(command, check=True)


def darken_photo(night, photo, target, threads):
    """In a process of its own: seconds from file to file, and how much memory that takes beyond what is loaded."""
    torch.set_num_threads(threads)
    keep_large_buffers()
    hand_made = night == "brightness"
    darkener = None if hand_made else load_darkener(night)
    config = NightConfig(source="brightness" if hand_made else "learned", exposure=(0.1, 0.1))
    view = build_night_view(config, darkener, RUNTIME)
    view(torch.rand(1, 3, 64, 64), generator_for("bench"))  # loads what is loaded at the first use

    def convert():
        images = as_intensities(RUNTIME.to_device(decode_picture(photo)[None]))
        write_picture(view(images, generator_for("bench"))[0], target)

    before = peak_memory()
    elapsed = seconds(convert)
    print(
        f"darken 3000x4000 {photo.suffix} -> {target.suffix}, {night}, {threads} threads: {elapsed:.2f} s, peak memory "
        f"{before:.2f} GiB before and {peak_memory():.2f} GiB after",
        flush=True,
    )


def peak_memory():
    """The most memory that this process has held so far, in GiB."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    if len(sys.argv) > 1:
        darken_photo(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        bench_photos()  # first: Linux counts the memory of who starts a process as the process's own
        bench_image()
        bench_batch()
        bench_step()
