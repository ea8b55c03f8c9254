"""Model level: adapt a daytime classifier to the night with day images only (Luo et al., ICCV 2023).

    python classification/train.py --name adapt --checkpoint runs/classification/day/best.pt \
        --darkener runs/classification/darkener/best.pt

Each step sees a day view and a darkened view of the same images; the loss is cross-entropy on both plus BYOL's
distance between their features. Gives runs/classification/adapt/{best,last-epoch}.pt for test.py. The defaults are
the paper's for CODaN (90 epochs of 32 images).
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from class_accuracy import selection_score
from class_folders import DEFAULT_DATA, ImageConfig, open_split
from classifier import save_classifier
from foreign_weights import ForeignFlags, load_classifiers
from image_views import TrainingViews, Views
from night_statistics import reestimate_statistics
from torch import Tensor, nn

from darkening.darkener_files import load_darkener
from darkening.night_view import NightConfig, NightView, build_night_view
from darkening.source_choice import with_chosen_source
from minmax.augmentation import AugmentConfig
from minmax.byol import ByolConfig, build_pair, byol_loss
from minmax.photometric_jitter import jitter
from minmax.runtime.batches import epoch_loader
from minmax.runtime.checkpoints import file_digest, joint_fingerprint
from minmax.runtime.config import CommonFlags, replaced, require, run_script, to_plain
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_curves, picture_grid, save_picture
from minmax.runtime.run import Run, check_run_folder
from minmax.runtime.seeding import seed_globally

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    epochs: int = 90
    """Passes over the training images."""
    batch_size: int = 32
    """Images per step and process."""
    method: Literal["adam", "adamw"] = "adam"
    """adam, whose weight decay is added to the gradient; adamw, where it shrinks the weights themselves."""
    lr: float = 1e-3
    """Learning rate."""
    weight_decay: float = 1e-5
    """Weight decay: of about 1e-5 for adam, 0.01 to 0.05 for adamw."""
    milestones: tuple[int, ...] = (30, 60)
    """The learning rate falls tenfold after these epochs."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.epochs >= 1, "--optim.epochs", self.epochs, "1 or more")
        require(self.batch_size >= 2, "--optim.batch-size", self.batch_size, "2 or more")
        require(self.lr > 0, "--optim.lr", self.lr, "more than 0")
        require(self.weight_decay >= 0, "--optim.weight-decay", self.weight_decay, "0 or more")


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
    """The darkener, a best.pt of train_darkener.py; needed by --night.source learned."""
    jitter: float = 0.3
    """Strength of the random brightness, contrast, saturation and hue of both views."""
    statistics: Literal["running", "reestimated"] = "running"
    """BatchNorm in evaluation: training's running averages, or estimated on day and darkened images each epoch."""
    images: ImageConfig = field(default_factory=ImageConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    night: NightConfig = field(default_factory=NightConfig)
    byol: ByolConfig = field(default_factory=ByolConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(0 <= self.jitter <= 0.5, "--jitter", self.jitter, "0 to 0.5")
        if self.statistics == "reestimated" and self.byol.batch_norm == "frozen":
            raise UsageError("--statistics reestimated contradicts --byol.batch-norm frozen; drop one of the two flags")


def build_views(
    views: Views, night_view: NightView, config: Config, run: Run, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Day and night images of a batch on the device: darken one view, then jitter both, each its own way."""
    night = night_view(runtime.to_device(views.to_darken), run.generator("night"))
    night = jitter(night, config.jitter, run.generator("night jitter"))
    day = jitter(runtime.to_device(views.day), config.jitter, run.generator("day jitter"))
    return day, night


def step(
    pair: nn.Module, day: Tensor, night: Tensor, labels: Tensor, config: Config, runtime: Runtime
) -> dict[str, Tensor]:
    """The weighted losses of one batch."""
    with runtime.autocast():
        outputs = pair(day, night)
    return {
        "day": F.cross_entropy(outputs.day_prediction.float(), labels),
        "night": F.cross_entropy(outputs.night_prediction.float(), labels),
        "byol": config.byol.weight * byol_loss(outputs),
    }


def main(config: Config) -> Path:
    """Adapt, and return the checkpoint of the last epoch."""
    config = with_chosen_source(config, "classification", main)
    if config.quick:
        config = replaced(
            config, images={"size": 32}, optim={"epochs": 2, "batch_size": 16, "milestones": (1,)}, workers=0
        )
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        if runtime.is_main:
            check_run_folder("classification", config)
        runtime.require_pairs(config.optim.batch_size)
        [(network, settings)] = load_classifiers([config.checkpoint], config, config.data, "train", config.images.size)
        darkener = load_darkener(config.darkener) if config.darkener else None
        night_view = build_night_view(config.night, darkener, runtime)
        training = open_split(config.data, "train", config.images, settings.classes, config.quick, config.runs)
        validation = open_split(config.data, "val", config.images, settings.classes, config.quick, config.runs)
        seed_globally(config.seed, "heads")
        pair = runtime.place(build_pair(network, config.byol))
        dataset = TrainingViews(training, config.images.size, config.seed, config.augment.flip_share)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        trained = [parameter for parameter in pair.parameters() if parameter.requires_grad]
        method = torch.optim.AdamW if config.optim.method == "adamw" else torch.optim.Adam
        optimizer = method(trained, config.optim.lr, weight_decay=config.optim.weight_decay)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, config.optim.milestones)
        parallel = runtime.parallel(pair)

        used = {
            "training": training.fingerprint(),
            "validation": validation.fingerprint(),
            "--checkpoint": file_digest(config.checkpoint),
        }
        if config.darkener:
            used["--darkener"] = file_digest(config.darkener)

        with Run("classification", config, runtime, joint_fingerprint(used)) as run:
            run.restore(pair=pair, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                pair.train()
                for views in run.batches(loader, epoch):
                    day, night = build_views(views, night_view, config, run, runtime)
                    if run.progress.step == 0 and runtime.is_main:
                        save_picture(picture_grid([day[:8], night[:8]]), run.directory / "pictures" / "first_batch.png")
                    labels = views.label.to(runtime.device)
                    losses = step(parallel, day, night, labels, config, runtime)
                    numbers = run.read_losses(losses)
                    optimizer.zero_grad(set_to_none=True)
                    runtime.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
                    runtime.scaler.step(optimizer)
                    runtime.scaler.update()
                    pair.update_target()
                    run.record("train", numbers)
                schedule.step()
                if config.statistics == "reestimated":
                    reestimate_statistics(pair.online, training, config.images, night_view, runtime)
                score = selection_score(pair.online, validation, config.images, runtime)
                run.record("validation", score)
                log.info(
                    "epoch %d: day %.1f %%, darkened day %.1f %%",
                    epoch + 1,
                    100 * score["day"],
                    100 * score["darkened"],
                )
                if run.finish_epoch(score["score"]) and runtime.is_main:
                    save_classifier(pair.online, settings, run.directory / "best.pt", to_plain(config))
                run.save()
            last = run.directory / "last-epoch.pt"
            if runtime.is_main:
                save_classifier(pair.online, settings, last, to_plain(config))
                draw_curves(run.directory / "metrics.jsonl", run.directory / "pictures" / "curves.png")
            log.info("last epoch: %s; best, epoch %d: %s", last, run.progress.best_epoch, run.directory / "best.pt")
            return last


if __name__ == "__main__":
    run_script(Config, main, __doc__)
