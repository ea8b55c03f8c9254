"""A torchvision detector of cars and people learns the night: it takes its targets in training and gives losses.

python examples/adapt_your_detector.py
"""

from typing import Any

import cv2
import numpy as np
import torch
from scene_batches import as_images, train_by_day
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou

from darkening import CameraConfig, NightView
from minmax import adapt
from scenes import HELD_OUT_NIGHT, render_segmented
from scenes.sprites import CAR, PERSON

Targets = list[dict[str, Tensor]]


def boxes_of(labels: np.ndarray) -> dict[str, Tensor]:
    """Boxes and classes of what is seen of cars (1) and people (2), from the class of every pixel."""
    boxes, classes = [], []
    for number, label in enumerate((CAR, PERSON), start=1):
        _, _, found, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
        for x, y, width, height, area in found[1:]:
            if area >= 40:
                boxes.append([x, y, x + width, y + height])
                classes.append(number)
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": torch.tensor(classes).long()}


def load(domain: Any, count: int, seed: int) -> tuple[Tensor, Targets]:
    pixels, labels = render_segmented(domain, count, 96, seed, HELD_OUT_NIGHT)
    return as_images(pixels), [boxes_of(picture) for picture in labels]


@torch.no_grad()
def recalls(detector: nn.Module, count: int) -> dict[str, float]:
    """Share of the boxes in unseen scenes that one of a picture's three surest detections meets, IoU 0.5."""
    found = {}
    for domain in ("day", "night"):
        hits = total = 0
        images, targets = load(domain, count, seed=1)
        for image, target in zip(images, targets, strict=True):
            [seen] = detector([image])
            same = seen["labels"][:3, None] == target["labels"]
            hits += int(((box_iou(seen["boxes"][:3], target["boxes"]) >= 0.5) & same).any(dim=0).sum())
            total += len(target["labels"])
        found[domain] = hits / max(1, total)
    return found


def main(count: int = 512, epochs: int = 12, unseen_count: int = 200) -> dict[str, dict[str, float]]:
    """Train by day, adapt, and measure both."""
    torch.manual_seed(0)
    images, targets = load("day", count, seed=0)
    day = [(images[i : i + 8], targets[i : i + 8]) for i in range(0, count, 8)]
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    detector = FasterRCNN(backbone, num_classes=3, min_size=96, max_size=96)
    train_by_day(detector, day, lambda images, targets: sum(detector(images, targets).values()), epochs)

    night = NightView("gamma", exposure=(0.05, 0.4), camera=CameraConfig(share=1))
    adapted = adapt(
        *(detector, day, lambda losses, _: sum(losses.values()), night),
        features=["backbone.body.layer4"],
        epochs=epochs // 2,
        batch_norm="separate",
        targets_to_model=True,
    )
    return {"before": recalls(detector, unseen_count), "after": recalls(adapted, unseen_count)}


if __name__ == "__main__":
    print(main())
