"""Classifiers as task networks, and the checkpoints that rebuild them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torchvision
from torch import Tensor, nn

from minmax.runtime.checkpoints import load_checkpoint, load_strictly, save_checkpoint
from minmax.runtime.errors import UsageError
from minmax.task_network import InputNormalization, LayeredEncoder, TaskNetwork

CHECKPOINT_FORMAT = "similarity-minmax/classifier"

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Normalization = Literal["imagenet", "none"]


@dataclass(frozen=True)
class ClassifierSettings:
    """What rebuilds a classifier around its weights."""

    model: ResNetName
    classes: tuple[str, ...]
    normalization: Normalization = "imagenet"


class PooledLinear(nn.Module):
    """Global average pooling of the last feature and a linear layer: the head of a ResNet."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits `(N, classes)` of the last feature `(N, C, H, W)`."""
        logits: Tensor = self.fc(features[-1].mean(dim=(2, 3)))
        return logits


def build_classifier(settings: ClassifierSettings, pretrained: bool = False) -> TaskNetwork:
    """A torchvision ResNet whose encoder gives the last map `(N, C, H / 32, W / 32)`.

    Args:
        settings: model, classes and input normalisation.
        pretrained: start from torchvision's ImageNet weights (downloaded once), the head excepted.

    Raises:
        UsageError: when the weights cannot be downloaded.
    """
    if settings.model not in get_args(ResNetName):
        raise UsageError(f"--model {settings.model}: expected one of {', '.join(get_args(ResNetName))}")
    try:
        resnet = torchvision.models.get_model(settings.model, weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise UsageError(
            f"cannot download the ImageNet weights of {settings.model} ({error}); without a connection put the file "
            f"into {Path(torch.hub.get_dir()) / 'checkpoints'} or drop --pretrained"
        ) from error
    normalization = (
        InputNormalization.imagenet() if settings.normalization == "imagenet" else InputNormalization.identity()
    )
    layers = {name: layer for name, layer in resnet.named_children() if name not in ("avgpool", "fc")}
    width = resnet.fc.in_features
    encoder = LayeredEncoder(normalization, layers, features=["layer4"])
    return TaskNetwork(encoder, PooledLinear(width, len(settings.classes)), feature_widths=[width])


def save_classifier(
    network: TaskNetwork, settings: ClassifierSettings, path: Path, config: Mapping[str, Any] | None = None
) -> None:
    """Save a classifier's weights with what rebuilds it and the config that trained it."""
    payload = {
        "format": CHECKPOINT_FORMAT,
        "settings": {**asdict(settings), "classes": list(settings.classes)},
        "network": network.state_dict(),
        "config": dict(config or {}),
    }
    save_checkpoint(payload, path)


def load_classifier(path: Path) -> tuple[TaskNetwork, ClassifierSettings]:
    """Rebuild a classifier from a checkpoint of `save_classifier`.

    Raises:
        UsageError: when the file is missing, unreadable or not a classifier's.
    """
    payload = load_checkpoint(path)
    if payload.get("format") != CHECKPOINT_FORMAT:
        found = payload.get("format") or f"entries named {', '.join(map(str, list(payload)[:3]))}"
        raise UsageError(
            f"{path} is not a classifier checkpoint of this project: found {found}; expected the best.pt or "
            "last-epoch.pt of a classification run"
        )
    try:
        stored, state = payload["settings"], payload["network"]
        settings = ClassifierSettings(stored["model"], tuple(stored["classes"]), stored["normalization"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a classifier checkpoint of this version: it lacks {error}") from error
    network = build_classifier(settings)
    load_strictly(network, state, path)
    return network, settings
