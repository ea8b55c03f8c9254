"""Networks for clips: I3D, torchvision's 3D ResNets, and the files that hold them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from i3d import DEPTHS, build_i3d, inflate
from torch import nn

from minmax.features import IMAGENET_STATISTICS, FeatureModel, InputNormalization
from minmax.pretrained import (
    downloading,
    find_weights,
    load_start,
    read_start,
    rebuild_network,
    save_network,
    warn_of_other_settings,
)
from minmax.runtime.checkpoints import load_checkpoint, load_strictly
from minmax.runtime.errors import UsageError

CHECKPOINT_FORMAT = "similarity-minmax/recogniser"
I3D = "i3d_"
TORCHVISION = ("r3d_18", "r2plus1d_18", "mc3_18")
MODELS = (*(I3D + backbone for backbone in DEPTHS), *TORCHVISION)

Normalization = Literal["kinetics", "imagenet"]
STATISTICS: dict[Normalization, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    "imagenet": IMAGENET_STATISTICS,
}

RELEASED_CLASSES = ("Drink", "Jump", "Pick", "Pour", "Push", "Run", "Sit", "Stand", "Turn", "Walk", "Wave")
"""The actions of ARID in the order of the released checkpoints' outputs, which is the alphabetical one."""

# The authors' Res_I3D_BYOL: the adapted network, and what only its training needs.
_RELEASED_NETWORK = "encoder_q."
_RELEASED_TRAINING_PARTS = ("encoder_k.", "head_q.", "head_k.", "pred.")
_RELEASED_CLASSIFIER = "cls_head.fc_cls."
_CLASSIFIERS = (_RELEASED_CLASSIFIER, "classifier.")


@dataclass(frozen=True)
class RecogniserSettings:
    """What rebuilds a network around its weights."""

    model: str
    """One of `MODELS`."""
    classes: tuple[str, ...]
    """In the order of the outputs."""
    normalization: Normalization = "kinetics"
    """Statistics by which the first layer normalises the input."""
    width: int = 64
    """Channels of an I3D's stem."""
    time_stride: int = 2
    """Steps in which an I3D's stem goes through time."""

    def __post_init__(self) -> None:
        """Refuse what no network can be built of."""
        if self.model not in MODELS:
            raise UsageError(f"--model {self.model}: expected one of {', '.join(MODELS)}")
        if self.width < 1:
            raise UsageError(f"--width {self.width}: expected 1 or more")
        if self.time_stride not in (1, 2):
            raise UsageError(f"--time-stride {self.time_stride}: expected 1 or 2")
        if (self.width, self.time_stride) != (64, 2) and not self.model.startswith(I3D):
            raise UsageError(f"--width and --time-stride are for an I3D, not for {self.model}; drop them")


def build_recogniser(settings: RecogniserSettings, pretrained: bool = False, init: Path | None = None) -> FeatureModel:
    """Build a network from clips `(N, 3, T, H, W)` in [0, 1] to logits; its feature is one vector per clip.

    Args:
        settings: model, classes, normalisation and width.
        pretrained: start an I3D from torchvision's ImageNet weights, spread over time, the others from Kinetics-400's
            (downloaded once); the last layer is new.
        init: start from the weights in a file (`load_start`): an I3D from those of its backbone, spread over time, or
            of an I3D; the others from their own.

    Raises:
        UsageError: when the weights cannot be downloaded, do not fit, or are for another width.
    """
    normalization = InputNormalization(*STATISTICS[settings.normalization])
    try:
        with downloading(settings.model):
            network = _network(settings, pretrained, init)
    except ValueError as error:
        raise UsageError(f"{init or '--pretrained'}: these weights are for --width 64 ({error})") from error
    layer = "average" if settings.model.startswith(I3D) else "avgpool"
    return FeatureModel(network, [layer], normalization, example=torch.zeros(1, 3, 4, 32, 32))


def _network(settings: RecogniserSettings, pretrained: bool, init: Path | None) -> nn.Module:
    import torchvision

    classes = len(settings.classes)
    if not settings.model.startswith(I3D):
        network: nn.Module = torchvision.models.get_model(settings.model, num_classes=classes)
        if pretrained:
            published = torchvision.models.get_model(settings.model, weights="DEFAULT").state_dict()
            load_start(network, published, f"the published {settings.model}")
        elif init is not None:
            load_start(network, read_start(init), init)
        return network
    backbone = settings.model.removeprefix(I3D)
    network = build_i3d(backbone, classes, settings.width, settings.time_stride)
    last_layer = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("classifier.")}
    if init is not None and not for_images(init):
        trunk = {name: t for name, t in read_start(init).items() if not name.startswith(_CLASSIFIERS)}
        load_strictly(network, trunk | last_layer, init)
    elif pretrained or init is not None:
        images = torchvision.models.get_model(backbone, weights="DEFAULT" if pretrained else None)
        if init is not None:
            load_start(images, read_start(init), init)
        network.load_state_dict(inflate(images.state_dict(), network) | last_layer)
    return network


def for_images(init: Path) -> bool:
    """Whether a file holds the weights of an image network: no filter spans time."""
    return all(tensor.dim() < 5 for tensor in read_start(init).values())


def expected_normalization(model: str, pretrained: bool = False, init: Path | None = None) -> Normalization:
    """ImageNet's statistics for an I3D that starts from weights of an image network, else Kinetics'."""
    from_images = pretrained or (init is not None and for_images(init))
    return "imagenet" if from_images and model.startswith(I3D) else "kinetics"


save_recogniser = partial(save_network, CHECKPOINT_FORMAT)


def load_recogniser(path: Path, clips: Mapping[str, Any] | None = None) -> tuple[FeatureModel, RecogniserSettings]:
    """Rebuild a network from a checkpoint of this project, of the authors, or of torchvision's 3D ResNets.

    - Ours (`save_recogniser`) carries what rebuilds it.
    - The authors' Res_I3D, daytime or adapted (Res_I3D_BYOL: `encoder_q.*` is the network; `encoder_k`, `head_q`,
      `head_k` and `pred` are left out), with or without `module.`: `cls_head.fc_cls.*` becomes `classifier.*`, all
      other names stay. With 11 outputs these are ARID's actions in alphabetical order, otherwise numbers.
    - torchvision's r3d_18, r2plus1d_18 and mc3_18: the outputs are numbered.

    Args:
        path: the checkpoint.
        clips: length, interval and size that clips will have; a warning is logged when ours was trained with others.

    Raises:
        UsageError: when the file is missing, unreadable, none of these, or does not fit.
    """
    payload = load_checkpoint(path)
    if payload.get("format") == CHECKPOINT_FORMAT:
        warn_of_other_settings(payload, "clips", clips or {}, path)
        return rebuild_network(payload, RecogniserSettings, build_recogniser, path)
    weights = {
        name.removeprefix(_RELEASED_NETWORK): tensor
        for name, tensor in find_weights(payload, path).items()
        if not name.startswith(_RELEASED_TRAINING_PARTS)
    }
    if f"{_RELEASED_CLASSIFIER}weight" in weights:
        model, last = "i3d_resnet50", "classifier.weight"
        weights = {name.replace(_RELEASED_CLASSIFIER, "classifier."): tensor for name, tensor in weights.items()}
    elif "stem.0.weight" in weights and "fc.weight" in weights:  # torchvision's three differ in few tensors
        deep = weights.get("layer2.0.conv1.0.weight")
        model, last = "mc3_18" if deep is not None and deep.shape[2] == 1 else "r3d_18", "fc.weight"
        if "stem.3.weight" in weights:
            model = "r2plus1d_18"
    else:
        raise UsageError(
            f"{path} holds none of the networks known here: one of ours, the authors' Res_I3D (conv1.*, cls_head.*) or "
            f"torchvision's 3D ResNets (stem.*, fc.*); found {', '.join(list(weights)[:3])}, ..."
        )
    count = len(weights[last])
    classes = RELEASED_CLASSES if count == len(RELEASED_CLASSES) else tuple(map(str, range(count)))
    settings = RecogniserSettings(model, classes)
    network = build_recogniser(settings)
    load_strictly(network.model, weights, path)
    return network, settings
