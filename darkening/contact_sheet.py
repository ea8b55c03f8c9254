"""A picture of what a darkener does: day images above their darkened copies."""

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from darkening.camera import SHARED_DRAWS
from darkening.curve_estimator import Darkener
from darkening.night_view import LearnedNight, follow_day
from minmax.runtime.devices import Runtime
from minmax.runtime.report import picture_grid

SHOWN_EXPOSURES = (0.4, 0.3, 0.2, 0.1, 0.05)
_CAPTION = 14  # pixels


def contact_sheet(
    darkener: Darkener,
    images: Tensor,
    runtime: Runtime,
    exposures: tuple[float, ...] = SHOWN_EXPOSURES,
    contrast: float = 0.0,
    cell: int = 8,
) -> Image.Image:
    """One column per image: the day on top, then each exposure, captioned on the left.

    Args:
        darkener: on the device.
        images: `(N, 3, H, W)` in [0, 1].
        runtime: its devices.
        exposures: requested mean intensities; as near to them as training came, where the day is as bright.
        contrast: power by which the request follows the day's brightness from cell to cell; 0: it is even.
        cell: side of these cells in pixels.
    """
    images = runtime.to_device(images)
    darkener.eval()
    power = torch.full((len(images), 1, 1, 1), contrast)
    requests = [follow_day(images, torch.full_like(power, exposure).to(images), power, cell) for exposure in exposures]
    night, generator = LearnedNight(darkener), torch.Generator()
    draws = torch.rand(len(images), SHARED_DRAWS, generator=generator)  # of each image one camera, at all exposures
    rows = [images, *(night(images, request, generator, draws) for request in requests)]
    grid = picture_grid(rows)
    margin = 3 * _CAPTION
    sheet = Image.new("RGB", (grid.width + margin, grid.height), "white")
    sheet.paste(grid, (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for i, caption in enumerate(["day", *map(str, exposures)]):
        top = i * (images.shape[2] + 2) + images.shape[2] // 2
        draw.text((margin - 6, top), caption, fill="black", anchor="rm", font_size=_CAPTION)
    return sheet
