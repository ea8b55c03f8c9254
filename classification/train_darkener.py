"""Image level: train a darkener against the frozen daytime classifier (Luo et al., ICCV 2023).

    python classification/train_darkener.py --name darkener --checkpoint runs/classification/day/best.pt

Gives runs/classification/darkener/best.pt, the darkener for train.py and for `python -m darkening.apply`, and a
contact sheet. The paper trains 15 epochs of 16 images from scratch; from the starting point that ships with the
package a fraction of that obeys the requested exposure (--init scratch gives the paper's way).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from class_folders import DEFAULT_DATA, ImageConfig, open_split
from foreign_weights import ForeignFlags, load_classifiers
from image_views import WholeImages

from darkening.darkener import DarkenerSettings
from darkening.exposures import RequestConfig
from darkening.fit import DarkenerOptim
from darkening.losses import RECOGNISABLE_LOSS, DarkeningLoss
from darkening.training import STARTS, DarkenerTraining, initial_darkener, save_and_show, train_darkener
from minmax.features import InputNormalization
from minmax.runtime.batches import epoch_loader
from minmax.runtime.config import CommonFlags, replaced, run_script, to_plain
from minmax.runtime.run import Run, started
from minmax.runtime.seeding import seed_globally
from minmax.runtime.splits import DayPictures, evenly_spaced

TASK = "classification"
VALIDATION_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class Config(ForeignFlags, CommonFlags):
    """Train a darkener against a daytime classifier."""

    name: str = "darkener"
    """Name of the run; its folder is RUNS/classification/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with train/ and val/ in class folders, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime classifier: a best.pt of train_day.py, a released checkpoint, or foreign weights with --model."""
    init: str = "auto"
    """auto (the shipped one of the same --darkener.view; camera starts as a night made by hand), starting-point,
    night-to-look-at, scratch, or a darkener's path to continue from."""
    features: Literal["normalised", "unnormalised"] = "normalised"
    """What the frozen classifier is fed: images normalised as it was trained, or raw as in the authors' code."""
    request: RequestConfig = field(default_factory=RequestConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    darkener: DarkenerSettings = field(default_factory=lambda: DarkenerSettings(view="camera"))
    loss: DarkeningLoss = RECOGNISABLE_LOSS
    """Weights of the losses (docs/deviations.md has the paper's); view camera has similarity and recognisable alone."""
    optim: DarkenerOptim = field(default_factory=DarkenerOptim)

    def __post_init__(self) -> None:
        """Refuse values out of range; `init` may be a path as well."""
        super().__post_init__()
        if self.init not in STARTS:
            object.__setattr__(self, "init", str(Path(self.init).expanduser().absolute()))


def main(config: Config) -> Path:
    """Train, and return the darkener's checkpoint."""
    if config.quick:
        config = replaced(
            config, images={"size": 32}, optim={"epochs": 2, "batch_size": 16, "milestones": (1,)}, workers=0
        )
    recipe = DarkenerTraining(config.request, config.loss, config.optim)
    with started(TASK, config) as runtime:
        [(network, _)] = load_classifiers([config.checkpoint], config, config.data, "train", config.images.size)
        training = open_split(config.data, "train", config.images, quick=config.quick, cache=config.runs)
        validation = open_split(config.data, "val", config.images, training.classes, config.quick, config.runs)
        encoder = runtime.place(network)
        if config.features == "unnormalised":
            encoder.normalization = runtime.place(InputNormalization.identity())
        held_out = DayPictures(validation, WholeImages(validation, config.images))
        chosen = evenly_spaced(range(len(held_out)), VALIDATION_IMAGES)
        held_out_images = runtime.intensities(torch.stack([held_out[0, index] for index in chosen]))
        seed_globally(config.seed, "darkener")
        darkener = runtime.place(initial_darkener(config.init, config.darkener))
        dataset = DayPictures(training, WholeImages(training, config.images))
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        with Run(TASK, config, runtime, training=training) as run:
            train_darkener(darkener, encoder, loader, held_out_images, recipe, run, runtime)
            return save_and_show(darkener, held_out_images, config.request, to_plain(config), run, runtime)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
