"""I3D: a ResNet whose filters reach over time, for clips of any length and size.

Source: Carreira and Zisserman, CVPR 2017, https://arxiv.org/abs/1705.07750, in the form of Luo et al., ICCV 2023:
bottlenecks whose first convolution spans three frames in every block of stage 1, every other block of stages 2 and 3
and the middle block of stage 4. Layer names are torchvision's, and those of the released checkpoints.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def _convolution(inputs: int, outputs: int, frames: int, side: int, stride: int = 1) -> nn.Conv3d:
    """A convolution over `frames` x `side` x `side` that keeps the frames; the stride is of height and width."""
    kernel, padding = (frames, side, side), (frames // 2, side // 2, side // 2)
    return nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_convolution(inputs, outputs, 1, 1, stride), nn.BatchNorm3d(outputs))


class Bottleneck(nn.Module):
    """1x1x1 or 3x1x1 (time first), 1x3x3 and 1x1x1 convolutions around a skip connection.

    Args:
        inputs: channels of the input.
        width: channels inside; the output has four times as many.
        stride: of height and width.
        spans_time: the first convolution sees three frames.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, spans_time: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3 if spans_time else 1, 1)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _convolution(width, width, 1, 3, stride)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = _convolution(width, self.expansion * width, 1, 1)
        self.bn3 = nn.BatchNorm3d(self.expansion * width)
        self.downsample = _shortcut(inputs, self.expansion * width, stride)

    def forward(self, value: Tensor) -> Tensor:
        """`(N, inputs, T, H, W)` to `(N, 4 width, T, H / stride, W / stride)`."""
        residual = F.relu(self.bn1(self.conv1(value)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        return F.relu(self.bn3(self.conv3(residual)) + (self.downsample(value) if self.downsample else value))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first over three frames where the block spans time; arguments as `Bottleneck`."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, spans_time: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3 if spans_time else 1, 3, stride)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _convolution(width, width, 1, 3)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, value: Tensor) -> Tensor:
        """`(N, inputs, T, H, W)` to `(N, width, T, H / stride, W / stride)`."""
        residual = F.relu(self.bn1(self.conv1(value)))
        return F.relu(self.bn2(self.conv2(residual)) + (self.downsample(value) if self.downsample else value))


class HalveFrames(nn.Module):
    """The larger of every two frames; a single frame stays."""

    def forward(self, value: Tensor) -> Tensor:
        """`(N, C, T, H, W)` to `(N, C, T // 2, H, W)`."""
        return F.max_pool3d(value, (2, 1, 1)) if value.shape[2] > 1 else value


class GlobalAverage(nn.Module):
    """The mean over all frames and positions.

    The authors average over windows of 2x7x7 and accept only inputs that leave exactly one; there both are the same.
    """

    def forward(self, value: Tensor) -> Tensor:
        """`(N, C, T, H, W)` to `(N, C)`."""
        return value.flatten(2).mean(dim=2)


def build_i3d(backbone: str, classes: int, width: int = 64, time_stride: int = 2) -> nn.Sequential:
    """Build an I3D; its layer `average` gives one vector per clip, 2048 numbers for the paper's ResNet-50 of width 64.

    Args:
        backbone: one of `DEPTHS`; those with fewer than 50 layers have basic blocks.
        classes: outputs.
        width: channels of the stem; the stages have 1, 2, 4 and 8 times as many inside their blocks.
        time_stride: of the stem's convolution and of its pooling. With the paper's 2, clips of 16 frames reach stage
            1 as 4; with 1, short clips keep their frames.
    """
    block: type[Bottleneck] | type[BasicBlock] = BasicBlock if backbone in ("resnet18", "resnet34") else Bottleneck
    strides = (time_stride, 2, 2)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv3d(3, width, (5, 7, 7), strides, padding=(2, 3, 3), bias=False),
        "bn1": nn.BatchNorm3d(width),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool3d((1, 3, 3), strides, padding=(0, 1, 1)),
    }
    channels = width
    for stage, depth in enumerate(DEPTHS[backbone], start=1):
        inside = width * 2 ** (stage - 1)
        blocks = []
        for number in range(depth):
            stride = 2 if stage > 1 and number == 0 else 1
            spans_time = stage == 1 or number % 2 == (1 if stage == 4 else 0)
            blocks.append(block(channels, inside, stride, spans_time))
            channels = block.expansion * inside
        layers[f"layer{stage}"] = nn.Sequential(*blocks)
        if stage == 1:
            layers["pool2"] = HalveFrames()
    layers["average"] = GlobalAverage()
    for layer in nn.ModuleDict(layers).modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    layers |= {"dropout": nn.Dropout(0.5), "classifier": nn.Linear(channels, classes)}
    return nn.Sequential(OrderedDict(layers))


def inflate(images_weights: Mapping[str, Tensor], clips_network: nn.Module) -> dict[str, Tensor]:
    """Spread the weights of an image network over time, for a clip network whose tensors have the same names.

    A filter is repeated along time and divided by its number of frames: a clip of one repeated frame then gives what
    the image gave, but for the zeros that pad the first and last frame (Carreira and Zisserman, section 2.1).

    Args:
        images_weights: by name; those that the clip network lacks are left out.
        clips_network: tells the names and shapes; its `classifier` is left out.

    Raises:
        KeyError: when a tensor of the network for clips has no counterpart.
        ValueError: when one does not fit.
    """
    found: dict[str, Any] = {}
    for name, own in clips_network.state_dict().items():
        if name.startswith("classifier."):
            continue
        weight = images_weights[name]
        if own.dim() == weight.dim() + 1:
            weight = weight.unsqueeze(2).expand(*weight.shape[:2], own.shape[2], *weight.shape[2:]) / own.shape[2]
        if weight.shape != own.shape:
            raise ValueError(f"{name} is {tuple(weight.shape)}, expected {tuple(own.shape)}")
        found[name] = torch.as_tensor(weight).contiguous()
    return found
