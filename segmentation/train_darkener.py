"""Image level: train a darkener against the frozen daytime segmentation network (Luo et al., ICCV 2023).

    python segmentation/train_darkener.py --name darkener --checkpoint runs/segmentation/day/best.pt

Gives runs/segmentation/darkener/best.pt, the darkener for train.py and for `python -m darkening.apply`, and a contact
sheet. The similarity is of the maps of all four stages. The paper trains 15 epochs of 4 images of 256x512 from scratch;
from the starting point that ships with the package a fraction of that obeys the requested exposure.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from cityscapes import DEFAULT_DATA, StreetConfig, open_streets
from segmenter import load_segmenter
from street_views import WholeStreets

from darkening.darkener import DarkenerSettings
from darkening.exposures import RequestConfig
from darkening.fit import DarkenerOptim
from darkening.losses import OBEDIENT_LOSS, DarkeningLoss
from darkening.training import STARTS, DarkenerTraining, initial_darkener, save_and_show, train_darkener
from minmax.features import InputNormalization
from minmax.pretrained import require_size
from minmax.runtime.batches import epoch_loader
from minmax.runtime.config import CommonFlags, replaced, run_script, to_plain
from minmax.runtime.run import Run, started
from minmax.runtime.seeding import seed_globally
from minmax.runtime.splits import DayPictures, evenly_spaced

TASK = "segmentation"
VALIDATION_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Train a darkener against a daytime segmentation network."""

    name: str = "darkener"
    """Name of the run; its folder is RUNS/segmentation/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with leftImg8bit/ and gtFine/ in Cityscapes' layout, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime network: a best.pt of train_day.py, a released checkpoint, or torchvision's DeepLabV3."""
    init: str = "auto"
    """auto (the shipped one of the same --darkener.view; camera starts as a night made by hand), starting-point,
    night-to-look-at, scratch, or a darkener's path to continue from."""
    features: Literal["normalised", "unnormalised"] = "normalised"
    """What the frozen network is fed: images normalised as it was trained, or raw as in the authors' code."""
    request: RequestConfig = field(default_factory=lambda: RequestConfig(contrast=(0.0, 1.5)))
    images: StreetConfig = field(default_factory=lambda: StreetConfig(size=(256, 512)))
    """Whole images are shown; crop and scale do not matter here."""
    darkener: DarkenerSettings = field(default_factory=DarkenerSettings)
    loss: DarkeningLoss = OBEDIENT_LOSS
    """Weights of the losses (docs/deviations.md has the paper's); of view camera only that of similarity counts."""
    optim: DarkenerOptim = field(default_factory=lambda: DarkenerOptim(batch_size=4))

    def __post_init__(self) -> None:
        """Refuse values out of range; `init` may be a path as well."""
        super().__post_init__()
        if self.init not in STARTS:
            object.__setattr__(self, "init", str(Path(self.init).expanduser().absolute()))


def main(config: Config) -> Path:
    """Train, and return the darkener's checkpoint."""
    if config.quick:
        config = replaced(
            config,
            images={"size": (64, 64), "crop": None},
            optim={"epochs": 2, "batch_size": 4, "milestones": (1,)},
            workers=0,
        )
    recipe = DarkenerTraining(config.request, config.loss, config.optim)
    with started(TASK, config) as runtime:
        network, _ = load_segmenter(config.checkpoint)
        seed_globally(config.seed, "darkener")
        darkener = runtime.place(initial_darkener(config.init, config.darkener))
        training = open_streets(config.data, "train", config.images, config.quick, config.runs)
        validation = open_streets(config.data, "val", config.images, config.quick, config.runs)
        encoder = runtime.place(network)
        require_size(encoder, "--images.size", *config.images.size)
        if config.features == "unnormalised":
            encoder.normalization = runtime.place(InputNormalization.identity())
        held_out = DayPictures(validation, WholeStreets(validation, config.images.size))
        chosen = evenly_spaced(range(len(held_out)), VALIDATION_IMAGES)
        held_out_images = runtime.intensities(torch.stack([held_out[0, index] for index in chosen]))
        dataset = DayPictures(training, WholeStreets(training, config.images.size))
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        with Run(TASK, config, runtime, training=training) as run:
            train_darkener(darkener, encoder, loader, held_out_images, recipe, run, runtime)
            return save_and_show(darkener, held_out_images, config.request, to_plain(config), run, runtime, columns=4)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
