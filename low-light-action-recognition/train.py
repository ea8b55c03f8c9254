"""Model level: adapt a daytime action recogniser to the dark with day videos only (Luo et al., ICCV 2023).

    python low-light-action-recognition/train.py --name adapt \
        --checkpoint runs/low-light-action-recognition/day/best.pt \
        --darkener runs/low-light-action-recognition/darkener/best.pt

Each step sees a day view and a darkened view of the same frames; the loss is cross-entropy on both plus BYOL's distance
between their features. Nights are made online, one exposure and one noise map per clip, or read from a folder of videos
(--darkened) that `python -m darkening.apply` made. Gives {best,last-epoch}.pt in the run's folder for test.py. The
defaults are the paper's for NormalLight (10 epochs of 48 clips of 16 frames).
"""

from dataclasses import dataclass, field
from pathlib import Path

from clip_accuracy import selection_score
from clip_optim import ClipOptim
from clip_sets import open_clips
from clip_views import TrainingClips
from clips import ClipConfig
from hls_shift import shift_hls
from recogniser import load_recogniser, save_recogniser
from torch import Tensor, nn
from video_clips import find_darkened
from video_trees import DEFAULT_DATA

from darkening.darkener_files import load_darkener
from darkening.night_view import NightConfig, build_night_view
from minmax.adapt import adaptation_losses, cross_entropy
from minmax.augmentation import AugmentConfig
from minmax.byol import ByolConfig, build_pair
from minmax.keep import KeepConfig, choose_mixture, class_divergence, day_losses, frozen_copy
from minmax.runtime.batches import epoch_loader, few_at_a_time
from minmax.runtime.config import CommonFlags, require, run_script, shrink_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import picture_grid, save_picture
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import seed_globally

TASK = "low-light-action-recognition"


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Adapt a daytime action recogniser to the dark."""

    name: str = "adapt"
    """Name of the run; its folder is RUNS/low-light-action-recognition/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder of the data set (README.md has the layouts), or `scenes` for the built-in clips."""
    checkpoint: Path
    """The daytime recogniser: a best.pt of train_day.py, a released checkpoint, or torchvision's."""
    darkener: Path | None = None
    """The darkener, a best.pt of train_darkener.py or the name of a shipped one; by default nights are made by hand."""
    darkened: Path | None = None
    """Folder of training videos darkened in advance by darkening.apply; takes the place of --darkener and --night."""
    shift: float = 1.0
    """Strength of the random hue, lightness and saturation of both views, in units of the authors'."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    night: NightConfig = field(default_factory=NightConfig)
    byol: ByolConfig = field(default_factory=lambda: ByolConfig(hidden=64, outputs=64))
    keep: KeepConfig = field(default_factory=KeepConfig)
    optim: ClipOptim = field(default_factory=ClipOptim)

    def __post_init__(self) -> None:
        """Refuse values out of range and flags that contradict each other."""
        super().__post_init__()
        require(self.shift >= 0, "--shift", self.shift, "0 or more")
        if self.darkened is not None and (self.darkener is not None or self.night != NightConfig()):
            raise UsageError("--darkened: these nights are made already; drop --darkener and the flags of --night")


def step(
    pair: nn.Module, daytime: nn.Module, day: Tensor, night: Tensor, labels: Tensor, config: Config, runtime: Runtime
) -> dict[str, Tensor]:
    """The weighted losses of one batch: cross-entropy of both views, BYOL's distance between them, what keeps the day.

    `daytime` is the frozen model that the day is kept of.
    """
    with runtime.autocast():
        outputs = pair(day, night)
        kept = day_losses(config.keep, daytime, day, outputs.day_prediction, class_divergence)
    return adaptation_losses(outputs, labels, cross_entropy, config.byol.weight) | kept


def main(config: Config) -> Path:
    """Adapt, and return the checkpoint of the last epoch."""
    if config.quick:
        config = shrink_settings(
            config, clips={"length": 4, "size": 32}, optim={"epochs": 2, "batch_size": 8}, workers=0
        )
    with prepare_run(TASK, config) as runtime:
        runtime.require_pairs(config.optim.batch_size, config.optim.at_once)
        network, settings = load_recogniser(config.checkpoint)
        darkener = load_darkener(config.darkener) if config.darkener else None
        night_view = None if config.darkened else build_night_view(config.night, darkener, runtime)
        training = open_clips(config.data, "train", config.clips, settings.classes, config.quick, config.runs)
        validation = open_clips(config.data, "val", config.clips, settings.classes, config.quick, config.runs)
        darkened = find_darkened(training, config.darkened, config.runs) if config.darkened else None
        seed_globally(config.seed, "heads")
        daytime = runtime.place(frozen_copy(network, config.keep))
        pair = runtime.place(build_pair(network, config.byol))
        dataset = TrainingClips(training, config.clips, config.seed, darkened, config.augment.flip)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)
        optimizer, schedule = config.optim.build(pair, len(loader), network=pair.online)
        parallel, frozen = runtime.parallel(pair), runtime.spread(daytime)

        def validate() -> dict[str, float]:
            return selection_score(pair.online, validation, config.clips, runtime, workers=config.workers)

        def save(path: Path) -> None:
            save_recogniser(pair.online, settings, path, config)

        data = {"training": training, "validation": validation}
        if darkened is not None:
            data["--darkened"] = darkened
        with Run(TASK, config, runtime, **data) as run:
            run.restore(pair=pair, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                pair.train()
                for views in run.batches(loader, epoch):
                    # Darkened first, then shifted in colour, day and night each its own way.
                    night = runtime.intensities(views.night)
                    if night_view is not None:
                        night = night_view(night, run.generator("night"))
                    night = shift_hls(night, config.shift, run.generator("night shift"))
                    day = shift_hls(runtime.intensities(views.day), config.shift, run.generator("day shift"))
                    if run.progress.step == 0 and runtime.is_main:
                        strips = [clip.transpose(0, 1) for two in zip(day[:4], night[:4], strict=True) for clip in two]
                        save_picture(picture_grid(strips), run.directory / "pictures" / "first_batch.png")
                    labels = runtime.to_device(views.label)
                    for few in few_at_a_time(len(day), config.optim.at_once, parallel):
                        losses = step(parallel, frozen, day[few], night[few], labels[few], config, runtime)
                        run.backward(losses, len(labels[few]) / len(labels))
                    run.step(optimizer, schedule)
                    pair.update_target()
                score = validate()
                run.finish_epoch(score, score["score"], save)
            return run.finish(save, lambda: choose_mixture(pair.online, daytime, config.keep.shares, validate))


if __name__ == "__main__":
    run_script(Config, main, __doc__)
