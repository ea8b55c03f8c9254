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

import torch
from clip_sets import open_clips
from clip_views import DayClips, WholeClips
from clips import ClipConfig
from recogniser import load_recogniser
from video_trees import DEFAULT_DATA

from darkening.fit import DarkenerOptim
from darkening.training import DarkenerFlags, run_darkener
from minmax.augmentation import AugmentConfig
from minmax.runtime.config import run_script, shrink_settings
from minmax.runtime.run import prepare_run
from minmax.runtime.splits import evenly_spaced

TASK = "low-light-action-recognition"
VALIDATION_VIDEOS = 64


@dataclass(frozen=True, kw_only=True)
class Config(DarkenerFlags):
    """Train a darkener against a daytime recogniser."""

    data: str = str(DEFAULT_DATA)
    """Folder of the data set (README.md has the layouts), or `scenes` for the built-in clips."""
    checkpoint: Path
    """The daytime recogniser: a best.pt of train_day.py, a released checkpoint, or torchvision's."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: DarkenerOptim = field(default_factory=lambda: DarkenerOptim(epochs=6, batch_size=3, milestones=(1, 3)))


def main(config: Config) -> Path:
    """Train, and return the darkener's checkpoint."""
    if config.quick:
        config = shrink_settings(
            config,
            clips={"length": 4, "size": 32},
            optim={"epochs": 2, "batch_size": 4},
            workers=0,
        )
    with prepare_run(TASK, config) as runtime:
        network, _ = load_recogniser(config.checkpoint)
        training = open_clips(config.data, "train", config.clips, None, config.quick, config.runs)
        validation = open_clips(config.data, "val", config.clips, training.classes, config.quick, config.runs)
        held_out = WholeClips(validation, config.clips, rounds=1)
        # One frame of each, from the middle: obedience is a matter of single frames.
        middle = config.clips.length // 2
        chosen = evenly_spaced(range(len(held_out)), VALIDATION_VIDEOS)
        frames = [held_out[index][0][0, :, middle] for index in chosen]
        held_out_frames = torch.stack(frames) / 255.0
        views = DayClips(training, config.clips, config.seed, config.augment.flip)
        return run_darkener(TASK, config, runtime, network, training, views, held_out_frames)


if __name__ == "__main__":
    run_script(Config, main, __doc__)
