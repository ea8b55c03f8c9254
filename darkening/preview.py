"""Contact sheet: each image at several exposures.

python -m darkening.preview --darkener runs/classification/darkener/best.pt --input photos --output sheet.png
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from darkening.camera import DRAWS
from darkening.darkener import Darkener
from darkening.darkener_files import NIGHT_TO_LOOK_AT, load_darkener
from darkening.exposures import follow_day
from darkening.night_view import LearnedNight, refuse_untrained
from media.pictures import find_pictures, read_picture
from minmax.features import freeze
from minmax.runtime.config import run_script
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.errors import RunError, UsageError, require
from minmax.runtime.report import picture_grid, save_picture
from minmax.runtime.splits import evenly_spaced

log = logging.getLogger(__name__)
SHOWN_EXPOSURES = (0.4, 0.3, 0.2, 0.1, 0.05)
_CAPTION = 14  # pixels


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show images at several exposures."""

    input: Path
    """An image, or a folder of images."""
    output: Path
    """The contact sheet, a .png file."""
    darkener: str = NIGHT_TO_LOOK_AT
    """A darkener checkpoint, or one that ships with the package: `night-to-look-at` or `starting-point`."""
    exposures: tuple[float, ...] = SHOWN_EXPOSURES
    """Requested mean intensities, one row each."""
    contrast: float = 0.0
    """Power by which the request follows the day's brightness from cell to cell; 0: it is even."""
    cell: int = 8
    """Side of these cells, in pixels."""
    count: int = 8
    """At most so many images, evenly spaced over the folder."""
    size: int = 160
    """Height and width of the central square that is shown, in pixels."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        in_range = bool(self.exposures) and all(0 <= exposure <= 1 for exposure in self.exposures)
        require(in_range, "--exposures", self.exposures, "at least one number, all in [0, 1]")
        require(0 <= self.contrast <= 4, "--contrast", self.contrast, "a number in [0, 4]")
        require(self.cell >= 1, "--cell", self.cell, "1 or more")
        require(self.count >= 1, "--count", self.count, "1 or more")
        require(self.size >= 8, "--size", self.size, "8 or more")
        require(self.output.suffix == ".png", "--output", self.output, "a .png file")


def main(config: Config) -> None:
    """Write the contact sheet."""
    output = config.output.resolve()
    if output == config.input.resolve():
        raise UsageError(f"--output {config.output}: would overwrite the input")
    if output.is_dir():
        raise UsageError(f"--output {config.output}: is a folder; expected a .png file")
    with open_runtime(config.device) as runtime:
        darkener = runtime.place(freeze(load_darkener(config.darkener)))
        refuse_untrained("--exposures", config.exposures, darkener)
        # A sheet that was made there before is none of the images.
        files = [file for file in find_pictures(config.input) if file.resolve() != output]
        squares, bad = [], []
        for file in evenly_spaced(files, config.count):
            try:
                squares.append(_square(read_picture(file), config.size))
            except RunError as error:
                bad.append(str(error))
        if squares:
            images = torch.cat(squares)
            sheet = contact_sheet(darkener, images, runtime, config.exposures, config.contrast, config.cell)
            save_picture(sheet, config.output)
            log.info("%s: %d images", config.output, len(images))
        if bad:
            raise RunError(f"{'; '.join(bad)}{'; the sheet shows the others' if squares else ''}")


def _square(image: Tensor, size: int) -> Tensor:
    side = min(image.shape[-2:])
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    square = image[..., top : top + side, left : left + side]
    return torch.nn.functional.interpolate(square, size=(size, size), mode="bilinear", antialias=True)


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
    draws = torch.rand(len(images), DRAWS, generator=generator)  # of each image one camera, at all exposures
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


if __name__ == "__main__":
    run_script(Config, main, __doc__)
