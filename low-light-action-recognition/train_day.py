"""Train a daytime action recogniser: the model that the other scripts take into the dark.

    python low-light-action-recognition/train_day.py --name day --data scenes --clips.length 8 --clips.size 48 \
        --model i3d_resnet18 --width 32 --time-stride 1 --optim.method adamw --optim.batch-size 8 --optim.lr 1e-3

Gives runs/low-light-action-recognition/day/best.pt, the checkpoint for train_darkener.py and train.py. Skip it when you
have one. The defaults are the paper's: I3D-ResNet50, 50 epochs of 32 clips of 16 frames, SGD; it starts from weights of
Kinetics, here with --pretrained from those of ImageNet.
"""

from dataclasses import dataclass, field
from pathlib import Path

from clip_accuracy import measure
from clip_optim import ClipOptim
from clip_sets import open_clips
from clip_views import TrainingClips
from clips import ClipConfig
from hls_shift import shift_hls
from recogniser import RecogniserSettings, build_recogniser, expected_normalization, save_recogniser
from torch import Tensor, nn
from video_trees import DEFAULT_DATA

from minmax.adapt import cross_entropy
from minmax.augmentation import AugmentConfig
from minmax.pretrained import refuse_two_starts
from minmax.runtime.batches import epoch_loader, few_at_a_time
from minmax.runtime.config import CommonFlags, require, run_script, shrink_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import seed_globally

TASK = "low-light-action-recognition"


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    """Train a daytime action recogniser."""

    name: str = "day"
    """Name of the run; its folder is RUNS/low-light-action-recognition/NAME and must not exist yet."""
    data: str = str(DEFAULT_DATA)
    """Folder of the data set (README.md has the layouts), or `scenes` for the built-in clips."""
    model: str = "i3d_resnet50"
    """i3d_resnet18, i3d_resnet34, i3d_resnet50, i3d_resnet101, r3d_18, r2plus1d_18 or mc3_18."""
    width: int = 64
    """Channels of an I3D's stem; less makes a smaller network."""
    time_stride: int = 2
    """Steps in which an I3D's stem goes through time; 1 keeps the frames of clips of 8 or fewer."""
    pretrained: bool = False
    """Start an I3D from ImageNet weights spread over time, torchvision's 3D ResNets from Kinetics-400's."""
    init: Path | None = None
    """Start from the weights in this file: an I3D from its backbone's for images or its own, others from their own."""
    shift: float = 1.0
    """Strength of the random hue, lightness and saturation, in units of the authors'."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: ClipOptim = field(default_factory=lambda: ClipOptim(epochs=50, batch_size=32, lr=0.01))

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(self.shift >= 0, "--shift", self.shift, "0 or more")
        refuse_two_starts(self.pretrained, self.init)


def step(network: nn.Module, day: Tensor, labels: Tensor, runtime: Runtime) -> Tensor:
    """Cross-entropy of one batch."""
    with runtime.autocast():
        logits = network(day)
    return cross_entropy(logits, labels)


def main(config: Config) -> Path:
    """Train, and return the checkpoint of the best epoch on day validation clips."""
    if config.quick:
        config = shrink_settings(
            config, clips={"length": 4, "size": 32}, optim={"epochs": 2, "batch_size": 8}, workers=0
        )
    with prepare_run(TASK, config) as runtime:
        runtime.require_pairs(config.optim.batch_size, config.optim.at_once)
        training = open_clips(config.data, "train", config.clips, quick=config.quick, cache=config.runs)
        validation = open_clips(config.data, "val", config.clips, training.classes, config.quick, config.runs)
        seed_globally(config.seed, "network")
        normalization = expected_normalization(config.model, config.pretrained, config.init)
        settings = RecogniserSettings(config.model, training.classes, normalization, config.width, config.time_stride)
        network = runtime.place(build_recogniser(settings, config.pretrained, config.init))
        dataset = TrainingClips(training, config.clips, config.seed, flip=config.augment.flip)
        loader = epoch_loader(dataset, config.optim.batch_size, config.seed, config.workers, runtime)
        optimizer, schedule = config.optim.build(network, len(loader))
        parallel = runtime.parallel(network)

        def save(path: Path) -> None:
            save_recogniser(network, settings, path, config)

        with Run(TASK, config, runtime, training=training, validation=validation) as run:
            run.restore(network=network, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
            for epoch in run.epochs(config.optim.epochs):
                network.train()
                for views in run.batches(loader, epoch):
                    day = shift_hls(runtime.intensities(views.day), config.shift, run.generator("shift"))
                    labels = runtime.to_device(views.label)
                    for few in few_at_a_time(len(labels), config.optim.at_once, parallel):
                        loss = step(parallel, day[few], labels[few], runtime)
                        run.backward({"loss": loss}, len(labels[few]) / len(labels))
                    run.step(optimizer, schedule)
                [found] = measure(network, validation, config.clips, runtime, rounds=1, workers=config.workers)
                score = found.top1
                run.finish_epoch({"day": score}, score, save)
            return run.finish()


if __name__ == "__main__":
    run_script(Config, main, __doc__)
