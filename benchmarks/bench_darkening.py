"""Darkening 512x1024 images and a darkener training step: ours against the straightforward form, alternately.

    python benchmarks/bench_darkening.py

The straightforward form is the same mathematics: concatenated skip connections, a curve that allocates in every round,
default memory layout, a feature network whose parameters require gradients, the C library's default allocator.
"""

import ctypes
import platform
import statistics
import time

import torch
import torch.nn.functional as F
import torchvision

from darkening.curve_estimator import Darkener, Darkening
from darkening.losses import DarkeningLoss
from minmax.runtime.devices import keep_large_buffers
from minmax.task_network import InputNormalization, LayeredEncoder, freeze

ROUNDS = 7


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
        f"{title}: {medians['plain']:.3f} s -> {medians['ours']:.3f} s, ratio {medians['plain'] / medians['ours']:.2f}"
    )


def main():
    """Compare, after checking that both give the same."""
    torch.manual_seed(0)
    darkener = Darkener()
    fast = Darkener().to(memory_format=torch.channels_last)
    fast.load_state_dict(darkener.state_dict())
    exposure = torch.tensor(0.1)

    images = torch.rand(1, 3, 512, 1024)
    images_last = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(straightforward(darkener, images, exposure).image, fast(images_last, exposure).image)
        compare(
            "darken 1x3x512x1024",
            lambda: straightforward(darkener, images, exposure).image.clamp(0, 1),
            lambda: fast.darken(images_last, exposure),
        )

    resnet = torchvision.models.resnet18(weights=None)
    layers = {name: layer for name, layer in resnet.named_children() if name not in ("avgpool", "fc")}
    encoder = LayeredEncoder(InputNormalization.imagenet(), layers, ["layer4"]).eval()
    day, day_last = (
        torch.rand(8, 3, 112, 112).contiguous(memory_format=m) for m in (torch.contiguous_format, torch.channels_last)
    )
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

    compare("darkener step, ResNet-18 features, 8x3x112x112", plain_with_gradients, ours_frozen)


if __name__ == "__main__":
    main()
