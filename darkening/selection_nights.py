"""The nights by which checkpoints and settings are chosen: day validation images, made dark in three ways.

The same for every run, and never offered as a night to train on, so that the numbers of all runs can be compared.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from darkening.camera import DISPLAY_GAMMA, with_sensor_noise
from darkening.heuristics import brightness_night
from minmax.runtime.splits import Examples, refuse_night

_MEAN = (0.05, 0.25)
SelectionNight = Callable[[Tensor, torch.Generator], Tensor]


def selection_numbers(
    images: Examples, measure: Callable[[Sequence[SelectionNight]], Iterable[float]]
) -> dict[str, float]:
    """A metric by day and on each of `SELECTION_NIGHTS`, their mean `darkened`, and `score`, the mean of day and that.

    `score` is what checkpoints are chosen by.

    Args:
        images: day validation images.
        measure: the metric on them as each of some nights shows them; `by_day` among these leaves them as they are.

    Raises:
        ValueError: for night images; nothing is ever selected on them.
    """
    refuse_night(images)
    day, *found = measure((by_day, *SELECTION_NIGHTS.values()))
    nights = dict(zip(SELECTION_NIGHTS, found, strict=True))
    darkened = statistics.fmean(found)
    return {"day": day, **nights, "darkened": darkened, "score": (day + darkened) / 2}


def by_day(images: Tensor, _: torch.Generator) -> Tensor:
    """Images as they are."""
    return images


def _draw(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _each_clip(darken: SelectionNight) -> SelectionNight:
    """Make a night of frames `(T, 3, H, W)`, which share what is drawn, one of images `(N, 3, H, W)` or clips.

    Clips are `(N, 3, T, H, W)`. Each image or clip has draws of its own from the CPU generator, each frame its noise.
    """

    @torch.no_grad()
    def night(batch: Tensor, generator: torch.Generator) -> Tensor:
        if batch.dim() == 4:
            return torch.cat([darken(image[None], generator) for image in batch])
        return torch.stack([darken(clip.transpose(0, 1), generator).transpose(0, 1) for clip in batch])

    return night


def _darkened(frames: Tensor, generator: torch.Generator) -> Tensor:
    """All frames times one factor, to a mean of 0.05 to 0.25 or that of the day."""
    asked = torch.full((1, 1, 1, 1), _draw(*_MEAN, generator))
    film = frames.transpose(0, 1).flatten(1, 2)[None]  # one tall picture
    return brightness_night(film, asked, generator).view(3, len(frames), *frames.shape[2:]).transpose(0, 1)


@_each_clip
def under_lamps(frames: Tensor, generator: torch.Generator) -> Tensor:
    """A short exposure under a few lamps: pools of light, shot and read noise, a wrong white balance, 8 bits."""
    lamps = torch.rand(1, 1, 3, 3, generator=generator) * 0.9 + 0.1
    pools = F.interpolate(lamps, size=frames.shape[-2:], mode="bilinear", align_corners=True).to(frames)
    dark = _darkened(frames * pools ** (1 / DISPLAY_GAMMA), generator)
    balance = torch.empty(3, 1, 1).uniform_(0.85, 1.15, generator=generator).to(frames)
    full_well = math.exp(_draw(math.log(300.0), math.log(3000.0), generator))
    read_noise = _draw(1.0, 5.0, generator)
    noise = torch.randn(dark.shape, generator=generator).to(dark)
    light = with_sensor_noise(dark**DISPLAY_GAMMA * balance, full_well, read_noise, noise)
    return (light.clamp(0.0, 1.0) ** (1 / DISPLAY_GAMMA) * 255.0).round() / 255.0


@_each_clip
def long_exposure(frames: Tensor, generator: torch.Generator) -> Tensor:
    """A long exposure by hand: smeared along one direction, veiled by glare, with blotches of colour noise."""
    dark = _darkened(frames, generator)
    length, angle = _draw(0.02, 0.08, generator) * frames.shape[-1], _draw(0.0, 2 * math.pi, generator)
    light = _smear(dark**DISPLAY_GAMMA, length * math.cos(angle), length * math.sin(angle))
    glow = torch.full_like(light, _draw(0.1, 0.3, generator) ** DISPLAY_GAMMA)
    light = torch.lerp(light, glow, _draw(0.05, 0.3, generator))
    blotch = _draw(2.0, 4.0, generator)
    size = [max(1, round(side / blotch)) for side in frames.shape[-2:]]
    noise = torch.randn(len(frames), 3, *size, generator=generator) * _draw(0.01, 0.03, generator)
    colour = F.interpolate(noise - noise.mean(dim=1, keepdim=True), size=frames.shape[-2:], mode="bilinear")
    return (light ** (1 / DISPLAY_GAMMA) + colour.to(frames)).clamp(0.0, 1.0)


@_each_clip
def crushed(frames: Tensor, generator: torch.Generator) -> Tensor:
    """A cheap camera's night: steep contrast, shadows cut to black and without colour, 24 to 40 steps of grey."""
    steep = torch.lerp(frames, frames**2 * (3 - 2 * frames), _draw(0.3, 1.0, generator))
    black, power = _draw(0.02, 0.1, generator), _draw(1.0, 2.0, generator)
    dark = _darkened(((steep - black) / (1 - black)).clamp_min(0.0) ** power, generator)
    grey = dark.mean(dim=1, keepdim=True)
    coloured = (grey / _draw(0.1, 0.4, generator)).clamp(max=1.0)
    levels = round(_draw(24.0, 40.0, generator))
    return (torch.lerp(grey.expand_as(dark), dark, coloured.expand_as(dark)) * levels).round() / levels


SELECTION_NIGHTS: dict[str, SelectionNight] = {
    "under_lamps": under_lamps,
    "long_exposure": long_exposure,
    "crushed": crushed,
}


def _smear(frames: Tensor, right: float, down: float) -> Tensor:
    """The mean of `(T, 3, H, W)` moved along a line of so many pixels; its edge goes on beyond it."""
    height, width = frames.shape[-2:]
    for part in (2, 4, 8, 16, 32, 64):  # each doubles how many places along the line are averaged
        x, y = round(right / part), round(down / part)
        padded = F.pad(frames, (max(x, 0), max(-x, 0), max(y, 0), max(-y, 0)), mode="replicate")
        moved = padded[..., max(-y, 0) :, max(-x, 0) :][..., :height, :width]
        frames = (frames + moved) / 2
    return frames
