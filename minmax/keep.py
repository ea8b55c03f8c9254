"""Keep the day: hold the adapted model to what the daytime model says by day, and mix the weights of both.

Sources: distillation, Hinton et al., https://arxiv.org/abs/1503.02531, of the model before as in Li and Hoiem,
"Learning without forgetting", https://arxiv.org/abs/1606.09282; mixtures of weights, Wortsman et al., "Robust
fine-tuning of zero-shot models" (WiSE-FT), https://arxiv.org/abs/2109.01903.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minmax.features import FeatureModel, freeze, independent_copy
from minmax.runtime.errors import check
from minmax.similarity import at_least_float32


@dataclass(frozen=True)
class KeepConfig:
    """What keeps the day."""

    distillation: float = 0.0
    """Weight of the distance between what the model and the daytime model say of a day image; 0: none."""
    shares: tuple[float, ...] = ()
    """Shares of the adapted weights, as 0.25 0.5 0.75 1, in mixtures with the daytime weights that are tried at the end
    on day validation images, as they are and darkened; the best is kept.pt. By default there is none."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self, "distillation", self.distillation >= 0, "0 or more")
        check(self, "shares", all(0 <= share <= 1 for share in self.shares), "shares in [0, 1]")


def frozen_copy(network: FeatureModel, config: KeepConfig) -> nn.Module:
    """The daytime model as it is before adaptation; where nothing is to be kept of it, nothing, to save its memory."""
    return freeze(independent_copy(network)) if config.distillation or config.shares else nn.Identity()


def day_losses(
    config: KeepConfig, daytime: nn.Module, day: Any, prediction: Tensor, distance: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """The weighted distance from what the daytime model says of day images, by name; none at weight 0.

    Args:
        config: has the weight.
        daytime: frozen.
        day: `(N, 3, H, W)` or clips in [0, 1], or what else the model takes.
        prediction: of the model in training for them.
        distance: (prediction, the daytime model's) to a scalar.
    """
    if config.distillation == 0:
        return {}
    with torch.no_grad():
        before = daytime(day)
    return {"kept": config.distillation * distance(prediction, before)}


def class_divergence(logits: Tensor, daytime: Tensor) -> Tensor:
    """Kullback-Leibler divergence of predicted classes from those of the daytime model; a scalar of 0 or more.

    Args:
        logits: `(N, C)`, or `(N, C, H, W)` for classes of pixels.
        daytime: of the same shape, a constant.
    """
    said, before = (at_least_float32(value).log_softmax(dim=1) for value in (logits, daytime))
    return F.kl_div(said, before, reduction="none", log_target=True).sum(dim=1).mean()


def descriptor_distance(descriptors: Tensor, daytime: Tensor) -> Tensor:
    """Sum of half the squared distances of descriptors `(N, D)` from those of the daytime model."""
    return 0.5 * (at_least_float32(descriptors) - daytime).square().sum()


@torch.no_grad()
def mix_weights(network: nn.Module, daytime: Mapping[str, Tensor], adapted: Mapping[str, Tensor], share: float) -> None:
    """Give a network a share of the adapted weights and BatchNorm statistics, and the rest of the daytime ones.

    Args:
        network: changed in place.
        daytime: a state dict of it, or of its daytime model.
        adapted: another one.
        share: in [0, 1]; 1 is the adapted network.
    """
    mixed = {
        name: torch.lerp(daytime[name].to(value), value, share) if value.is_floating_point() else value
        for name, value in adapted.items()
    }
    network.load_state_dict(mixed)


def choose_mixture(
    network: nn.Module, daytime: nn.Module, shares: Sequence[float], validate: Callable[[], Mapping[str, float]]
) -> dict[float, float]:
    """Leave an adapted network with the best of its mixtures with the daytime model.

    Args:
        network: changed in place.
        daytime: the model before adaptation.
        shares: of the adapted weights, to be tried; none changes nothing.
        validate: numbers of the network as it is, on day images, `score` among them.

    Returns:
        The score by share, the best first; of equal ones the larger share.
    """
    if not shares:
        return {}
    adapted = {name: value.clone() for name, value in network.state_dict().items()}
    scores: dict[float, float] = {}
    for share in shares:
        mix_weights(network, daytime.state_dict(), adapted, share)
        scores[share] = validate()["score"]
    scores = dict(sorted(scores.items(), key=lambda found: (found[1], found[0]), reverse=True))
    mix_weights(network, daytime.state_dict(), adapted, next(iter(scores)))
    return scores
