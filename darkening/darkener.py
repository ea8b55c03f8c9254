"""The darkener: a small network that darkens images to a requested exposure, in one of three ways (`view`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from darkening.camera import CameraConfig
from darkening.camera_view import CameraView
from darkening.curves import CurveName
from darkening.exposures import RequestConfig
from darkening.pixel_view import PixelView
from darkening.scene_view import SceneMemory, SceneView
from darkening.views import Darkening, View
from minmax.runtime.errors import check

ViewName = Literal["pixels", "scene", "camera"]

_ALWAYS = CameraConfig(share=1.0)
_OF_CURVES = ("curve", "curve_rounds", "min_scale", "exposure_channels", "width")


@dataclass(frozen=True)
class DarkenerSettings:
    """What a darkener is, but for its weights; the defaults are the paper's."""

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
    view: ViewName = "pixels"
    """pixels: curves from the 17 pixels around each pixel, as the paper; scene: from a small copy of the image, to be
    trained with --loss.exposure-patch 0; camera: no curves, a dim night behind a camera, whose settings are learned."""
    camera: CameraConfig = _ALWAYS

    def __post_init__(self) -> None:
        """Refuse settings that no darkener can have."""
        channels = self.exposure_channels
        check(self, "curve", self.curve in get_args(CurveName), f"one of {', '.join(get_args(CurveName))}")
        check(self, "curve_rounds", self.curve_rounds >= 1, "1 or more")
        check(self, "min_scale", 0.0 < self.min_scale <= 1.0, "a number in (0, 1]")
        check(self, "exposure_channels", channels == 1 or (channels > 1 and channels % 2 == 0), "1 or an even number")
        check(self, "width", self.width >= 1, "1 or more")
        check(self, "view", self.view in get_args(ViewName), f"one of {', '.join(get_args(ViewName))}")
        if self.view == "camera":
            for name in _OF_CURVES:
                unused = getattr(self, name) == getattr(type(self), name)
                check(self, name, unused, "its default beside view camera, which has no curves")
        else:
            check(self, "camera", self.camera == _ALWAYS, f"its default beside view {self.view}, which has none")
        quadratic = self.view != "scene" or self.curve == "quadratic"
        check(self, "curve", quadratic, "quadratic, the only one that view scene bends")


class Darkener(nn.Module):
    """Darkens images to a requested exposure, the mean intensity of the result.

    Args:
        settings: the paper's by default.
        trained_on: what training asked it for; in use it is asked for nothing else.
    """

    def __init__(self, settings: DarkenerSettings | None = None, trained_on: RequestConfig | None = None) -> None:
        super().__init__()
        self.settings = settings or DarkenerSettings()
        self.trained_on = trained_on or RequestConfig()
        shape = self.settings.exposure_channels, self.settings.width, self.settings.curve_rounds
        # The attribute's name is part of every checkpoint.
        self.estimator: View
        if self.settings.view == "camera":
            self.estimator = CameraView(self.settings.camera)
        elif self.settings.view == "scene":
            self.estimator = SceneView(*shape)
        else:
            self.estimator = PixelView(*shape, self.settings.curve, self.settings.min_scale)

    def draw(
        self, images: Tensor, generator: torch.Generator | None = None, draws: Tensor | None = None, frames: int = 1
    ) -> tuple[Tensor, ...]:
        """Draw what is random about the nights of images: of view camera the cameras and their noise, else nothing.

        Args:
            images: what will be darkened, `(N, 3, H, W)`.
            generator: on the CPU; None is torch's default one.
            draws: even draws `(N, DRAWS)` that were made before, for instance for all frames of a clip.
            frames: so many images in a row are a clip and share their draws, but not their noise.
        """
        return self.estimator.draw(images, generator, draws, frames)

    def forward(self, images: Tensor, exposure: Tensor | float, *drawn: Tensor) -> Darkening:
        """Darken for training: the result has gradients and is not clamped; values slightly above 1 occur.

        Args:
            images: `(N, 3, H, W)` in [0, 1].
            exposure: a number, `(N, 1, 1, 1)` or a map `(N, 1, H, W)`.
            drawn: what `draw` returned; view camera needs it.
        """
        darkening: Darkening = self.estimator(images, _as_tensor(exposure), *drawn)
        return darkening

    @torch.no_grad()
    def darken(
        self,
        images: Tensor,
        exposure: Tensor | float,
        memory: SceneMemory | None = None,
        drawn: Sequence[Tensor] = (),
    ) -> Tensor:
        """Darken for use: clamped to [0, 1], no graph kept, large images in parts with the same result.

        Args:
            images: `(N, 3, H, W)` in [0, 1].
            exposure: a number, `(N, 1, 1, 1)` or a map `(N, 1, H, W)`.
            memory: for frames of one video in a row, given with every next part of the video; it keeps those darkened
                by view scene from flickering.
            drawn: what `draw` returned; without it view camera takes the camera in the middle of all, without noise.
        """
        return self.estimator.darken(images, _as_tensor(exposure), memory, drawn)


class DarkenerGraph(nn.Module):
    """What `Darkener.darken` does, as one graph that can be exported: whole images, in one part.

    Of view camera what the camera in the middle of all sees, before its noise and before rounding to 8 bits.
    """

    def __init__(self, darkener: Darkener) -> None:
        super().__init__()
        self.darkener = darkener

    def forward(self, images: Tensor, exposure: Tensor) -> Tensor:
        """Darken `(N, 3, H, W)` in [0, 1] to the mean intensities `exposure`, `(N, 1, 1, 1)`; clamped to [0, 1]."""
        view = self.darkener.estimator
        drawn = view.middle(images) if isinstance(view, CameraView) else ()
        night: Tensor = self.darkener(images, exposure, *drawn).image
        return night.clamp(0.0, 1.0)


def _as_tensor(exposure: Tensor | float) -> Tensor:
    exposure = torch.as_tensor(exposure)
    return exposure if exposure.dim() else exposure.view(1, 1, 1, 1)
