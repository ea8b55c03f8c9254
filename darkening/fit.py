"""Train a darkener against a frozen daytime model, from Python: no run folder, no flags.

Source: Luo et al., ICCV 2023 (image level, similarity minimisation).
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from darkening.darkener import Darkener, DarkenerSettings
from darkening.exposures import RequestConfig, as_clips, as_images
from darkening.losses import OBEDIENT_LOSS, DarkeningLoss
from darkening.planned_night import planned_night
from minmax.features import FeatureModel, check_intensities, independent_copy
from minmax.runtime.errors import check

Encoder = Callable[[Tensor], Sequence[Tensor]]
"""Images `(N, 3, H, W)`, or clips `(N, 3, T, H, W)`, in [0, 1] to features, as `feature_similarity` takes them."""


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
        check(self, "epochs", self.epochs >= 1, "1 or more")
        check(self, "batch_size", self.batch_size >= 1, "1 or more")
        check(self, "lr", self.lr > 0, "more than 0")
        check(self, "clip", self.clip > 0, "more than 0")
        check(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        check(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")

    def adam(self, darkener: Darkener) -> torch.optim.Adam:
        """The optimiser."""
        return torch.optim.Adam(darkener.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def rate_factor(self, epoch: float, step: int) -> float:
        """Share of the learning rate after `step` steps, which are `epoch` epochs: warm-up and tenfold falls in one.

        Two chained schedulers would not do: the warm-up's closed form undoes every fall.
        """
        return float(min(1.0, (step + 1) / (self.warmup_steps + 1)) * 0.1 ** sum(epoch >= m for m in self.milestones))


class Observer(nn.Module):
    """What the daytime model sees in images, in one forward pass that several devices can share out.

    Its predictions are None where `loss` does not ask for them, or where `encoder` is a function that has none.
    """

    def __init__(self, encoder: FeatureModel | Encoder, loss: DarkeningLoss) -> None:
        super().__init__()
        self.encoder, self.predicts = encoder, loss.recognisable > 0

    def forward(self, images: Tensor) -> tuple[Tensor | None, Sequence[Tensor]]:
        """Prediction and features of `(N, 3, H, W)` or `(N, 3, T, H, W)`."""
        if not isinstance(self.encoder, FeatureModel):
            features = self.encoder(images)
            if isinstance(features, Tensor):
                raise ValueError("encoder: expected a list of features; wrap a model: FeatureModel(model, [layer])")
            return None, features
        return self.encoder.with_features(images) if self.predicts else (None, self.encoder.features(images))


def darkening_step(
    darkener: Darkener,
    observe: Callable[[Tensor], tuple[Tensor | None, Sequence[Tensor]]] | None,
    day: Tensor,
    request: RequestConfig,
    loss: DarkeningLoss,
    generator: Callable[[str], torch.Generator],
    parallel: Callable[..., Any] | None = None,
    autocast: AbstractContextManager[Any] | None = None,
    sky: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of one step, by name: ask for an exposure, darken, compare with the day.

    Args:
        darkener: what learns.
        observe: an `Observer` of the frozen daytime model; None leaves the similarity out.
        day: `(N, 3, H, W)` images or `(N, 3, T, H, W)` clips in [0, 1]. The darkener sees single images, those of a
            clip with one request; the model sees the clip.
        request: what is asked for.
        loss: the terms and their weights.
        generator: gives the generator of the draws for a purpose, `exposure` or `camera`.
        parallel: the darkener spread over several devices.
        autocast: the precision of the daytime model.
        sky: where it is known which pixels are sky, 1 there and 0 elsewhere, `(N, 1, H, W)`: the darkener is then held
            to a `planned_night`, and to nothing that the model sees.
    """
    images, frames = as_images(day)
    exposure = request.draw(images, generator("exposure"), frames)
    drawn = darkener.draw(images, generator("camera"), frames=frames)
    darkening = (parallel or darkener)(images, exposure, *drawn)
    if sky is not None:
        plan = planned_night(images, sky, exposure)
        return loss(plan, darkening, plan.mean(dim=1, keepdim=True))
    if observe is None:
        return loss(images, darkening, exposure)
    # The tone curve stays in fp32: eight rounds of squaring leave nothing of a bf16 value.
    with autocast or nullcontext():
        with torch.no_grad():
            day_prediction, day_features = observe(day)
        dark = darkening.image if day.dim() == 4 else as_clips(darkening.image, frames)
        dark_prediction, dark_features = observe(dark)
    return loss(images, darkening, exposure, dark_features, day_features, dark_prediction, day_prediction)


def fit_darkener(
    darkener: Darkener | DarkenerSettings,
    day_images: Iterable[Any],
    encoder: FeatureModel | Encoder | None,
    *,
    epochs: int = 15,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    clip: float = 0.1,
    milestones: tuple[int, ...] = (5, 10),
    warmup_steps: int = 0,
    request: RequestConfig | None = None,
    loss: DarkeningLoss | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], object] | None = None,
) -> Darkener:
    """Train a darkener to be realistic, obedient and unlike the day to `encoder`; returns it in evaluation mode.

    Nothing that is given is changed: darkener and encoder are copied, and the copy of the encoder is frozen.

    Args:
        darkener: where to start, for instance `load_darkener("starting-point")`; or the settings of a fresh one.
        day_images: gone through once per epoch, so a list or a DataLoader: batches of `(N, 3, H, W)` images or
            `(N, 3, T, H, W)` clips in [0, 1], alone or first in a tuple, as in (images, labels).
        encoder: the daytime model, or a module or function from images to a list of its features, which normalises
            them itself. None trains for exposure and realism only.
        epochs: passes over the day images.
        lr: learning rate of Adam.
        weight_decay: of Adam.
        clip: largest norm of the gradient.
        milestones: the learning rate falls tenfold after these epochs.
        warmup_steps: the learning rate rises linearly over these steps.
        request: what is asked for; by default mean intensities from 0 to 0.5.
        loss: by default `OBEDIENT_LOSS`, for view scene with one mean for the whole image.
        device: by default that of the given darkener, or the CPU.
        seed: of everything random; torch's own generators are neither used nor changed.
        progress: called after every step with its epoch, its number, both from 0, and the losses by name.

    Raises:
        ValueError: names the argument that cannot be used.
    """
    view = (darkener if isinstance(darkener, DarkenerSettings) else darkener.settings).view
    optim = DarkenerOptim(epochs, 1, lr, weight_decay, clip, milestones, warmup_steps)
    request = request or RequestConfig()
    loss = loss or (replace(OBEDIENT_LOSS, exposure_patch=0) if view == "scene" else OBEDIENT_LOSS)
    if isinstance(darkener, DarkenerSettings):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            darkener = Darkener(darkener)
    device = device or next(darkener.parameters()).device
    darkener = copy.deepcopy(darkener).to(device).requires_grad_().train()
    darkener.trained_on = request
    check_training(darkener, encoder, loss)
    if isinstance(encoder, nn.Module):
        encoder = independent_copy(encoder).to(device).requires_grad_(False).eval()
    observe = None if encoder is None else Observer(encoder, loss)
    generator = torch.Generator().manual_seed(seed)
    optimizer = optim.adam(darkener)
    step = 0
    for epoch in range(epochs):
        first = step
        for day in _day_batches(day_images):
            optimizer.param_groups[0]["lr"] = lr * optim.rate_factor(epoch, step)
            losses = darkening_step(darkener, observe, day.to(device), request, loss, lambda _: generator)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            norm = nn.utils.clip_grad_norm_(darkener.parameters(), clip)
            numbers = {name: float(value.detach()) for name, value in losses.items()}
            if not all(map(math.isfinite, (*numbers.values(), float(norm)))):
                terms = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
                raise ValueError(f"lr {lr}: step {step} is not finite ({terms}, gradient norm {norm:.4g}); lower it")
            optimizer.step()
            if progress is not None:
                progress(epoch, step, numbers)
            step += 1
        if step == first:
            empty = "is empty" if epoch == 0 else "can be gone through only once; give a list or a DataLoader"
            raise ValueError(f"day_images {empty}")
    return darkener.eval()


def check_training(darkener: Darkener, encoder: object | None, loss: DarkeningLoss) -> None:
    """Refuse what cannot train: raises a ValueError."""
    view = darkener.settings.view
    if view == "scene" and encoder is not None:
        check(loss, "exposure_patch", loss.exposure_patch == 0, "0 for view scene: one mean for the whole image")
    if loss.recognisable and encoder is not None and not isinstance(encoder, FeatureModel):
        raise ValueError("encoder: recognisable nights need its predictions; give a FeatureModel, or recognisable=0")
    if view == "camera" and encoder is None:
        raise ValueError("encoder None: a darkener of view camera learns from an encoder's similarity alone")


def _day_batches(day_images: Iterable[Any]) -> Iterator[Tensor]:
    for batch in day_images:
        day = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(day, Tensor) or day.dim() not in (4, 5) or day.shape[1] != 3 or not day.is_floating_point():
            found = f"{day.dtype} {tuple(day.shape)}" if isinstance(day, Tensor) else type(day).__name__
            raise ValueError(f"day_images: expected batches (N, 3, H, W) or (N, 3, T, H, W) of floats, found {found}")
        check_intensities(day, "day_images")
        yield day
