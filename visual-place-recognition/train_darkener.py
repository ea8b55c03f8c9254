"""Image level: train a darkener against the frozen daytime retrieval network (Luo et al., ICCV 2023).

    python visual-place-recognition/train_darkener.py --name darkener \
        --checkpoint runs/visual-place-recognition/day/best.pt

Gives runs/visual-place-recognition/darkener/best.pt, the darkener for train.py and for `python -m darkening.apply`, and
a contact sheet. The similarity is of the trunk's deepest map. The paper trains 5,000 steps of 8 crops from scratch (5
epochs of the 8,000 images that an epoch has here); from the starting point that ships with the package a fraction of
that obeys the requested exposure.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from day_crops import CropConfig, DayCrops
from gem import load_place_network
from place_images import DEFAULT_DATA, PlaceConfig
from place_pairs import open_pairs

from darkening.darkener import DarkenerSettings
from darkening.exposures import RequestConfig
from darkening.fit import DarkenerOptim
from darkening.losses import OBEDIENT_LOSS, DarkeningLoss
from darkening.training import STARTS, DarkenerTraining, initial_darkener, save_and_show, train_darkener
from minmax.features import InputNormalization
from minmax.runtime.batches import epoch_loader
from minmax.runtime.config import CommonFlags, replaced, run_script, to_plain
from minmax.runtime.run import Run, started
from minmax.runtime.seeding import seed_globally
from minmax.runtime.splits import evenly_spaced

TASK = "visual-place-recognition"
VALIDATION_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Train a darkener against a daytime retrieval network."""

    name: str = "darkener"
    """Name of the run; its folder is RUNS/visual-place-recognition/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with train/retrieval-SfM-120k/ or {train,val}/PLACE/day/, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime network: a best.pt of train_day.py, a released checkpoint, a classifier's trunk, or bare weights."""
    model: str = "resnet101"
    """The network of torchvision whose bare weights --checkpoint holds, if it does."""
    init: str = "auto"
    """auto (the shipped one of the same --darkener.view; camera starts as a night made by hand), starting-point,
    night-to-look-at, scratch, or a darkener's path to continue from."""
    features: Literal["normalised", "unnormalised"] = "normalised"
    """What the frozen network is fed: images normalised as it was trained (as the authors here), or raw ones."""
    request: RequestConfig = field(default_factory=lambda: RequestConfig(contrast=(0.0, 1.5)))
    images: CropConfig = field(default_factory=CropConfig)
    darkener: DarkenerSettings = field(default_factory=DarkenerSettings)
    loss: DarkeningLoss = OBEDIENT_LOSS
    """Weights of the losses (docs/deviations.md has the paper's); of view camera only that of similarity counts."""
    optim: DarkenerOptim = field(default_factory=lambda: DarkenerOptim(epochs=5, batch_size=8, milestones=(1, 3)))

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
            images={"short_side": 64, "crop": 64},
            optim={"epochs": 2, "batch_size": 4, "milestones": (1,)},
            workers=0,
        )
    recipe = DarkenerTraining(config.request, config.loss, config.optim)
    with started(TASK, config) as runtime:
        network, _ = load_place_network(config.checkpoint, config.model)
        seed_globally(config.seed, "darkener")
        darkener = runtime.place(initial_darkener(config.init, config.darkener))
        # Built-in scenes come in the size that is asked of them; files are resized by DayCrops.
        rendered = PlaceConfig(config.images.short_side)
        training = open_pairs(config.data, "train", rendered, config.quick, config.runs).images
        validation = open_pairs(config.data, "val", rendered, config.quick, config.runs).images
        encoder = runtime.place(network)
        if config.features == "unnormalised":
            encoder.normalization = runtime.place(InputNormalization.identity())
        held_out = DayCrops(validation, config.images)
        chosen = evenly_spaced(range(len(validation)), VALIDATION_IMAGES)
        held_out_images = runtime.intensities(torch.stack([held_out.central(index) for index in chosen]))
        dataset = DayCrops(training, config.images, config.seed)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        with Run(TASK, config, runtime, training=training) as run:
            train_darkener(darkener, encoder, loader, held_out_images, recipe, run, runtime)
            return save_and_show(darkener, held_out_images, config.request, to_plain(config), run, runtime, columns=6)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
