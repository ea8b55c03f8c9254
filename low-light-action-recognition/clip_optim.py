"""The optimiser and schedule of action recognition: SGD with Nesterov's momentum or AdamW; milestones count clips."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minmax.runtime.errors import check


@dataclass(frozen=True)
class ClipOptim:
    """Optimisation; the defaults are the paper's for adaptation."""

    epochs: int = 10
    """Passes over the training videos."""
    batch_size: int = 48
    """Clips per step and process."""
    at_once: int = 0
    """Clips of a step that are in memory together, gradients being accumulated part by part; 0 for all. BatchNorm sees
    the parts one by one; nothing else of a step depends on it."""
    method: Literal["sgd", "adamw"] = "sgd"
    """sgd, the paper's; adamw learns small networks from scratch in fewer steps."""
    lr: float = 1e-3
    """Learning rate."""
    momentum: float = 0.9
    """Nesterov's momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay."""
    milestones: tuple[int, ...] = (20_000, 40_000, 80_000)
    """Numbers of clips after each of which the learning rate falls tenfold."""
    warmup_steps: int = 99
    """Steps at the start with half the learning rate."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self, "epochs", self.epochs >= 1, "1 or more")
        check(self, "batch_size", self.batch_size >= 2, "2 or more")
        check(self, "at_once", self.at_once >= 0, "0 or more")
        check(self, "lr", self.lr > 0, "more than 0")
        check(self, "momentum", 0 < self.momentum < 1, "more than 0, less than 1")
        check(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        counted = all(milestone >= self.batch_size for milestone in self.milestones)
        check(self, "milestones", counted, f"numbers of clips, {self.batch_size} (a batch) or more")
        check(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")

    def rate_factor(self, step: int, processes: int = 1) -> float:
        """Factor of the learning rate after `step` steps of all processes together."""
        falls = sum(step >= milestone // (self.batch_size * processes) for milestone in self.milestones)
        return float((0.5 if step < self.warmup_steps else 1.0) * 0.1**falls)

    def build(
        self, parameters: Iterable[Tensor], processes: int = 1
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """The optimiser, and its schedule, to be stepped after every step."""
        optimizer: torch.optim.Optimizer
        if self.method == "adamw":
            optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, fused=True)
        else:
            optimizer = torch.optim.SGD(
                parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=True, fused=True
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate_factor(step, processes))
        return optimizer, schedule
