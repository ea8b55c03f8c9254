"""Accuracy of a classifier on a split, by day, by real night, or in a hand-made night for selecting a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from class_folders import ImageConfig, LabelledImages, WholeImages
from torch import Tensor, nn

from darkening.selection_nights import SelectionNight, by_day, selection_numbers
from minmax.runtime.batches import one_pass
from minmax.runtime.comparison import Verdicts
from minmax.runtime.devices import Runtime, require_finite
from minmax.runtime.seeding import generator_for
from minmax.runtime.splits import Labelled

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassAccuracy(Verdicts):
    """What a network says of each image, and the accuracy that follows; confidences are softmax probabilities."""

    @property
    def balanced(self) -> float:
        """Mean over the classes that occur of the share recognised."""
        return float(torch.tensor(self.per_class, dtype=torch.float64).nanmean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: how far the confidences are from the share of images that is recognised.

        The mean over images of |accuracy - mean confidence| in 15 bins of confidence of equal width, each open below
        and closed above, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
        https://arxiv.org/abs/1706.04599.
        """
        confidences = self.confidences.double()
        bins = ((confidences * CALIBRATION_BINS).ceil().long() - 1).clamp(0, CALIBRATION_BINS - 1)
        gaps = (self.predictions == self.labels).double() - confidences
        return float(torch.zeros(CALIBRATION_BINS).double().index_add(0, bins, gaps).abs().sum() / len(gaps))

    def as_plain(self, examples: Labelled) -> dict[str, Any]:
        """All of it for JSON, down to each image of the split."""
        return super().as_plain(examples) | {
            "balanced": self.balanced,
            "calibration_error": self.calibration_error,
            "class_counts": dict(zip(examples.classes, self.confusion.sum(dim=1).tolist(), strict=True)),
            "predictions": self.predictions.tolist(),
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
    called: str = "the network",
) -> list[ClassAccuracy]:
    """Classify every image of a split in each of `nights`; by default as they are.

    Images are decoded once for all nights, and darkened the same way in every call. The network takes `(N, 3, H, W)` in
    [0, 1] to logits `(N, C)`, and is left in evaluation mode.

    Raises:
        RunError: when logits are not finite; the network is `called` so.
    """
    runtime.evaluate(network)
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in nights]  # predictions and confidences of each batch
    for number, (batch, _) in one_pass(WholeImages(images, config), batch_size, images.split, workers, runtime):
        day = runtime.intensities(batch)
        for night, parts in zip(nights, found, strict=True):
            pictures = night(day, generator_for(images.split, number))
            with runtime.autocast():
                logits = network(pictures)
            require_finite(logits, called, images.split)
            confidences = logits.float().softmax(dim=1).amax(dim=1)
            parts.append((logits.argmax(dim=1).cpu(), confidences.cpu()))
    accuracies, labels = [], torch.tensor(images.labels)
    for parts in found:
        predictions, confidences = map(torch.cat, zip(*runtime.collected(parts), strict=True))
        accuracies.append(ClassAccuracy(predictions, confidences, labels, len(images.classes)))
    return accuracies


def selection_score(
    network: nn.Module, images: LabelledImages, config: ImageConfig, runtime: Runtime
) -> dict[str, float]:
    """Balanced accuracy on day validation images by day and in each selection night, and the `score` to choose by.

    Raises:
        ValueError: for a night split; nothing is ever selected on one.
    """

    def balanced(nights: Sequence[SelectionNight]) -> list[float]:
        return [accuracy.balanced for accuracy in measure(network, images, config, runtime, nights)]

    return selection_numbers(images, balanced)
