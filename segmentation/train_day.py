"""Train a daytime segmentation network: the model that the other scripts take into the night.

    python segmentation/train_day.py --name day --data scenes --images.size 96 96 --model refinenet_resnet18 --width 64

Gives runs/segmentation/day/best.pt, the checkpoint for train_darkener.py and train.py. Skip it when you have one. The
authors supply daytime checkpoints without their training script, so these defaults are ours: AdamW, polynomial decay.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cityscapes import DEFAULT_DATA, StreetConfig, open_streets
from miou import measure
from segmenter import SegmenterSettings, build_segmenter, pixel_cross_entropy, save_segmenter
from street_labels import CLASSES
from street_photometry import PhotometryConfig, change_views
from street_views import StreetViews, TrainingStreets
from torch import Tensor, nn

from minmax.augmentation import AugmentConfig
from minmax.pretrained import refuse_two_starts, require_size
from minmax.runtime.batches import epoch_loader
from minmax.runtime.checkpoints import file_digest, joint_fingerprint
from minmax.runtime.config import CommonFlags, replaced, require, run_script, to_plain
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.report import draw_curves
from minmax.runtime.run import Run, check_run_folder
from minmax.runtime.seeding import seed_globally

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 4
    """Images per step and process."""
    lr: float = 1e-4
    """Learning rate of AdamW at the start; it falls to 0 with the 0.9th power of the steps left."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.epochs >= 1, "--optim.epochs", self.epochs, "1 or more")
        require(self.batch_size >= 2, "--optim.batch-size", self.batch_size, "2 or more")
        require(self.lr > 0, "--optim.lr", self.lr, "more than 0")
        require(self.weight_decay >= 0, "--optim.weight-decay", self.weight_decay, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Train a daytime segmentation network."""

    name: str = "day"
    """Name of the run; its folder is RUNS/segmentation/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with leftImg8bit/ and gtFine/ in Cityscapes' layout, or `scenes` for the built-in data."""
    model: str = "refinenet_resnet101"
    """DECODER_BACKBONE: refinenet or deeplabv3 over a ResNet of torchvision, or refinenet over timm/NAME."""
    width: int = 256
    """Channels of RefineNet's decoder."""
    pretrained: bool = False
    """Start the backbone from the published ImageNet weights."""
    init: Path | None = None
    """Start the backbone from the weights in this file: a state_dict of the classifier that it is the trunk of."""
    images: StreetConfig = field(default_factory=StreetConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    photometry: PhotometryConfig = field(default_factory=PhotometryConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        """Refuse flags that contradict each other."""
        super().__post_init__()
        refuse_two_starts(self.pretrained, self.init)


def step(
    network: nn.Module, views: StreetViews, config: Config, runtime: Runtime, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of one batch."""
    day, labels = runtime.to_device(views.day), views.labels.to(runtime.device)
    [day], labels = change_views([day], labels, config.photometry, generator)
    with runtime.autocast():
        logits = network(day)
    return pixel_cross_entropy(logits, labels)


def main(config: Config) -> Path:
    """Train, and return the checkpoint of the best epoch on day validation images."""
    if config.quick:
        config = replaced(
            config, images={"size": (64, 64), "crop": None}, optim={"epochs": 2, "batch_size": 4}, workers=0
        )
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        if runtime.is_main:
            check_run_folder("segmentation", config)
        runtime.require_pairs(config.optim.batch_size)
        seed_globally(config.seed, "network")
        settings = SegmenterSettings(config.model, len(CLASSES), config.width)
        network = runtime.place(build_segmenter(settings, config.pretrained, config.init))
        require_size(network, "--images.size", *config.images.size)
        require_size(network, "--images.crop", *config.images.crop_size)
        training = open_streets(config.data, "train", config.images, config.quick, config.runs)
        validation = open_streets(config.data, "val", config.images, config.quick, config.runs)
        dataset = TrainingStreets(training, config.images, config.seed, flip=config.augment.flip_share)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        optimizer = torch.optim.AdamW(network.parameters(), config.optim.lr, weight_decay=config.optim.weight_decay)
        steps = config.optim.epochs * len(loader)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
        parallel = runtime.parallel(network)

        used = {"training": training.fingerprint(), "validation": validation.fingerprint()}
        if config.init:
            used["--init"] = file_digest(config.init)
        with Run("segmentation", config, runtime, joint_fingerprint(used)) as run:
            run.restore(network=network, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                network.train()
                for views in run.batches(loader, epoch):
                    loss = step(parallel, views, config, runtime, run.generator("photometry"))
                    numbers = run.read_losses({"loss": loss})
                    optimizer.zero_grad(set_to_none=True)
                    runtime.scaler.scale(loss).backward()
                    runtime.scaler.step(optimizer)
                    runtime.scaler.update()
                    schedule.step()
                    run.record("train", numbers)
                score = measure(network, validation, config.images.size, runtime, workers=config.workers).mean(
                    "occurring"
                )
                run.record("validation", {"day": score})
                log.info("epoch %d: mean IoU by day %.1f %%", epoch + 1, 100 * score)
                if run.finish_epoch(score) and runtime.is_main:
                    save_segmenter(network, settings, run.directory / "best.pt", to_plain(config))
                run.save()
            if runtime.is_main:
                draw_curves(run.directory / "metrics.jsonl", run.directory / "pictures" / "curves.png")
            log.info("best epoch %d: %s", run.progress.best_epoch, run.directory / "best.pt")
            return run.directory / "best.pt"


if __name__ == "__main__":
    run_script(Config, main, __doc__)
