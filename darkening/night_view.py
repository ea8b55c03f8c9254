"""Night views of a batch: draw exposures, add exposure noise, darken.

Source: Luo et al., ICCV 2023; exposure range and noise as the authors use them for adaptation.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from darkening.curve_estimator import Darkener
from darkening.heuristics import HEURISTICS, HeuristicName, Night
from minmax.runtime.config import require, require_range
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError
from minmax.task_network import freeze

NightSource = Literal["learned", "gamma", "brightness", "camera", "day"]


@dataclass(frozen=True)
class NightConfig:
    """Where night views come from."""

    source: NightSource = "learned"
    """learned: the darkener; gamma, brightness, camera: hand-made nights; day: no darkening, a control."""
    exposure: tuple[float, float] = (0.0, 0.2)
    """Lowest and highest requested mean intensity; one is drawn per image (or clip)."""
    noise: float = 0.025
    """Standard deviation of the noise on the exposure map, once per cell and once per pixel."""
    cell: int = 16
    """Side of the cells of the exposure noise, in pixels."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_range("--night.exposure", self.exposure, 0.0, 1.0)
        require(self.noise >= 0, "--night.noise", self.noise, "0 or more")
        require(self.cell >= 1, "--night.cell", self.cell, "1 or more")


def day_view(images: Tensor, exposure: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are: the control in which nothing is darkened."""
    return images


def learned_night(darkener: Darkener) -> Night:
    """A darkener behind the interface that all nights share."""
    return lambda images, exposure, generator: darkener.darken(images, exposure)


class NightView:
    """Turns day images into night views.

    Args:
        night: (images, exposure map, generator) to darkened images.
        exposure: range of the requested mean intensity, uniform.
        noise: standard deviation of the exposure noise.
        cell: side of its cells in pixels.
    """

    def __init__(self, night: Night, exposure: tuple[float, float], noise: float = 0.025, cell: int = 16) -> None:
        self.night, self.exposure, self.noise, self.cell = night, exposure, noise, cell

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Darken `(N, 3, H, W)` images or `(N, 3, T, H, W)` clips in [0, 1].

        Each image gets one exposure and one noise map, each clip one of both for all its frames. All draws come from
        the CPU `generator`.
        """
        height, width = images.shape[-2:]
        exposure = self.exposure_map(images.shape[0], height, width, generator).to(images)
        if images.dim() == 4:
            return self.night(images, exposure, generator)
        frames = images.shape[2]
        flat = images.transpose(1, 2).flatten(0, 1)
        darkened = self.night(flat, exposure.repeat_interleave(frames, dim=0), generator)
        return darkened.view(-1, frames, *darkened.shape[1:]).transpose(1, 2)

    def exposure_map(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw `(count, 1, height, width)` requested exposures with their noise."""
        low, high = self.exposure
        exposure = torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low
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
        night = learned_night(runtime.place(freeze(darkener)))
    elif config.source == "day":
        night = day_view
    else:
        night = HEURISTICS[config.source]  # type: ignore[index]
    return NightView(night, config.exposure, config.noise, config.cell)


def selection_heuristic(source: NightSource) -> HeuristicName:
    """The hand-made night for choosing a checkpoint: one that training did not use, and no real night image."""
    return "brightness" if source == "gamma" else "gamma"
