"""Night views of a batch: draw exposures, add exposure noise, darken.

Source: Luo et al., ICCV 2023; exposure range and noise as the authors use them for adaptation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from darkening.curve_estimator import Darkener
from darkening.heuristics import HEURISTICS, HeuristicName, Night
from darkening.scene_view import SceneMemory
from minmax.runtime.config import require, require_range
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError
from minmax.task_network import freeze

SELECTION_EXPOSURE = (0.05, 0.25)
_NEARLY_BLACK = 0.01  # so that a black cell is not infinitely darker than its neighbours

NightSource = Literal["learned", "gamma", "brightness", "camera", "day"]


@dataclass(frozen=True)
class NightConfig:
    """Where night views come from."""

    source: NightSource = "learned"
    """learned: the darkener; gamma, brightness, camera: hand-made nights; day: no darkening, a control."""
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

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_range("--night.exposure", self.exposure, 0.0, 1.0)
        repeated = self.source in self.mix or len(set(self.mix)) < len(self.mix)
        require(not repeated, "--night.mix", self.mix, f"each once, and none that is the source, {self.source}")
        unused = set(HEURISTICS) - {self.source, *self.mix}
        require(bool(unused), "--night.mix", self.mix, "at least one hand-made night left for choosing a checkpoint")
        require_range("--night.contrast", self.contrast, 0.0, 4.0)
        require(self.noise >= 0, "--night.noise", self.noise, "0 or more")
        require(self.cell >= 1, "--night.cell", self.cell, "1 or more")


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


def as_images(batch: Tensor) -> tuple[Tensor, int]:
    """Images `(N, 3, H, W)` as they are, or clips `(N, 3, T, H, W)` as `(N T, 3, H, W)`; and how many make a clip."""
    if batch.dim() == 4:
        return batch, 1
    return batch.transpose(1, 2).flatten(0, 1), batch.shape[2]


def as_clips(images: Tensor, frames: int) -> Tensor:
    """Images `(N T, 3, H, W)`, so many `frames` in a row to a clip, as clips `(N, 3, T, H, W)`."""
    return images.view(-1, frames, *images.shape[1:]).transpose(1, 2)


def day_view(images: Tensor, exposure: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are: the control in which nothing is darkened."""
    return images


class LearnedNight:
    """A darkener behind the interface that all nights share; for a video, with a memory of the frames before."""

    def __init__(self, darkener: Darkener, memory: SceneMemory | None = None) -> None:
        self.darkener, self.memory = darkener, memory

    def __call__(self, images: Tensor, exposure: Tensor, generator: torch.Generator) -> Tensor:
        """Darken `(N, 3, H, W)` images; nothing is drawn."""
        return self.darkener.darken(images, exposure, self.memory)

    def for_video(self) -> "LearnedNight":
        """The same night for the frames of one video."""
        return LearnedNight(self.darkener, SceneMemory())


class NightView:
    """Turns day images into night views.

    Args:
        night: (images, exposure map, generator) to darkened images.
        exposure: range of the requested mean intensity, uniform.
        noise: standard deviation of the exposure noise.
        cell: side of its cells in pixels.
        mix: nights that take turns with `night`.
        contrast: range of the power by which the request follows the day's brightness from cell to cell, uniform. With
            0 a darkener that obeys makes all cells equally dark; with 1 they keep their ratios, with more they part.
    """

    def __init__(
        self,
        night: Night,
        exposure: tuple[float, float],
        noise: float = 0.025,
        cell: int = 16,
        mix: Sequence[Night] = (),
        contrast: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.nights = (night, *mix)
        self.exposure, self.contrast, self.noise, self.cell = exposure, contrast, noise, cell

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Darken `(N, 3, H, W)` images or `(N, 3, T, H, W)` clips in [0, 1].

        Each image gets one exposure, one noise map and one of the nights, each clip one of each for all its frames. All
        draws come from the CPU `generator`.
        """
        count, (height, width) = len(images), images.shape[-2:]
        drawn = self._draw(count, height, width, generator)
        flat, frames = as_images(images)
        exposure, choice, power = (values.repeat_interleave(frames, dim=0) for values in drawn)
        darkened = self._darken(self.nights, flat, exposure, choice, power, generator)
        return darkened if images.dim() == 4 else as_clips(darkened, frames)

    @torch.no_grad()
    def for_video(self, height: int, width: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Draw what all frames of a video share; gives a function that darkens its frames `(T, 3, H, W)`, part by part.

        Part by part or at once, a learned night makes the same of the frames, which must come in their order.
        """
        nights = [night.for_video() if isinstance(night, LearnedNight) else night for night in self.nights]
        exposure, choice, power = self._draw(1, height, width, generator)

        @torch.no_grad()
        def darken(frames: Tensor) -> Tensor:
            count = len(frames)
            shared = exposure.to(frames).expand(count, -1, -1, -1)  # moved once, not once for every frame
            powers = power.expand(count, -1, -1, -1)
            return self._darken(nights, frames, shared, choice.expand(count), powers, generator)

        return darken

    def _draw(self, count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Exposure maps, numbers of the nights, and powers of the contrast for so many images or clips."""
        exposure = self.exposure_map(count, height, width, generator)
        choice = torch.zeros(count, dtype=torch.int64)
        if len(self.nights) > 1:
            choice = torch.randint(len(self.nights), (count,), generator=generator)
        power = torch.zeros(count, 1, 1, 1)
        if self.contrast != (0.0, 0.0):
            power = uniform(self.contrast, count, generator)
        return exposure, choice, power

    def _darken(
        self,
        nights: Sequence[Night],
        images: Tensor,
        exposure: Tensor,
        choice: Tensor,
        power: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Darken each image by the night of the number in `choice`."""
        exposure = follow_day(images, exposure.to(images), power, self.cell)
        if len(nights) == 1:
            return nights[0](images, exposure, generator)
        darkened = torch.empty_like(images)
        for number, night in enumerate(nights):
            chosen = (choice == number).nonzero().flatten().to(images.device)
            if len(chosen):
                darkened[chosen] = night(images[chosen], exposure[chosen], generator)
        return darkened

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
        UsageError: when the source is the darkener and none is given, or the other way round.
    """
    if (config.source == "learned") != (darkener is not None):
        advice = (
            "needs --darkener PATH (train_darkener.py writes best.pt into its run); or choose --night.source gamma"
            if darkener is None
            else "does not use --darkener; drop one of the two flags"
        )
        raise UsageError(f"--night.source {config.source}: {advice}")
    if darkener is not None:
        night: Night = LearnedNight(runtime.place(freeze(darkener)))
    elif config.source == "day":
        night = day_view
    else:
        night = HEURISTICS[config.source]  # type: ignore[index]
    mix = [HEURISTICS[name] for name in config.mix]
    return NightView(night, config.exposure, config.noise, config.cell, mix, config.contrast)


def selection_heuristic(config: NightConfig) -> HeuristicName:
    """The hand-made night for choosing a checkpoint: one that training did not use, and no real night image."""
    preferred: tuple[HeuristicName, ...] = ("gamma", "brightness", "camera")
    return next(name for name in preferred if name not in (config.source, *config.mix))


def selection_view(heuristic: HeuristicName) -> NightView:
    """The hand-made nights of day validation images by which checkpoints are chosen, alike in all tasks and runs."""
    return NightView(HEURISTICS[heuristic], SELECTION_EXPOSURE, noise=0.0)
