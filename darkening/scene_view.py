"""Darkening that sees the whole scene: curves from a small copy of the image, brought to full size smoothly.

Ours, for nights to look at. Each pixel's three channels are multiplied by one gain, so that its hue stays, and by one
colour cast for the whole image. At strength t the gain of a pixel of brightness b (half its largest channel, half its
mean, times 0.93 so that burnt-out white moves too) is

    exp(-t d) * the gain of the convex quadratic curve of 1 - exp(-t c) at exp(-t d) b

with two smooth maps: the density d > 0 tells how darkness spreads over the scene, and c > 0 how far shadows sink. At
t = 0 nothing changes; no gain is above 1; the mean falls to 0 as t grows, so that the t at which it is what was asked
for can be solved for: the network decides where it gets how dark, not how dark it gets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darkening.pixel_view import CurveNetwork
from darkening.views import Darkening

SMALL_SIDE = 16
"""Longest side of the copy that the network sees: the 17 pixels that it looks at are the whole scene."""
SOLVED_SIDE = 96
"""Longest side of the copy on which the strength is solved for."""
_PIXELS_AT_ONCE = {"cpu": 2**17, "other": 2**22}
_MOST_STRENGTH = 16.0
_SOLVER_STEPS = 17
_WHITE = 0.93
_MOST_UNEVEN = 1.2  # the logarithm of the density lies this far from 0 at most
_MOST_SINK = 0.5
_MOST_CAST = 0.12  # the same of the colour cast
_SOON = 4.0  # so many times as fast as the density grows the cast with the strength
_LEAST_REQUEST = 0.1  # a request's local variations are taken relative to its mean plus this
# Of videos:
_PACE = 0.03  # of the curves, per frame
_CATCH_UP = 0.3
_CUT = 0.25  # mean change of the small copies from one frame to the next from which on it is another scene


class SceneCurves(NamedTuple):
    """What turns N images into night."""

    maps: Tensor
    """`(N, 2, h, w)` at the size of the small copy: the logarithm of the density d, and c."""
    cast: Tensor
    """`(N, 3, 1, 1)`: the colour cast, 1 in the channel that it takes nothing of."""
    strength: Tensor
    """t, `(N, 1, 1, 1)`."""


class SceneMemory:
    """What is kept from frame to frame of a video, so that nothing flickers: maps, cast and strength move slowly.

    So the mean of the frames goes up and down with the day's, and comes back to the request within seconds.
    """

    def __init__(self) -> None:
        self.curves: SceneCurves | None = None
        self.small = torch.empty(0)

    def steady(self, curves: SceneCurves, small: Tensor) -> SceneCurves:
        """The curves of frames in a row, each an exponential mean over those since the last cut.

        Args:
            curves: as each frame alone would have them.
            small: the frames' small copies, `(N, 3, h, w)`; a cut is where they change a lot at once.
        """
        frames = []
        for *now, seen in zip(*curves, small, strict=True):
            same = self.curves is not None and float((seen - self.small).abs().mean()) < _CUT
            before = self.curves if same and self.curves is not None else now
            # Where the strength is far from what it should be, as after a fade from black, it catches up.
            off = (now[-1] - before[-1]) / (now[-1] + before[-1]).clamp(min=1e-6)
            pace = _PACE + _CATCH_UP * off.square()
            self.curves = SceneCurves(*(torch.lerp(old, new, pace) for old, new in zip(before, now, strict=True)))
            self.small = seen
            frames.append(self.curves)
        return SceneCurves(*(torch.stack(parts) for parts in zip(*frames, strict=True)))


def shrunk(images: Tensor, side: int) -> Tensor:
    """The images brought down to a longest side by averaging areas; smaller ones as they are."""
    height, width = images.shape[-2:]
    share = side / max(height, width)
    if share >= 1.0:
        return images
    size = (max(1, round(height * share)), max(1, round(width * share)))
    # On MPS areas must all be of one size (https://github.com/pytorch/pytorch/issues/96056).
    source = images.cpu() if images.device.type == "mps" else images
    copy: Tensor = F.interpolate(source, size=size, mode="area").to(images.device)
    return copy


def brightness(images: Tensor) -> Tensor:
    """What the curve acts on, `(N, 1, H, W)`: below 1 also in burnt-out white, so that it moves too."""
    red, green, blue = images.split(1, dim=1)
    half: Tensor = (torch.maximum(torch.maximum(red, green), blue) + (red + green + blue) / 3.0) * (0.5 * _WHITE)
    return half


def read_curves(raw: Tensor, exposure: Tensor) -> tuple[Tensor, Tensor]:
    """Maps and cast of `SceneCurves` from what the network says of the small copy.

    Args:
        raw: the network's output, `(N, 5, h, w)`: of the density, of c, and of the cast in each channel.
        exposure: the request, `(N, 1, 1, 1)` or a map `(N, 1, h, w)`, whose variations the maps follow.
    """
    density = _MOST_UNEVEN * torch.tanh(raw[:, :1])
    # The strength is solved for, so only ratios count; without this the weights would drift.
    density = density - density.mean(dim=(2, 3), keepdim=True)
    mean = exposure.mean(dim=(2, 3), keepdim=True)
    less = ((exposure + _LEAST_REQUEST) / (mean + _LEAST_REQUEST)).clamp(min=0.1)
    sink = _MOST_SINK * torch.sigmoid(raw[:, 1:2])
    maps = torch.cat([density - less.log(), sink / less], dim=1)
    cast = _MOST_CAST * torch.tanh(raw[:, 2:].mean(dim=(2, 3), keepdim=True))
    return maps, torch.exp(cast - cast.amax(dim=1, keepdim=True))


def spread_weights(small: int, large: int, like: Tensor) -> Tensor:
    """Weights `(large, small)` that bring `small` numbers to `large` by cubic B-splines: smooth, without overshoot."""
    place = (torch.arange(large, dtype=like.dtype, device=like.device) + 0.5) * (small / large) - 0.5
    knots = torch.arange(-2, small + 2, device=like.device)
    away = (place[:, None] - knots).abs()
    weights = torch.where(away < 1, (4 - 6 * away**2 + 3 * away**3) / 6, (2 - away).clamp(min=0) ** 3 / 6)
    # Beyond the border the last number goes on.
    folded = torch.zeros(large, small, dtype=like.dtype, device=like.device)
    folded.index_add_(1, knots.clamp(0, small - 1), weights)
    return folded


def spreads(maps: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """`spread_weights` that bring maps to the rows, and to the columns, of images."""
    (rows, columns), (height, width) = maps.shape[-2:], images.shape[-2:]
    return spread_weights(rows, height, images), spread_weights(columns, width, images)


def darkened(images: Tensor, curves: SceneCurves, rounds: int, down: Tensor, across: Tensor) -> Tensor:
    """The images, or a strip of their rows, as night.

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        curves: of the whole images.
        rounds: how often the quadratic curve is applied.
        down: `spread_weights` of the strip's rows, `(H, h)`.
        across: of all columns, `(W, w)`.
    """
    maps = down @ curves.maps @ across.T
    return images * _gain(maps, brightness(images), curves.strength, rounds) * _cast(curves.cast, curves.strength)


def _gain(maps: Tensor, bright: Tensor, strength: Tensor, rounds: int) -> Tensor:
    density, sink = maps.split(1, dim=1)
    gain = torch.exp(-strength * density.exp())
    bend = 1.0 - torch.exp(-strength * sink)
    # The quadratic curve v <- v + a (v^2 - v) as a product of gains: v stays b times the gain so far.
    kept, slope = 1.0 - bend, bend * bright
    for _ in range(rounds):
        gain = gain * torch.addcmul(kept, slope, gain)
    return gain


def _cast(cast: Tensor, strength: Tensor) -> Tensor:
    return cast ** (1.0 - torch.exp(-_SOON * strength))


def solved_strength(copy: Tensor, maps: Tensor, cast: Tensor, exposure: Tensor, rounds: int) -> Tensor:
    """The strength `(N, 1, 1, 1)` at which the mean is the request, 0 where the day is as dark as that already.

    By bisection on a copy of the images, `(N, 3, H, W)` of a longest side of `SOLVED_SIDE`.
    """
    with torch.no_grad():
        down, across = spreads(maps, copy)
        spread, bright, wanted = down @ maps @ across.T, brightness(copy), exposure.mean(dim=(2, 3), keepdim=True)
        share = copy.flatten(2) / bright[0].numel()  # so that a sum over pixels is their mean
        low = torch.zeros_like(wanted)
        high = torch.full_like(wanted, _MOST_STRENGTH)
        for _ in range(_SOLVER_STEPS):
            middle = (low + high) / 2.0
            channels = share @ _gain(spread, bright, middle, rounds).flatten(2).mT
            mean = (channels[..., None] * _cast(cast, middle)).mean(dim=1, keepdim=True)
            low, high = torch.where(mean > wanted, middle, low), torch.where(mean > wanted, high, middle)
        day = copy.mean(dim=(1, 2, 3), keepdim=True)
        return torch.where(day > wanted, (low + high) / 2.0, torch.zeros_like(low))


class SceneView(CurveNetwork):
    """Whole images by the curves that the network reads from small copies of them."""

    def __init__(self, exposure_channels: int, width: int, rounds: int) -> None:
        super().__init__(exposure_channels, width, maps=5, padding="replicate")
        self.rounds = rounds

    def forward(self, images: Tensor, exposure: Tensor, *drawn: Tensor) -> Darkening:
        """The darkened images and their curves."""
        curves = self.curves(images, exposure)
        image = darkened(images, curves, self.rounds, *spreads(curves.maps, images))
        return Darkening(image, curves.maps, curves.cast)

    def curves(self, images: Tensor, exposure: Tensor) -> SceneCurves:
        """What is decided for whole images; arguments as for `forward`."""
        copy = shrunk(images, SOLVED_SIDE)
        small = shrunk(copy, SMALL_SIDE)
        exposure = exposure.to(images).expand(images.shape[0], 1, -1, -1)
        if exposure.shape[-2:] != (1, 1):
            exposure = shrunk(exposure, SMALL_SIDE)
        raw = self.raw_maps(small, exposure.expand(-1, -1, *small.shape[-2:]))
        maps, cast = read_curves(raw, exposure)
        return SceneCurves(maps, cast, solved_strength(copy, maps, cast, exposure, self.rounds))

    def darken(self, images: Tensor, exposure: Tensor, memory: Any, drawn: Sequence[Tensor]) -> Tensor:
        """Row by row where images are large; steadied by a `SceneMemory` where they are frames of a video."""
        if not len(images):
            return images.clone()
        curves = self.curves(images, exposure)
        if memory is not None:
            curves = memory.steady(curves, shrunk(images, SMALL_SIDE))
        down, across = spreads(curves.maps, images)
        most = _PIXELS_AT_ONCE["cpu" if images.device.type == "cpu" else "other"]
        rows = max(1, most // (len(images) * images.shape[-1]))
        result = torch.empty_like(images)
        for top in range(0, images.shape[-2], rows):
            strip = slice(top, top + rows)
            part = darkened(images[..., strip, :], curves, self.rounds, down[strip], across)
            result[..., strip, :] = part.clamp_(0.0, 1.0)
        return result
