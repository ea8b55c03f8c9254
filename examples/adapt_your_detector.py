"""A torchvision detector of cars and people learns the night. In training it takes its targets and gives losses.

    python examples/adapt_your_detector.py

RESULT
"""

import cv2
import numpy as np
import torch
from scene_batches import as_images, train_by_day
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou

from darkening import CameraConfig, NightView
from minmax import adapt
from scenes import HELD_OUT_NIGHT, render_segmented
from scenes.sprites import CAR, PERSON


def boxes_of(labels: np.ndarray) -> dict[str, Tensor]:
    """Boxes of what is seen of cars (class 0) and people (1), from the class of every pixel."""
    found: list[list[int]] = []
    for number, label in enumerate((CAR, PERSON)):
        parts = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))[2][1:]
        found += [[x, y, x + width, y + height, number] for x, y, width, height, area in parts if area >= 40]
    table = torch.tensor(found).view(-1, 5)
    return {"boxes": table[:, :4].float(), "labels": table[:, 4].long()}


def recall(detector: nn.Module, domain: str, count: int) -> float:
    """Share of the boxes in unseen scenes that one of a picture's five surest detections meets by half (IoU)."""
    pixels, labels = render_segmented(domain, count, 96, 1, HELD_OUT_NIGHT)
    hits: list[bool] = []
    for image, target in zip(as_images(pixels), map(boxes_of, labels), strict=True):
        with torch.no_grad():
            [seen] = detector([image])
        same = seen["labels"][:5, None] == target["labels"]
        hits += ((box_iou(seen["boxes"][:5], target["boxes"]) >= 0.5) & same).any(dim=0).tolist()
    return sum(hits) / max(1, len(hits))


def main(count: int = 256, epochs: int = 10, unseen_count: int = 200) -> dict[str, dict[str, float]]:
    """Train by day, adapt, and measure both."""
    torch.manual_seed(0)
    pixels, labels = render_segmented("day", count, 96, 0)
    images, targets = as_images(pixels), [boxes_of(picture) for picture in labels]
    day = [(images[i : i + 8], targets[i : i + 8]) for i in range(0, count, 8)]
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    detector = FCOS(backbone, num_classes=2, min_size=96, max_size=96)
    train_by_day(detector, day, lambda images, targets: sum(detector(images, targets).values()), epochs)

    night = NightView("gamma", exposure=(0.05, 0.4), camera=CameraConfig(share=1))
    adapted = adapt(
        *(detector, day, lambda losses, _: sum(losses.values()), night),
        features=["backbone.body.layer4"],
        epochs=epochs // 2,
        batch_norm="separate",
        targets_to_model=True,
    )
    both = {"before": detector, "after": adapted}
    return {
        name: {when: recall(model, when, unseen_count) for when in ("day", "night")} for name, model in both.items()
    }


if __name__ == "__main__":
    print(main())
