"""Built-in scenes as batches, and a daytime training: what the examples share. In your project both are yours."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def as_images(pixels: np.ndarray) -> Tensor:
    """Bytes `(N, H, W, 3)` as float images `(N, 3, H, W)` in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0


def unseen(render: Callable[..., tuple[Any, Any]], count: int, size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Images and labels of unseen scenes by day and by night."""
    found = {name: render(name, count, size, seed=1) for name in ("day", "night")}
    return {name: (as_images(images), torch.from_numpy(labels).long()) for name, (images, labels) in found.items()}


def train_by_day(
    model: nn.Module, batches: Iterable[tuple[Tensor, Any]], losses: Callable[[Tensor, Any], Tensor], epochs: int
) -> nn.Module:
    """Plain training, (images, targets) to a loss; the learning rate falls to 0 along a cosine."""
    batches = list(batches)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    model.train()
    for _ in range(epochs):
        for number in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            losses(*batches[number]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
