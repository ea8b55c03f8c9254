"""Model level: adapt a daytime classifier to the night with day images only (Luo et al., ICCV 2023).

    python classification/train.py --name adapt --checkpoint runs/classification/day/best.pt \
        --darkener runs/classification/darkener/best.pt

Each step sees a day view and a darkened view of the same images; the loss is cross-entropy on both plus BYOL's
distance between their features. Gives runs/classification/adapt/{best,last-epoch}.pt for test.py. The defaults are
the paper's for CODaN (90 epochs of 32 images).
"""

from dataclasses import dataclass, field
from pathlib import Path

from class_accuracy import selection_score
from class_folders import DEFAULT_DATA, ImageConfig, TrainingViews, open_split
from classifier import ForeignFlags, load_classifiers, save_classifier
from torch import Tensor, nn

from darkening.darkener_files import load_darkener
from darkening.night_view import NightConfig, build_night_view
from minmax.adapt import adaptation_losses, cross_entropy
from minmax.augmentation import AugmentConfig
from minmax.byol import ByolConfig, build_pair
from minmax.keep import KeepConfig, choose_mixture, class_divergence, day_losses, frozen_copy
from minmax.photometric_jitter import jitter
from minmax.runtime.batches import epoch_loader, few_at_a_time
from minmax.runtime.config import CommonFlags, require, run_script, shrink_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.optimisation import OptimConfig
from minmax.runtime.report import picture_grid, save_picture
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import seed_globally

TASK = "classification"


@dataclass(frozen=True, kw_only=True)
class Config(ForeignFlags, CommonFlags):
    """Adapt a daytime classifier to the night."""

    name: str = "adapt"
    """Name of the run; its folder is RUNS/classification/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with train/ and val/ in class folders, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime classifier: a best.pt of train_day.py, a released checkpoint, or foreign weights with --model."""
    darkener: Path | None = None
    """The darkener, a best.pt of train_darkener.py or the name of a shipped one; by default nights are made by hand."""
    jitter: float = 0.3
    """Strength of the random brightness, contrast, saturation and hue of both views."""
    images: ImageConfig = field(default_factory=ImageConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    night: NightConfig = field(default_factory=NightConfig)
    byol: ByolConfig = field(default_factory=ByolConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(milestones=(30, 60)))

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(0 <= self.jitter <= 0.5, "--jitter", self.jitter, "0 to 0.5")


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
        config = shrink_settings(config, images={"size": 32}, optim={"epochs": 2, "batch_size": 16}, workers=0)
    with prepare_run(TASK, config) as runtime:
        runtime.require_pairs(config.optim.batch_size, config.optim.at_once)
        [(network, settings)] = load_classifiers([config.checkpoint], config, config.data, "train", config.images.size)
        darkener = load_darkener(config.darkener) if config.darkener else None
        night_view = build_night_view(config.night, darkener, runtime)
        training = open_split(config.data, "train", config.images, settings.classes, config.quick, config.runs)
        validation = open_split(config.data, "val", config.images, settings.classes, config.quick, config.runs)
        seed_globally(config.seed, "heads")
        daytime = runtime.place(frozen_copy(network, config.keep))
        pair = runtime.place(build_pair(network, config.byol))
        dataset = TrainingViews(training, config.images.size, config.seed, config.augment.flip)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        optimizer, schedule = config.optim.build(pair, len(loader), network=pair.online)
        parallel, frozen = runtime.parallel(pair), runtime.spread(daytime)

        def validate() -> dict[str, float]:
            return selection_score(pair.online, validation, config.images, runtime)

        def save(path: Path) -> None:
            save_classifier(pair.online, settings, path, config)

        with Run(TASK, config, runtime, training=training, validation=validation) as run:
            run.restore(pair=pair, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                pair.train()
                for views in run.batches(loader, epoch):
                    day, to_darken = runtime.intensities(views.day), runtime.intensities(views.night)
                    night = night_view(to_darken, run.generator("night"))
                    day = jitter(day, config.jitter, run.generator("day jitter"))
                    night = jitter(night, config.jitter, run.generator("night jitter"))
                    if run.progress.step == 0 and runtime.is_main:
                        save_picture(picture_grid([day[:8], night[:8]]), run.directory / "pictures" / "first_batch.png")
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
