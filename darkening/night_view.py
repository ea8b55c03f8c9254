"""Night views of a batch: draw exposures, add exposure noise, darken, photograph.

Source: Luo et al., ICCV 2023; exposure range and noise as the authors use them for adaptation.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import record_function

from darkening.camera import DRAWS, CameraConfig, draw_noise, photograph
from darkening.darkener import Darkener
from darkening.exposures import as_clips, as_images, beside, follow_day, uniform
from darkening.heuristics import CONTROLS, HEURISTICS, Night
from darkening.scene_view import SceneMemory
from minmax.features import freeze
from minmax.runtime.errors import SettingError, UsageError, check, check_range, require

if TYPE_CHECKING:
    from minmax.runtime.devices import Runtime

log = logging.getLogger(__name__)
NightSource = Literal["learned", "gamma", "brightness", "dim", "short-exposure", "augmix", "day"]


@dataclass(frozen=True)
class NightConfig:
    """Where night views come from."""

    source: NightSource | None = None
    """By default the darkener where there is one, and otherwise a dim night behind a camera. learned: the darkener;
    gamma, brightness, dim (between these two), short-exposure: made by hand; augmix: AugMix in place of a night; day:
    no darkening, a control."""
    exposure: tuple[float, float] = (0.0, 0.2)
    """Lowest and highest requested mean intensity; one is drawn per image (or clip)."""
    contrast: tuple[float, float] = (0.0, 0.0)
    """Power by which the request follows the day's brightness from cell to cell, drawn per image; 0: it is even."""
    noise: float = 0.025
    """Standard deviation of the noise on the exposure map, once per cell and once per pixel."""
    cell: int = 16
    """Side of the cells of contrast and exposure noise, in pixels."""
    camera: CameraConfig = field(default_factory=CameraConfig)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_draws(self)
        if self.camera.share == 0 and self.camera != CameraConfig() and self.source is not None:
            raise SettingError(CameraConfig, "share", "0: expected more than 0 beside other settings of the camera")


def _check_draws(settings: "NightConfig | NightView") -> None:
    check_range(settings, "exposure", 0.0, 1.0)
    check_range(settings, "contrast", 0.0, 4.0)
    check(settings, "noise", settings.noise >= 0, "0 or more")
    check(settings, "cell", settings.cell >= 1, "1 or more")


class LearnedNight:
    """A darkener behind the interface that all nights share, asked only for what it was trained on.

    For a video it has a memory of the frames before.
    """

    def __init__(self, darkener: Darkener, memory: SceneMemory | None = None) -> None:
        self.darkener, self.memory = darkener, memory

    @torch.no_grad()
    def __call__(
        self, images: Tensor, exposure: Tensor, generator: torch.Generator | None, draws: Tensor | None = None
    ) -> Tensor:
        """Darken `(N, 3, H, W)` images; arguments as for every `heuristics.Night`."""
        request = self.darkener.trained_on.bounded(images, exposure)
        drawn = self.darkener.draw(images, generator, draws)
        return self.darkener.darken(images, request, self.memory, drawn)


def refuse_untrained(flag: str, exposures: Sequence[float], darkener: Darkener) -> None:
    """Raise a UsageError for exposures that a darkener was not trained on."""
    low, high = darkener.trained_on.exposure
    within = darkener.trained_on.covers(min(exposures), max(exposures))
    require(within, flag, tuple(exposures), f"{low} to {high}, what the darkener was trained on (--request.exposure)")


class NightView:
    """Turns day images into night views: `NightView("gamma", exposure=(0.05, 0.4), camera=CameraConfig(share=1))`.

    Args:
        night: a darkener, on the device of the images; the name of a hand-made night or control (`gamma`, `brightness`,
            `dim`, `short-exposure`, `day`, `augmix`); or a function (images, exposure map, generator, draws) to images.
        exposure: range of the requested mean intensity, uniform.
        noise: standard deviation of the exposure noise.
        cell: side of its cells in pixels.
        contrast: range of the power by which the request follows the day's brightness from cell to cell, uniform. With
            0 a darkener that obeys makes all cells equally dark; with 1 they keep their ratios, with more they part.
        camera: what a camera adds behind the night.

    Raises:
        ValueError: for a name or number that is none of these, exposures that the darkener was not trained on, and a
            camera behind a darkener that has one of its own.
    """

    def __init__(
        self,
        night: str | Darkener | Night,
        exposure: tuple[float, float] = (0.0, 0.2),
        noise: float = 0.025,
        cell: int = 16,
        contrast: tuple[float, float] = (0.0, 0.0),
        camera: CameraConfig | None = None,
    ) -> None:
        if isinstance(night, str):
            named = CONTROLS | HEURISTICS
            if night not in named:
                raise ValueError(f"night {night!r}: expected a darkener, a function, or one of {', '.join(named)}")
            night = named[night]
        self.night: Night = LearnedNight(night) if isinstance(night, Darkener) else night
        self.exposure, self.contrast, self.noise, self.cell = exposure, contrast, noise, cell
        self.camera = camera or CameraConfig()
        _check_draws(self)
        if isinstance(self.night, LearnedNight):
            darkener, trained_on = self.night.darkener, self.night.darkener.trained_on
            low, high = trained_on.exposure
            expected = f"{low} to {high}, what the darkener was trained on"
            check(self, "exposure", trained_on.covers(*exposure), expected)
            if darkener.settings.view == "camera" and self.camera.share > 0:
                raise SettingError(
                    CameraConfig, "share", f"{self.camera.share}: expected 0, as this darkener has a camera of its own"
                )

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Darken `(N, 3, H, W)` images or `(N, 3, T, H, W)` clips in [0, 1].

        Each image gets one exposure, one noise map and one camera, each clip one of each for all its frames. All draws
        come from the CPU `generator`, by default torch's own.
        """
        with record_function("night"):
            count, (height, width) = len(images), images.shape[-2:]
            drawn = self._draw(count, height, width, generator)
            flat, frames = as_images(images)
            of_each = [values.repeat_interleave(frames, dim=0) for values in drawn]
            darkened = self._darken(self.night, flat, generator, *of_each)
            return darkened if images.dim() == 4 else as_clips(darkened, frames)

    @torch.no_grad()
    def for_video(
        self, height: int, width: int, generator: torch.Generator | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Draw what all frames of a video share; gives a function that darkens its frames `(T, 3, H, W)`, part by part.

        Part by part or at once, a learned night makes the same of the frames, which must come in their order; but for
        the noise of a camera.
        """
        night = LearnedNight(self.night.darkener, SceneMemory()) if isinstance(self.night, LearnedNight) else self.night
        request, power, draws = self._draw(1, height, width, generator)

        @torch.no_grad()
        def darken(frames: Tensor) -> Tensor:
            shared = (request.to(frames), power, draws)  # the map is moved once, not once for every frame
            of_each = [values.expand(len(frames), *values.shape[1:]) for values in shared]
            return self._darken(night, frames, generator, *of_each)

        return darken

    def _draw(
        self, count: int, height: int, width: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What so many images, clips or videos get: maps of requests, powers of the contrast, even draws."""
        request = self.exposure_map(count, height, width, generator)
        power = torch.zeros(count, 1, 1, 1)
        if self.contrast != (0.0, 0.0):
            power = uniform(self.contrast, count, generator)
        return request, power, torch.rand(count, DRAWS, generator=generator)

    def _darken(
        self,
        night: Night,
        images: Tensor,
        generator: torch.Generator | None,
        request: Tensor,
        power: Tensor,
        draws: Tensor,
    ) -> Tensor:
        """Darken each image, and photograph it."""
        request = follow_day(images, beside(request, images), power, self.cell)
        darkened = night(images, request, generator, draws)
        if self.camera.share == 0:
            return darkened
        return photograph(darkened, self.camera, draws, draw_noise(darkened, generator))

    def exposure_map(self, count: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        """Draw `(count, 1, height, width)` requested exposures with their noise."""
        exposure = uniform(self.exposure, count, generator)
        if self.noise == 0:
            return exposure.expand(count, 1, height, width)
        cells = (count, 1, max(1, height // self.cell), max(1, width // self.cell))
        coarse = torch.randn(cells, generator=generator) * self.noise
        coarse = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        fine = torch.randn(count, 1, height, width, generator=generator) * self.noise
        return exposure + coarse + fine


def build_night_view(config: NightConfig, darkener: Darkener | None, runtime: "Runtime") -> NightView:
    """The night views that the flags ask for; `darkener` is needed by, and allowed for, learned nights only.

    Without a source in the flags it is the darkener or, where there is none, what day validation images preferred
    (docs/results.md).

    Raises:
        UsageError: when the source is the darkener and none is given, or the other way round; for exposures that the
            darkener was not trained on.
    """
    if config.source is None and darkener is not None:
        config = replace(config, source="learned")
    elif config.source is None:
        config = replace(config, source="dim", camera=replace(config.camera, share=config.camera.share or 1.0))
    log.info("nights: %s%s", config.source, ", then a camera" if config.camera.share else "")
    if (config.source == "learned") != (darkener is not None):
        advice = (
            "needs --darkener PATH (train_darkener.py writes best.pt into its run); or choose --night.source gamma"
            if darkener is None
            else "does not use --darkener; drop one of the two flags"
        )
        raise UsageError(f"--night.source {config.source}: {advice}")
    night = str(config.source) if darkener is None else runtime.place(freeze(darkener))
    try:
        return NightView(night, config.exposure, config.noise, config.cell, config.contrast, config.camera)
    except SettingError as error:
        group = "--night.camera" if error.owner is CameraConfig else "--night"
        raise UsageError(f"{group}.{error.name} {error.problem}") from error
