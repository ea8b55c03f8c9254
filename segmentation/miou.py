"""Intersection over union from an integer confusion matrix, counted on the device that predicts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from street_images import Size, StreetImages
from street_labels import CLASSES, VOID
from street_views import WholeStreet, WholeStreets
from torch import Tensor, nn

from darkening.selection_nights import SelectionNight, by_day, selection_numbers
from minmax.runtime.batches import one_pass
from minmax.runtime.devices import Runtime
from minmax.runtime.seeding import generator_for
from minmax.runtime.splits import evenly_spaced

_ROWS = VOID + 1
_SETS = 8  # of counters

ScoredClasses = Literal["all", "occurring"]


def count_confusion(predictions: Tensor, labels: Tensor) -> Tensor:
    """Pixels of each truth (row) and prediction (column), int64 `(20, 20)`; the last of both is void.

    Args:
        predictions: train ids of any shape, VOID included.
        labels: train ids of the same shape.
    """
    # Sixteen bits hold 8 times 400 pairs. Neighbouring pixels are mostly of the same pair, and a counter that waits for
    # its own last increment is slow, so columns take turns with eight sets of counters.
    pairs = labels.to(torch.int16) * _ROWS
    pairs += predictions.to(torch.int16)
    pairs += torch.arange(labels.shape[-1], dtype=torch.int16, device=labels.device) % _SETS * _ROWS**2
    counts = torch.bincount(pairs.flatten(), minlength=_SETS * _ROWS**2)
    return counts.view(_SETS, _ROWS, _ROWS).sum(dim=0)


@dataclass(frozen=True)
class StreetScore:
    """A confusion matrix `(20, 20)` of counts, truth by row and prediction by column, and what follows from it.

    Pixels whose truth is void are left out; a prediction of void on any other pixel is a miss. `kept` holds a few
    images with their predictions `(H, W)`, for pictures.
    """

    confusion: Tensor
    kept: tuple[tuple[WholeStreet, Tensor], ...] = ()

    @property
    def per_class(self) -> list[float]:
        """Intersection over union of the 19 classes; NaN for one that neither occurs nor is predicted."""
        confusion = self.confusion.double()[:VOID]
        hits = confusion.diagonal()
        union = confusion.sum(dim=1) + confusion[:, :VOID].sum(dim=0) - hits
        return (hits / union).tolist()

    @property
    def occurring(self) -> list[bool]:
        """Whether each class has a pixel in the truth."""
        return (self.confusion[:VOID].sum(dim=1) > 0).tolist()

    def per_occurring_class(self) -> list[float]:
        """Intersection over union of the 19 classes; NaN for one that does not occur in the truth."""
        return [share if there else math.nan for share, there in zip(self.per_class, self.occurring, strict=True)]

    @property
    def accuracy(self) -> float:
        """Share of the pixels with a class that are recognised."""
        return float(self.confusion.diagonal()[:VOID].sum() / self.confusion[:VOID].sum())

    def scored(self, classes: ScoredClasses = "all") -> list[bool]:
        """Whether each class counts.

        Args:
            classes: `all` that occur or are predicted, as Cityscapes does; or only those `occurring` in the truth, for
                data with fewer classes than 19.
        """
        if classes == "occurring":
            return self.occurring
        return [share == share for share in self.per_class]  # NaN is unlike itself

    def mean(self, classes: ScoredClasses = "all") -> float:
        """Mean intersection over union of the classes that count; NaN when there are none."""
        shares = [share for share, counts in zip(self.per_class, self.scored(classes), strict=True) if counts]
        return sum(shares) / len(shares) if shares else math.nan

    def as_plain(self, classes: ScoredClasses) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "mean_iou": self.mean(classes),
            "mean_iou_all": self.mean("all"),
            "mean_iou_occurring": self.mean("occurring"),
            "accuracy": self.accuracy,
            "per_class": dict(zip(CLASSES, self.per_class, strict=True)),
            "confusion": self.confusion.tolist(),
        }


def measure(
    network: nn.Module,
    images: StreetImages,
    size: Size,
    runtime: Runtime,
    nights: Sequence[SelectionNight] = (by_day,),
    full_labels: bool = False,
    keep: int = 0,
    batch_size: int = 4,
    workers: int = 0,
) -> list[StreetScore]:
    """Score a split in each of `nights`.

    Args:
        network: as for `predict`.
        images: the split, with labels; each image is decoded once for all nights.
        size: what images are brought to.
        runtime: the devices.
        nights: each darkens the images, the same way in every call; by default they stay as they are.
        full_labels: keep labels at their own size, and bring the logits to it.
        keep: most images to keep with their predictions; they are evenly spaced.
        batch_size: images per forward pass.
        workers: processes that decode.
    """
    runtime.evaluate(network)
    confusions = torch.zeros(len(nights), _ROWS, _ROWS, dtype=torch.int64, device=runtime.device)
    kept: list[list[tuple[WholeStreet, Tensor]]] = [[] for _ in nights]
    chosen = evenly_spaced(range(len(images)), keep)
    for number, streets, day in _batches(images, size, runtime, full_labels, batch_size, workers):
        for night, confusion, few in zip(nights, confusions, kept, strict=True):
            pictures = night(day, generator_for("selection", number))
            for street, logits in _logits(network, streets, pictures, size, runtime):
                assert street.labels is not None
                prediction = logits.argmax(dim=0)
                confusion += count_confusion(prediction, street.labels.to(prediction.device))
                if street.position in chosen:
                    few.append((street, prediction.cpu()))
    counts = runtime.sum_over_ranks(confusions).cpu()
    return [StreetScore(confusion, tuple(few)) for confusion, few in zip(counts, kept, strict=True)]


def predict(
    network: nn.Module,
    images: StreetImages,
    size: Size,
    runtime: Runtime,
    full_labels: bool = False,
    batch_size: int = 4,
    workers: int = 0,
) -> Iterator[tuple[WholeStreet, Tensor]]:
    """Each image of a split with the logits of its pixels `(outputs, H, W)`, in the size of its labels.

    Args:
        network: images `(N, 3, H, W)` in [0, 1] to logits `(N, outputs, H, W)`; left in evaluation mode.
        images: the split.
        size: what images are brought to.
        runtime: the devices.
        full_labels: keep labels at their own size, and bring the logits to it.
        batch_size: images per forward pass.
        workers: processes that decode.
    """
    network.eval()
    for _, streets, pictures in _batches(images, size, runtime, full_labels, batch_size, workers):
        yield from _logits(network, streets, pictures, size, runtime)


def _batches(
    images: StreetImages, size: Size, runtime: Runtime, full_labels: bool, batch_size: int, workers: int
) -> Iterator[tuple[int, list[WholeStreet], Tensor]]:
    """The number of each batch, what it holds, and its images `(N, 3, H, W)` on the device."""
    dataset = WholeStreets(images, size, full_labels)
    for number, streets in one_pass(dataset, batch_size, images.title, workers, runtime, list):
        yield number, streets, runtime.intensities(torch.stack([street.image for street in streets]))


@torch.no_grad()
def _logits(
    network: nn.Module, streets: list[WholeStreet], pictures: Tensor, size: Size, runtime: Runtime
) -> Iterator[tuple[WholeStreet, Tensor]]:
    """The images of a batch, each with the logits of its pixels in the size of its labels."""
    with runtime.autocast():
        logits = network(pictures)
    for street, scores in zip(streets, logits.float(), strict=True):
        shape = size if street.labels is None else street.labels.shape
        if scores.shape[-2:] != shape:
            scores = F.interpolate(scores[None], size=tuple(shape), mode="bilinear", align_corners=False)[0]
        yield street, scores


def selection_score(
    network: nn.Module,
    images: StreetImages,
    size: Size,
    runtime: Runtime,
    batch_size: int = 4,
    workers: int = 0,
) -> dict[str, float]:
    """The numbers that select checkpoints: mean IoU on validation images by day and in each selection night.

    Arguments as for `measure`.

    Raises:
        ValueError: for night images; nothing is ever selected on them.
    """

    def mean_iou(nights: Sequence[SelectionNight]) -> list[float]:
        found = measure(network, images, size, runtime, nights, batch_size=batch_size, workers=workers)
        return [score.mean("occurring") for score in found]

    return selection_numbers(images, mean_iou)
