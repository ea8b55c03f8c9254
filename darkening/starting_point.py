"""A darkener to start from, trained on built-in scenes for exposure and realism only.

It has seen no photo, no night and no network to fool, but obeys the requested exposure; training against a user's own
day model starts here and needs a fraction of the steps. The file that ships was made by

    python -m darkening.starting_point --name starting-point

which writes `starting_point.safetensors` into its run; copy it beside this file to ship it.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from darkening.darkener import Darkener
from darkening.darkener_files import NIGHT_TO_LOOK_AT, SHIPPED, STARTING_POINT, save_darkener
from darkening.fit import DarkenerOptim
from darkening.pixel_view import DepthwiseSeparable
from darkening.training import TrainingFlags, obedience_table, train_darkener
from minmax.runtime.batches import epoch_loader
from minmax.runtime.config import run_script, shrink_settings
from minmax.runtime.errors import UsageError
from minmax.runtime.run import Run, prepare_run
from minmax.runtime.seeding import derive_seed, seed_globally
from minmax.runtime.splits import OnePerExample
from scenes import render_labelled, render_segmented

log = logging.getLogger(__name__)

SKY = 10  # train id
TRAINING_SEED, VALIDATION_SEED = 11, 12  # other scenes than those of any task


@torch.no_grad()
def open_exposure_path(darkener: Darkener) -> None:
    """Initialise a darkener so that its output depends on the requested exposure from the first step.

    Under torch's initialisation the exposure is one weak input among four, and training falls into the darkest of
    all tone curves long before it learns to listen.
    """
    units = [unit for unit in darkener.estimator.modules() if isinstance(unit, DepthwiseSeparable)]
    first, last = units[0], units[-1]
    first.depthwise.weight[3:].zero_()
    first.depthwise.weight[3:, 0, 1, 1] = 1.0  # the exposure passes the first filter unchanged
    first.depthwise.get_parameter("bias")[3:].zero_()
    first.pointwise.weight[:, 3:].normal_(std=0.7)
    for unit in units[1:-1]:
        nn.init.kaiming_normal_(unit.pointwise.weight, nonlinearity="relu")
        unit.pointwise.get_parameter("bias").zero_()
        unit.depthwise.weight.mul_(0.5)
        unit.depthwise.weight[:, 0, 1, 1] += 0.75  # near the identity, so that signals survive eight units
    last.pointwise.weight.mul_(0.1)  # tone curves start near the identity, away from tanh's flat ends
    last.pointwise.get_parameter("bias").zero_()


class VariedScenes(OnePerExample[Tensor]):
    """Crops of day scenes in many exposures and white balances, indexed by (epoch, image).

    Users' photos hold what scenes lack: burnt-out skies, walls that fill the frame, dim corners.

    Args:
        count: how many.
        size: height and width of the crops in pixels; the scenes are twice as large.
        seed: of scenes and crops.
        cache: folder that keeps the scenes.
        sky: whether a fourth channel tells where the sky is, and contrast varies too.
    """

    def __init__(self, count: int, size: int, seed: int, cache: Path, sky: bool = False) -> None:
        self.seed, self.sky = seed, sky
        render = render_segmented if sky else render_labelled
        images, labels = render("day", count, 2 * size, seed, cache_dir=cache)
        super().__init__(images)
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels)
        self.crop = v2.RandomResizedCrop(size, scale=(0.04, 1.0), antialias=True)

    def __getitem__(self, position: tuple[int, int]) -> Tensor:
        """Image `position[1]` as `(3, H, W)` or, with the sky, `(4, H, W)` in [0, 1]."""
        index = position[1]
        image = self.images[index].permute(2, 0, 1)
        if self.sky:
            image = torch.cat([image, (self.labels[index] == SKY).to(torch.uint8)[None] * 255])
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(derive_seed(self.seed, *position))
            image = self.crop(image) / 255.0
            gain = torch.empty(1).uniform_(-1.2, 1.2).exp() * torch.empty(3, 1, 1).uniform_(0.8, 1.2)
            power = torch.empty(1).uniform_(0.6, 2.0) if self.sky else 1.0
        varied: Tensor = (image[:3] * gain).clamp(0.0, 1.0) ** power
        return torch.cat([varied, image[3:].round()])


@dataclass(frozen=True, kw_only=True)
class Config(TrainingFlags):
    """Train the starting point of all darkeners on built-in scenes."""

    name: str = STARTING_POINT
    """Name of the run; its folder is RUNS/darkening/NAME and must not exist yet."""
    count: int = 2048
    """Day scenes to train on."""
    size: int = 32
    """Height and width of the crops in pixels; the scenes are twice as large."""
    optim: DarkenerOptim = field(
        default_factory=lambda: DarkenerOptim(epochs=16, lr=1.5e-3, clip=1.0, milestones=(), warmup_steps=100)
    )


def main(config: Config) -> Path:
    """Train, and return the safetensors file."""
    if config.darkener.view == "camera":
        raise UsageError("--darkener.view camera: expected pixels or scene; a camera starts as a night made by hand")
    if config.data != "scenes" or config.precision != "fp32":
        raise UsageError("the starting point is trained on --data scenes in --precision fp32 only")
    if config.quick:
        config = shrink_settings(config, count=64, size=32, optim={"epochs": 1})
    with prepare_run("darkening", config) as runtime:
        cache = config.runs / "scenes"
        scene = config.darkener.view == "scene"  # a night to look at, which learns what becomes of the sky
        training = VariedScenes(config.count, config.size, TRAINING_SEED, cache, sky=scene)
        held_out = VariedScenes(256, config.size, VALIDATION_SEED, cache)
        validation = torch.stack([held_out[0, index] for index in range(len(held_out))])
        loader = epoch_loader(training, config.optim.batch_size, config.seed, config.workers, runtime)
        seed_globally(config.seed, "darkener")
        darkener = Darkener(config.darkener)
        open_exposure_path(darkener)
        runtime.place(darkener)
        with Run("darkening", config, runtime) as run:
            train_darkener(darkener, None, loader, validation, config, run, runtime)
            path = run.directory / SHIPPED[NIGHT_TO_LOOK_AT if scene else STARTING_POINT].name
            if runtime.is_main:
                save_darkener(darkener, path)
            table = obedience_table(darkener, validation, runtime)
            log.info("on %d held-out day scenes:\n%s\n%s", len(validation), table, path)
            return path


if __name__ == "__main__":
    run_script(Config, main, __doc__)
