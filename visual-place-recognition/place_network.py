"""Retrieval networks: a trunk, generalised-mean pooling, unit length, and optional whitening.

Source: Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019,
https://arxiv.org/abs/1711.02512.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minmax.byol import ByolConfig, Projector
from minmax.features import IMAGENET_STATISTICS, FeatureModel, InputNormalization, evaluation_mode, one_line
from minmax.pretrained import TIMM, as_published, downloading, load_start, read_start, timm_record
from minmax.runtime.errors import UsageError

_LENGTH_FLOOR = 1e-6


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors `(N, D)` divided by their length plus 1e-6, as in the authors' code."""
    length: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / (length + _LENGTH_FLOOR)


class GeM(nn.Module):
    """Generalised mean over all positions of a map, with a learned power; values below 1e-6 are raised to it.

    Maps `(N, C, H, W)` to `(N, C)`. The power 1 is the average, a large one the maximum.
    """

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), power))

    def forward(self, features: Tensor) -> Tensor:
        """Pool a map."""
        # Powers leave the range of half precision.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.p.dtype)
            return features.clamp(min=1e-6).pow(self.p).mean(dim=(2, 3)).pow(1.0 / self.p)


class DescriptorPool(nn.Module):
    """GeM, then unit length: BYOL compares the descriptors themselves."""

    def __init__(self, gem: GeM) -> None:
        super().__init__()
        self.gem = gem

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, H, W)` to vectors `(N, C)` of unit length."""
        return unit_length(self.gem(features))


class PlaceNetwork(nn.Module):
    """A trunk, generalised-mean pooling and unit length; the names of its layers are the retrieval toolbox's.

    Args:
        features: images `(N, 3, H, W)` to a map `(N, width, h, w)`.
        width: C of the map.
        whitened: add a learned linear layer, then unit length again.
    """

    def __init__(self, features: nn.Module, width: int, whitened: bool = False) -> None:
        super().__init__()
        self.features = features
        self.pool = GeM()
        self.whiten = nn.Linear(width, width) if whitened else None

    def forward(self, images: Tensor) -> Tensor:
        """Descriptors `(N, width)` of unit length."""
        vectors = unit_length(self.pool(self.features(images)))
        return vectors if self.whiten is None else unit_length(self.whiten(vectors))


@dataclass(frozen=True)
class PlaceSettings:
    """What rebuilds a retrieval network around its weights."""

    model: str = "resnet101"
    """The trunk: a network of torchvision with a map of features, or timm/NAME."""
    whitened: bool = False
    """Whether a learned whitening layer follows the pooling."""
    mean: tuple[float, float, float] = IMAGENET_STATISTICS[0]
    """Mean of the images that the trunk was trained on, per channel in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STATISTICS[1]
    """Standard deviation of the same images, per channel."""


def settings_for(model: str, whitened: bool = False) -> PlaceSettings:
    """Settings with the input statistics that the published weights of a trunk expect.

    Raises:
        UsageError: when there is no such network.
    """
    import torchvision

    try:
        timms = model.startswith(TIMM)
        published = timm_record(model) if timms else torchvision.models.get_model_weights(model).DEFAULT.transforms()
    except ValueError as error:
        raise UsageError(f"--model {model}: {error}") from error
    return PlaceSettings(model, whitened, tuple(published.mean), tuple(published.std))


def build_place_network(settings: PlaceSettings, pretrained: bool = False, init: Path | None = None) -> FeatureModel:
    """Build a retrieval network; its feature is the deepest map of its trunk.

    Args:
        settings: trunk, whitening, input statistics.
        pretrained: start the trunk from published ImageNet weights (downloaded once).
        init: start it from a file with the weights of the whole classifier, as `load_start` reads them.

    Raises:
        UsageError: when there is no such network, it has no map of features, or its weights cannot be downloaded or do
            not fit.
    """
    build_trunk = _timm_trunk if settings.model.startswith(TIMM) else _torchvision_trunk
    with downloading(settings.model):
        trunk = build_trunk(settings.model.removeprefix(TIMM), pretrained, init)
    network = PlaceNetwork(trunk, _map_width(trunk, settings.model), settings.whitened)
    normalization = InputNormalization(settings.mean, settings.std)
    return FeatureModel(network, ["features"], normalization, torch.zeros(1, 3, 96, 128), ["channels-first"])


def _torchvision_trunk(name: str, pretrained: bool, init: Path | None) -> nn.Module:
    import torchvision
    from torchvision.models import ResNet, SwinTransformer
    from torchvision.ops import Permute

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"--model {name}: torchvision has no such network; write timm/{name} for one of timm's")
    network: Any = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    if init is not None:
        load_start(network, read_start(init), init)
    if isinstance(network, ResNet):
        return nn.Sequential(*list(network.children())[:-2])  # without the average and the classifier
    if isinstance(network, SwinTransformer):
        return nn.Sequential(network.features, Permute([0, 3, 1, 2]))
    features = getattr(network, "features", None)
    if isinstance(features, nn.Sequential):
        # VGG and AlexNet end in a pooling layer that descriptors do without; the retrieval toolbox drops it too.
        return features[:-1] if isinstance(features[-1], nn.MaxPool2d) else features
    raise UsageError(f"--model {name}: it has no part that gives a map of features; choose a ResNet, or timm/NAME")


class _LastMap(nn.Module):
    """The deepest map of a timm backbone, channels first."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.width: int = body.feature_info.channels()[-1]

    def forward(self, images: Tensor) -> Tensor:
        value: Tensor = self.body(images)[-1]
        return value if value.shape[1] == self.width else value.permute(0, 3, 1, 2)


def _timm_trunk(name: str, pretrained: bool, init: Path | None) -> nn.Module:
    import timm

    timm_record(TIMM + name)  # refuses what is none of timm's
    start = as_published(timm.create_model(name), init) if init is not None else {"pretrained": pretrained}
    try:
        return _LastMap(timm.create_model(name, features_only=True, out_indices=(-1,), **start))
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"--model timm/{name}: this network gives no map of features ({one_line(error)})") from error


@torch.no_grad()
def _map_width(trunk: nn.Module, name: str) -> int:
    """Channels of the map; photographs of places come in all shapes, so it must come of any."""
    with evaluation_mode(trunk):
        try:
            shapes = [trunk(torch.zeros(1, 3, *size)).shape for size in ((96, 128), (160, 96))]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"--model {name}: it does not take images of any size ({one_line(error)}); choose another"
            ) from error
    if any(len(shape) != 4 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        found = [tuple(shape) for shape in shapes]
        raise UsageError(f"--model {name}: expected maps of features (N, C, H, W), it gives {found}")
    return int(shapes[0][1])


def unwrap(network: FeatureModel) -> PlaceNetwork:
    """The retrieval network that a FeatureModel wraps."""
    assert isinstance(network.model, PlaceNetwork)
    return network.model


def build_projectors(network: FeatureModel, config: ByolConfig) -> list[Projector]:
    """BYOL's projector behind the network's own pooling, so that it compares descriptors; the power is shared."""
    pool = DescriptorPool(unwrap(network).pool)
    return [Projector(width, config.hidden, config.outputs, pool, config.head_norm) for width in network.widths]


def parameter_groups(network: FeatureModel, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """A network's parameters for an optimiser; the pooling's power learns ten times as fast and does not decay."""
    power = unwrap(network).pool.p
    others = [parameter for parameter in network.parameters() if parameter is not power]
    return [
        {"params": others, "lr": lr, "weight_decay": weight_decay},
        {"params": [power], "lr": 10 * lr, "weight_decay": 0.0},
    ]
