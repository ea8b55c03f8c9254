"""Feature similarity: minimised by the darkener, maximised by the adapted model."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """What autocast made coarse in float32; float64 stays."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def feature_similarity(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Mean cosine between two lists of features, over dimension 1, then all positions, then the list.

    Args:
        first: vectors `(N, C)`, maps `(N, C, H, W)` or clips `(N, C, T, H, W)`; maps are compared pixel by pixel.
        second: features of the same shapes.

    Returns:
        A scalar in [-1, 1].

    Raises:
        ValueError: when the lists differ in length or a pair in shape.

    Source: Luo et al., ICCV 2023; the similarity that the image level minimises and the model level maximises.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"expected two equally long lists of features, got {len(first)} and {len(second)}")
    cosines = []
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"features of different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
        # Under autocast the features are bf16, too coarse for the last digits of a cosine.
        product = F.normalize(at_least_float32(a), dim=1) * F.normalize(at_least_float32(b), dim=1)
        cosines.append(product.sum(dim=1).mean())
    return torch.stack(cosines).mean()
