"""Classifiers of torchvision and timm, the checkpoints that rebuild them, and weights of other programs."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from class_folders import class_names
from torch import nn

from minmax.colour_invariant import behind_invariant
from minmax.features import (
    IDENTITY_STATISTICS,
    IMAGENET_STATISTICS,
    FeatureModel,
    InputNormalization,
    last_feature_layer,
)
from minmax.pretrained import (
    TIMM,
    downloading,
    find_weights,
    load_start,
    read_start,
    rebuild_network,
    require_size,
    save_network,
    timm_record,
    warn_of_other_settings,
)
from minmax.runtime.checkpoints import load_checkpoint, load_strictly
from minmax.runtime.config import require
from minmax.runtime.errors import UsageError
from minmax.runtime.splits import Split

CHECKPOINT_FORMAT = "similarity-minmax/classifier"

Normalization = Literal["imagenet", "half", "clip", "dpn", "none", "ciconv"]
NormalizationFlag = Literal["auto", Normalization]
STATISTICS: dict[Normalization, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": IMAGENET_STATISTICS,
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
    "none": IDENTITY_STATISTICS,
    "ciconv": IDENTITY_STATISTICS,  # a colour invariant instead, which is part of the network, as its scale is learned
}
"""Mean and standard deviation per channel that published weights were trained with."""

# A network that takes any size is tried at this one: large enough for several positions after 32-fold striding.
_TRIED_SIZE = 128

_INCEPTION_NETWORKS = ("googlenet", "inception_v3")

RELEASED_CLASSES = ("Bicycle", "Car", "Motorbike", "Bus", "Boat", "Cat", "Dog", "Bottle", "Cup", "Chair")
"""CODaN's classes in the order of the released checkpoints' outputs, which is not the alphabetical one of the folders
(https://github.com/Attila94/CIConv, experiments/2_codan_classification/codan.py)."""


@dataclass(frozen=True)
class ClassifierSettings:
    """What rebuilds a classifier around its weights."""

    model: str
    """A name of torchvision's, or one of timm's after `timm/`."""
    classes: tuple[str, ...]
    """In the order of the outputs."""
    normalization: Normalization = "imagenet"
    """Statistics by which the first layer normalises the input; or the colour invariant of CIConv."""
    image_size: int | None = None
    """The side in pixels of the only images that the model takes; None for one that takes any."""
    layers: tuple[str, ...] = ()
    """Layers whose outputs of day and night are compared; by default the last map of features, or tokens."""


def classifier_settings(
    model: str, classes: tuple[str, ...], image_size: int, normalization: NormalizationFlag = "auto"
) -> ClassifierSettings:
    """The settings of a new classifier, or of foreign weights, for images of a size.

    The size is remembered only when the model takes no others. The normalisation `auto` is that of the statistics that
    the model's published weights expect.

    Raises:
        UsageError: when there is no such model, or its statistics are unknown.
    """
    takes_one_size = bool(_size_argument(model, image_size))
    if normalization == "auto":
        normalization = _published_statistics(model)
    return ClassifierSettings(model, classes, normalization, image_size if takes_one_size else None)


def build_classifier(settings: ClassifierSettings, pretrained: bool = False, init: Path | None = None) -> FeatureModel:
    """Build a classifier whose feature is its last map, or its tokens.

    It starts from published ImageNet weights (downloaded once) if `pretrained`, from those in the file `init` if there
    is one, the last layer excepted unless it fits; else from scratch.

    Raises:
        UsageError: when there is no such model or layer, or its weights cannot be downloaded or do not fit.
    """
    side = settings.image_size or _TRIED_SIZE
    size = _size_argument(settings.model, side)
    try:
        network = _create(settings.model, size, len(settings.classes))
        if pretrained:
            # By way of the library's own network, which knows what its older files call otherwise or lack.
            with downloading(settings.model):
                published = _create(settings.model, size, None).state_dict()
            load_start(network, published, f"the published {settings.model}")
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"--model {settings.model} cannot be built: {' '.join(str(error).split())}") from error
    if init is not None:
        load_start(network, read_start(init), init)
    generator = torch.Generator().manual_seed(0)  # the global one is the weights' and must not depend on this trial
    example = torch.rand(2, 3, side, side, generator=generator)
    try:
        if settings.normalization == "ciconv":
            network = behind_invariant(network)
        layers = settings.layers or [last_feature_layer(network, example)]
        return FeatureModel(network, layers, InputNormalization(*STATISTICS[settings.normalization]), example)
    except ValueError as error:
        raise UsageError(f"--model {settings.model}: {error}") from error


save_classifier = partial(save_network, CHECKPOINT_FORMAT)


def load_classifier(
    path: Path, image_size: int | None = None, foreign: Callable[[], ClassifierSettings] | None = None
) -> tuple[FeatureModel, ClassifierSettings]:
    """Rebuild a classifier from a checkpoint of this project, of the authors, or of any other program.

    - Ours (`save_classifier`) carries what rebuilds it.
    - The authors' adapted ResNet_BYOL: `resnet.*` is the network, `encoder_k`, `head_q`, `head_k` and `pred` are left
      out; a ResNet-18 with CODaN's classes in the authors' order.
    - Any other holds the tensors of the network under its own names (the authors' daytime ResNet-18 among them).

    The network is tried at `image_size`, the side of the images to come; a warning is logged when ours was trained at
    another. `foreign` says what the tensors of another
    program belong to; it is asked only when the file does not tell.

    Raises:
        UsageError: when the file is missing, unreadable, does not tell what it belongs to, or does not fit.
    """
    payload = load_checkpoint(path)
    if payload.get("format") == CHECKPOINT_FORMAT:
        warn_of_other_settings(payload, "images", {"size": image_size}, path)
        network, settings = rebuild_network(payload, ClassifierSettings, build_classifier, path)
    else:
        weights = find_weights(payload, path)
        # A network of somebody else's may keep its parts under the same name, but has no momentum encoder.
        if {"resnet", "encoder_k"} <= {name.partition(".")[0] for name in weights}:
            training_parts = ("encoder_k.", "head_q.", "head_k.", "pred.")
            weights = {
                name.removeprefix("resnet."): tensor
                for name, tensor in weights.items()
                if not name.startswith(training_parts)
            }
            settings = ClassifierSettings("resnet18", RELEASED_CLASSES)
        elif foreign is not None:
            settings = foreign()
        else:
            raise UsageError(
                f"{path} does not say what its tensors ({', '.join(list(weights)[:3])}, ...) belong to; add --model "
                "with the architecture and --classes with the order of its outputs"
            )
        network = build_classifier(settings)
        load_strictly(network.model, weights, path)
    if image_size is not None:
        if settings.image_size not in (None, image_size):
            raise UsageError(
                f"--images.size {image_size}: the {settings.model} in {path} takes images of {settings.image_size} only"
            )
        require_size(network, "--images.size", image_size, image_size)
    return network, settings


@dataclass(frozen=True, kw_only=True)
class ForeignFlags:
    """What the weights of another program belong to; checkpoints of this project say so themselves."""

    model: str | None = None
    """Architecture of a --checkpoint that was not made here: a name of torchvision's, or timm/NAME."""
    classes: tuple[str, ...] = ()
    """Its classes in the order of its outputs; or `alphabetical` (as ImageFolder) or `codan` (as the authors)."""
    normalization: NormalizationFlag = "auto"
    """Statistics by which it expects its input; auto: as the published weights of this architecture."""

    def settings(self, data: str, split: Split, image_size: int) -> ClassifierSettings:
        """The settings that the flags describe; `alphabetical` takes the class folders of a split of `data`.

        Raises:
            UsageError: when the model is unknown or the order of its outputs is not given.
        """
        assert self.model is not None
        require(
            bool(self.classes),
            "--classes",
            "(not given)",
            "the order of the outputs of foreign weights, which a wrong guess would scramble silently: alphabetical "
            "(as torchvision's ImageFolder), codan (as the authors' checkpoints) or the names one by one",
        )
        classes = self.classes
        if classes == ("alphabetical",):
            classes = class_names(data, split)
        elif classes == ("codan",):
            classes = RELEASED_CLASSES
        require(len(set(classes)) == len(classes), "--classes", classes, "every name once")
        return classifier_settings(self.model, classes, image_size, self.normalization)


def load_classifiers(
    paths: Sequence[Path], flags: ForeignFlags, data: str, split: Split, image_size: int
) -> list[tuple[FeatureModel, ClassifierSettings]]:
    """Load checkpoints; those of other programs need the flags, `--classes alphabetical` the folders of the data.

    Raises:
        UsageError: as `load_classifier`, and when flags are given that no file needs.
    """
    described = functools.cache(lambda: flags.settings(data, split, image_size))  # only if a file needs it
    loaded = [load_classifier(path, image_size, described if flags.model else None) for path in paths]
    is_needed = described.cache_info().currsize > 0
    if not is_needed and (flags.model, flags.classes, flags.normalization) != (None, (), "auto"):
        names = " and ".join(map(str, paths))
        given = "--model, --classes and --normalization"
        raise UsageError(f"{given} describe foreign weights, but {names} tells its own architecture; drop these flags")
    return loaded


def _size_argument(model: str, image_size: int) -> dict[str, Any]:
    """The argument by which a model of one image size only is told that size; nothing for other models."""
    import torchvision

    if model.startswith(TIMM):
        return {"img_size": image_size} if timm_record(model).fixed_input_size else {}
    if model not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(
            f"--model {model}: torchvision has no such classifier; expected one of its names (resnet50, "
            "convnext_tiny, vit_b_16, ...) or timm/NAME"
        )
    if model.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if model.startswith("maxvit") else {}


def _published_statistics(model: str) -> Normalization:
    import torchvision

    if model in _INCEPTION_NETWORKS:  # as published they turn ImageNet's statistics into these in their own forward
        return "half"
    if model.startswith(TIMM):
        published = timm_record(model)
    else:
        published = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    for name, (mean, std) in STATISTICS.items():
        if torch.allclose(torch.tensor([mean, std]), torch.tensor([published.mean, published.std]), atol=1e-3):
            return name
    raise UsageError(
        f"--model {model}: its weights expect mean {published.mean} and deviation {published.std}, which have no name "
        f"here; choose --normalization among {', '.join(get_args(Normalization))}"
    )


def _create(model: str, size: dict[str, Any], classes: int | None) -> nn.Module:
    """A network as its library makes it: a new one for so many classes, or the published one, when None, with all."""
    import timm
    import torchvision

    network: nn.Module
    if model.startswith(TIMM):
        options = size if classes is None else {"num_classes": classes, **size}
        network = timm.create_model(model.removeprefix(TIMM), pretrained=classes is None, **options)
    elif classes is None:
        network = torchvision.models.get_model(model, weights="DEFAULT")
    else:
        # They would add auxiliary predictions in training, and a slow initialisation.
        extra = {"aux_logits": False, "init_weights": False} if model in _INCEPTION_NETWORKS else {}
        network = torchvision.models.get_model(model, weights=None, num_classes=classes, **size, **extra)
    return network
