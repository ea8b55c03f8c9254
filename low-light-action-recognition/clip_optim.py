"""The optimiser and schedule of action recognition: SGD with Nesterov's momentum by default; milestones count clips."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from minmax.runtime.devices import joined_processes
from minmax.runtime.errors import check
from minmax.runtime.optimisation import OptimConfig


@dataclass(frozen=True)
class ClipOptim(OptimConfig):
    """Optimisation; the defaults are the paper's for adaptation."""

    nesterov: ClassVar[bool] = True
    epochs: int = 10
    """Passes over the training videos."""
    batch_size: int = 48
    """Clips per step and process."""
    method: Literal["adam", "adamw", "sgd"] = "sgd"
    """sgd, with Nesterov's momentum, the paper's; adam or adamw learn small networks from scratch in fewer steps."""
    weight_decay: float = 1e-4
    """Weight decay."""
    milestones: tuple[int, ...] = (20_000, 40_000, 80_000)
    """Numbers of clips after each of which the learning rates fall tenfold."""
    warmup_steps: int = 99
    """Steps at the start with half the learning rates."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check(self, "batch_size", self.batch_size >= 2, "2 or more")
        check(self, "momentum", self.momentum > 0, "more than 0, less than 1")
        counted = all(milestone >= self.batch_size for milestone in self.milestones)
        check(self, "milestones", counted, f"numbers of clips, {self.batch_size} (a batch) or more")
        check(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """Share of the learning rate that is left after `step` steps of all processes together."""
        left = super().rate_factor(step, steps_per_epoch)
        if self.decay == "milestones":
            clips = self.batch_size * joined_processes().world_size  # of a step
            left = 0.1 ** sum(step >= milestone // clips for milestone in self.milestones)
        return (0.5 if step < self.warmup_steps else 1.0) * left
