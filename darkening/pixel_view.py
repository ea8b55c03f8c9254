"""The authors' darkener: a tone curve for each pixel, estimated from the 17 pixels around it.

Source: Luo et al., ICCV 2023 (image level); the architecture follows Zero-DCE++, https://arxiv.org/abs/2103.00860.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkening.curves import CURVES, CurveName
from darkening.views import Darkening, View

PaddingName = Literal["zeros", "replicate"]

_REACH = 8  # pixels to either side that the eight 3x3 filters look at
_PIXELS_AT_ONCE = {"cpu": 2**19, "other": 2**22}  # about 3.2 GiB for each 2**20
_LEAST_ROWS = 32


class DepthwiseSeparable(nn.Module):
    """Depthwise 3x3 then pointwise 1x1 convolution, nothing in between.

    Several inputs stand for their concatenation, which is never built: each is convolved with its share of the
    weights and the results are added.
    """

    def __init__(self, inputs: int, outputs: int, padding: PaddingName = "zeros") -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, padding_mode=padding)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, *parts: Tensor) -> Tensor:
        """Convolve `(N, C_i, H, W)` parts, sum C_i = inputs, to `(N, outputs, H, W)`."""
        assert self.depthwise.bias is not None
        total, start, bias = None, 0, self.pointwise.bias
        replicate = self.depthwise.padding_mode == "replicate"
        for part in parts:
            share = slice(start, start := start + part.shape[1])
            if replicate:
                part = F.pad(part, (1, 1, 1, 1), mode="replicate")
            weight, offset = self.depthwise.weight[share], self.depthwise.bias[share]
            part = F.conv2d(part, weight, offset, padding=0 if replicate else 1, groups=len(weight))
            part = F.conv2d(part, self.pointwise.weight[:, share], bias)  # of large images none is kept longer
            total, bias = part if total is None else total.add_(part), None
        assert total is not None
        return total


class CurveNetwork(View):
    """Eight depthwise-separable units with skip connections; the views that bend curves add what the maps mean.

    Args:
        exposure_channels: channels of the exposure code beside RGB.
        width: channels of the hidden units.
        maps: how many it estimates.
        padding: what lies beyond the border; zeros in the authors' network, which paint a frame around a scene.
    """

    def __init__(self, exposure_channels: int, width: int, maps: int, padding: PaddingName) -> None:
        super().__init__()
        self.exposure_channels = exposure_channels
        inputs = [3 + exposure_channels, *[width] * 4, *[2 * width] * 3]
        outputs = [*[width] * 7, maps]
        self.units = nn.ModuleList(DepthwiseSeparable(i, o, padding) for i, o in zip(inputs, outputs, strict=True))

    def raw_maps(self, images: Tensor, exposure: Tensor) -> Tensor:
        """Images `(N, 3, H, W)` and a map of requests `(N, 1, H, W)` to `(N, maps, H, W)` of any range."""
        unit = self.units
        z = F.relu_(unit[0](images, encode_exposure(exposure, self.exposure_channels)))
        a1 = F.relu_(unit[1](z))
        a2 = F.relu_(unit[2](a1))
        a3 = F.relu_(unit[3](a2))
        a4 = F.relu_(unit[4](a3))
        a5 = F.relu_(unit[5](a3, a4))
        a6 = F.relu_(unit[6](a2, a5))
        raw: Tensor = unit[7](a1, a6)
        return raw


def encode_exposure(exposure: Tensor, channels: int) -> Tensor:
    """Code a map of exposures `(N, 1, H, W)` as `(N, channels, H, W)`.

    One channel is the exposure itself; 2k channels are sin and cos of 2^i pi t, i < k, with t = 10^(-10 exposure).
    """
    if channels == 1:
        return exposure
    t = 10.0 ** (-10.0 * exposure)
    waves = [wave(2**i * torch.pi * t) for i in range(channels // 2) for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=1)


class PixelView(CurveNetwork):
    """A curve for each pixel and channel, on an image that a scale map has made a little darker."""

    def __init__(self, exposure_channels: int, width: int, rounds: int, curve: CurveName, min_scale: float) -> None:
        super().__init__(exposure_channels, width, maps=6, padding="zeros")
        self.curve, self.rounds, self.min_scale = curve, rounds, min_scale

    def forward(self, images: Tensor, exposure: Tensor, *drawn: Tensor) -> Darkening:
        """Curve map, scale map, and what they make of the images."""
        raw = self.raw_maps(images, _as_map(exposure, images))
        curve, squash = CURVES[self.curve]
        curve_map = squash(raw[:, :3])
        scale_map = torch.sigmoid(raw[:, 3:]) * (1.0 - self.min_scale) + self.min_scale
        return Darkening(curve(images * scale_map, curve_map, self.rounds) / scale_map, curve_map, scale_map)

    def darken(self, images: Tensor, exposure: Tensor, memory: Any, drawn: Sequence[Tensor]) -> Tensor:
        """Large images are darkened in strips that overlap by what the network sees, with the same result."""
        exposure = _as_map(exposure, images)
        count, height, width = len(images), *images.shape[-2:]
        most = _PIXELS_AT_ONCE["cpu" if images.device.type == "cpu" else "other"]
        together = max(1, most // (height * width))
        rows = height if height * width <= most else max(_LEAST_ROWS, most // width)
        result = torch.empty_like(images)
        for first, top in itertools.product(range(0, count, together), range(0, height, rows)):
            bottom = min(height, top + rows)
            above, below = max(0, top - _REACH), min(height, bottom + _REACH)
            part = (slice(first, first + together), slice(None), slice(above, below))
            strip = self(images[part], exposure[part]).image
            result[first : first + together, :, top:bottom] = strip[:, :, top - above : bottom - above]
        return result.clamp_(0.0, 1.0)


def _as_map(exposure: Tensor, images: Tensor) -> Tensor:
    return exposure.to(images).expand(images.shape[0], 1, *images.shape[2:])
