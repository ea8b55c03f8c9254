"""BYOL between day and night: online encoder, projector and predictor chase a momentum target.

Source: Luo et al., ICCV 2023 (similarity maximisation at the model level), after Grill et al., "Bootstrap your own
latent", https://arxiv.org/abs/2006.07733.
"""

import copy
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minmax.similarity import feature_similarity
from minmax.task_network import TaskNetwork

BatchNormDomains = Literal["separate", "joint", "frozen"]


class MultilayerPerceptron(nn.Sequential):
    """Linear, BatchNorm, ReLU, Linear: the shape of projector and predictor.

    Maps `(N, inputs)` to `(N, outputs)`. The layer names are those of the released checkpoints.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, outputs)


def _average(feature: Tensor) -> Tensor:
    """A vector `(N, C)` of a feature: the mean over all positions."""
    return feature.flatten(2).mean(dim=2) if feature.dim() > 2 else feature


class Projector(nn.Module):
    """Pools a feature and projects it.

    Args:
        width: C of the feature.
        hidden: width of the hidden layer.
        outputs: width of the projection.
        pool: what makes a vector `(N, C)` of a map; None averages over all positions.
    """

    def __init__(self, width: int, hidden: int = 128, outputs: int = 128, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.pool = pool
        self.layers = MultilayerPerceptron(width, hidden, outputs)

    def forward(self, feature: Tensor) -> Tensor:
        """Project `(N, C)`, `(N, C, H, W)` or `(N, C, T, H, W)` to `(N, outputs)`."""
        if self.pool is not None:
            feature = self.pool(feature)
        projection: Tensor = self.layers(_average(feature))
        return projection


class Pair(NamedTuple):
    """What a `ViewPair` returns; tensors only, so that DataParallel can gather it.

    `q_*` come from the online branch, `k_*` from what it is pulled towards; `(N, F, D)` for F features, each of unit
    length.
    """

    day_prediction: Tensor
    night_prediction: Tensor
    q_day: Tensor
    k_night: Tensor
    q_night: Tensor
    k_day: Tensor


class ViewPair(nn.Module):
    """A network that sees day and night views of the same images and compares their pooled features as they are.

    The plain cosine that BYOL is an alternative to: no projector, no predictor, no target, gradients to both sides.

    Args:
        network: the network to adapt.
        batch_norm: `separate` normalises the day and the night half of a batch each by its own statistics (as the
            authors, two passes), `joint` both together in one pass, `frozen` both by the daytime model's running
            statistics, which then never change.
    """

    def __init__(self, network: TaskNetwork, batch_norm: BatchNormDomains = "separate") -> None:
        super().__init__()
        self.online = network
        self.batch_norm = batch_norm
        self._hold_statistics(network.encoder)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which frozen BatchNorm layers stay in evaluation mode."""
        super().train(mode)
        for encoder in self._encoders():
            self._hold_statistics(encoder)
        return self

    def forward(self, day: Tensor, night: Tensor) -> Pair:
        """Predictions and unit-length features of day and night views, each `(N, 3, H, W)` in [0, 1]."""
        day_features, night_features = self._encode(self.online.encoder, day, night)
        day_vector, night_vector = self._pool(day_features), self._pool(night_features)
        size = day.shape[-2:]
        return Pair(
            day_prediction=self.online.head(day_features, size),
            night_prediction=self.online.head(night_features, size),
            q_day=day_vector,
            k_night=night_vector,
            q_night=night_vector,
            k_day=day_vector,
        )

    def update_target(self) -> None:
        """Nothing to move: both views are seen by the same weights."""

    def _encoders(self) -> list[nn.Module]:
        return [self.online.encoder]

    def _hold_statistics(self, encoder: nn.Module) -> None:
        if self.batch_norm == "frozen":
            for layer in encoder.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def _encode(self, encoder: nn.Module, first: Tensor, second: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if self.batch_norm == "separate":
            return encoder(first), encoder(second)
        both = [feature.chunk(2) for feature in encoder(torch.cat([first, second]))]
        return [a for a, _ in both], [b for _, b in both]

    @staticmethod
    def _pool(features: Sequence[Tensor]) -> Tensor:
        """All features as one `(N, 1, D)`: the dot product of two such vectors is the mean of the features' cosines."""
        vectors = [F.normalize(_average(feature), dim=1) for feature in features]
        return torch.cat(vectors, dim=1).unsqueeze(1) / math.sqrt(len(vectors))


class MomentumPair(ViewPair):
    """An online network and its momentum target, seeing day and night views of the same images.

    The target is a copy of encoder and projectors: equal at the start, then an exponential moving average of the
    *parameters*, moved by `update_target` after each optimiser step. Its BatchNorm layers use the statistics of the
    batch and keep running buffers of their own, which are never copied (as in the authors' code).

    Args:
        network: the network to adapt.
        hidden: width of the hidden layers of projectors and predictors.
        outputs: width of the space in which day and night are compared.
        momentum: share of the target that stays at each update, in [0, 1].
        batch_norm: as for `ViewPair`, in encoder and target; projectors and predictors always treat views separately.
        pools: one pooling module per feature for the projectors; None averages.
    """

    def __init__(
        self,
        network: TaskNetwork,
        hidden: int = 128,
        outputs: int = 128,
        momentum: float = 0.99,
        batch_norm: BatchNormDomains = "separate",
        pools: Sequence[nn.Module | None] | None = None,
    ) -> None:
        super().__init__(network, batch_norm)
        pools = pools or [None] * len(network.feature_widths)
        self.projectors = nn.ModuleList(
            Projector(width, hidden, outputs, pool) for width, pool in zip(network.feature_widths, pools, strict=True)
        )
        self.predictors = nn.ModuleList(MultilayerPerceptron(outputs, hidden, outputs) for _ in network.feature_widths)
        self.target_encoder = copy.deepcopy(network.encoder).requires_grad_(False)
        self.target_projectors = copy.deepcopy(self.projectors).requires_grad_(False)
        self.momentum = momentum

    def forward(self, day: Tensor, night: Tensor) -> Pair:
        """Predictions and normalised projections of day and night views, each `(N, 3, H, W)` in [0, 1]."""
        day_features, night_features = self._encode(self.online.encoder, day, night)
        with torch.no_grad():
            # Night first: the order in which the authors' target updates its running statistics.
            night_keys, day_keys = self._encode(self.target_encoder, night, day)
            k_night = self._project(self.target_projectors, night_keys)
            k_day = self._project(self.target_projectors, day_keys)
        size = day.shape[-2:]
        return Pair(
            day_prediction=self.online.head(day_features, size),
            night_prediction=self.online.head(night_features, size),
            q_day=self._predict(day_features),
            k_night=k_night,
            q_night=self._predict(night_features),
            k_day=k_day,
        )

    def _encoders(self) -> list[nn.Module]:
        return [self.online.encoder, self.target_encoder]

    def _predict(self, features: Sequence[Tensor]) -> Tensor:
        return self._project(self.projectors, features, self.predictors)

    @staticmethod
    def _project(
        projectors: nn.ModuleList, features: Sequence[Tensor], predictors: nn.ModuleList | None = None
    ) -> Tensor:
        projected = [projector(feature) for projector, feature in zip(projectors, features, strict=True)]
        if predictors is not None:
            projected = [predictor(value) for predictor, value in zip(predictors, projected, strict=True)]
        return F.normalize(torch.stack(projected, dim=1), dim=2)

    @torch.no_grad()
    def update_target(self) -> None:
        """Move the target's parameters towards the online ones; call after the optimiser step, outside any wrapper."""
        target: list[Tensor] = [*self.target_encoder.parameters(), *self.target_projectors.parameters()]
        online: list[Tensor] = [*self.online.encoder.parameters(), *self.projectors.parameters()]
        torch._foreach_lerp_(target, online, 1.0 - self.momentum)


def byol_loss(pair: Pair) -> Tensor:
    """BYOL's distance, 2 - 2 cos, averaged over both directions and all features; a scalar in [0, 4]."""
    towards_night = feature_similarity(pair.q_day.unbind(1), pair.k_night.unbind(1))
    towards_day = feature_similarity(pair.q_night.unbind(1), pair.k_day.unbind(1))
    return 2.0 - (towards_night + towards_day)
