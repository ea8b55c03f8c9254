"""The darkener: a small network that bends each pixel's tone curve towards a requested exposure.

Source: Luo et al., ICCV 2023 (image level); the architecture follows Zero-DCE++, https://arxiv.org/abs/2103.00860.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from darkening.camera import SHARED_DRAWS, TONE_DRAW, CameraConfig, CameraEstimator, photograph
from darkening.curves import CURVES, CurveName
from darkening.heuristics import dimmed
from darkening.scene_view import (
    SMALL_SIDE,
    SOLVED_SIDE,
    SceneCurves,
    SceneMemory,
    darkened,
    read_curves,
    shrunk,
    solved_strength,
    spreads,
)
from minmax.runtime.checkpoints import load_checkpoint, load_strictly, save_checkpoint
from minmax.runtime.config import from_plain
from minmax.runtime.errors import UsageError

CHECKPOINT_FORMAT = "similarity-minmax/darkener"


PaddingName = Literal["zeros", "replicate"]
View = Literal["pixels", "scene", "camera"]


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
        if len(parts) == 1:
            result: Tensor = self.pointwise(self.depthwise(parts[0]))
            return result
        total, start, bias = None, 0, self.pointwise.bias
        for part in parts:
            width = part.shape[1]
            share = slice(start, start + width)
            depth_weight, depth_bias = self.depthwise.weight[share], self.depthwise.bias
            assert depth_bias is not None
            if self.depthwise.padding_mode == "replicate":
                part = F.pad(part, (1, 1, 1, 1), mode="replicate")
                filtered = F.conv2d(part, depth_weight, depth_bias[share], groups=width)
            else:
                filtered = F.conv2d(part, depth_weight, depth_bias[share], padding=1, groups=width)
            mixed = F.conv2d(filtered, self.pointwise.weight[:, share], bias)
            total, bias = mixed if total is None else total + mixed, None
            start += width
        assert total is not None
        return total


_REACH = 8  # pixels to either side that the eight 3x3 filters of the estimator look at
_PIXELS_AT_ONCE = {"cpu": 2**19, "other": 2**22}  # about 3.2 GiB for each 2**20
_LEAST_ROWS = 32
_SCENE_PIXELS_AT_ONCE = {"cpu": 2**17, "other": 2**22}


class CurveEstimator(nn.Module):
    """Eight depthwise-separable units with skip connections: image and exposure code to raw maps.

    Args:
        exposure_channels: channels of the exposure code beside RGB.
        width: channels of the hidden units.
        maps: how many it estimates.
        padding: what lies beyond the border; zeros in the authors' network, which paint a frame around a scene.
    """

    def __init__(
        self, exposure_channels: int = 1, width: int = 64, maps: int = 6, padding: PaddingName = "zeros"
    ) -> None:
        super().__init__()
        inputs = [3 + exposure_channels, *[width] * 4, *[2 * width] * 3]
        outputs = [*[width] * 7, maps]
        self.units = nn.ModuleList(DepthwiseSeparable(i, o, padding) for i, o in zip(inputs, outputs, strict=True))

    def forward(self, image: Tensor, exposure_code: Tensor) -> Tensor:
        """`(N, 3, H, W)` and `(N, E, H, W)` to `(N, maps, H, W)`, raw; six are three curve and three scale maps."""
        unit = self.units
        z = F.relu(unit[0](image, exposure_code))
        a1 = F.relu(unit[1](z))
        a2 = F.relu(unit[2](a1))
        a3 = F.relu(unit[3](a2))
        a4 = F.relu(unit[4](a3))
        a5 = F.relu(unit[5](a3, a4))
        a6 = F.relu(unit[6](a2, a5))
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


class Darkening(NamedTuple):
    """A darkened batch and the maps that made it, each `(N, 3, H, W)`; `image` is not clamped.

    Of `view` scene the curve map is `SceneCurves.maps`, small, and the scale map the colour cast; of `view` camera both
    are the draws that made each picture, `(N, SHARED_DRAWS)`.
    """

    image: Tensor
    curve_map: Tensor
    scale_map: Tensor


_ALWAYS = CameraConfig(share=1.0)
_OF_CURVES = ("curve", "curve_rounds", "min_scale", "exposure_channels", "width")


@dataclass(frozen=True)
class DarkenerSettings:
    """Everything but the weights; the defaults are the paper's."""

    curve: CurveName = "quadratic"
    """Tone curve; other ones than that of the starting point need --init scratch."""
    curve_rounds: int = 8
    """How often the curve is applied; the gamma curve is applied once."""
    min_scale: float = 0.95
    """Lower end of the scale map, which keeps highlights from staying white."""
    exposure_channels: int = 1
    """1: the exposure as it is; an even number: sinusoids of it."""
    width: int = 64
    """Channels of the curve estimator."""
    view: View = "pixels"
    """pixels: curves from the 17 pixels around each pixel, as the paper; scene: from a small copy of the image, to be
    trained with --loss.exposure-patch 0; camera: no curves, a dim night behind a camera, whose settings are learned."""
    camera: CameraConfig = _ALWAYS
    trained_exposure: Annotated[tuple[float, float], tyro.conf.Suppress] = field(default=(0.0, 0.5), compare=False)
    """Mean intensities that training asked for, of the flag --request.exposure; the default is for released files."""
    trained_contrast: Annotated[tuple[float, float], tyro.conf.Suppress] = field(default=(0.0, 0.0), compare=False)
    """Powers by which these requests followed the day's brightness, of the flag --request.contrast."""

    def __post_init__(self) -> None:
        """Refuse settings that no darkener can have."""
        channels = self.exposure_channels
        if not (channels == 1 or (channels > 1 and channels % 2 == 0)):
            raise UsageError(f"exposure channels {channels}: expected 1 or an even number")
        if self.curve not in get_args(CurveName):
            raise UsageError(f"curve {self.curve!r}: expected one of {', '.join(get_args(CurveName))}")
        if self.curve_rounds < 1 or self.width < 1 or not 0.0 < self.min_scale <= 1.0:
            raise UsageError(f"{self}: expected curve rounds and width of 1 or more and a least scale in (0, 1]")
        if self.view not in get_args(View):
            raise UsageError(f"view {self.view!r}: expected one of {', '.join(get_args(View))}")
        if self.view == "camera":
            unused = [name for name in _OF_CURVES if getattr(self, name) != getattr(type(self), name)]
            if unused:
                raise UsageError(f"darkener {', '.join(unused)}: view camera has no curves; add --darkener.view pixels")
        elif self.camera != _ALWAYS:
            raise UsageError(f"darkener camera: view {self.view} has none; add --darkener.view camera")
        if self.view == "scene" and self.curve != "quadratic":
            raise UsageError(f"curve {self.curve!r}: view scene bends the quadratic curve only; leave one of them out")


class Darkener(nn.Module):
    """Darkens images to a requested exposure, the mean intensity of the result."""

    def __init__(self, settings: DarkenerSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or DarkenerSettings()
        channels, width = self.settings.exposure_channels, self.settings.width
        self.estimator: nn.Module
        if self.settings.view == "camera":
            self.estimator = CameraEstimator()
        elif self.settings.view == "scene":
            self.estimator = CurveEstimator(channels, width, 5, "replicate")
        else:
            self.estimator = CurveEstimator(channels, width)

    def forward(
        self, images: Tensor, exposure: Tensor, draws: Tensor | None = None, noise: Tensor | None = None
    ) -> Darkening:
        """Darken `(N, 3, H, W)` images in [0, 1] to `exposure`: a scalar, `(N, 1, 1, 1)` or a map `(N, 1, H, W)`.

        The result is not clamped: training needs the gradient, and values slightly above 1 occur. Of `view` camera it
        is what one camera makes of each image, by `draws` and `noise` as `camera.photograph` takes them.
        """
        if self.settings.view == "camera":
            if draws is None or noise is None:
                raise ValueError("a darkener of view camera needs draws and noise")
            moved = self.estimator(images, exposure, draws)
            dim = dimmed(images, exposure, moved[:, TONE_DRAW])
            image = photograph(dim, self.settings.camera, moved, noise, quantised=not torch.is_grad_enabled())
            return Darkening(image, moved, moved)
        if self.settings.view == "scene":
            curves = self.scene_curves(images, exposure)
            image = darkened(images, curves, self.settings.curve_rounds, *spreads(curves.maps, images))
            return Darkening(image, curves.maps, curves.cast)
        exposure = exposure.to(images).expand(images.shape[0], 1, *images.shape[2:])
        raw = self.estimator(images, encode_exposure(exposure, self.settings.exposure_channels))
        curve, squash = CURVES[self.settings.curve]
        curve_map = squash(raw[:, :3])
        low = self.settings.min_scale
        scale_map = torch.sigmoid(raw[:, 3:]) * (1.0 - low) + low
        darkened_images = curve(images * scale_map, curve_map, self.settings.curve_rounds) / scale_map
        return Darkening(darkened_images, curve_map, scale_map)

    def scene_curves(self, images: Tensor, exposure: Tensor) -> SceneCurves:
        """What `view` scene decides for whole images; arguments as for `forward`."""
        copy = shrunk(images, SOLVED_SIDE)
        small = shrunk(copy, SMALL_SIDE)
        exposure = exposure.to(images).expand(images.shape[0], 1, *(exposure.shape[-2:] or (1, 1)))
        if exposure.shape[-2:] != (1, 1):
            exposure = shrunk(exposure, SMALL_SIDE)
        code = encode_exposure(exposure.expand(-1, -1, *small.shape[-2:]), self.settings.exposure_channels)
        maps, cast = read_curves(self.estimator(small, code), exposure)
        return SceneCurves(maps, cast, solved_strength(copy, maps, cast, exposure, self.settings.curve_rounds))

    @torch.no_grad()
    def darken(self, images: Tensor, exposure: Tensor, memory: SceneMemory | None = None) -> Tensor:
        """The darkened images, clamped to [0, 1], no graph kept; large ones in parts, with the same result.

        Of `view` camera what the camera in the middle of all would make of them, without noise, in one part.

        With a `memory`, the images are frames of one video in a row; it keeps those darkened by `view` scene from
        flickering, and must be given with every next part of the video.
        """
        if self.settings.view == "scene":
            return self._darken_scene(images, exposure, memory)
        if self.settings.view == "camera":
            middle_image: Tensor = self(images, exposure, *_middle_camera(images)).image
            return middle_image
        exposure = exposure.to(images).expand(images.shape[0], 1, *images.shape[2:])
        count, height, width = len(images), *images.shape[-2:]
        most = _PIXELS_AT_ONCE["cpu" if images.device.type == "cpu" else "other"]
        together = max(1, most // (height * width))
        rows = height if height * width <= most else max(_LEAST_ROWS, most // width)
        result = torch.empty_like(images)
        for first, top in itertools.product(range(0, count, together), range(0, height, rows)):
            bottom = min(height, top + rows)
            above, below = max(0, top - _REACH), min(height, bottom + _REACH)
            part = (slice(first, first + together), slice(None), slice(above, below))
            strip: Tensor = self(images[part], exposure[part]).image
            result[first : first + together, :, top:bottom] = strip[:, :, top - above : bottom - above]
        return result.clamp_(0.0, 1.0)

    def _darken_scene(self, images: Tensor, exposure: Tensor, memory: SceneMemory | None) -> Tensor:
        if not len(images):
            return images.clone()
        curves = self.scene_curves(images, exposure)
        if memory is not None:
            curves = memory.steadied(curves, shrunk(images, SMALL_SIDE))
        down, across = spreads(curves.maps, images)
        most = _SCENE_PIXELS_AT_ONCE["cpu" if images.device.type == "cpu" else "other"]
        rows = max(1, most // (len(images) * images.shape[-1]))
        result = torch.empty_like(images)
        for top in range(0, images.shape[-2], rows):
            strip = slice(top, top + rows)
            part = darkened(images[..., strip, :], curves, self.settings.curve_rounds, down[strip], across)
            result[..., strip, :] = part.clamp_(0.0, 1.0)
        return result


def _middle_camera(images: Tensor) -> tuple[Tensor, Tensor]:
    """Draws of the camera in the middle of all, for each image, and no noise."""
    middle = torch.full((1, SHARED_DRAWS), 0.5)
    middle[:, -1] = 0.0  # photographed, whatever the share
    return middle.expand(images.shape[0], -1), torch.zeros_like(images)


class DarkenerGraph(nn.Module):
    """What `Darkener.darken` does, as one graph that can be exported: whole images, in one part.

    Of `view` camera what the camera in the middle of all sees, before its noise and before rounding to 8 bits.
    """

    def __init__(self, darkener: Darkener) -> None:
        super().__init__()
        self.darkener = darkener

    def forward(self, images: Tensor, exposure: Tensor) -> Tensor:
        """Darken `(N, 3, H, W)` in [0, 1] to the mean intensities `exposure`, `(N, 1, 1, 1)`; clamped to [0, 1]."""
        camera = _middle_camera(images) if self.darkener.settings.view == "camera" else ()
        night: Tensor = self.darkener(images, exposure, *camera).image
        return night.clamp(0.0, 1.0)


def clean_weights(darkener: Darkener) -> dict[str, Tensor]:
    """The weights, with zeros for those below 1e-30 in magnitude.

    Weight decay shrinks what is of no use into subnormal numbers. They change nothing but make some processors ten
    times slower, so none is saved and none is left in a darkener that is loaded.
    """
    return {name: tensor.masked_fill(tensor.abs() < 1e-30, 0.0) for name, tensor in darkener.state_dict().items()}


def save_darkener(darkener: Darkener, path: Path, config: Mapping[str, Any] | None = None) -> None:
    """Save weights and settings, and the config that trained them."""
    payload = {
        "format": CHECKPOINT_FORMAT,
        "settings": asdict(darkener.settings),
        "darkener": clean_weights(darkener),
        "config": dict(config or {}),
    }
    save_checkpoint(payload, path)


def load_darkener(path: Path) -> Darkener:
    """Rebuild a darkener from our checkpoint or from a released one (`Epoch15.pth` and the like).

    Raises:
        UsageError: when the file is missing, unreadable, or not a darkener's.
    """
    payload = load_checkpoint(path)
    if payload.get("format") == CHECKPOINT_FORMAT:
        try:
            darkener, state = Darkener(from_plain(DarkenerSettings, payload["settings"], path)), payload["darkener"]
        except (KeyError, UsageError) as error:
            raise UsageError(f"{path} is not a darkener checkpoint of this version: {error}") from error
        load_strictly(darkener, state, path)
        darkener.load_state_dict(clean_weights(darkener))
        return darkener
    if "e_conv0.depth_conv.weight" in payload:
        return darkener_from_released(payload, path)
    found = payload.get("format") or f"tensors named {', '.join(map(str, list(payload)[:3]))}"
    raise UsageError(f"{path} is not a darkener checkpoint: found {found}")


_RELEASED_NAME = re.compile(r"e_conv(\d)\.(depth|point)_conv\.(weight|bias)")


def darkener_from_released(state: Mapping[str, Tensor], source: Path | str = "released checkpoint") -> Darkener:
    """Build a darkener from tensors under the authors' names.

    `e_conv{i}.depth_conv.*` becomes `estimator.units.{i}.depthwise.*`, `point_conv` becomes `pointwise`; the three
    buffers `down_scale`, `curve_round` and `encode_dim` become settings.
    """
    try:
        settings = DarkenerSettings(
            curve_rounds=int(state["curve_round"]),
            min_scale=float(state["down_scale"]),
            exposure_channels=int(state["encode_dim"]),
            width=state["e_conv1.depth_conv.weight"].shape[0],
        )
    except KeyError as error:
        raise UsageError(f"{source} is not a darkener checkpoint: it lacks {error}") from error
    darkener = Darkener(settings)
    renamed = {
        _RELEASED_NAME.sub(r"estimator.units.\1.\2wise.\3", name): tensor
        for name, tensor in state.items()
        if name not in ("down_scale", "curve_round", "encode_dim")
    }
    # The dtype of the file is kept, so that float64 weights stay float64.
    darkener.to(state["e_conv0.depth_conv.weight"].dtype)
    load_strictly(darkener, renamed, source)
    darkener.load_state_dict(clean_weights(darkener))
    return darkener
