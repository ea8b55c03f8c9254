"""Adapt any model to the night with day images only, from Python: the model level of Similarity Min-Max.

    night = NightView("gamma", exposure=(0.05, 0.4), camera=CameraConfig(share=1))
    adapted = adapt(model, day_loader, F.cross_entropy, night, features=["layer4"], epochs=4)

Source: Luo et al., ICCV 2023, section 3.3. The task folders' train.py write the same loop out, with their data, runs
and several devices; whoever has a loop already takes `MomentumPair` and `adaptation_losses` into it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from minmax.byol import BatchNormDomains, ByolConfig, HeadNorm, Pair, build_pair, byol_loss
from minmax.features import FeatureModel, check_intensities, independent_copy, last_feature_layer
from minmax.similarity import at_least_float32


def adapt(
    model: nn.Module,
    day: Iterable[tuple[Tensor, Any]],
    loss: Callable[[Any, Any], Tensor],
    night: Callable[[Tensor], Tensor],
    *,
    features: Sequence[str] = (),
    epochs: int = 4,
    lr: float = 3e-4,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    byol_weight: float = 0.1,
    batch_norm: BatchNormDomains = "joint",
    head_norm: HeadNorm = "batch",
    targets_to_model: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int, Mapping[str, float]], object] | None = None,
) -> nn.Module:
    """A copy of `model`, fine-tuned so that day images and their darkened twins look alike to it.

    Each step sees a batch as it is and darkened; it minimises the task's loss on both, plus BYOL's distance between
    their features. AdamW; the learning rate falls tenfold for the last quarter of the epochs.

    Args:
        model: the daytime model, or a `FeatureModel` around it, which says how its input is normalised; not changed.
        day: batches of images `(N, 3, H, W)` in [0, 1] and targets; gone through once per epoch.
        loss: (prediction, targets) to a scalar.
        night: images to dark images of the same shape, such as a `NightView`; on the model's device, without gradients.
        features: paths of the layers whose outputs are compared; by default the last map or tokens, and those of a
            `FeatureModel` are its own.
        epochs: passes over `day`.
        lr: learning rate.
        optimizer: parameters to an optimiser, in place of AdamW.
        byol_weight: of BYOL's distance; with 0 the model only learns its task on both.
        batch_norm: whose statistics normalise the two views, as for `MomentumPair`.
        head_norm: of BYOL's heads; `layer` for batches of few images.
        targets_to_model: call `model(images, targets)`, as torchvision's detectors want in training; their prediction
            is then a mapping of losses.
        device: where to train; by default where the model is.
        progress: is told the epoch, counted from 1, and the mean losses of it.

    Returns:
        The adapted model, of the class and with the tensor names of `model`, in evaluation mode on the device.

    Raises:
        ValueError: for a layer that is not there, a frozen model, an empty `day`, or a loss that is not finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs: expected 1 or more, got {epochs}")
    network = independent_copy(model)
    place = torch.device(device) if device is not None else next(network.parameters()).device
    if iter(day) is day:
        raise ValueError("day: can be gone through only once; expected a DataLoader or a list")
    first = next(iter(day), None)
    if first is None:
        raise ValueError("day: it holds no batch")
    if not isinstance(first, list | tuple) or len(first) != 2:
        raise ValueError("day: expected batches of two, images and targets")
    check_intensities(first[0], "day")
    if not callable(night):
        raise ValueError(f"night: expected a NightView or another function of images, found {night!r}")
    network = _as_feature_model(network, features, first[0][:2]).to(place)
    config = ByolConfig(byol_weight, batch_norm=batch_norm, head_norm=head_norm)
    pair = build_pair(network, config).to(place).train()
    trained = [parameter for parameter in pair.parameters() if parameter.requires_grad]
    fused = place.type in ("cpu", "cuda", "mps")
    chosen = optimizer(trained) if optimizer else torch.optim.AdamW(trained, lr, weight_decay=0.01, fused=fused)
    schedule = torch.optim.lr_scheduler.MultiStepLR(chosen, [max(1, round(0.75 * epochs))])
    for epoch in range(1, epochs + 1):
        steps = []
        for batch in day:
            images, targets = tree_map_only(Tensor, lambda part: part.to(place, non_blocking=True), batch)
            with torch.no_grad():
                dark = night(images)
            outputs = pair(images, dark, targets) if targets_to_model else pair(images, dark)
            losses = adaptation_losses(outputs, targets, loss, byol_weight)
            chosen.zero_grad(set_to_none=True)
            found = torch.stack(list(losses.values()))
            found.sum().backward()
            chosen.step()
            pair.update_target()
            steps.append(found.detach())
        means = dict(zip(losses, torch.stack(steps).mean(dim=0).tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            raise ValueError(f"epoch {epoch}: the losses are {means}")
        schedule.step()
        if progress:
            progress(epoch, means)
    network.eval()
    return network if isinstance(model, FeatureModel) else network.release()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of classes, in float32 also where a network computes in half precision."""
    return F.cross_entropy(at_least_float32(logits), labels)


def adaptation_losses(
    outputs: Pair, targets: Any, loss: Callable[[Any, Any], Tensor], byol_weight: float = 0.1
) -> dict[str, Tensor]:
    """The three losses of one batch by name: of the task by day and by night, and BYOL's, weighted.

    Args:
        outputs: what a `ViewPair` made of day images and their darkened twins.
        targets: whatever `loss` compares a prediction with.
        loss: (prediction, targets) to a scalar.
        byol_weight: of BYOL's distance.
    """
    return {
        "day": loss(outputs.day_prediction, targets),
        "night": loss(outputs.night_prediction, targets),
        "byol": byol_weight * byol_loss(outputs),
    }


def _as_feature_model(model: nn.Module, features: Sequence[str], example: Tensor) -> FeatureModel:
    if isinstance(model, FeatureModel):
        if features:
            raise ValueError("features: the FeatureModel names its own")
        return model
    return FeatureModel(model, features or [last_feature_layer(model, example)], example=example)
