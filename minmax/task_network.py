"""The contract between the method and any network: an encoder that gives features, a head that predicts."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IDENTITY_STATISTICS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class InputNormalization(nn.Module):
    """First layer of a network: RGB images in [0, 1] to the statistics that the weights expect.

    Args:
        mean: per channel, in [0, 1].
        std: per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not persistent: released checkpoints do not hold them, and a network is rebuilt with its own.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images `(N, 3, H, W)` or clips `(N, 3, T, H, W)`."""
        shape = (3, *[1] * (images.dim() - 2))
        return (images - self.get_buffer("mean").view(shape)) / self.get_buffer("std").view(shape)

    @classmethod
    def imagenet(cls) -> "InputNormalization":
        """Statistics of ImageNet, as torchvision's weights expect."""
        return cls(*IMAGENET_STATISTICS)

    @classmethod
    def identity(cls) -> "InputNormalization":
        """No normalisation: images go in as they are."""
        return cls(*IDENTITY_STATISTICS)


class LayeredEncoder(nn.Module):
    """Layers run in order; the outputs of the named ones are the features.

    Args:
        normalization: the network's first layer.
        layers: name to module, in the order of computation; names become the names of tensors in checkpoints.
        features: the layers whose outputs are returned; layers after the last of them must not be given.
    """

    def __init__(
        self, normalization: InputNormalization, layers: Mapping[str, nn.Module], features: Sequence[str]
    ) -> None:
        super().__init__()
        unknown = [name for name in features if name not in layers]
        if unknown or not features:
            raise ValueError(f"features {unknown or '()'} are not among the layers {list(layers)}")
        self.normalization = normalization
        self.feature_layers = tuple(features)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of `(N, 3, H, W)` images in [0, 1], shallow to deep."""
        found, value = [], images
        for name, layer in self._modules.items():  # named_children() skips a layer that is used twice
            assert layer is not None
            value = layer(value)
            if name in self.feature_layers:
                found.append(value)
        return found


class TaskNetwork(nn.Module):
    """A network as the method sees it.

    Args:
        encoder: images `(N, 3, H, W)` in [0, 1] to a list of features, each `(N, C)` or `(N, C, H, W)`;
            normalises its input itself.
        head: (features, (H, W) of the images) to the prediction.
        feature_widths: C of each feature.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, feature_widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.feature_widths = tuple(feature_widths)

    def forward(self, images: Tensor) -> Tensor:
        """Predict for `(N, 3, H, W)` images in [0, 1]."""
        prediction: Tensor = self.head(self.encoder(images), images.shape[-2:])
        return prediction


def freeze(module: ModuleT) -> ModuleT:
    """Make a module a constant: no gradients for its parameters, BatchNorm and dropout in evaluation mode."""
    return module.requires_grad_(False).eval()
