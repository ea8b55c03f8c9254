"""Tone curves that a darkener bends pixel by pixel, applied again and again.

Source: Luo et al., ICCV 2023 (the reciprocal and the gamma curve are its ablations).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

CurveName = Literal["quadratic", "reciprocal", "gamma"]
Curve = Callable[[Tensor, Tensor, int], Tensor]


def quadratic_curve(image: Tensor, curve_map: Tensor, rounds: int) -> Tensor:
    """Repeat v <- v + a (v^2 - v): darker for a > 0, brighter for a < 0, the identity for a = 0.

    Args:
        image: `(N, 3, H, W)` in [0, 1]; 0 and 1 are fixed points.
        curve_map: a, `(N, 3, H, W)` in [-1, 1], the same in every round.
        rounds: how often.
    """
    if torch.is_grad_enabled():
        for _ in range(rounds):
            image = image + curve_map * (image * image - image)
        return image
    # The same without gradients, in two buffers: v + a v (v - 1).
    value, step = image.clone(), torch.empty_like(image)
    for _ in range(rounds):
        torch.sub(value, 1.0, out=step)
        value.addcmul_(step.mul_(value), curve_map)
    return value


def reciprocal_curve(image: Tensor, curve_map: Tensor, rounds: int) -> Tensor:
    """Repeat v <- (a + 1) v / (a + v) with a = -1 / (m + 1e-5): always darker, 0 and 1 are fixed points.

    Each round multiplies the odds v / (1 - v) by 1 - m - 1e-5, so that all rounds are one, without the pole of the
    formula at v = -a, which for m near 1 lies just below white.

    Args:
        image: `(N, 3, H, W)` in [0, 1].
        curve_map: m, `(N, 3, H, W)` in (0, 1).
        rounds: how often.
    """
    # The bound keeps white from 0 / 0, and gradients there within what a float can square.
    factor = ((1.0 - (curve_map + 1e-5)).clamp_min(0.0) ** rounds).clamp_min(1e-10)
    bent: Tensor = factor * image / (factor * image + (1.0 - image))
    return bent


def gamma_curve(image: Tensor, curve_map: Tensor, rounds: int) -> Tensor:
    """Darken by v <- v^(1/a): the identity for a = 1, 0 (to 1e-6) and 1 are fixed points.

    Args:
        image: `(N, 3, H, W)` in [0, 1].
        curve_map: a, `(N, 3, H, W)` in (0, 1].
        rounds: unused: a power of a power is a power.
    """
    # The slope of a power is infinite or undefined where value or a are 0.
    bent: Tensor = image.clamp_min(1e-6) ** (1.0 / curve_map.clamp_min(1e-3))
    return bent


CURVES: dict[CurveName, tuple[Curve, Callable[[Tensor], Tensor]]] = {
    "quadratic": (quadratic_curve, torch.tanh),
    "reciprocal": (reciprocal_curve, torch.sigmoid),
    "gamma": (gamma_curve, torch.sigmoid),
}
"""Each curve with the function that brings the network's output into the range of its curve map."""
