"""Intersection over union from an integer confusion matrix, counted on the device that predicts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from street_images import Size, Street, StreetImages, WholeStreets
from street_labels import CLASSES, VOID
from torch import Tensor, nn

from darkening.selection_nights import SelectionNight, by_day, selection_numbers
from minmax.runtime.batches import one_pass
from minmax.runtime.devices import Runtime, require_finite
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
    kept: tuple[tuple[Street, Tensor], ...] = ()

    def per_class(self, classes: ScoredClasses = "all") -> list[float]:
        """Intersection over union of the 19 classes; NaN for those that do not count.

        Args:
            classes: `all` that occur or are predicted, as Cityscapes does; or only those `occurring` in the truth, for
                data with fewer classes than 19.
        """
        confusion = self.confusion.double()[:VOID]
        hits, truth = confusion.diagonal(), confusion.sum(dim=1)
        union = truth + confusion[:, :VOID].sum(dim=0) - hits
        counts = union if classes == "all" else truth
        return (hits / union).where(counts > 0, math.nan).tolist()

    def count(self, classes: ScoredClasses = "all") -> int:
        """How many classes count."""
        return sum(not math.isnan(share) for share in self.per_class(classes))

    def mean(self, classes: ScoredClasses = "all") -> float:
        """Mean intersection over union of the classes that count; NaN when there are none."""
        return float(torch.tensor(self.per_class(classes), dtype=torch.float64).nanmean())

    @property
    def accuracy(self) -> float:
        """Share of the pixels with a class that are recognised."""
        return float(self.confusion.diagonal()[:VOID].sum() / self.confusion[:VOID].sum())

    def as_plain(self, classes: ScoredClasses) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "mean_iou": self.mean(classes),
            "mean_iou_all": self.mean("all"),
            "mean_iou_occurring": self.mean("occurring"),
            "accuracy": self.accuracy,
            "per_class": dict(zip(CLASSES, self.per_class(), strict=True)),
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
    called: str = "the network",
) -> list[StreetScore]:
    """Score a labelled split in each of `nights`, by default as it is; network and images of `size` as for `predict`.

    With `full_labels` labels keep their own size and logits are brought to it. At most `keep` images, evenly spaced,
    are kept with their predictions.
    """
    confusions = torch.zeros(len(nights), _ROWS, _ROWS, dtype=torch.int64, device=runtime.device)
    kept: list[list[tuple[Street, Tensor]]] = [[] for _ in nights]
    chosen = evenly_spaced(range(len(images)), keep)
    dataset = WholeStreets(images, size, full_labels)
    for night, street, logits in predict(network, dataset, runtime, nights, batch_size, workers, called):
        assert street.labels is not None
        prediction = logits.argmax(dim=0)
        confusions[night] += count_confusion(prediction, street.labels.to(prediction.device))
        if street.position in chosen:
            kept[night].append((street, prediction.cpu()))
    counts = runtime.sum_over_ranks(confusions).cpu()
    return [StreetScore(confusion, tuple(few)) for confusion, few in zip(counts, kept, strict=True)]


@torch.no_grad()
def predict(
    network: nn.Module,
    dataset: WholeStreets,
    runtime: Runtime,
    nights: Sequence[SelectionNight] = (by_day,),
    batch_size: int = 4,
    workers: int = 0,
    called: str = "the network",
) -> Iterator[tuple[int, Street, Tensor]]:
    """For each night and image the night's number, the image, and logits `(outputs, H, W)` in the size of its labels.

    The network takes images `(N, 3, H, W)` in [0, 1] to logits `(N, outputs, H, W)`, and is left in evaluation mode.
    Images are decoded once for all nights, and darkened the same way in every call.

    Raises:
        RunError: when logits are not finite; the network is `called` so.
    """
    runtime.evaluate(network)
    for number, streets in one_pass(dataset, batch_size, dataset.images.title, workers, runtime, list):
        day = runtime.intensities(torch.stack([street.image for street in streets]))
        for position, night in enumerate(nights):
            pictures = night(day, generator_for("selection", number))
            with runtime.autocast():
                logits = network(pictures)
            require_finite(logits, called, dataset.images.title)
            for street, scores in zip(streets, logits.float(), strict=True):
                shape = dataset.size if street.labels is None else street.labels.shape
                if scores.shape[-2:] != shape:
                    scores = F.interpolate(scores[None], size=tuple(shape), mode="bilinear", align_corners=False)[0]
                yield position, street, scores


def selection_score(
    network: nn.Module, images: StreetImages, size: Size, runtime: Runtime, workers: int = 0
) -> dict[str, float]:
    """Mean IoU on day validation images by day and in each selection night, and the `score` to choose by.

    Raises:
        ValueError: for night images; nothing is ever selected on them.
    """

    def mean_iou(nights: Sequence[SelectionNight]) -> list[float]:
        found = measure(network, images, size, runtime, nights, workers=workers)
        return [score.mean("occurring") for score in found]

    return selection_numbers(images, mean_iou)
