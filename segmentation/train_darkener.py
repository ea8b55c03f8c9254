"""Image level: train a darkener against the frozen daytime segmentation network (Luo et al., ICCV 2023).

    python segmentation/train_darkener.py --name darkener --checkpoint runs/segmentation/day/best.pt

Gives runs/segmentation/darkener/best.pt, the darkener for train.py and for `python -m darkening.apply`, and a contact
sheet. The similarity is of the maps of all four stages. The paper trains 15 epochs of 4 images of 256x512 from scratch;
from the starting point that ships with the package a fraction of that obeys the requested exposure.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from cityscapes import DEFAULT_DATA, open_streets
from segmenter import OwnFlags, load_segmenters
from street_images import StreetConfig, WholeStreets

from darkening.exposures import RequestConfig
from darkening.fit import DarkenerOptim
from darkening.training import DarkenerFlags, run_darkener
from minmax.pretrained import require_size
from minmax.runtime.config import run_script, shrink_settings
from minmax.runtime.run import prepare_run
from minmax.runtime.splits import DayPictures, evenly_spaced

TASK = "segmentation"
VALIDATION_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Config(OwnFlags, DarkenerFlags):
    """Train a darkener against a daytime segmentation network."""

    data: str = str(DEFAULT_DATA)
    """Folder with leftImg8bit/ and gtFine/ in Cityscapes' layout, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime network: a best.pt of train_day.py, a released checkpoint, torchvision's DeepLabV3, or --model's."""
    request: RequestConfig = field(default_factory=lambda: RequestConfig(contrast=(0.0, 1.5)))
    images: StreetConfig = field(default_factory=lambda: StreetConfig(size=(256, 512)))
    """Whole images are shown; crop and scale do not matter here."""
    optim: DarkenerOptim = field(default_factory=lambda: DarkenerOptim(batch_size=4))


def main(config: Config) -> Path:
    """Train, and return the darkener's checkpoint."""
    if config.quick:
        config = shrink_settings(
            config,
            images={"size": (64, 64), "crop": None},
            optim={"epochs": 2, "batch_size": 4},
            workers=0,
        )
    with prepare_run(TASK, config) as runtime:
        [(network, _)] = load_segmenters([config.checkpoint], config)
        network = runtime.place(network)
        require_size(network, "--images.size", *config.images.size)
        training = open_streets(config.data, "train", config.images, config.quick, config.runs)
        validation = open_streets(config.data, "val", config.images, config.quick, config.runs)
        views = DayPictures(training, WholeStreets(training, config.images.size))
        chosen = evenly_spaced(range(len(validation)), VALIDATION_IMAGES)
        shown = [validation.load(index, config.images.size).image for index in chosen]
        held_out = runtime.intensities(torch.stack(shown))
        return run_darkener(TASK, config, runtime, network, training, views, held_out, columns=4)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
