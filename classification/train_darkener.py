"""Image level: train a darkener against the frozen daytime classifier (Luo et al., ICCV 2023).

    python classification/train_darkener.py --name darkener --checkpoint runs/classification/day/best.pt

Gives runs/classification/darkener/best.pt, the darkener for train.py and for `python -m darkening.apply`, and a
contact sheet. The paper trains 15 epochs of 16 images from scratch; from the starting point that ships with the
package a fraction of that obeys the requested exposure (--init scratch gives the paper's way).
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from class_folders import DEFAULT_DATA, ImageConfig, WholeImages, open_split
from classifier import ForeignFlags, load_classifiers

from darkening.darkener import DarkenerSettings
from darkening.training import DarkenerFlags, run_darkener
from minmax.runtime.config import run_script, shrink_settings
from minmax.runtime.run import prepare_run
from minmax.runtime.splits import DayPictures, evenly_spaced

TASK = "classification"
VALIDATION_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class Config(ForeignFlags, DarkenerFlags):
    """Train a darkener against a daytime classifier."""

    data: str = str(DEFAULT_DATA)
    """Folder with train/ and val/ in class folders, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime classifier: a best.pt of train_day.py, a released checkpoint, or foreign weights with --model."""
    images: ImageConfig = field(default_factory=ImageConfig)
    darkener: DarkenerSettings = field(default_factory=lambda: DarkenerSettings(view="camera"))


def main(config: Config) -> Path:
    """Train, and return the darkener's checkpoint."""
    if config.quick:
        config = shrink_settings(config, images={"size": 32}, optim={"epochs": 2, "batch_size": 16}, workers=0)
    with prepare_run(TASK, config) as runtime:
        [(network, _)] = load_classifiers([config.checkpoint], config, config.data, "train", config.images.size)
        training = open_split(config.data, "train", config.images, quick=config.quick, cache=config.runs)
        validation = open_split(config.data, "val", config.images, training.classes, config.quick, config.runs)
        views = DayPictures(training, WholeImages(training, config.images))
        whole = WholeImages(validation, config.images)
        chosen = evenly_spaced(range(len(whole)), VALIDATION_IMAGES)
        held_out = runtime.intensities(torch.stack([whole[index][0] for index in chosen]))
        return run_darkener(TASK, config, runtime, network, training, views, held_out)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
