"""Random hue, lightness and saturation of clips on the device they are on."""

import torch
from torch import Tensor

AUTHORS_SHIFT = (15 / 180, 35 / 255, 25 / 255)
"""Largest shifts of hue (in turns), lightness and saturation: 15, 35 and 25 in the units of 8-bit HLS pictures."""


def shift_hls(clips: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Shift hue, lightness and saturation of each clip, all its frames alike.

    Args:
        clips: `(N, 3, T, H, W)` in [0, 1].
        strength: in units of the authors' largest shifts; 0 changes nothing.
        generator: of the draws, on the CPU.

    Returns:
        Clips of the same shape in [0, 1].

    Source: the augmentation of Luo et al., ICCV 2023, for action recognition.
    """
    if strength == 0:
        return clips
    largest = strength * torch.tensor(AUTHORS_SHIFT)
    shift = (torch.rand(len(clips), 3, generator=generator) * 2 - 1) * largest
    hue_shift, light_shift, saturation_shift = shift.to(clips).view(-1, 3, 1, 1, 1).unbind(dim=1)
    hue, lightness, saturation = rgb_to_hls(clips)
    return hls_to_rgb(
        hue + hue_shift, (lightness + light_shift).clamp(0, 1), (saturation + saturation_shift).clamp(0, 1)
    )


def rgb_to_hls(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in turns, lightness and saturation, each `(N, ...)` without the channel dimension, of RGB `(N, 3, ...)`."""
    high, low = images.amax(dim=1), images.amin(dim=1)
    spread, lightness = high - low, (high + low) / 2
    saturation = spread / (1 - (2 * lightness - 1).abs()).clamp_min(1e-6)
    red, green, blue = images.unbind(dim=1)
    safe = spread.clamp_min(1e-6)
    hue = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return (hue / 6) % 1, lightness, saturation.clamp(0, 1)


def hls_to_rgb(hue: Tensor, lightness: Tensor, saturation: Tensor) -> Tensor:
    """RGB `(N, 3, ...)` of what `rgb_to_hls` gives; a hue may be any number of turns."""
    reach = saturation * torch.minimum(lightness, 1 - lightness)
    channels = []
    for offset in (0, 8, 4):
        k = (offset + 12 * hue) % 12
        channels.append(lightness - reach * torch.minimum(k - 3, 9 - k).clamp(-1, 1))
    return torch.stack(channels, dim=1)
