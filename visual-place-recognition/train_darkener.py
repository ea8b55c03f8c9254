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

import torch
from day_crops import CropConfig, DayCrops
from place_checkpoints import load_place_network
from place_images import DEFAULT_DATA, PlaceConfig
from place_pairs import open_pairs

from darkening.exposures import RequestConfig
from darkening.fit import DarkenerOptim
from darkening.training import DarkenerFlags, run_darkener
from minmax.runtime.config import run_script, shrink_settings
from minmax.runtime.run import prepare_run
from minmax.runtime.splits import evenly_spaced

TASK = "visual-place-recognition"
VALIDATION_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Config(DarkenerFlags):
    """Train a darkener against a daytime retrieval network."""

    data: str = str(DEFAULT_DATA)
    """Folder with train/retrieval-SfM-120k/ or {train,val}/PLACE/day/, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime network: a best.pt of train_day.py, a released checkpoint, a classifier's trunk, or bare weights."""
    model: str = "resnet101"
    """The network of torchvision whose bare weights --checkpoint holds, if it does."""
    request: RequestConfig = field(default_factory=lambda: RequestConfig(contrast=(0.0, 1.5)))
    images: CropConfig = field(default_factory=CropConfig)
    optim: DarkenerOptim = field(default_factory=lambda: DarkenerOptim(epochs=5, batch_size=8, milestones=(1, 3)))


def main(config: Config) -> Path:
    """Train, and return the darkener's checkpoint."""
    if config.quick:
        config = shrink_settings(
            config,
            images={"short_side": 64, "crop": 64},
            optim={"epochs": 2, "batch_size": 4},
            workers=0,
        )
    with prepare_run(TASK, config) as runtime:
        network, _ = load_place_network(config.checkpoint, config.model)
        # Built-in scenes come in the size that is asked of them; files are resized by DayCrops.
        rendered = PlaceConfig(config.images.short_side)
        training = open_pairs(config.data, "train", rendered, config.quick, config.runs).images
        validation = open_pairs(config.data, "val", rendered, config.quick, config.runs).images
        held_out = DayCrops(validation, config.images)
        chosen = evenly_spaced(range(len(validation)), VALIDATION_IMAGES)
        held_out_images = runtime.intensities(torch.stack([held_out.central(index) for index in chosen]))
        views = DayCrops(training, config.images, config.seed)
        return run_darkener(TASK, config, runtime, network, training, views, held_out_images, columns=6)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
