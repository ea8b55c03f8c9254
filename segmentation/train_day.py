"""Train a daytime segmentation network: the model that the other scripts take into the night.

    python segmentation/train_day.py --name day --data scenes --images.size 96 96 --model refinenet_resnet18 --width 64

Gives runs/segmentation/day/best.pt, the checkpoint for train_darkener.py and train.py. Skip it when you have one. The
authors supply daytime checkpoints without their training script, so these defaults are ours: AdamW, polynomial decay.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cityscapes import DEFAULT_DATA, open_streets
from miou import measure
from segmenter import SegmenterSettings, build_segmenter, pixel_cross_entropy, save_segmenter
from street_images import StreetConfig, TrainingStreets
from street_labels import CLASSES
from street_photometry import PhotometryConfig, change_views
from torch import Tensor, nn

from minmax.augmentation import AugmentConfig
from minmax.pretrained import refuse_two_starts, require_size
from minmax.runtime.batches import epoch_loader, few_at_a_time
from minmax.runtime.config import CommonFlags, run_script, shrink_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.optimisation import OptimConfig
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import seed_globally

TASK = "segmentation"


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
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            epochs=100, batch_size=4, method="adamw", lr=1e-4, weight_decay=1e-4, decay="polynomial"
        )
    )

    def __post_init__(self) -> None:
        """Refuse flags that contradict each other."""
        super().__post_init__()
        refuse_two_starts(self.pretrained, self.init)


def step(network: nn.Module, images: Tensor, labels: Tensor, runtime: Runtime) -> Tensor:
    """Cross-entropy of one batch."""
    with runtime.autocast():
        logits = network(images)
    return pixel_cross_entropy(logits, labels)


def main(config: Config) -> Path:
    """Train, and return the checkpoint of the best epoch on day validation images."""
    if config.quick:
        config = shrink_settings(
            config, images={"size": (64, 64), "crop": None}, optim={"epochs": 2, "batch_size": 4}, workers=0
        )
    with prepare_run(TASK, config) as runtime:
        runtime.require_pairs(config.optim.batch_size, config.optim.at_once)
        seed_globally(config.seed, "network")
        settings = SegmenterSettings(config.model, len(CLASSES), config.width)
        network = runtime.place(build_segmenter(settings, config.pretrained, config.init))
        require_size(network, "--images.size", *config.images.size)
        require_size(network, "--images.crop", *config.images.crop_size)
        training = open_streets(config.data, "train", config.images, config.quick, config.runs)
        validation = open_streets(config.data, "val", config.images, config.quick, config.runs)
        dataset = TrainingStreets(training, config.images, config.seed, flip=config.augment.flip)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        optimizer, schedule = config.optim.build(network, len(loader))
        parallel = runtime.parallel(network)

        def save(path: Path) -> None:
            save_segmenter(network, settings, path, config)

        with Run(TASK, config, runtime, training=training, validation=validation) as run:
            run.restore(network=network, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                network.train()
                for views in run.batches(loader, epoch):
                    images, labels = runtime.intensities(views.day), runtime.to_device(views.label)
                    [images], labels = change_views([images], labels, config.photometry, run.generator("photometry"))
                    for few in few_at_a_time(len(labels), config.optim.at_once, parallel):
                        loss = step(parallel, images[few], labels[few], runtime)
                        run.backward({"loss": loss}, len(labels[few]) / len(labels))
                    run.step(optimizer, schedule)
                [found] = measure(network, validation, config.images.size, runtime, workers=config.workers)
                score = found.mean("occurring")
                run.finish_epoch({"day": score}, score, save)
            return run.finish()


if __name__ == "__main__":
    run_script(Config, main, __doc__)
