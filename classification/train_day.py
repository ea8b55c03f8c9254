"""Train a daytime classifier: the model that the other scripts take into the night.

    python classification/train_day.py --name day --data scenes --images.size 64

Gives runs/classification/day/best.pt, the checkpoint for train_darkener.py and train.py. Skip it when you have one.
The authors supply daytime checkpoints without their training script, so these defaults are ours: Adam, cosine decay.
With --init it fine-tunes weights in a file, such as those of ImageNet, for the classes of the data.
"""

from dataclasses import dataclass, field
from pathlib import Path

from class_accuracy import measure
from class_folders import DEFAULT_DATA, ImageConfig, TrainingViews, open_split
from classifier import NormalizationFlag, build_classifier, classifier_settings, save_classifier
from torch import Tensor, nn

from minmax.adapt import cross_entropy
from minmax.augmentation import AugmentConfig
from minmax.photometric_jitter import jitter
from minmax.pretrained import refuse_two_starts, require_size
from minmax.runtime.batches import epoch_loader, few_at_a_time
from minmax.runtime.config import CommonFlags, require, run_script, shrink_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.optimisation import OptimConfig
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import seed_globally

TASK = "classification"


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Train a daytime classifier."""

    name: str = "day"
    """Name of the run; its folder is RUNS/classification/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder with train/ and val/ in class folders, or `scenes` for the built-in data."""
    model: str = "resnet18"
    """Architecture: a name of torchvision's (resnet50, convnext_tiny, vit_b_16, ...), or one of timm's as timm/NAME."""
    pretrained: bool = False
    """Start from the published ImageNet weights."""
    init: Path | None = None
    """Start from the weights in this file: a state_dict under the model's own names; a last layer of another number of
    classes is made anew."""
    normalization: NormalizationFlag = "auto"
    """Statistics by which the network's first layer normalises its input; auto: as its published weights expect;
    ciconv: the colour invariant of Lengyel et al. instead, a rival of adaptation."""
    jitter: float = 0.3
    """Strength of the random brightness, contrast, saturation and hue."""
    images: ImageConfig = field(default_factory=ImageConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(decay="cosine"))

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(0 <= self.jitter <= 0.5, "--jitter", self.jitter, "0 to 0.5")
        refuse_two_starts(self.pretrained, self.init)


def step(network: nn.Module, images: Tensor, labels: Tensor, runtime: Runtime) -> Tensor:
    """Cross-entropy of one batch."""
    with runtime.autocast():
        logits = network(images)
    return cross_entropy(logits, labels)


def main(config: Config) -> Path:
    """Train, and return the checkpoint of the best epoch on day validation images."""
    if config.quick:
        config = shrink_settings(config, images={"size": 32}, optim={"epochs": 2, "batch_size": 16}, workers=0)
    with prepare_run(TASK, config) as runtime:
        runtime.require_pairs(config.optim.batch_size, config.optim.at_once)
        training = open_split(config.data, "train", config.images, quick=config.quick, cache=config.runs)
        validation = open_split(config.data, "val", config.images, training.classes, config.quick, config.runs)
        seed_globally(config.seed, "network")
        settings = classifier_settings(config.model, training.classes, config.images.size, config.normalization)
        network = runtime.place(build_classifier(settings, config.pretrained, config.init))
        require_size(network, "--images.size", config.images.size, config.images.size)
        dataset = TrainingViews(training, config.images.size, config.seed, config.augment.flip)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)

        optimizer, schedule = config.optim.build(network, len(loader))
        parallel = runtime.parallel(network)

        def save(path: Path) -> None:
            save_classifier(network, settings, path, config)

        with Run(TASK, config, runtime, training=training, validation=validation) as run:
            run.restore(network=network, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                network.train()
                for views in run.batches(loader, epoch):
                    images = jitter(runtime.intensities(views.day), config.jitter, run.generator("jitter"))
                    labels = runtime.to_device(views.label)
                    for few in few_at_a_time(len(labels), config.optim.at_once, parallel):
                        loss = step(parallel, images[few], labels[few], runtime)
                        run.backward({"loss": loss}, len(labels[few]) / len(labels))
                    run.step(optimizer, schedule)
                [accuracy] = measure(network, validation, config.images, runtime)
                run.finish_epoch({"day": accuracy.balanced}, accuracy.balanced, save)
            return run.finish()


if __name__ == "__main__":
    run_script(Config, main, __doc__)
