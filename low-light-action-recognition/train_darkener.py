"""Image level: train a darkener against the frozen daytime recogniser (Luo et al., ICCV 2023).

    python low-light-action-recognition/train_darkener.py --name darkener \
        --checkpoint runs/low-light-action-recognition/day/best.pt

Gives runs/low-light-action-recognition/darkener/best.pt, the darkener for train.py and for `python -m darkening.apply`,
and a contact sheet. The curve estimator sees single frames, the recogniser whole clips, all frames of one darkened to
one request. The paper trains 5000 steps of 3 clips from scratch; from the starting point that ships with the package a
fraction of that obeys the requested exposure.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from arid import DEFAULT_DATA
from clip_sets import open_clips
from clip_views import DayClips, WholeClips
from clips import ClipConfig
from recogniser import load_recogniser

from darkening.darkener import DarkenerSettings
from darkening.exposures import RequestConfig
from darkening.fit import DarkenerOptim
from darkening.losses import OBEDIENT_LOSS, DarkeningLoss
from darkening.training import STARTS, DarkenerTraining, initial_darkener, save_and_show, train_darkener
from minmax.augmentation import AugmentConfig
from minmax.features import InputNormalization
from minmax.runtime.batches import epoch_loader
from minmax.runtime.config import CommonFlags, replaced, run_script, to_plain
from minmax.runtime.run import Run, started
from minmax.runtime.seeding import seed_globally
from minmax.runtime.splits import evenly_spaced

TASK = "low-light-action-recognition"
VALIDATION_VIDEOS = 64


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Train a darkener against a daytime recogniser."""

    name: str = "darkener"
    """Name of the run; its folder is RUNS/low-light-action-recognition/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder of the data set (README.md has the layouts), or `scenes` for the built-in clips."""
    checkpoint: Path
    """The daytime recogniser: a best.pt of train_day.py, a released checkpoint, or torchvision's."""
    init: str = "auto"
    """auto (the shipped one of the same --darkener.view; camera starts as a night made by hand), starting-point,
    night-to-look-at, scratch, or a darkener's path to continue from."""
    features: Literal["normalised", "unnormalised"] = "normalised"
    """What the frozen recogniser is fed: clips normalised as it was trained, or raw as in the authors' code."""
    request: RequestConfig = field(default_factory=RequestConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    darkener: DarkenerSettings = field(default_factory=DarkenerSettings)
    loss: DarkeningLoss = OBEDIENT_LOSS
    """Weights of the losses (docs/deviations.md has the paper's); of view camera only that of similarity counts."""
    optim: DarkenerOptim = field(default_factory=lambda: DarkenerOptim(epochs=6, batch_size=3, milestones=(1, 3)))

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
            clips={"length": 4, "size": 32},
            optim={"epochs": 2, "batch_size": 4, "milestones": (1,)},
            workers=0,
        )
    recipe = DarkenerTraining(config.request, config.loss, config.optim)
    with started(TASK, config) as runtime:
        network, _ = load_recogniser(config.checkpoint)
        seed_globally(config.seed, "darkener")
        darkener = runtime.place(initial_darkener(config.init, config.darkener))
        training = open_clips(config.data, "train", config.clips, None, config.quick, config.runs)
        validation = open_clips(config.data, "val", config.clips, training.classes, config.quick, config.runs)
        encoder = runtime.place(network)
        if config.features == "unnormalised":
            encoder.normalization = runtime.place(InputNormalization.identity())
        held_out = WholeClips(validation, config.clips, rounds=1)
        # One frame of each, from the middle: obedience is a matter of single frames.
        middle = config.clips.length // 2
        chosen = evenly_spaced(range(len(held_out)), VALIDATION_VIDEOS)
        frames = [held_out[index][0][0, :, middle] for index in chosen]
        held_out_frames = torch.stack(frames) / 255.0
        dataset = DayClips(training, config.clips, config.seed, config.augment.flip_share)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        with Run(TASK, config, runtime, training=training) as run:
            train_darkener(darkener, encoder, loader, held_out_frames, recipe, run, runtime)
            return save_and_show(darkener, held_out_frames, config.request, to_plain(config), run, runtime)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
