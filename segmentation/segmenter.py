"""Segmentation networks: RefineNet and DeepLabV3 over backbones of torchvision or timm, a user's own; their files."""

import functools
import importlib.util
import logging
import re
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
import torchvision
from refinenet import RefineNet, RefineNetDecoder, from_released_names
from street_labels import CLASSES, VOID
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

from minmax.byol import ByolConfig, Projector
from minmax.features import (
    IDENTITY_STATISTICS,
    IMAGENET_STATISTICS,
    FeatureModel,
    InputNormalization,
    attempt,
    independent_copy,
    last_feature_layer,
    one_line,
)
from minmax.pretrained import (
    TIMM,
    as_published,
    downloading,
    find_weights,
    load_start,
    read_start,
    rebuild_network,
    save_network,
    timm_record,
    warn_of_other_settings,
)
from minmax.runtime.checkpoints import load_checkpoint, load_strictly
from minmax.runtime.errors import UsageError, printable
from minmax.similarity import at_least_float32

log = logging.getLogger(__name__)
CHECKPOINT_FORMAT = "similarity-minmax/segmenter"
OWN = "own:"
STAGES = ("layer1", "layer2", "layer3", "layer4")

Normalization = Literal["imagenet", "half", "none"]
STATISTICS: dict[Normalization, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": IMAGENET_STATISTICS,
    "half": ((0.5,) * 3, (0.5,) * 3),
    "none": IDENTITY_STATISTICS,
}
"""Mean and standard deviation per channel."""

_RESNETS = tuple(
    name for name in torchvision.models.list_models(module=torchvision.models) if re.search("(resnet|resnext)", name)
)
_BLOCKS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
"""Blocks per stage, from which the backbone of a released file is told."""

# Parts of a released RefineNet_BYOL that only its training needs, and DeepLab's second prediction in training.
_TRAINING_PARTS = ("encoder_k.", "head_q.", "head_k.", "pred.", "aux_classifier.")


@dataclass(frozen=True)
class SegmenterSettings:
    """What rebuilds a segmentation network around its weights."""

    model: str = "refinenet_resnet101"
    """DECODER_BACKBONE: refinenet or deeplabv3, over a ResNet of torchvision or, for refinenet, timm/NAME. Or
    own:FUNCTION for a network of the user's, whose code is never looked for: the user names its file."""
    outputs: int = len(CLASSES)
    """Channels of the prediction: the 19 classes, or 20 with one for void as in the authors' networks."""
    width: int = 256
    """Channels of RefineNet's decoder."""
    normalization: Normalization = "imagenet"
    """Of a network of the user's own."""
    layers: tuple[str, ...] = ()
    """Of a network of the user's own, those whose outputs are compared."""

    def __post_init__(self) -> None:
        """Refuse what no network can be built of."""
        if self.outputs not in (len(CLASSES), len(CLASSES) + 1):
            raise UsageError(
                f"a prediction of {self.outputs} channels; expected {len(CLASSES)}, the classes of Cityscapes, or one "
                "more for void"
            )
        if self.width < 1:
            raise UsageError(f"--width {self.width}: expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class OwnFlags:
    """A network of the user's own."""

    model: str | None = None
    """FILE.py:FUNCTION, for weights of a network of your own: FILE is run, and FUNCTION or class is called without
    arguments; it gives an nn.Module of images to logits of the 19 classes, or of 20 with void last."""
    normalization: Normalization | None = None
    """Statistics by which it expects its input: imagenet (the default), half (-1 to 1) or none (0 to 1)."""
    layers: tuple[str, ...] = ()
    """Its layers whose outputs by day and night are compared; by default the last that gives a map of features."""


def build_segmenter(settings: SegmenterSettings, pretrained: bool = False, init: Path | None = None) -> FeatureModel:
    """Build a segmentation network; its features are the maps of its backbone's four stages, shallow to deep.

    The backbone starts from published ImageNet weights (downloaded once) if `pretrained`, from a file `init` with the
    weights of the whole classifier if there is one, else from scratch.

    Raises:
        UsageError: when there is no such decoder or backbone, or its weights cannot be downloaded or do not fit.
    """
    decoder, _, backbone = settings.model.partition("_")
    if decoder not in ("refinenet", "deeplabv3") or not backbone:
        raise UsageError(
            f"--model {settings.model}: expected DECODER_BACKBONE, such as refinenet_resnet101, "
            "refinenet_timm/convnext_tiny or deeplabv3_resnet50"
        )
    if decoder == "deeplabv3" and backbone.startswith(TIMM):
        raise UsageError(f"--model {settings.model}: deeplabv3 works over ResNets of torchvision only")
    network: nn.Module
    normalization, layers = InputNormalization.imagenet(), [f"maps.{number}" for number in range(4)]
    with downloading(backbone):
        if backbone.startswith(TIMM):
            network, normalization = _refinenet_of_timm(settings, backbone.removeprefix(TIMM), pretrained, init)
        elif decoder == "refinenet":
            resnet = _resnet(backbone, pretrained, init)
            widths = [_width(getattr(resnet, stage)) for stage in STAGES]
            body = IntermediateLayerGetter(resnet, {stage: stage for stage in STAGES})
            network = RefineNet(body, RefineNetDecoder(widths, settings.outputs, settings.width))
        else:
            resnet = _resnet(backbone, pretrained, init, dilated=True)
            body = IntermediateLayerGetter(resnet, {"layer4": "out"})
            network = DeepLab(body, DeepLabHead(_width(resnet.layer4), settings.outputs))
            layers = [f"backbone.{stage}" for stage in STAGES]
    example = torch.zeros(2, 3, 96, 128)
    return FeatureModel(network, layers, normalization, example, layouts=["channels-first"] * 4)


class DeepLab(DeepLabV3):  # type: ignore[misc]
    """torchvision's DeepLabV3 with its tensor names; the prediction is a single tensor."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, outputs, H, W)`."""
        prediction: Tensor = super().forward(images)["out"]
        return prediction


def _resnet(name: str, pretrained: bool, init: Path | None, dilated: bool = False) -> Any:
    if name not in _RESNETS:
        raise UsageError(f"--model ..._{name}: torchvision has no such ResNet; it has {', '.join(_RESNETS)}")
    # As torchvision's deeplabv3: the last two stages keep the resolution and widen their field by dilation instead.
    extra = {"replace_stride_with_dilation": [False, True, True]} if dilated else {}
    try:
        resnet = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **extra)
    except NotImplementedError as error:
        raise UsageError(f"--model deeplabv3_{name}: this ResNet cannot be dilated; use resnet50 or deeper") from error
    if init is not None:
        load_start(resnet, read_start(init), init)
    return resnet


def _width(stage: nn.Module) -> int:
    return [layer.out_channels for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1]


def _refinenet_of_timm(
    settings: SegmenterSettings, name: str, pretrained: bool, init: Path | None
) -> tuple[RefineNet, InputNormalization]:
    published = timm_record(TIMM + name)
    if pretrained and not published.has_weights:
        raise UsageError(
            f"--pretrained: timm publishes no weights of {name}; choose another backbone, or drop the flag"
        )
    unusable = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)
    start = as_published(timm.create_model(name), init) if init is not None else {"pretrained": pretrained}
    try:
        pyramid = _pyramid(name, **start)
    except unusable as error:
        try:  # windowed transformers take images of any size only when told to
            pyramid = _pyramid(name, strict_img_size=False, **start)
        except unusable:
            raise UsageError(
                f"--model refinenet_timm/{name}: this backbone gives no maps of images of any size "
                f"({one_line(error)}); choose another one, such as convnext_tiny"
            ) from error
    backbone, widths, channels_last = pyramid
    network = RefineNet(backbone, RefineNetDecoder(widths, settings.outputs, settings.width), channels_last)
    return network, InputNormalization(published.mean, published.std)


def _pyramid(name: str, **options: Any) -> tuple[nn.Module, list[int], bool]:
    """A timm backbone, the widths of its last four maps, and whether they keep their channels last.

    Raises:
        UsageError: when it does not give four maps.
    """
    body: Any = timm.create_model(name, features_only=True, **options)
    widths: list[int] = body.feature_info.channels()[-4:]
    with torch.no_grad():
        shapes = [tuple(value.shape) for value in body.eval()(torch.zeros(1, 3, 128, 192))[-4:]]
    # Asked once: in a batch, a height may happen to equal the number of channels.
    channels_last = [shape[-1] for shape in shapes] == widths
    channels = [shape[-1] if channels_last else shape[1] for shape in shapes]
    if len(shapes) != 4 or channels != widths:
        raise UsageError(f"--model refinenet_timm/{name}: expected four maps, it gives {shapes}")
    return body.train(), widths, channels_last


class ConvolutionalPool(nn.Sequential):
    """What the authors put before the average over a map: 3x3 convolution, BatchNorm, ReLU.

    Maps `(N, inputs, H, W)` to `(N, outputs, H, W)`. The layer names are those of the released checkpoints.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()


def build_projectors(network: FeatureModel, config: ByolConfig, channels: int = 64) -> list[Projector]:
    """One projector for BYOL per map of the network."""
    return [
        Projector(channels, config.hidden, config.outputs, ConvolutionalPool(width, channels), config.head_norm)
        for width in network.widths
    ]


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that have a class; 0 when none has.

    Args:
        logits: `(N, outputs, H, W)`.
        labels: train ids `(N, H, W)`, `VOID` where there is no class.
    """
    total = F.cross_entropy(at_least_float32(logits), labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


save_segmenter = functools.partial(save_network, CHECKPOINT_FORMAT)


def build_own(
    typed: str, normalization: Normalization = "imagenet", layers: Sequence[str] = ()
) -> tuple[FeatureModel, SegmenterSettings]:
    """Build a network of the user's own, for which `typed` is FILE.py:FUNCTION. **This runs the code in FILE.**

    It may give a sequence or a mapping: what counts is `out`, or the first; a smaller prediction is brought to the size
    of the images.

    Raises:
        UsageError: when there is no such file or function, either raises, or what it gives is no segmentation network.
    """
    function = typed.rpartition(":")[2]
    model = _run_function(typed)
    if not isinstance(model, nn.Module) or not any(parameter.requires_grad for parameter in model.parameters()):
        given = type(model).__name__
        raise UsageError(f"--model {typed}: {function}() gave {given}; expected an nn.Module that can be trained")
    model.register_forward_hook(_as_logits)
    example = torch.rand(2, 3, 128, 256, generator=torch.Generator().manual_seed(0))
    try:
        layers = layers or [last_feature_layer(model, example)]
        network = FeatureModel(model, layers, InputNormalization(*STATISTICS[normalization]), example)
        with torch.no_grad():
            for training in (True, False):  # some give more in training; a copy keeps the statistics
                logits = attempt(independent_copy(network).train(training), example)
    except ValueError as error:
        raise UsageError(f"--model {typed}: {error}") from error
    log.info("%s: day and night are compared at %s", function, ", ".join(network.layers))
    return network, SegmenterSettings(
        f"{OWN}{function}", logits.shape[1], normalization=normalization, layers=network.layers
    )


def _run_function(typed: str) -> Any:
    """What FILE.py:FUNCTION gives; the file is run anew, so that no two networks share anything."""
    file, _, function = typed.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not path.is_file():
        found = f"no file {file}" if file else "a name without :FUNCTION"
        raise UsageError(f"--model {typed}: expected FILE.py:FUNCTION of a network of your own, found {found}")
    try:
        spec = importlib.util.spec_from_file_location("own_model", path)
        assert spec is not None and spec.loader is not None
        module = sys.modules["own_model"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        build = getattr(module, function, None)
        if callable(build):
            return build()
    except (Exception, SystemExit) as error:  # the user's code
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f" in line {own[-1]}" if own else ""
        problem = f"this code raises {type(error).__name__}{line}: {one_line(error)}"
        beside = "; files beside it are found by PYTHONPATH" if isinstance(error, ImportError) else ""
        raise UsageError(f"--model {typed}: {problem}{beside}") from error
    raise UsageError(f"--model {typed}: {path} has no function or class {function}")


def _as_logits(_: nn.Module, inputs: Sequence[Any], output: Any) -> Tensor:
    """A forward hook: whatever a network gives becomes logits `(N, outputs, H, W)` of the size of its images."""
    while isinstance(output, Mapping | list | tuple) and output:
        values = list(output.values()) if isinstance(output, Mapping) else output
        output = output["out"] if isinstance(output, Mapping) and "out" in output else values[0]
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    classes = len(CLASSES)
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[1] not in (classes, classes + 1):
        raise ValueError(
            f"it gave {shape}; expected logits (N, {classes} or {classes + 1}, h, w) of Cityscapes' train ids"
        )
    size = inputs[0].shape[-2:]
    return output if output.shape[-2:] == size else F.interpolate(output, size, mode="bilinear", align_corners=False)


def load_segmenters(
    paths: Sequence[Path], flags: OwnFlags, size: Sequence[int] | None = None
) -> list[tuple[FeatureModel, SegmenterSettings]]:
    """`load_segmenter` of each path.

    Raises:
        UsageError: as there, when flags are given that no file needs, and when --model was read from a file of flags:
            code is only run when its name was typed.
    """
    if flags.model is None and (flags.layers or flags.normalization):
        raise UsageError("--normalization and --layers are those of a network of your own; name it by --model")
    if flags.model is not None and "model" not in getattr(flags, "_typed", {"model"}):
        raise UsageError(f"--model {flags.model} would run code; type it, as a file of flags does not suffice for that")
    loaded = [load_segmenter(path, size, flags) for path in paths]
    if flags.model is not None and not any(settings.model.startswith(OWN) for _, settings in loaded):
        raise UsageError(f"--model {flags.model}: {paths[-1]} tells its own architecture; drop this flag")
    return loaded


def load_segmenter(
    path: Path, size: Sequence[int] | None = None, own: OwnFlags | None = None
) -> tuple[FeatureModel, SegmenterSettings]:
    """Rebuild a segmentation network from a checkpoint of this project, of the authors, or of any other program.

    - Ours (`save_segmenter`) carries what rebuilds it.
    - The authors' RefineNet, daytime or adapted (RefineNet_BYOL), with or without `module.` before its names.
    - torchvision's DeepLabV3 (`backbone.*`, `classifier.*`) for 19 or 20 classes of Cityscapes.
    - The weights of a network of the user's `own`, if that names one; our checkpoints of such a network need it too.

    Backbone and sizes of the middle two are told from their tensors; parts that only training needs are left out. A
    warning is logged when ours was trained at another `size`, height and width.

    Raises:
        UsageError: when the file is missing, unreadable, none of these, or does not fit.
    """
    payload = load_checkpoint(path)
    if payload.get("format") == CHECKPOINT_FORMAT:
        warn_of_other_settings(payload, "images", {"size": size}, path)
        return rebuild_network(payload, SegmenterSettings, functools.partial(_rebuild, own=own, source=path), path)
    if own is not None and own.model is not None:
        network, settings = build_own(own.model, own.normalization or "imagenet", own.layers)
        load_strictly(network.model, find_weights(payload, path), path)
        return network, settings
    weights = {
        name: tensor for name, tensor in find_weights(payload, path).items() if not name.startswith(_TRAINING_PARTS)
    }
    if {"resnet.layer1.0.conv1.weight", "clf_conv.weight"} <= weights.keys():
        decoder, backbone, last = "refinenet", "resnet", "clf_conv.weight"
    elif {"backbone.layer1.0.conv1.weight", "classifier.4.weight"} <= weights.keys():
        decoder, backbone, last = "deeplabv3", "backbone", "classifier.4.weight"
    else:
        raise UsageError(
            f"{path} holds none of the networks known here: one of ours, the authors' RefineNet (resnet.*, clf_conv.*) "
            f"or torchvision's DeepLabV3 (backbone.*, classifier.*); found {', '.join(list(weights)[:3])}, ...; "
            "for a network of your own add --model FILE.py:FUNCTION"
        )
    pattern = re.compile(backbone + r"\.layer([1-4])\.\d+\.conv1\.weight")
    stages = Counter(found[1] for name in weights if (found := pattern.fullmatch(name)))
    blocks = tuple(stages[stage] for stage in "1234")
    if blocks not in _BLOCKS:
        raise UsageError(f"{path}: its backbone has {blocks} blocks; expected those of {', '.join(_BLOCKS.values())}")
    outputs, width = weights[last].shape[:2]
    try:
        settings = SegmenterSettings(f"{decoder}_{_BLOCKS[blocks]}", outputs, width)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    network = build_segmenter(settings)
    load_strictly(network.model, from_released_names(weights), path)
    return network, settings


def _rebuild(settings: SegmenterSettings, own: OwnFlags | None, source: Path) -> FeatureModel:
    """What one of our checkpoints asks for; the code of the user's own network is run only from where `own` says."""
    if not settings.model.startswith(OWN):
        return build_segmenter(settings)
    name = printable(settings.model.removeprefix(OWN))
    if own is None or own.model is None:
        raise UsageError(
            f"{source} holds a network of your own, whose code is run only when you type its file: add --model "
            f"FILE.py:{name} (or load the entry `network` of this checkpoint into {name} yourself)"
        )
    function = own.model.rpartition(":")[2]
    if function != name:
        raise UsageError(f"--model {own.model}: {source} was made with {name}, not {function}")
    for flag, given in (("normalization", own.normalization), ("layers", own.layers)):
        before = getattr(settings, flag)
        if given and given != before:
            shown, made = (value if isinstance(value, str) else " ".join(value) for value in (given, before))
            raise UsageError(f"--{flag} {shown}: {source} was made with {made}; drop this flag")
    return build_own(own.model, settings.normalization, settings.layers)[0]
