"""The one loop that trains a darkener against a frozen daytime model.

Source: Luo et al., ICCV 2023 (image level, similarity minimisation).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from darkening.camera import SHARED_DRAWS
from darkening.contact_sheet import contact_sheet
from darkening.curve_estimator import Darkener, save_darkener
from darkening.losses import DarkeningLoss
from darkening.night_view import as_clips, as_images, follow_day, trained_request, uniform, within_training
from darkening.scene_view import planned_night
from minmax.features import FeatureModel, freeze
from minmax.runtime.config import require, require_range
from minmax.runtime.devices import Runtime
from minmax.runtime.report import draw_curves, markdown_table, save_picture
from minmax.runtime.run import Run

log = logging.getLogger(__name__)

REPORTED_EXPOSURES = (0.05, 0.1, 0.2, 0.3, 0.4)
VALIDATION_PIXELS = 2**20  # at a time


@dataclass(frozen=True)
class DarkenerOptim:
    """Optimisation of the darkener; the defaults are the paper's for classification and segmentation."""

    epochs: int = 15
    """Passes over the day images."""
    batch_size: int = 16
    """Images per step and process."""
    lr: float = 1e-4
    """Learning rate of Adam."""
    weight_decay: float = 1e-4
    """Weight decay of Adam."""
    clip: float = 0.1
    """Largest norm of the gradient."""
    milestones: tuple[int, ...] = (5, 10)
    """The learning rate falls tenfold after these epochs."""
    warmup_steps: int = 0
    """The learning rate rises linearly over these steps."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.epochs >= 1, "--optim.epochs", self.epochs, "1 or more")
        require(self.batch_size >= 1, "--optim.batch-size", self.batch_size, "1 or more")
        require(self.lr > 0, "--optim.lr", self.lr, "more than 0")
        require(self.clip > 0, "--optim.clip", self.clip, "more than 0")
        require(self.weight_decay >= 0, "--optim.weight-decay", self.weight_decay, "0 or more")
        require(self.warmup_steps >= 0, "--optim.warmup-steps", self.warmup_steps, "0 or more")

    def rate_factor(self, epoch: float, step: int) -> float:
        """Share of the learning rate after `step` steps, which are `epoch` epochs: warm-up and tenfold falls in one.

        Two chained schedulers would not do: the warm-up's closed form undoes every fall.
        """
        return float(min(1.0, (step + 1) / (self.warmup_steps + 1)) * 0.1 ** sum(epoch >= m for m in self.milestones))


@dataclass(frozen=True)
class RequestConfig:
    """What the darkener is asked for in training."""

    exposure: tuple[float, float] = (0.0, 0.5)
    """Range of requested mean intensities; wider than the one used for adaptation."""
    contrast: tuple[float, float] = (0.0, 0.0)
    """Power by which the request follows the day's brightness from cell to cell, drawn per image; 0: it is even."""
    cell: int = 8
    """Side of the cells of contrast, in pixels."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_range("--request.exposure", self.exposure, 0.0, 1.0)
        require_range("--request.contrast", self.contrast, 0.0, 4.0)
        require(self.cell >= 1, "--request.cell", self.cell, "1 or more")

    def draw(self, images: Tensor, generator: torch.Generator, frames: int = 1) -> Tensor:
        """One request for each of `images` `(N, 3, H, W)`: `(N, 1, 1, 1)`, or a map `(N, 1, H, W)` in [0, 1].

        None is brighter in the mean than its image.

        With `frames`, so many images in a row are a clip and share what is drawn.
        """
        count = len(images) // frames
        exposure = uniform(self.exposure, count, generator).repeat_interleave(frames, dim=0).to(images)
        if self.contrast != (0.0, 0.0):
            power = uniform(self.contrast, count, generator).repeat_interleave(frames, dim=0)
            exposure = follow_day(images, exposure, power, self.cell)
        return within_training(images, exposure, self.exposure, self.contrast)


@dataclass(frozen=True)
class DarkenerTraining:
    """How a darkener is trained."""

    request: RequestConfig = field(default_factory=RequestConfig)
    loss: DarkeningLoss = field(default_factory=DarkeningLoss)
    optim: DarkenerOptim = field(default_factory=DarkenerOptim)


def train_darkener(
    darkener: Darkener,
    encoder: FeatureModel | None,
    loader: DataLoader[Tensor],
    validation: Tensor,
    config: DarkenerTraining,
    run: Run,
    runtime: Runtime,
) -> None:
    """Train `darkener` in place to be realistic, obedient and unlike the day to `encoder`.

    Args:
        darkener: placed on the device.
        encoder: the daytime model, frozen here; None trains for exposure and realism only.
        loader: batches of `(N, 3, H, W)` day images or `(N, 3, T, H, W)` day clips in [0, 1], drawn by `EpochBatches`;
            the frames of a clip share one request, and the encoder sees the clip. A fourth channel may tell where
            the sky is; images are then held to `planned_night`, whatever the encoder.
        validation: held-out day images `(N, 3, H, W)` on which obedience is measured after every epoch.
        config: losses and optimisation.
        run: the opened run.
        runtime: its devices.
    """
    optim, camera = config.optim, darkener.settings.view == "camera"
    if darkener.settings.view == "scene" and encoder is not None:
        patch = config.loss.exposure_patch
        require(patch == 0, "--loss.exposure-patch", patch, "0 for --darkener.view scene: one mean for the whole image")
    if camera and encoder is None:
        raise ValueError("a darkener of view camera learns from an encoder's similarity alone, and none is given")
    darkener.settings = replace(
        darkener.settings, trained_exposure=config.request.exposure, trained_contrast=config.request.contrast
    )
    optimizer = torch.optim.Adam(darkener.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    steps_per_epoch = loader.batch_sampler.batches_per_epoch  # type: ignore[union-attr]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: optim.rate_factor(step / steps_per_epoch, step)
    )
    parallel = runtime.parallel(darkener)
    if encoder is not None:
        freeze(encoder)
    run.restore(darkener=darkener, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
    for epoch in run.epochs(optim.epochs):
        darkener.train()
        for batch in run.batches(loader, epoch):
            day = runtime.intensities(batch)
            images, frames = as_images(day)
            images, sky = images[:, :3], images[:, 3:]
            exposure = config.request.draw(images, run.generator("exposure"), frames)
            darkening = parallel(images, exposure, *(_draw_cameras(images, frames, run) if camera else ()))
            if sky.shape[1]:
                plan = planned_night(images, sky, exposure)
                losses = config.loss(plan, darkening, plan.mean(dim=1, keepdim=True))
            elif encoder is None:
                losses = config.loss(images, darkening, exposure)
            else:
                # The tone curve stays in fp32: eight rounds of squaring leave nothing of a bf16 value.
                with runtime.autocast():
                    with torch.no_grad():
                        day_features = encoder.features(day)
                    dark_features = encoder.features(
                        darkening.image if day.dim() == 4 else as_clips(darkening.image, frames)
                    )
                losses = config.loss(images, darkening, exposure, dark_features, day_features)
            run.update(optimizer, losses, schedule, optim.clip)
        means = obedience(darkener, validation, runtime)
        errors = [abs(mean - wanted) for wanted, mean in means.values()]
        log.info("epoch %d: largest distance from min(request, day) %.3f", epoch + 1, max(errors))
        run.finish_epoch({f"mean_at_{asked}": mean for asked, (_, mean) in means.items()})


def _draw_cameras(images: Tensor, frames: int, run: Run) -> tuple[Tensor, Tensor]:
    """Draws, which so many frames in a row share, and noise for a darkener of view camera."""
    generator = run.generator("camera")
    draws = torch.rand(len(images) // frames, SHARED_DRAWS, generator=generator).repeat_interleave(frames, dim=0)
    return draws.to(images), torch.randn(images.shape, generator=generator).to(images)


def save_and_show(
    darkener: Darkener,
    validation: Tensor,
    request: RequestConfig,
    flags: Mapping[str, Any],
    run: Run,
    runtime: Runtime,
    columns: int = 8,
) -> Path:
    """Save a trained darkener as `best.pt` of its run, with pictures of what it does, and log how it obeys.

    Args:
        darkener: trained.
        validation: held-out day images `(N, 3, H, W)` in [0, 1].
        request: what it was trained on; the pictures ask for its mean contrast.
        flags: of the run, kept in the checkpoint.
        run: the run.
        runtime: its devices.
        columns: at most so many images, evenly spaced over `validation`, in the picture.
    """
    best = run.directory / "best.pt"
    if runtime.is_main:
        save_darkener(darkener, best, flags)
        shown = validation[:: max(1, len(validation) // columns)][:columns]
        sheet = contact_sheet(darkener, shown, runtime, contrast=sum(request.contrast) / 2, cell=request.cell)
        save_picture(sheet, run.directory / "pictures" / "darkened.png")
        draw_curves(run.directory / "metrics.jsonl", run.directory / "pictures" / "curves.png")
    means = obedience(darkener, validation, runtime)
    log.info("on %d held-out day images:\n%s", len(validation), obedience_table(means))
    log.info("darkener: %s", best)
    return best


@torch.no_grad()
def obedience(darkener: Darkener, images: Tensor, runtime: Runtime) -> dict[float, tuple[float, float]]:
    """Of day `images` `(N, 3, H, W)`, for each of `REPORTED_EXPOSURES`, what it asks for and what it gets.

    Both are means over images: of min(request, the day's mean), and of the darkened image's intensity, of view camera
    before its noise.
    """
    darkener.eval()
    totals = {asked: torch.zeros(2) for asked in REPORTED_EXPOSURES}
    for chunk in images.split(max(1, VALIDATION_PIXELS // (images.shape[-2] * images.shape[-1]))):
        day = runtime.to_device(chunk)
        for asked, total in totals.items():
            darkened = darkener.darken(day, trained_request(darkener, day, torch.full((len(day), 1, 1, 1), asked)))
            wanted = day.mean(dim=(1, 2, 3)).clamp(max=asked).sum()
            total += torch.stack([wanted, darkened.mean(dim=(1, 2, 3)).sum()]).cpu() / len(images)
    return {asked: (float(wanted), float(mean)) for asked, (wanted, mean) in totals.items()}


def obedience_table(means: dict[float, tuple[float, float]]) -> str:
    """What is asked for and obtained as Markdown."""
    rows = [
        [f"{asked:.2f}", f"{wanted:.3f}", f"{mean:.3f}", f"{mean - wanted:+.3f}"]
        for asked, (wanted, mean) in means.items()
    ]
    return markdown_table(["requested", "or the day's mean", "mean of the output", "difference"], rows)
