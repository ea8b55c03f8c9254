"""The optimiser and the learning rate's schedule of the training scripts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from minmax.runtime.errors import UsageError, check

Decay = Literal["milestones", "cosine", "polynomial", "exponential"]


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    nesterov: ClassVar[bool] = False  # whether sgd's momentum is
    epochs: int = 90
    """Passes over the training data."""
    batch_size: int = 32
    """Samples per step and process."""
    method: Literal["adam", "adamw", "sgd"] = "adam"
    """adam, whose weight decay is added to the gradient; adamw, where it shrinks the weights themselves; sgd."""
    lr: float = 1e-3
    """Learning rate."""
    head_lr: float | None = None
    """Learning rate of what is new beside the network, BYOL's projectors and predictors; by default the same."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-5
    """Weight decay: of about 1e-5 for adam, 0.01 to 0.05 for adamw."""
    decay: Decay = "milestones"
    """How the learning rates fall: tenfold at the --optim.milestones; to 0 along a cosine or by the 0.9th power of the
    steps left; or by exp(-0.01) each epoch."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rates fall tenfold."""
    at_once: int = 0
    """Samples of a step that are in memory together, gradients being accumulated part by part; 0 for all. BatchNorm
    sees the parts one by one; nothing else of a step depends on it."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self, "epochs", self.epochs >= 1, "1 or more")
        check(self, "batch_size", self.batch_size >= 1, "1 or more")
        check(self, "lr", self.lr > 0, "more than 0")
        check(self, "head_lr", self.head_lr is None or self.head_lr > 0, "more than 0")
        check(self, "momentum", 0 <= self.momentum < 1, "0 or more, less than 1")
        check(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        check(self, "at_once", self.at_once >= 0, "0 or more")
        falls = self.decay == "milestones"
        check(self, "milestones", falls or not self.milestones, f"none beside {self.decay}")

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """Share of the learning rate that is left after `step` steps."""
        done = step / (self.epochs * steps_per_epoch)
        if self.decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if self.decay == "polynomial":
            return float(max(0.0, 1.0 - done) ** 0.9)
        if self.decay == "exponential":
            return math.exp(-0.01 * (step // steps_per_epoch))
        return float(0.1 ** sum(step >= milestone * steps_per_epoch for milestone in self.milestones))

    def build(
        self,
        trained: nn.Module,
        steps_per_epoch: int,
        network: nn.Module | None = None,
        groups: Iterable[dict[str, Any]] = (),
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """The optimiser, and its schedule, to be stepped after every step.

        Args:
            trained: all that is trained.
            steps_per_epoch: of the loader.
            network: the part of it that learns with `lr`, the rest with `head_lr`; by default all of it.
            groups: the network's parameters in groups of their own options, where it has such.

        Raises:
            UsageError: when there is a `head_lr` for a network alone.
        """
        inside = list(groups)
        if self.head_lr is not None and network is None and not inside:
            raise UsageError("--optim.head-lr: nothing new beside the network is trained here; drop it")
        inside = inside or [{"params": [p for p in (network or trained).parameters() if p.requires_grad]}]
        known = {parameter for group in inside for parameter in group["params"]}
        heads = [p for p in trained.parameters() if p.requires_grad and p not in known]
        if heads:  # without BYOL there are none
            inside.append({"params": heads, "lr": self.head_lr or self.lr})
        optimizer: torch.optim.Optimizer
        if self.method == "sgd":
            optimizer = torch.optim.SGD(
                inside, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov, fused=True
            )
        else:
            method = torch.optim.AdamW if self.method == "adamw" else torch.optim.Adam
            optimizer = method(inside, self.lr, weight_decay=self.weight_decay, fused=True)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.rate_factor(step, steps_per_epoch)
        )
