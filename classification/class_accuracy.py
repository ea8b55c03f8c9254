"""Accuracy of a classifier on a split, by day, by real night, or in a hand-made night for selecting a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from class_folders import ImageConfig, LabelledImages
from image_views import WholeImages
from torch import Tensor, nn

from darkening.selection_nights import SelectionNight, by_day, selection_numbers
from minmax.runtime.batches import one_pass
from minmax.runtime.comparison import verdicts
from minmax.runtime.devices import Runtime
from minmax.runtime.seeding import generator_for

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassAccuracy:
    """A confusion matrix and what follows from it, with the verdict on each image.

    `confusion` is `(C, C)` counts, truth by row, prediction by column. `predictions` and `labels` are one class per
    image in order, `confidences` the largest softmax probability of each; the calibration error alone needs the last
    two.
    """

    confusion: Tensor
    predictions: Tensor
    confidences: Tensor = field(default_factory=lambda: torch.empty(0))
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def per_class(self) -> list[float]:
        """Share of each class that is recognised; NaN for a class without images."""
        return (self.confusion.diagonal().double() / self.confusion.sum(dim=1)).tolist()

    @property
    def top1(self) -> float:
        """Share of all images that are recognised."""
        return float(self.confusion.trace().double() / self.confusion.sum())

    @property
    def balanced(self) -> float:
        """Mean over the classes that occur of the share recognised."""
        shares = torch.tensor(self.per_class, dtype=torch.float64)
        return float(shares[~shares.isnan()].mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: how far the confidences are from the share of images that is recognised.

        The mean over images of |accuracy - mean confidence| in 15 bins of confidence of equal width, each open below
        and closed above, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
        https://arxiv.org/abs/1706.04599.

        Raises:
            ValueError: when labels or confidences were not kept.
        """
        if not len(self.confidences) == len(self.labels) == len(self.predictions):
            raise ValueError("the calibration error needs the label and the confidence of every image")
        confidences = self.confidences.double()
        bins = ((confidences * CALIBRATION_BINS).ceil().long() - 1).clamp(0, CALIBRATION_BINS - 1)
        gaps = (self.predictions == self.labels).double() - confidences
        return float(torch.zeros(CALIBRATION_BINS).double().index_add(0, bins, gaps).abs().sum() / len(gaps))

    def as_plain(self, images: LabelledImages) -> dict[str, Any]:
        """All of it for JSON, down to each image of the split."""
        classes = images.classes
        return {
            "count": len(images),
            "top1": self.top1,
            "balanced": self.balanced,
            "calibration_error": self.calibration_error,
            "per_class": dict(zip(classes, self.per_class, strict=True)),
            "class_counts": dict(zip(classes, self.confusion.sum(dim=1).tolist(), strict=True)),
            "confusion": self.confusion.tolist(),
            "predictions": self.predictions.tolist(),
            "images": verdicts(images, self.predictions, self.confidences),
        }


@torch.no_grad()
def measure(
    network: nn.Module,
    images: LabelledImages,
    config: ImageConfig,
    runtime: Runtime,
    nights: Sequence[SelectionNight] = (by_day,),
    batch_size: int = 64,
    workers: int = 0,
) -> list[ClassAccuracy]:
    """Classify every image of a split in each of `nights`; each image is decoded once.

    Args:
        network: images `(N, 3, H, W)` in [0, 1] to logits `(N, C)`; put into evaluation mode and left there.
        images: the split.
        config: how its images are read.
        runtime: the devices.
        nights: each darkens the images, the same way in every call; by default they stay as they are.
        batch_size: images per forward pass.
        workers: processes that decode.
    """
    runtime.evaluate(network)
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in nights]  # predictions and confidences of each batch
    for number, (batch, _) in one_pass(WholeImages(images, config), batch_size, images.split, workers, runtime):
        day = runtime.intensities(batch)
        for night, parts in zip(nights, found, strict=True):
            pictures = night(day, generator_for(images.split, number))
            with runtime.autocast():
                logits = network(pictures)
            confidences = logits.float().softmax(dim=1).amax(dim=1)
            parts.append((logits.argmax(dim=1).cpu(), confidences.cpu()))
    count, labels = len(images.classes), torch.tensor(images.labels)
    accuracies = []
    for parts in found:
        predicted, confident = (torch.cat(some) for some in zip(*runtime.collected(parts), strict=True))
        confusion = torch.bincount(labels * count + predicted, minlength=count * count).view(count, count)
        accuracies.append(ClassAccuracy(confusion, predicted, confident, labels))
    return accuracies


def selection_score(
    network: nn.Module, images: LabelledImages, config: ImageConfig, runtime: Runtime
) -> dict[str, float]:
    """The numbers that select checkpoints: balanced accuracy on validation images by day and in each selection night.

    Raises:
        ValueError: for a night split; nothing is ever selected on one.
    """
    return selection_numbers(
        images, lambda nights: [a.balanced for a in measure(network, images, config, runtime, nights)]
    )
