"""Night views of a batch: draw exposures, add exposure noise, darken.

Source: Luo et al., ICCV 2023; exposure range and noise as the authors use them for adaptation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from darkening.camera import SHARED_DRAWS, TONE_DRAW, CameraConfig, photograph
from darkening.curve_estimator import Darkener
from darkening.heuristics import HEURISTICS, HeuristicName, Night
from darkening.scene_view import SceneMemory
from minmax.features import freeze
from minmax.runtime.config import require, require_range
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError

_NEARLY_BLACK = 0.01  # so that a black cell is not infinitely darker than its neighbours

NightSource = Literal["learned", "gamma", "brightness", "dim", "short-exposure", "augmix", "day", "auto"]


@dataclass(frozen=True)
class NightConfig:
    """Where night views come from."""

    source: NightSource = "learned"
    """learned: the darkener; gamma, brightness, dim (between these two), short-exposure: hand-made nights; augmix:
    AugMix in place of a night; day: no darkening, a control; auto, in train.py: an epoch of several, then the one
    that day validation images prefer."""
    mix: tuple[HeuristicName, ...] = ()
    """Hand-made nights that take turns with the source: each image (or clip) gets one of them all at random."""
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
        require_range("--night.exposure", self.exposure, 0.0, 1.0)
        repeated = self.source in self.mix or len(set(self.mix)) < len(self.mix)
        require(not repeated, "--night.mix", self.mix, f"each once, and none that is the source, {self.source}")
        require_range("--night.contrast", self.contrast, 0.0, 4.0)
        require(self.noise >= 0, "--night.noise", self.noise, "0 or more")
        require(self.cell >= 1, "--night.cell", self.cell, "1 or more")
        idle = self.camera.share == 0 and self.camera != CameraConfig() and self.source != "auto"
        require(not idle, "--night.camera.share", self.camera.share, "more than 0 beside other flags of the camera")


def uniform(bounds: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """One number for each image, `(count, 1, 1, 1)`, drawn on the CPU from [low, high]."""
    low, high = bounds
    return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low


def follow_day(images: Tensor, exposure: Tensor, power: Tensor, cell: int) -> Tensor:
    """Requests that follow the day's brightness from cell to cell, their mean kept.

    Args:
        images: day images `(N, 3, H, W)` in [0, 1].
        exposure: requested mean intensities, `(N, 1, 1, 1)` or a map `(N, 1, H, W)`.
        power: of the day's brightness that the request follows, `(N, 1, 1, 1)`; 0 everywhere changes nothing.
        cell: side of the cells in pixels.

    Returns:
        A map `(N, 1, H, W)`; where the day is much brighter than its mean it may ask for more than 1.
    """
    if not power.any():
        return exposure
    height, width = images.shape[-2:]
    cells = (max(1, height // cell), max(1, width // cell))
    grey = images.mean(dim=1, keepdim=True)
    # On MPS cells must all be of one size (https://github.com/pytorch/pytorch/issues/96056).
    grey = grey.cpu() if grey.device.type == "mps" else grey
    brightness = F.adaptive_avg_pool2d(grey, cells).to(images.device) + _NEARLY_BLACK
    brightness = F.interpolate(brightness, size=(height, width), mode="bilinear", align_corners=False)
    share = brightness ** power.to(images)
    return exposure * share / share.mean(dim=(2, 3), keepdim=True)


def within_training(
    images: Tensor, request: Tensor, exposure: tuple[float, float], contrast: tuple[float, float]
) -> Tensor:
    """What a darkener is asked for, in training and in use: what training asks for, in the mean no more than the day.

    Args:
        images: day images `(N, 3, H, W)` in [0, 1].
        request: mean intensities `(N, 1, 1, 1)` or a map `(N, 1, H, W)`, with contrast and noise.
        exposure: the range that training draws from.
        contrast: the powers of the day's brightness that training draws from; unless they are 0, single cells are
            asked for anything from black to white.

    Returns:
        Requests of the same shape, their mean at most that of the image.
    """
    low, high = (0.0, 1.0) if any(contrast) else exposure
    request = request.to(images).clamp(low, high)
    most = images.mean(dim=(1, 2, 3), keepdim=True) / request.mean(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    return request * most.clamp(max=1.0)


def trained_request(darkener: Darkener, images: Tensor, exposure: Tensor) -> Tensor:
    """What a darkener is asked for in use: `exposure`, as far as `within_training` lets it."""
    settings = darkener.settings
    return within_training(images, exposure, settings.trained_exposure, settings.trained_contrast)


def as_images(batch: Tensor) -> tuple[Tensor, int]:
    """Images `(N, 3, H, W)` as they are, or clips `(N, 3, T, H, W)` as `(N T, 3, H, W)`; and how many make a clip."""
    if batch.dim() == 4:
        return batch, 1
    return batch.transpose(1, 2).flatten(0, 1), batch.shape[2]


def as_clips(images: Tensor, frames: int) -> Tensor:
    """Images `(N T, 3, H, W)`, so many `frames` in a row to a clip, as clips `(N, 3, T, H, W)`."""
    return images.view(-1, frames, *images.shape[1:]).transpose(1, 2)


def day_view(images: Tensor, exposure: Tensor, generator: torch.Generator, draws: Tensor | None = None) -> Tensor:
    """The images as they are: the control in which nothing is darkened."""
    return images


def augmix_view(images: Tensor, exposure: Tensor, generator: torch.Generator, draws: Tensor | None = None) -> Tensor:
    """AugMix (Hendrycks et al., ICLR 2020) of each image by itself, on the CPU: a rival told nothing of the night.

    It shifts, shears and turns as well, so it is no night for images whose pixels have labels; `exposure` is not used.
    """
    mix = v2.AugMix()
    codes = (images.cpu() * 255.0).round().to(torch.uint8)
    shares = torch.rand(len(images), generator=generator) if draws is None else draws[:, TONE_DRAW]
    mixed = []
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        for image, share in zip(codes, shares.tolist(), strict=True):
            torch.manual_seed(int(share * 2**24))  # the same for all frames of a clip
            mixed.append(mix(image))
    return torch.stack(mixed).to(images) / 255.0


class LearnedNight:
    """A darkener behind the interface that all nights share, asked only for what it was trained on.

    For a video it has a memory of the frames before. One of `view` camera is the one that draws.
    """

    def __init__(self, darkener: Darkener, memory: SceneMemory | None = None) -> None:
        self.darkener, self.memory = darkener, memory

    @torch.no_grad()
    def __call__(
        self, images: Tensor, exposure: Tensor, generator: torch.Generator, draws: Tensor | None = None
    ) -> Tensor:
        """Darken `(N, 3, H, W)` images; arguments as `heuristics.gamma_night`."""
        request = trained_request(self.darkener, images, exposure)
        if self.darkener.settings.view != "camera":
            return self.darkener.darken(images, request, self.memory)
        if draws is None:
            draws = torch.rand(len(images), SHARED_DRAWS, generator=generator)
        noise = torch.randn(images.shape, generator=generator).to(images)
        photograph: Tensor = self.darkener(images, request, draws, noise).image
        return photograph

    def for_video(self) -> "LearnedNight":
        """The same night for the frames of one video."""
        return LearnedNight(self.darkener, SceneMemory())


def refuse_untrained(flag: str, exposures: Sequence[float], darkener: Darkener) -> None:
    """Raise a UsageError for exposures that a darkener was not trained on."""
    low, high = darkener.settings.trained_exposure
    within = low <= min(exposures) and max(exposures) <= high
    require(within, flag, tuple(exposures), f"{low} to {high}, what the darkener was trained on (--request.exposure)")


class _Shared(NamedTuple):
    """What is drawn for each image, or for all frames of a clip."""

    exposure: Tensor
    """Maps `(N, 1, H, W)`."""
    choice: Tensor
    """Number of the night, `(N,)`."""
    power: Tensor
    """Of the contrast, `(N, 1, 1, 1)`."""
    draws: Tensor
    """Even draws of night and camera, `(N, SHARED_DRAWS)`."""


class NightView:
    """Turns day images into night views.

    Args:
        night: (images, exposure map, generator, draws) to darkened images.
        exposure: range of the requested mean intensity, uniform.
        noise: standard deviation of the exposure noise.
        cell: side of its cells in pixels.
        mix: nights that take turns with `night`.
        contrast: range of the power by which the request follows the day's brightness from cell to cell, uniform. With
            0 a darkener that obeys makes all cells equally dark; with 1 they keep their ratios, with more they part.
        camera: what a camera adds behind the night.
    """

    def __init__(
        self,
        night: Night,
        exposure: tuple[float, float],
        noise: float = 0.025,
        cell: int = 16,
        mix: Sequence[Night] = (),
        contrast: tuple[float, float] = (0.0, 0.0),
        camera: CameraConfig | None = None,
    ) -> None:
        self.nights, self.camera = (night, *mix), camera or CameraConfig()
        self.exposure, self.contrast, self.noise, self.cell = exposure, contrast, noise, cell

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Darken `(N, 3, H, W)` images or `(N, 3, T, H, W)` clips in [0, 1].

        Each image gets one exposure, one noise map, one of the nights and one camera, each clip one of each for all its
        frames. All draws come from the CPU `generator`.
        """
        count, (height, width) = len(images), images.shape[-2:]
        drawn = self._draw(count, height, width, generator)
        flat, frames = as_images(images)
        shared = _Shared(*(values.repeat_interleave(frames, dim=0) for values in drawn))
        darkened = self._darken(self.nights, flat, shared, generator)
        return darkened if images.dim() == 4 else as_clips(darkened, frames)

    @torch.no_grad()
    def for_video(self, height: int, width: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Draw what all frames of a video share; gives a function that darkens its frames `(T, 3, H, W)`, part by part.

        Part by part or at once, a learned night makes the same of the frames, which must come in their order; but for
        the noise of a camera.
        """
        nights = [night.for_video() if isinstance(night, LearnedNight) else night for night in self.nights]
        drawn = self._draw(1, height, width, generator)

        @torch.no_grad()
        def darken(frames: Tensor) -> Tensor:
            shared = drawn._replace(exposure=drawn.exposure.to(frames))  # moved once, not once for every frame
            every = _Shared(*(part.expand(len(frames), *part.shape[1:]) for part in shared))
            return self._darken(nights, frames, every, generator)

        return darken

    def _draw(self, count: int, height: int, width: int, generator: torch.Generator) -> _Shared:
        """What so many images, clips or videos get."""
        exposure = self.exposure_map(count, height, width, generator)
        choice = torch.zeros(count, dtype=torch.int64)
        if len(self.nights) > 1:
            choice = torch.randint(len(self.nights), (count,), generator=generator)
        power = torch.zeros(count, 1, 1, 1)
        if self.contrast != (0.0, 0.0):
            power = uniform(self.contrast, count, generator)
        return _Shared(exposure, choice, power, torch.rand(count, SHARED_DRAWS, generator=generator))

    def _darken(self, nights: Sequence[Night], images: Tensor, shared: _Shared, generator: torch.Generator) -> Tensor:
        """Darken each image by the night of the number in `choice`, and photograph it."""
        exposure = follow_day(images, shared.exposure.to(images), shared.power, self.cell)
        darkened = images
        for number, night in enumerate(nights):
            chosen = (shared.choice == number).nonzero().flatten()
            if len(chosen) == len(images):
                darkened = night(images, exposure, generator, shared.draws)
            elif len(chosen):
                darkened = darkened.clone() if darkened is images else darkened
                here = chosen.to(images.device)
                darkened[here] = night(images[here], exposure[here], generator, shared.draws[chosen])
        if self.camera.share == 0:
            return darkened
        noise = torch.randn(darkened.shape, generator=generator).to(darkened)
        return photograph(darkened, self.camera, shared.draws, noise)

    def exposure_map(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw `(count, 1, height, width)` requested exposures with their noise."""
        exposure = uniform(self.exposure, count, generator)
        if self.noise == 0:
            return exposure.expand(count, 1, height, width)
        cells = (count, 1, max(1, height // self.cell), max(1, width // self.cell))
        coarse = torch.randn(cells, generator=generator) * self.noise
        coarse = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        fine = torch.randn(count, 1, height, width, generator=generator) * self.noise
        return exposure + coarse + fine


def build_night_view(config: NightConfig, darkener: Darkener | None, runtime: Runtime) -> NightView:
    """The night views that the flags ask for; `darkener` is needed by, and allowed for, learned nights only.

    Raises:
        UsageError: when the source is the darkener and none is given, or the other way round; for `auto`; for exposures
            that the darkener was not trained on.
    """
    if config.source == "auto":
        raise UsageError("--night.source auto: only train.py chooses a source; name one")
    if (config.source == "learned") != (darkener is not None):
        advice = (
            "needs --darkener PATH (train_darkener.py writes best.pt into its run); or choose --night.source gamma"
            if darkener is None
            else "does not use --darkener; drop one of the two flags"
        )
        raise UsageError(f"--night.source {config.source}: {advice}")
    if darkener is not None:
        refuse_untrained("--night.exposure", config.exposure, darkener)
        once = darkener.settings.view != "camera" or config.camera.share == 0
        require(once, "--night.camera.share", config.camera.share, "0: this darkener has a camera of its own")
        night: Night = LearnedNight(runtime.place(freeze(darkener)))
    elif config.source == "day":
        night = day_view
    elif config.source == "augmix":
        night = augmix_view
    else:
        night = HEURISTICS[config.source]  # type: ignore[index]
    mix = [HEURISTICS[name] for name in config.mix]
    return NightView(night, config.exposure, config.noise, config.cell, mix, config.contrast, config.camera)
