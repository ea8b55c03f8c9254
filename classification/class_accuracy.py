"""Accuracy of a classifier on a split, by day, by real night, or by a hand-made night for choosing a checkpoint."""

from dataclasses import dataclass

import torch
from class_folders import ImageConfig, LabelledImages
from image_views import WholeImages, refuse_night
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from darkening.heuristics import HEURISTICS
from darkening.night_view import NightConfig, NightView, selection_heuristic
from minmax.runtime.devices import Runtime
from minmax.runtime.run import readable
from minmax.runtime.seeding import generator_for

SELECTION_EXPOSURE = (0.05, 0.25)


@dataclass(frozen=True)
class ClassAccuracy:
    """A confusion matrix and what follows from it.

    `confusion` is `(C, C)` counts, truth by row, prediction by column; `predictions` one class per image in order.
    """

    confusion: Tensor
    predictions: Tensor

    @property
    def per_class(self) -> list[float]:
        """Share of each class that is recognised; NaN for a class without images."""
        return (self.confusion.diagonal().double() / self.confusion.sum(dim=1)).tolist()

    @property
    def top1(self) -> float:
        """Share of all images that are recognised."""
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def balanced(self) -> float:
        """Mean over the classes that occur of the share recognised."""
        shares = torch.tensor(self.per_class)
        return float(shares[~shares.isnan()].mean())


@torch.no_grad()
def measure(
    network: nn.Module,
    images: LabelledImages,
    config: ImageConfig,
    runtime: Runtime,
    night: NightView | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> ClassAccuracy:
    """Classify every image of a split.

    Args:
        network: images `(N, 3, H, W)` in [0, 1] to logits `(N, C)`; put into evaluation mode and left there.
        images: the split.
        config: how its images are read.
        runtime: the devices.
        night: darkens the images first, the same way in every call.
        batch_size: images per forward pass.
        workers: processes that decode.
    """
    network.eval()
    count = len(images.classes)
    confusion = torch.zeros(count * count, dtype=torch.int64, device=runtime.device)
    predictions = []
    loader = DataLoader(WholeImages(images, config), batch_size, num_workers=workers)
    bar = tqdm(loader, desc=images.split, disable=None if runtime.is_main else True, leave=False)
    for number, (batch, labels) in enumerate(readable(bar)):
        pictures = runtime.to_device(batch)
        if night is not None:
            pictures = night(pictures, generator_for(images.split, number))
        with runtime.autocast():
            predicted = network(pictures).argmax(dim=1)
        confusion += torch.bincount(labels.to(predicted) * count + predicted, minlength=count * count)
        predictions.append(predicted.cpu())
    return ClassAccuracy(confusion.view(count, count).cpu(), torch.cat(predictions))


def selection_score(
    network: nn.Module, images: LabelledImages, config: ImageConfig, night: NightConfig, runtime: Runtime
) -> dict[str, float]:
    """What checkpoints are chosen by: balanced accuracy on day validation images as they are and darkened by hand.

    The hand-made night is one that training did not use. Its exposures are the same for every run, so that the scores
    of runs with other exposures can be compared.

    Raises:
        ValueError: for a night split; nothing is ever selected on one.
    """
    refuse_night(images)
    view = NightView(HEURISTICS[selection_heuristic(night.source)], SELECTION_EXPOSURE, noise=0.0)
    day = measure(network, images, config, runtime).balanced
    darkened = measure(network, images, config, runtime, view).balanced
    return {"day": day, "darkened": darkened, "score": (day + darkened) / 2}
