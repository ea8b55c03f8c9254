"""Fine-tune a retrieval network on day tuples: the model that the other scripts take into the night.

    python visual-place-recognition/train_day.py --name day --data scenes --images.size 96 \
        --checkpoint runs/classification/day/best.pt

Gives runs/visual-place-recognition/day/best.pt. Starts from ImageNet weights (--pretrained, or --init from a file), a
classifier's trunk or a retrieval checkpoint (--checkpoint), or from nothing. The defaults are those of Radenović et
al., TPAMI 2019, as the authors of the paper use them: contrastive loss, Adam at 1e-6 with a decay of exp(-0.01) an
epoch.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from descriptors import day_precision
from gem import build_place_network, load_place_network, parameter_groups, save_place_network, settings_for
from place_images import DEFAULT_DATA, PlaceConfig
from place_pairs import open_pairs
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tuple_mining import EpochTuples, PlaceTuple, TrainingTuples, TupleConfig, contrastive_loss
from tuple_pair import ImagesOfManyShapes, few_at_a_time, refuse_data_parallel

from minmax.pretrained import refuse_two_starts
from minmax.runtime.batches import epoch_loader
from minmax.runtime.checkpoints import file_digest, joint_fingerprint
from minmax.runtime.config import CommonFlags, replaced, require, run_script, to_plain
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_curves
from minmax.runtime.run import Run, check_run_folder
from minmax.runtime.seeding import seed_globally

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    epochs: int = 100
    """Rounds of mining and training."""
    batch_size: int = 5
    """Tuples per step and process."""
    lr: float = 1e-6
    """Learning rate of Adam at the start; it falls by exp(-0.01) each epoch."""
    weight_decay: float = 1e-6
    """Weight decay of Adam."""
    at_once: int = 1
    """Tuples of a step whose images are in memory together; the result does not depend on it."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.epochs >= 1, "--optim.epochs", self.epochs, "1 or more")
        require(self.batch_size >= 1, "--optim.batch-size", self.batch_size, "1 or more")
        require(self.lr > 0, "--optim.lr", self.lr, "more than 0")
        require(self.weight_decay >= 0, "--optim.weight-decay", self.weight_decay, "0 or more")
        require(self.at_once >= 1, "--optim.at-once", self.at_once, "1 or more")


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Fine-tune a retrieval network on day tuples."""

    name: str = "day"
    """Name of the run; its folder is RUNS/visual-place-recognition/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with train/retrieval-SfM-120k/ or {train,val}/PLACE/day/, or `scenes` for the built-in data."""
    model: str = "resnet101"
    """The trunk: a network of torchvision, or one of timm's as timm/NAME; --checkpoint knows its own, if not bare."""
    pretrained: bool = False
    """Start the trunk from the published ImageNet weights."""
    init: Path | None = None
    """Start the trunk from the weights in this file: a state_dict of the classifier whose trunk it is."""
    checkpoint: Path | None = None
    """Start from a retrieval checkpoint, a classifier's trunk, or bare weights of --model."""
    whitened: bool = False
    """Add a learned whitening layer to a new network."""
    images: PlaceConfig = field(default_factory=PlaceConfig)
    tuples: TupleConfig = field(default_factory=lambda: TupleConfig(queries=2000, pool=20000))
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        """Refuse flags that contradict each other."""
        super().__post_init__()
        refuse_two_starts(self.pretrained, self.init)
        if self.checkpoint is not None and (self.pretrained or self.init or self.whitened):
            raise UsageError("--checkpoint brings its own weights and layers; drop --pretrained, --init and --whitened")


def step(network: nn.Module, places: Sequence[PlaceTuple], config: Config, runtime: Runtime) -> Tensor:
    """Contrastive loss of a few tuples."""
    images = [runtime.to_device(image) for place in places for image in (place.query, *place.others)]
    with runtime.autocast():
        described = network(images).float().unflatten(0, (len(places), -1))
    return contrastive_loss(described[:, 0], described[:, 1:2], described[:, 2:], config.tuples.margin)


def main(config: Config) -> Path:
    """Train, and return the checkpoint of the best epoch on day validation images."""
    if config.quick:
        config = replaced(
            config,
            images={"size": 64},
            tuples={"queries": 8, "pool": 24, "negatives": 2},
            optim={"epochs": 2, "batch_size": 2},
            workers=0,
        )
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        if runtime.is_main:
            check_run_folder("visual-place-recognition", config)
        refuse_data_parallel(runtime)
        pairs = open_pairs(config.data, "train", config.images, config.quick, config.runs)
        EpochTuples.check(pairs, config.tuples)
        validation = open_pairs(config.data, "val", config.images, config.quick, config.runs)
        seed_globally(config.seed, "network")
        if config.checkpoint:
            network, settings = load_place_network(config.checkpoint, config.model)
        else:
            settings = settings_for(config.model, config.whitened)
            network = build_place_network(settings, config.pretrained, config.init)
        network = runtime.place(network)
        tuples, count = EpochTuples(), min(config.tuples.queries, len(pairs.queries))
        dataset = TrainingTuples(pairs.images, tuples, count, config.images.size)
        loader: DataLoader[Any] = epoch_loader(
            dataset, config.optim.batch_size, config.seed, config.workers, runtime, list
        )

        groups = parameter_groups(network, config.optim.lr, config.optim.weight_decay)
        optimizer = torch.optim.Adam(groups, config.optim.lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, math.exp(-0.01))
        parallel = runtime.parallel(ImagesOfManyShapes(network))

        used = {"training": pairs.fingerprint(), "validation": validation.fingerprint()}
        if config.checkpoint:
            used["--checkpoint"] = file_digest(config.checkpoint)
        if config.init:
            used["--init"] = file_digest(config.init)

        with Run("visual-place-recognition", config, runtime, joint_fingerprint(used)) as run:
            run.restore(network=network, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler, tuples=tuples)
            for epoch in run.epochs(config.optim.epochs):
                tuples.mine(
                    network, pairs, config.tuples, epoch, config.images.size, config.seed, runtime, config.workers
                )
                network.eval()  # gradients flow all the same; BatchNorm keeps its statistics, nothing is dropped
                for places in run.batches(loader, epoch):
                    optimizer.zero_grad(set_to_none=True)
                    total = torch.zeros((), device=runtime.device)
                    for _, few in few_at_a_time(places, config.optim.at_once, parallel):
                        loss = step(parallel, few, config, runtime)
                        total += loss.detach()
                        runtime.scaler.scale(loss).backward()
                    numbers = run.read_losses({"loss": total})
                    runtime.scaler.step(optimizer)
                    runtime.scaler.update()
                    run.record("train", numbers)
                schedule.step()
                score = day_precision(network, validation, config.images.size, runtime, workers=config.workers)
                run.record("validation", {"day": score})
                log.info("epoch %d: mean average precision by day %.1f %%", epoch + 1, 100 * score)
                if run.finish_epoch(score) and runtime.is_main:
                    save_place_network(network, settings, run.directory / "best.pt", to_plain(config))
                run.save()
            if runtime.is_main:
                draw_curves(run.directory / "metrics.jsonl", run.directory / "pictures" / "curves.png")
            log.info("best, epoch %d: %s", run.progress.best_epoch, run.directory / "best.pt")
            return run.directory / "best.pt"


if __name__ == "__main__":
    run_script(Config, main, __doc__)
