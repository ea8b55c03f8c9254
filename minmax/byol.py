"""BYOL between day and night: online encoder, projector and predictor chase a momentum target.

Source: Luo et al., ICCV 2023 (similarity maximisation at the model level), after Grill et al., "Bootstrap your own
latent", https://arxiv.org/abs/2006.07733.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.utils._pytree import tree_flatten, tree_unflatten

from minmax.features import FeatureModel, independent_copy
from minmax.runtime.errors import check
from minmax.similarity import feature_similarity

BatchNormDomains = Literal["separate", "joint", "frozen"]
HeadNorm = Literal["batch", "layer"]


@dataclass(frozen=True)
class ByolConfig:
    """Similarity maximisation."""

    weight: float = 0.1
    """Weight of the distance between day and night features in the loss; with 0 there is no target."""
    distance: Literal["byol", "cosine"] = "byol"
    """byol: predicted projections against a momentum target; cosine: the pooled features of both views as they are."""
    momentum: float = 0.99
    """Share of the target that stays at each update."""
    hidden: int = 128
    """Width of the hidden layers of projector and predictor."""
    outputs: int = 128
    """Width of the space in which day and night are compared."""
    batch_norm: BatchNormDomains = "separate"
    """Statistics of day and night views: of each its own batch, as in the authors' code; of both jointly; or frozen."""
    head_norm: HeadNorm = "batch"
    """What projector and predictor normalise by: batch (as the authors), or layer, for batches of few images."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self, "weight", self.weight >= 0, "0 or more")
        check(self, "hidden", self.hidden >= 1, "1 or more")
        check(self, "outputs", self.outputs >= 1, "1 or more")
        check(self, "momentum", 0 <= self.momentum <= 1, "a share in [0, 1]")


class MultilayerPerceptron(nn.Sequential):
    """Linear, BatchNorm, ReLU, Linear: the shape of projector and predictor.

    Maps `(N, inputs)` to `(N, outputs)`. The layer names are those of the released checkpoints. With `norm` "layer" a
    LayerNorm takes the place of BatchNorm, which over two or three rows is little more than a sign.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: HeadNorm = "batch") -> None:
        super().__init__()
        if norm not in get_args(HeadNorm):
            raise ValueError(f"head_norm {norm}: expected one of {', '.join(get_args(HeadNorm))}")
        self.fc1 = nn.Linear(inputs, hidden)
        if norm == "batch":
            self.bn1 = nn.BatchNorm1d(hidden)
        else:
            self.norm1 = nn.LayerNorm(hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, outputs)


def _average(feature: Tensor) -> Tensor:
    """A vector `(N, C)` of a feature: the mean over all positions."""
    return feature.flatten(2).mean(dim=2) if feature.dim() > 2 else feature


class Projector(nn.Module):
    """Pools a feature and projects it.

    Args:
        width: C of what is projected.
        hidden: width of the hidden layer.
        outputs: width of the projection.
        pool: comes before the average over all positions, and makes a map or vector of `width` of the feature.
        norm: of the hidden layer.
    """

    def __init__(
        self,
        width: int,
        hidden: int = 128,
        outputs: int = 128,
        pool: nn.Module | None = None,
        norm: HeadNorm = "batch",
    ) -> None:
        super().__init__()
        self.pool = pool
        self.layers = MultilayerPerceptron(width, hidden, outputs, norm)

    def forward(self, feature: Tensor) -> Tensor:
        """Project `(N, C)`, `(N, C, H, W)` or `(N, C, T, H, W)` to `(N, outputs)`."""
        if self.pool is not None:
            feature = self.pool(feature)
        projection: Tensor = self.layers(_average(feature))
        return projection


class Pair(NamedTuple):
    """What a `ViewPair` returns; DataParallel can gather it.

    `q_*` come from the online branch, `k_*` from what it is pulled towards; `(N, F, D)` for F features, each of unit
    length.
    """

    day_prediction: Any
    night_prediction: Any
    q_day: Tensor
    k_night: Tensor
    q_night: Tensor
    k_day: Tensor


class ViewPair(nn.Module):
    """A model that sees day and night views of the same images and compares their pooled features as they are.

    The plain cosine that BYOL is an alternative to: no projector, no predictor, no target, gradients to both sides.

    Args:
        network: the model to adapt, trained in place as `online`.
        batch_norm: `separate` normalises the day and the night half of a batch each by its own statistics (as the
            authors, two passes), `joint` both together in one pass, `frozen` both by the daytime model's running
            statistics, which then never change.

    Raises:
        ValueError: when the model has no parameter to train, because it was frozen.
    """

    def __init__(self, network: FeatureModel, batch_norm: BatchNormDomains = "separate") -> None:
        super().__init__()
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError("network: all its parameters are frozen, so that nothing would be trained")
        if batch_norm not in get_args(BatchNormDomains):
            raise ValueError(f"batch_norm {batch_norm}: expected one of {', '.join(get_args(BatchNormDomains))}")
        self.online = network
        self.batch_norm = batch_norm
        self._hold_statistics(network)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which frozen BatchNorm layers stay in evaluation mode."""
        super().train(mode)
        for part in self._parts_with_statistics():
            self._hold_statistics(part)
        return self

    def forward(self, day: Tensor, night: Tensor, *inputs: Any) -> Pair:
        """Predictions and unit-length features of day and night views, each `(N, 3, H, W)` in [0, 1].

        Further inputs of the model (targets, for a detector in training) go with each view; `joint` takes none.
        """
        with record_function("networks"):
            (day_prediction, day_features), (night_prediction, night_features) = self._both(
                self.online.with_features, day, night, inputs
            )
            q_day, q_night = self._compared(day_features), self._compared(night_features)
            k_day, k_night = self._towards(day, night, inputs) or (q_day, q_night)
        return Pair(day_prediction, night_prediction, q_day=q_day, k_night=k_night, q_night=q_night, k_day=k_day)

    def update_target(self) -> None:
        """Nothing to move: both views are seen by the same weights."""

    def _parts_with_statistics(self) -> list[nn.Module]:
        return [self.online]

    def _hold_statistics(self, part: nn.Module) -> None:
        if self.batch_norm == "frozen":
            for layer in part.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def _both(
        self, call: Callable[..., Any], first: Tensor, second: Tensor, inputs: Sequence[Any] = ()
    ) -> tuple[Any, Any]:
        """What a forward pass gives for both views, in two passes or in one of twice the batch."""
        if self.batch_norm == "separate" or inputs:
            if self.batch_norm == "joint":
                raise ValueError("batch_norm joint: the model's further inputs belong to one view each; use another")
            return call(first, *inputs), call(second, *inputs)
        return _halves(call(torch.cat([first, second])))

    def _towards(self, day: Tensor, night: Tensor, inputs: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """What a target makes of day and night; None: each view is pulled towards the other as it is."""
        return None

    def _compared(self, features: Sequence[Tensor]) -> Tensor:
        """All features as one `(N, 1, D)`: the dot product of two such vectors is the mean of the features' cosines."""
        vectors = [F.normalize(_average(feature), dim=1) for feature in features]
        return torch.cat(vectors, dim=1).unsqueeze(1) / math.sqrt(len(vectors))


def _halves(value: Any) -> tuple[Any, Any]:
    """The two halves of a batch, in whatever holds its tensors."""
    leaves, shape = tree_flatten(value)
    if odd := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]:
        raise ValueError(f"batch_norm: a prediction that holds {odd[0]} has no halves; use `separate`")
    first, second = zip(*(leaf.chunk(2) for leaf in leaves), strict=True)
    return tree_unflatten(first, shape), tree_unflatten(second, shape)


class MomentumPair(ViewPair):
    """An online model and its momentum target, seeing day and night views of the same images.

    The target is a copy of model and projectors: equal at the start, then an exponential moving average of the
    *parameters*, moved by `update_target` after each optimiser step. It has what the features need and no head. Its
    BatchNorm layers use the statistics of the batch and keep running buffers of their own, which are never copied (as
    in the authors' code).

    Args:
        network: the model to adapt, trained in place as `online`.
        hidden: width of the hidden layers of projectors and predictors.
        outputs: width of the space in which day and night are compared.
        momentum: share of the target that stays at each update, in [0, 1].
        batch_norm: as for `ViewPair`, in network and target; projectors and predictors always treat views separately.
        projectors: one per feature, each to `(N, outputs)`; by default a `Projector` that averages.
        head_norm: of the hidden layers of predictors and default projectors.
    """

    def __init__(
        self,
        network: FeatureModel,
        hidden: int = 128,
        outputs: int = 128,
        momentum: float = 0.99,
        batch_norm: BatchNormDomains = "separate",
        projectors: Sequence[nn.Module] | None = None,
        head_norm: HeadNorm = "batch",
    ) -> None:
        super().__init__(network, batch_norm)
        if projectors is None:
            projectors = [Projector(width, hidden, outputs, norm=head_norm) for width in network.widths]
        self.projectors = nn.ModuleList(projectors)
        self.predictors = nn.ModuleList(
            MultilayerPerceptron(outputs, hidden, outputs, head_norm) for _ in network.widths
        )
        self.target = independent_copy(network).requires_grad_(False)
        for name, parameter in self.target.model.named_parameters():
            if name not in network.feature_parameters:
                parameter.data = parameter.data.new_empty(0)  # of the head, which never runs
        self.target_projectors = copy.deepcopy(self.projectors).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def _towards(self, day: Tensor, night: Tensor, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        # Night first: the order in which the authors' target updates its running statistics.
        night_features, day_features = self._both(self.target.features, night, day, inputs)
        k_night = self._project(self.target_projectors, night_features)
        return self._project(self.target_projectors, day_features), k_night

    def _parts_with_statistics(self) -> list[nn.Module]:
        return [self.online, self.target]

    def _compared(self, features: Sequence[Tensor]) -> Tensor:
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
        used = self.online.feature_parameters

        def moving(network: FeatureModel, projectors: nn.ModuleList) -> list[Tensor]:
            inside = [parameter for name, parameter in network.model.named_parameters() if name in used]
            return [*inside, *projectors.parameters()]

        target = moving(self.target, self.target_projectors)
        torch._foreach_lerp_(target, moving(self.online, self.projectors), 1.0 - self.momentum)


def build_pair(
    network: FeatureModel,
    config: ByolConfig,
    build_projectors: Callable[[FeatureModel, ByolConfig], Sequence[nn.Module]] | None = None,
) -> ViewPair:
    """The network with what day and night features are compared by.

    Args:
        network: the network to adapt.
        config: how they are compared.
        build_projectors: (network, config) to one projector per feature; None for those of `MomentumPair`.
    """
    if config.distance == "cosine" or config.weight == 0:
        return ViewPair(network, config.batch_norm)
    projectors = build_projectors(network, config) if build_projectors else None
    return MomentumPair(
        network, config.hidden, config.outputs, config.momentum, config.batch_norm, projectors, config.head_norm
    )


def byol_loss(pair: Pair) -> Tensor:
    """BYOL's distance, 2 - 2 cos, averaged over both directions and all features; a scalar in [0, 4]."""
    towards_night = feature_similarity(pair.q_day.unbind(1), pair.k_night.unbind(1))
    towards_day = feature_similarity(pair.q_night.unbind(1), pair.k_day.unbind(1))
    return 2.0 - (towards_night + towards_day)
