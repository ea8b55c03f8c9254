"""Model level: adapt a daytime segmentation network to the night with day images only (Luo et al., ICCV 2023).

    python segmentation/train.py --name adapt --checkpoint runs/segmentation/day/best.pt \
        --darkener runs/segmentation/darkener/best.pt

Each step sees a day view and a darkened view of the same crops; the loss is cross-entropy on both plus BYOL's distance
between the features of all four stages. Nights are made online, or read from a folder (--darkened) that `python -m
darkening.apply` made, which saves the darkener's memory. Gives runs/segmentation/adapt/{best,last-epoch}.pt for
test.py. The defaults are the paper's for Cityscapes (100 epochs of 4 crops of 384x768).
"""

from dataclasses import dataclass, field
from pathlib import Path

from cityscapes import DEFAULT_DATA, find_darkened, open_streets
from miou import selection_score
from segmenter import OwnFlags, build_projectors, load_segmenters, pixel_cross_entropy, save_segmenter
from street_images import StreetConfig, TrainingStreets
from street_photometry import PhotometryConfig, change_views
from torch import Tensor, nn

from darkening.darkener_files import load_darkener
from darkening.night_view import NightConfig, build_night_view
from minmax.adapt import adaptation_losses
from minmax.augmentation import AugmentConfig
from minmax.byol import ByolConfig, build_pair
from minmax.keep import KeepConfig, choose_mixture, class_divergence, day_losses, frozen_copy
from minmax.pretrained import require_size
from minmax.runtime.batches import epoch_loader, few_at_a_time
from minmax.runtime.config import CommonFlags, require, run_script, shrink_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.optimisation import OptimConfig
from minmax.runtime.report import picture_grid, save_picture
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import seed_globally

TASK = "segmentation"

FOLLOWING_DAY = NightConfig(contrast=(0.5, 1.5), cell=8)
"""Asked for one exposure everywhere, a curve for each pixel makes sky and street equally dark."""


@dataclass(frozen=True, kw_only=True)
class Config(OwnFlags, CommonFlags):
    """Adapt a daytime segmentation network to the night."""

    name: str = "adapt"
    """Name of the run; its folder is RUNS/segmentation/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with leftImg8bit/ and gtFine/ in Cityscapes' layout, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime network: a best.pt of train_day.py, a released checkpoint, torchvision's DeepLabV3, or --model's."""
    darkener: Path | None = None
    """The darkener, a best.pt of train_darkener.py or the name of a shipped one; by default nights are made by hand."""
    darkened: Path | None = None
    """Folder of training images darkened in advance by darkening.apply; takes the place of --darkener and --night."""
    images: StreetConfig = field(default_factory=StreetConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    photometry: PhotometryConfig = field(default_factory=PhotometryConfig)
    night: NightConfig = FOLLOWING_DAY
    # The authors add 0.1 of the distance for either direction; ours is the mean of both.
    byol: ByolConfig = field(default_factory=lambda: ByolConfig(weight=0.2))

    keep: KeepConfig = field(default_factory=KeepConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            epochs=100, batch_size=4, method="sgd", head_lr=1e-3, weight_decay=1e-4, milestones=(30, 60, 90)
        )
    )

    def __post_init__(self) -> None:
        """Refuse values out of range and flags that contradict each other."""
        super().__post_init__()
        keeps = self.night.source != "augmix"
        require(keeps, "--night.source", self.night.source, "a night that leaves every pixel in its place")
        alone = self.darkened is None or (self.darkener is None and self.night == FOLLOWING_DAY)
        expected = "neither --darkener nor flags of --night beside it, as its nights are made already"
        require(alone, "--darkened", self.darkened, expected)
        largest = min(self.images.crop_size) // 2
        fits = self.darkened is not None or self.quick or self.night.cell <= largest
        expected = f"at most {largest}, half the crop of --images.crop, or noise and contrast of cells do nothing"
        require(fits, "--night.cell", self.night.cell, expected)


def step(
    pair: nn.Module, daytime: nn.Module, day: Tensor, night: Tensor, labels: Tensor, config: Config, runtime: Runtime
) -> dict[str, Tensor]:
    """The weighted losses of one batch: cross-entropy of both views, BYOL's distance between them, what keeps the day.

    `daytime` is the frozen model that the day is kept of.
    """
    with runtime.autocast():
        outputs = pair(day, night)
        kept = day_losses(config.keep, daytime, day, outputs.day_prediction, class_divergence)
    return adaptation_losses(outputs, labels, pixel_cross_entropy, config.byol.weight) | kept


def main(config: Config) -> Path:
    """Adapt, and return the checkpoint of the last epoch."""
    if config.quick:
        config = shrink_settings(
            config,
            images={"size": (64, 64), "crop": None},
            optim={"epochs": 2, "batch_size": 4},
            night={} if config.darkened else {"cell": 16},
            workers=0,
        )
    with prepare_run(TASK, config) as runtime:
        runtime.require_pairs(config.optim.batch_size, config.optim.at_once)
        [(network, settings)] = load_segmenters([config.checkpoint], config, config.images.size)
        darkener = load_darkener(config.darkener) if config.darkener else None
        night_view = None if config.darkened else build_night_view(config.night, darkener, runtime)
        training = open_streets(config.data, "train", config.images, config.quick, config.runs)
        validation = open_streets(config.data, "val", config.images, config.quick, config.runs)
        darkened = None
        if config.darkened:
            darkened = find_darkened(training, config.darkened, config.images.size, config.runs, config.quick)
        seed_globally(config.seed, "heads")
        daytime = runtime.place(frozen_copy(network, config.keep))
        pair = runtime.place(build_pair(network, config.byol, build_projectors))
        require_size(network, "--images.size", *config.images.size)
        require_size(network, "--images.crop", *config.images.crop_size)
        dataset = TrainingStreets(training, config.images, config.seed, darkened, config.augment.flip)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        optimizer, schedule = config.optim.build(pair, len(loader), network=pair.online)
        parallel, frozen = runtime.parallel(pair), runtime.spread(daytime)

        def validate() -> dict[str, float]:
            return selection_score(pair.online, validation, config.images.size, runtime, workers=config.workers)

        def save(path: Path) -> None:
            save_segmenter(pair.online, settings, path, config)

        in_advance = {} if darkened is None else {"--darkened": darkened}
        with Run(TASK, config, runtime, training=training, validation=validation, **in_advance) as run:
            run.restore(pair=pair, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                pair.train()
                for views in run.batches(loader, epoch):
                    day, labels = runtime.intensities(views.day), runtime.to_device(views.label)
                    night = night_view(day, run.generator("night")) if night_view else runtime.intensities(views.night)
                    (day, night), labels = change_views(
                        [day, night], labels, config.photometry, run.generator("photometry")
                    )
                    if run.progress.step == 0 and runtime.is_main:
                        save_picture(picture_grid([day[:4], night[:4]]), run.directory / "pictures" / "first_batch.png")
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
