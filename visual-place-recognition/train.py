"""Model level: adapt a retrieval network to the night with day images only (Luo et al., ICCV 2023).

    python visual-place-recognition/train.py --name adapt --checkpoint runs/visual-place-recognition/day/best.pt \
        --darkener runs/visual-place-recognition/darkener/best.pt

Each tuple is a query, the query darkened, an image of the same place and the hardest images of other places. The loss
is contrastive, with the darkened query as a second positive, plus BYOL's distance between the descriptors of the query
by day and by night. Gives runs/visual-place-recognition/adapt/{best,last-epoch}.pt for test.py. The defaults are the
authors' for SfM-120k (5 epochs of 22,000 tuples at 5e-7), with BYOL beside: their code has --byol.weight 0.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from descriptors import selection_score, warn_of_fall
from place_checkpoints import load_place_network, save_place_network
from place_images import DEFAULT_DATA, PlaceConfig
from place_network import build_projectors, parameter_groups
from place_pairs import open_pairs
from retrieval_pictures import draw_tuple
from torch import Tensor, nn
from tuple_mining import QUICK, EpochTuples, TupleConfig, contrastive_loss
from tuple_pair import ImagesOfManyShapes, TuplePair

from darkening.darkener_files import load_darkener
from darkening.night_view import NightConfig, build_night_view
from minmax.byol import ByolConfig, build_pair, byol_loss
from minmax.keep import KeepConfig, choose_mixture, day_losses, descriptor_distance, frozen_copy
from minmax.runtime.batches import epoch_loader, few_at_a_time
from minmax.runtime.config import CommonFlags, run_script, shrink_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.optimisation import OptimConfig
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import seed_globally

log = logging.getLogger(__name__)
TASK = "visual-place-recognition"


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Adapt a retrieval network to the night."""

    name: str = "adapt"
    """Name of the run; its folder is RUNS/visual-place-recognition/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with train/retrieval-SfM-120k/ or {train,val}/PLACE/day/, or `scenes` for the built-in data."""
    checkpoint: Path
    """The daytime network: a best.pt of train_day.py, a released checkpoint, a classifier's trunk, or bare weights."""
    model: str = "resnet101"
    """The network of torchvision whose bare weights --checkpoint holds, if it does."""
    darkener: Path | None = None
    """The darkener, a best.pt of train_darkener.py or the name of a shipped one; by default nights are made by hand."""
    images: PlaceConfig = field(default_factory=PlaceConfig)
    tuples: TupleConfig = field(default_factory=TupleConfig)
    night: NightConfig = field(default_factory=lambda: NightConfig(contrast=(0.5, 1.5), cell=8))
    # LayerNorm in the heads: equal formats alone go through the network together, one query by default, which has no
    # statistics of a batch.
    byol: ByolConfig = field(default_factory=lambda: ByolConfig(batch_norm="frozen", head_norm="layer"))

    keep: KeepConfig = field(default_factory=KeepConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(epochs=5, batch_size=5, at_once=1, lr=5e-7, head_lr=1e-3, weight_decay=1e-6)
    )

    def __post_init__(self) -> None:
        """Refuse settings that do not go with tuples."""
        super().__post_init__()
        if self.byol.distance != "byol":
            raise UsageError("--byol.distance cosine: the contrastive loss pulls day and night together so already")
        if self.byol.batch_norm != "frozen":
            raise UsageError(f"--byol.batch-norm {self.byol.batch_norm}: a few tuples have no statistics; use frozen")
        if self.byol.head_norm != "layer":
            raise UsageError("--byol.head-norm batch: a query of a format of its own is a batch of one; use layer")


def step(
    pair: nn.Module,
    daytime: nn.Module,
    days: list[Tensor],
    nights: list[Tensor],
    others: list[Tensor],
    config: Config,
    runtime: Runtime,
) -> dict[str, Tensor]:
    """The weighted losses of a few tuples, each a sum over them; `others` are the positive and negatives of each.

    `daytime` is the frozen model that the day is kept of: a data base that it described can still be searched in.
    """
    with runtime.autocast():
        compared, described = pair(days, nights, others)
        by_day = torch.cat([compared.day_prediction, described])
        kept = day_losses(config.keep, daytime, [*days, *others], by_day, descriptor_distance)
    query, night = compared.day_prediction.float(), compared.night_prediction.float()
    positive, negatives = described.float().unflatten(0, (len(days), -1)).split([1, config.tuples.negatives], dim=1)
    positives = torch.cat([night.unsqueeze(1), positive], dim=1)
    return {
        "contrastive": contrastive_loss(query, positives, negatives, config.tuples.margin),
        "byol": config.byol.weight * len(days) * byol_loss(compared),
        **kept,
    }


def main(config: Config) -> Path:
    """Adapt, and return the checkpoint of the last epoch."""
    if config.quick:
        config = shrink_settings(config, **QUICK, night={"cell": 16})
    with prepare_run(TASK, config) as runtime:
        network, settings = load_place_network(config.checkpoint, config.model)
        darkener = load_darkener(config.darkener) if config.darkener else None
        night_view = build_night_view(config.night, darkener, runtime)
        training = open_pairs(config.data, "train", config.images, config.quick, config.runs)
        validation = open_pairs(config.data, "val", config.images, config.quick, config.runs)
        tuples = EpochTuples(training, config.tuples, config.images.size, config.seed)
        loader = epoch_loader(tuples, config.optim.batch_size, config.seed, config.workers, runtime, list)
        seed_globally(config.seed, "heads")
        daytime = runtime.place(frozen_copy(network, config.keep))
        pair = runtime.place(build_pair(network, config.byol, build_projectors))
        groups = parameter_groups(pair.online, config.optim.lr, config.optim.weight_decay)
        optimizer, schedule = config.optim.build(pair, len(loader), groups=groups)
        parallel, frozen = runtime.joined(TuplePair(pair, runtime)), ImagesOfManyShapes(daytime, runtime)

        def validate() -> dict[str, float]:
            return selection_score(pair.online, validation, config.images.size, runtime, workers=config.workers)

        def save(path: Path) -> None:
            save_place_network(pair.online, settings, path, config)

        with Run(TASK, config, runtime, training=training, validation=validation) as run:
            run.restore(pair=pair, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler, tuples=tuples)
            if run.progress.step == 0:
                tuples.start_score = validate()["score"]
                log.info("before: mean average precision of day and darkened queries %.1f %%", 100 * tuples.start_score)
            for epoch in run.epochs(config.optim.epochs):
                tuples.mine(pair.online, epoch, runtime, config.workers)
                pair.eval()  # gradients flow all the same; BatchNorm keeps its statistics, nothing is dropped at random
                for batch in run.batches(loader, epoch):
                    for part in few_at_a_time(len(batch), config.optim.at_once, parallel):
                        few = batch[part]
                        days = [runtime.intensities(place.query) for place in few]
                        # One by one, so that a night depends neither on its neighbours nor on how many are at once.
                        nights = [
                            night_view(day[None], run.generator(f"night {number}"))[0]
                            for number, day in enumerate(days, part.start)
                        ]
                        others = [runtime.intensities(image) for place in few for image in place.others]
                        if run.progress.step == part.start == 0 and runtime.is_main:
                            draw_tuple(days[0], nights[0], others[: 1 + config.tuples.negatives], run.directory)
                        run.backward(step(parallel, frozen, days, nights, others, config, runtime))
                    run.step(optimizer, schedule)
                    pair.update_target()
                score = validate()
                run.finish_epoch(score, score["score"], save)
                warn_of_fall(score["score"], tuples.start_score, run)
            return run.finish(save, lambda: choose_mixture(pair.online, daytime, config.keep.shares, validate))


if __name__ == "__main__":
    run_script(Config, main, __doc__)
