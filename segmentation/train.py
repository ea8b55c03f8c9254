"""Model level: adapt a daytime segmentation network to the night with day images only (Luo et al., ICCV 2023).

    python segmentation/train.py --name adapt --checkpoint runs/segmentation/day/best.pt \
        --darkener runs/segmentation/darkener/best.pt

Each step sees a day view and a darkened view of the same crops; the loss is cross-entropy on both plus BYOL's distance
between the features of all four stages. Nights are made online, or read from a folder (--darkened) that `python -m
darkening.apply` made, which saves the darkener's memory. Gives runs/segmentation/adapt/{best,last-epoch}.pt for
test.py. The defaults are the paper's for Cityscapes (100 epochs of 4 crops of 384x768).
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cityscapes import DEFAULT_DATA, StreetConfig, open_streets
from miou import selection_score
from segmenter import build_projectors, load_segmenter, pixel_cross_entropy, save_segmenter
from street_images import StreetFile, StreetFiles
from street_photometry import PhotometryConfig, change_views
from street_views import StreetViews, TrainingStreets, find_darkened
from torch import Tensor, nn

from darkening.curve_estimator import load_darkener
from darkening.night_view import NightConfig, NightView, build_night_view
from darkening.source_choice import with_chosen_source
from minmax.augmentation import AugmentConfig
from minmax.byol import ByolConfig, build_pair, byol_loss
from minmax.pretrained import require_size
from minmax.runtime.batches import epoch_loader
from minmax.runtime.checkpoints import file_digest, joint_fingerprint
from minmax.runtime.config import CommonFlags, replaced, require, run_script, to_plain
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_curves, picture_grid, save_picture
from minmax.runtime.run import Run, check_run_folder
from minmax.runtime.seeding import seed_globally

log = logging.getLogger(__name__)

FOLLOWING_DAY = NightConfig(contrast=(0.5, 1.5), cell=8)
"""Asked for one exposure everywhere, a curve for each pixel makes sky and street equally dark."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 4
    """Images per step and process."""
    lr: float = 1e-3
    """Learning rate of SGD for the network."""
    head_lr: float = 1e-3
    """Learning rate of projectors and predictors."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD."""
    milestones: tuple[int, ...] = (30, 60, 90)
    """The learning rates fall tenfold after these epochs."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.epochs >= 1, "--optim.epochs", self.epochs, "1 or more")
        require(self.batch_size >= 2, "--optim.batch-size", self.batch_size, "2 or more")
        require(self.lr > 0, "--optim.lr", self.lr, "more than 0")
        require(self.head_lr > 0, "--optim.head-lr", self.head_lr, "more than 0")
        require(0 <= self.momentum < 1, "--optim.momentum", self.momentum, "0 or more, less than 1")
        require(self.weight_decay >= 0, "--optim.weight-decay", self.weight_decay, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Adapt a daytime segmentation network to the night."""

    name: str = "adapt"
    """Name of the run; its folder is RUNS/segmentation/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with leftImg8bit/ and gtFine/ in Cityscapes' layout, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime network: a best.pt of train_day.py, a released checkpoint, or torchvision's DeepLabV3."""
    darkener: Path | None = None
    """The darkener, a best.pt of train_darkener.py; needed by --night.source learned."""
    darkened: Path | None = None
    """Folder of training images darkened in advance by darkening.apply; takes the place of --darkener and --night."""
    images: StreetConfig = field(default_factory=StreetConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    photometry: PhotometryConfig = field(default_factory=PhotometryConfig)
    night: NightConfig = FOLLOWING_DAY
    # The authors add 0.1 of the distance for either direction; ours is the mean of both.
    byol: ByolConfig = field(default_factory=lambda: ByolConfig(weight=0.2))
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        """Refuse values out of range and flags that contradict each other."""
        super().__post_init__()
        keeps = self.night.source != "augmix"
        require(keeps, "--night.source", self.night.source, "a night that leaves every pixel in its place")
        if self.darkened is not None and (self.darkener is not None or self.night != FOLLOWING_DAY):
            raise UsageError("--darkened: these nights are made already; drop --darkener and the flags of --night")
        side = min(self.images.crop_size)
        if self.darkened is None and not self.quick:
            require(
                2 * self.night.cell <= side,
                "--night.cell",
                self.night.cell,
                f"at most {side // 2}, half the crop of --images.crop, or noise and contrast of cells do nothing",
            )


def build_views(
    views: StreetViews, night_view: NightView | None, config: Config, run: Run, runtime: Runtime
) -> tuple[Tensor, Tensor, Tensor]:
    """Day images, night images and labels of a batch on the device: darkened first, then changed in photometry."""
    day = runtime.to_device(views.day)
    night = night_view(day, run.generator("night")) if night_view else runtime.to_device(views.night)
    changed, labels = change_views(
        [day, night], views.labels.to(runtime.device), config.photometry, run.generator("photometry")
    )
    return changed[0], changed[1], labels


def step(
    pair: nn.Module, day: Tensor, night: Tensor, labels: Tensor, config: Config, runtime: Runtime
) -> dict[str, Tensor]:
    """The weighted losses of one batch."""
    with runtime.autocast():
        outputs = pair(day, night)
    return {
        "day": pixel_cross_entropy(outputs.day_prediction, labels),
        "night": pixel_cross_entropy(outputs.night_prediction, labels),
        "byol": config.byol.weight * byol_loss(outputs),
    }


def main(config: Config) -> Path:
    """Adapt, and return the checkpoint of the last epoch."""
    config = with_chosen_source(config, "segmentation", main)
    if config.quick:
        config = replaced(
            config,
            images={"size": (64, 64), "crop": None},
            optim={"epochs": 2, "batch_size": 4, "milestones": (1,)},
            night={} if config.darkened else {"cell": 16},
            workers=0,
        )
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        if runtime.is_main:
            check_run_folder("segmentation", config)
        runtime.require_pairs(config.optim.batch_size)
        network, settings = load_segmenter(config.checkpoint, config.images.size)
        darkener = load_darkener(config.darkener) if config.darkener else None
        night_view = None if config.darkened else build_night_view(config.night, darkener, runtime)
        training = open_streets(config.data, "train", config.images, config.quick, config.runs)
        validation = open_streets(config.data, "val", config.images, config.quick, config.runs)
        darkened = None
        if config.darkened:
            darkened = find_darkened(training, config.darkened, config.images.size, config.runs, config.quick)
        seed_globally(config.seed, "heads")
        pair = runtime.place(build_pair(network, config.byol, build_projectors))
        require_size(network, "--images.size", *config.images.size)
        require_size(network, "--images.crop", *config.images.crop_size)
        dataset = TrainingStreets(training, config.images, config.seed, darkened, config.augment.flip_share)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        in_network = set(pair.online.parameters())
        heads = [
            parameter for parameter in pair.parameters() if parameter.requires_grad and parameter not in in_network
        ]
        groups: list[dict[str, Any]] = [{"params": [*pair.online.parameters()]}]
        if heads:  # the plain cosine has none
            groups.append({"params": heads, "lr": config.optim.head_lr})
        optimizer = torch.optim.SGD(
            groups,
            config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, config.optim.milestones)
        parallel = runtime.parallel(pair)

        used = {
            "training": training.fingerprint(),
            "validation": validation.fingerprint(),
            "--checkpoint": file_digest(config.checkpoint),
        }
        if config.darkener:
            used["--darkener"] = file_digest(config.darkener)
        if config.darkened and darkened:  # both or none
            copies = [StreetFile(file, None) for file in darkened]
            used["--darkened"] = StreetFiles("darkened", config.darkened, copies, is_night=False).fingerprint()

        with Run("segmentation", config, runtime, joint_fingerprint(used)) as run:
            run.restore(pair=pair, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                pair.train()
                for views in run.batches(loader, epoch):
                    day, dark, labels = build_views(views, night_view, config, run, runtime)
                    if run.progress.step == 0 and runtime.is_main:
                        save_picture(picture_grid([day[:4], dark[:4]]), run.directory / "pictures" / "first_batch.png")
                    losses = step(parallel, day, dark, labels, config, runtime)
                    numbers = run.read_losses(losses)
                    optimizer.zero_grad(set_to_none=True)
                    runtime.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
                    runtime.scaler.step(optimizer)
                    runtime.scaler.update()
                    pair.update_target()
                    run.record("train", numbers)
                schedule.step()
                score = selection_score(pair.online, validation, config.images.size, runtime, workers=config.workers)
                run.record("validation", score)
                log.info(
                    "epoch %d: mean IoU by day %.1f %%, of darkened days %.1f %%",
                    epoch + 1,
                    100 * score["day"],
                    100 * score["darkened"],
                )
                if run.finish_epoch(score["score"]) and runtime.is_main:
                    save_segmenter(pair.online, settings, run.directory / "best.pt", to_plain(config))
                run.save()
            last = run.directory / "last-epoch.pt"
            if runtime.is_main:
                save_segmenter(pair.online, settings, last, to_plain(config))
                draw_curves(run.directory / "metrics.jsonl", run.directory / "pictures" / "curves.png")
            log.info("last epoch: %s; best, epoch %d: %s", last, run.progress.best_epoch, run.directory / "best.pt")
            return last


if __name__ == "__main__":
    run_script(Config, main, __doc__)
