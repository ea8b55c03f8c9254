"""RefineNet: a decoder that refines four maps of a backbone from deep to shallow, and the backbones under it.

Source: Lin et al., "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation", CVPR 2017,
https://arxiv.org/abs/1611.06612, in the variant that Luo et al., ICCV 2023, use: 3x3 convolutions throughout, pooling
in four stages, features brought to image size before they are classified.
"""

import re
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def _conv3x3(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=bias)


class ResidualUnit(nn.Module):
    """Twice ReLU and 3x3 convolution, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(width, width, bias=True)
        self.conv2 = _conv3x3(width, width)

    def forward(self, value: Tensor) -> Tensor:
        """Map `(N, width, H, W)` to the same shape."""
        result: Tensor = value + self.conv2(F.relu(self.conv1(F.relu(value))))
        return result


class ChainedPooling(nn.Module):
    """Stages of 5x5 max pooling and 3x3 convolution in a chain; the outputs of all are added to the input."""

    def __init__(self, width: int, stages: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv3x3(width, width) for _ in range(stages))

    def forward(self, value: Tensor) -> Tensor:
        """Map `(N, width, H, W)` to the same shape."""
        link = value
        for conv in self.convs:
            link = conv(F.max_pool2d(link, kernel_size=5, stride=1, padding=2))
            value = value + link
        return value


class RefineBlock(nn.Module):
    """Adapts one map of the backbone, adds what came from the deeper block, and refines the sum.

    Args:
        inputs: C of the backbone's map.
        width: channels inside.
        outputs: channels that the next block expects; None for the last block, which ends without a convolution.
        deepest: whether no deeper block comes before it.
    """

    def __init__(self, inputs: int, width: int, outputs: int | None, deepest: bool) -> None:
        super().__init__()
        self.reduce = _conv3x3(inputs, width)
        self.adapt = nn.Sequential(ResidualUnit(width), ResidualUnit(width))
        self.merge = None if deepest else _conv3x3(width, width)
        self.pooling = ChainedPooling(width)
        self.refine = nn.Sequential(*(ResidualUnit(width) for _ in range(3)))
        self.expand = None if outputs is None else _conv3x3(width, outputs)

    def forward(self, feature: Tensor, deeper: Tensor | None) -> Tensor:
        """Refine `(N, inputs, H, W)`, with `deeper` `(N, width, h, w)` brought to its size."""
        value = self.adapt(self.reduce(feature))
        if self.merge is not None and deeper is not None:
            value = self.merge(value) + _resized(deeper, value.shape[-2:])
        value = self.refine(self.pooling(F.relu(value)))
        refined: Tensor = value if self.expand is None else self.expand(value)
        return refined


def _resized(value: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(value, size=tuple(size), mode="bilinear", align_corners=True)


class RefineNetDecoder(nn.Module):
    """Four maps to a prediction.

    Args:
        inputs: C of the four maps, shallow to deep.
        outputs: classes.
        width: channels of the decoder; the deepest block has twice as many.
        dropout: share of the values that training drops, from the two deepest maps and before the last convolution.
    """

    def __init__(self, inputs: Sequence[int], outputs: int, width: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        shallow, *middle, deepest = inputs
        self.blocks = nn.ModuleList(
            [
                RefineBlock(deepest, 2 * width, width, deepest=True),
                *(RefineBlock(channels, width, width, deepest=False) for channels in reversed(middle)),
                RefineBlock(shallow, width, None, deepest=False),
            ]
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = _conv3x3(width, outputs, bias=True)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits `(N, outputs, H, W)` for images of `size` (H, W) from four maps, shallow to deep."""
        value = None
        for place, (block, feature) in enumerate(zip(self.blocks, reversed(features), strict=True)):
            value = block(self.dropout(feature) if place < 2 else feature, value)
        assert value is not None
        logits: Tensor = self.classifier(self.dropout(_resized(value, size)))
        return logits


class RefineNet(nn.Module):
    """A backbone under RefineNet's decoder.

    Args:
        backbone: images `(N, 3, H, W)` to maps, by name or in a list, of which the last four count, shallow to deep.
        decoder: four maps to the prediction.
        channels_last: whether the maps are `(N, H, W, C)`.
    """

    def __init__(self, backbone: nn.Module, decoder: RefineNetDecoder, channels_last: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.maps = nn.ModuleList(nn.Identity() for _ in range(4))  # so that they can be named, whatever the backbone
        self.decoder = decoder
        self.channels_last = channels_last

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, outputs, H, W)`."""
        found = self.backbone(images)
        maps = list(found.values() if isinstance(found, Mapping) else found)[-4:]
        if self.channels_last:
            maps = [value.permute(0, 3, 1, 2) for value in maps]
        logits: Tensor = self.decoder(
            [name(value) for name, value in zip(self.maps, maps, strict=True)], images.shape[-2:]
        )
        return logits


_RELEASED_NAMES = (
    (r"resnet\.", "backbone."),
    (r"p_ims1d2_outl(\d)_dimred\.", "decoder.blocks.{0}.reduce."),
    (r"adapt_stage(\d)_b\.0\.(\d)_conv\.", "decoder.blocks.{0}.adapt.{1}.conv1."),
    (r"adapt_stage(\d)_b\.0\.(\d)_conv_relu_varout_dimred\.", "decoder.blocks.{0}.adapt.{1}.conv2."),
    (r"adapt_stage(\d)_b2_joint_varout_dimred\.", "decoder.blocks.{0}.merge."),
    (r"mflow_conv_g(\d)_pool\.0\.(\d)_outvar_dimred\.", "decoder.blocks.{0}.pooling.convs.{1}."),
    (r"mflow_conv_g(\d)_b\.0\.(\d)_conv\.", "decoder.blocks.{0}.refine.{1}.conv1."),
    (r"mflow_conv_g(\d)_b\.0\.(\d)_conv_relu_varout_dimred\.", "decoder.blocks.{0}.refine.{1}.conv2."),
    (r"mflow_conv_g(\d)_b3_joint_varout_dimred\.", "decoder.blocks.{0}.expand."),
    (r"clf_conv\.", "decoder.classifier."),
)
"""How the authors' names of tensors begin, and ours; theirs count from 1."""


def from_released_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a released RefineNet under our names; those of any other network keep theirs."""
    return {_our_name(name): tensor for name, tensor in weights.items()}


def _our_name(released: str) -> str:
    for theirs, ours in _RELEASED_NAMES:
        if found := re.match(theirs, released):
            return ours.format(*(int(number) - 1 for number in found.groups())) + released[found.end() :]
    return released
