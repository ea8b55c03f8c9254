"""Contact sheet: each image at several exposures.

python -m darkening.preview --darkener runs/classification/darkener/best.pt --input photos --output sheet.png
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from darkening.contact_sheet import SHOWN_EXPOSURES, contact_sheet
from darkening.night_view import refuse_untrained
from darkening.starting_point import NIGHT_TO_LOOK_AT_NAME, load_darkener_or_starting_point
from media.pictures import find_pictures, read_picture
from minmax.features import freeze
from minmax.runtime.config import require, run_script
from minmax.runtime.devices import open_runtime
from minmax.runtime.report import save_picture

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show images at several exposures."""

    input: Path
    """An image, or a folder of images."""
    output: Path
    """The contact sheet, a .png file."""
    darkener: str = NIGHT_TO_LOOK_AT_NAME
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
        require(bool(self.exposures), "--exposures", self.exposures, "at least one number")
        require(all(0 <= e <= 1 for e in self.exposures), "--exposures", self.exposures, "numbers in [0, 1]")
        require(0 <= self.contrast <= 4, "--contrast", self.contrast, "a number in [0, 4]")
        require(self.cell >= 1, "--cell", self.cell, "1 or more")
        require(self.count >= 1, "--count", self.count, "1 or more")
        require(self.size >= 8, "--size", self.size, "8 or more")
        require(self.output.suffix == ".png", "--output", self.output, "a .png file")


def main(config: Config) -> None:
    """Write the contact sheet."""
    with open_runtime(config.device) as runtime:
        darkener = runtime.place(freeze(load_darkener_or_starting_point(config.darkener)))
        refuse_untrained("--exposures", config.exposures, darkener)
        files = find_pictures(config.input)
        count = min(config.count, len(files))
        chosen = [files[i * len(files) // count] for i in range(count)]
        images = torch.cat([_square(read_picture(file), config.size) for file in chosen])
        save_picture(
            contact_sheet(darkener, images, runtime, config.exposures, config.contrast, config.cell), config.output
        )
        log.info("%s: %d images", config.output, len(chosen))


def _square(image: Tensor, size: int) -> Tensor:
    side = min(image.shape[-2:])
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    square = image[..., top : top + side, left : left + side]
    return torch.nn.functional.interpolate(square, size=(size, size), mode="bilinear", antialias=True)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
