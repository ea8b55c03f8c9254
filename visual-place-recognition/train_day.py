"""Fine-tune a retrieval network on day tuples: the model that the other scripts take into the night.

    python visual-place-recognition/train_day.py --name day --data scenes --images.size 96 \
        --checkpoint runs/classification/day/best.pt

Gives runs/visual-place-recognition/day/best.pt. Starts from ImageNet weights (--pretrained, or --init from a file), a
classifier's trunk or a retrieval checkpoint (--checkpoint), or from nothing. The defaults are those of Radenović et
al., TPAMI 2019, as the authors of the paper use them: contrastive loss, Adam at 1e-6 with a decay of exp(-0.01) an
epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from descriptors import precisions
from place_checkpoints import load_place_network, save_place_network
from place_images import DEFAULT_DATA, PlaceConfig
from place_network import build_place_network, parameter_groups, settings_for
from place_pairs import open_pairs
from torch import Tensor, nn
from tuple_mining import QUICK, EpochTuples, PlaceTuple, TupleConfig, contrastive_loss
from tuple_pair import ImagesOfManyShapes

from minmax.pretrained import refuse_two_starts
from minmax.runtime.batches import epoch_loader, few_at_a_time
from minmax.runtime.config import CommonFlags, run_script, shrink_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.optimisation import OptimConfig
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import seed_globally

TASK = "visual-place-recognition"


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
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            epochs=100, batch_size=5, at_once=1, lr=1e-6, weight_decay=1e-6, decay="exponential"
        )
    )

    def __post_init__(self) -> None:
        """Refuse flags that contradict each other."""
        super().__post_init__()
        refuse_two_starts(self.pretrained, self.init)
        if self.checkpoint is not None and (self.pretrained or self.init or self.whitened):
            raise UsageError("--checkpoint brings its own weights and layers; drop --pretrained, --init and --whitened")


def step(network: nn.Module, places: Sequence[PlaceTuple], config: Config, runtime: Runtime) -> Tensor:
    """Contrastive loss of a few tuples."""
    images = [runtime.intensities(image) for place in places for image in (place.query, *place.others)]
    with runtime.autocast():
        described = network(images).float().unflatten(0, (len(places), -1))
    return contrastive_loss(described[:, 0], described[:, 1:2], described[:, 2:], config.tuples.margin)


def main(config: Config) -> Path:
    """Train, and return the checkpoint of the best epoch on day validation images."""
    if config.quick:
        config = shrink_settings(config, **QUICK)
    with prepare_run(TASK, config) as runtime:
        training = open_pairs(config.data, "train", config.images, config.quick, config.runs)
        validation = open_pairs(config.data, "val", config.images, config.quick, config.runs)
        tuples = EpochTuples(training, config.tuples, config.images.size, config.seed)
        loader = epoch_loader(tuples, config.optim.batch_size, config.seed, config.workers, runtime, list)
        seed_globally(config.seed, "network")
        if config.checkpoint:
            network, settings = load_place_network(config.checkpoint, config.model)
        else:
            settings = settings_for(config.model, config.whitened)
            network = build_place_network(settings, config.pretrained, config.init)
        network = runtime.place(network)
        groups = parameter_groups(network, config.optim.lr, config.optim.weight_decay)
        optimizer, schedule = config.optim.build(network, len(loader), groups=groups)
        parallel = runtime.joined(ImagesOfManyShapes(network, runtime))

        def save(path: Path) -> None:
            save_place_network(network, settings, path, config)

        with Run(TASK, config, runtime, training=training, validation=validation) as run:
            run.restore(network=network, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler, tuples=tuples)
            for epoch in run.epochs(config.optim.epochs):
                tuples.mine(network, epoch, runtime, config.workers)
                network.eval()  # gradients flow all the same; BatchNorm keeps its statistics, nothing is dropped
                for batch in run.batches(loader, epoch):
                    for part in few_at_a_time(len(batch), config.optim.at_once, parallel):
                        run.backward({"loss": step(parallel, batch[part], config, runtime)})
                    run.step(optimizer, schedule)
                [score] = precisions(network, validation, config.images.size, runtime, workers=config.workers)
                run.finish_epoch({"day": score}, score, save)
            return run.finish()


if __name__ == "__main__":
    run_script(Config, main, __doc__)
