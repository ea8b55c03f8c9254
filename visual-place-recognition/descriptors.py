"""Descriptors of many images of many shapes: those of equal shape go through the network together."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from place_images import PlaceImages
from place_network import unwrap
from place_pairs import PlacePairs
from ranking import nearest, score_rankings
from torch import Tensor

from darkening.selection_nights import SelectionNight, by_day, selection_numbers
from minmax.features import FeatureModel
from minmax.runtime.batches import one_pass
from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.devices import Runtime, require_finite
from minmax.runtime.errors import RunError
from minmax.runtime.run import Run
from minmax.runtime.seeding import generator_for
from minmax.runtime.splits import OnePerExample

log = logging.getLogger(__name__)
_SHAPES_HELD = 16  # batches that may fill at the same time
# Parts of torch's messages when an image, or a map inside a network, shrinks to nothing.
_TOO_SMALL = ("too small", "should be greater than 0", "can't be greater than actual input size")


class WholePlaces(OnePerExample[Tensor]):
    """Chosen images, uint8 `(3, H, W)` in formats of their own."""

    def __init__(self, images: PlaceImages, positions: Sequence[int], size: int) -> None:
        super().__init__(positions)
        self.images, self.positions, self.size = images, positions, size

    def __getitem__(self, index: int) -> Tensor:
        """One of the chosen images."""
        return self.images.load(self.positions[index], self.size)


def batches_by_shape(
    images: PlaceImages, positions: Sequence[int], size: int, batch_size: int, workers: int, runtime: Runtime
) -> Iterator[list[tuple[int, Tensor]]]:
    """This process's batches of images of one shape each, uint8 `(3, H, W)`, with their numbers among the chosen.

    Each shape fills a batch of its own; when too many batches are open, the fullest goes first.
    """
    waiting: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    for number, image in one_pass(WholePlaces(images, positions, size), None, images.title, workers, runtime):
        batch = waiting.setdefault(image.shape, [])
        batch.append((number, image))
        if len(batch) == batch_size:
            yield waiting.pop(image.shape)
        elif len(waiting) > _SHAPES_HELD:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def describe_images(network: FeatureModel, images: Tensor, scales: Sequence[float] = (1.0,)) -> Tensor:
    """Descriptors `(N, D)` of unit length of `(N, 3, H, W)` images in [0, 1], combined over several scales.

    As in the authors' code, the scales are averaged in the power of the pooling, or plainly after a whitening layer.
    """
    if tuple(scales) == (1.0,):
        found: Tensor = network(images)
        return found
    whole = unwrap(network)
    power = 1.0 if whole.whiten is not None else float(whole.pool.p.detach())
    total = torch.zeros((), device=images.device)
    for scale in scales:
        shown = images
        if scale != 1:
            shown = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        total = total + network(shown) ** power
    combined = (total / len(scales)) ** (1.0 / power)
    length: Tensor = combined.norm(dim=1, keepdim=True)
    return combined / length


@torch.no_grad()
def describe(
    network: FeatureModel,
    images: PlaceImages,
    size: int,
    runtime: Runtime,
    positions: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    batch_size: int = 16,
    workers: int = 0,
    darken: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
    called: str = "the network",
) -> Tensor:
    """Descriptors `(N, D)` of unit length, float32 on the CPU.

    Args:
        network: the retrieval network; left in evaluation mode.
        images: what to describe.
        size: longest side in pixels.
        runtime: the devices.
        positions: which of the images; None for all.
        scales: sizes relative to `size` whose descriptors are combined.
        batch_size: images per forward pass.
        workers: processes that decode.
        darken: turns day images `(n, 3, H, W)` in [0, 1] into night; it also gets their positions.
        called: what messages call the network.

    Raises:
        RunError: when descriptors are not finite or have no length.
    """
    runtime.evaluate(network)
    chosen = range(len(images)) if positions is None else positions
    found: list[tuple[Sequence[int], Tensor]] = []
    for numbered in batches_by_shape(images, chosen, size, batch_size, workers, runtime):
        numbers = [number for number, _ in numbered]
        batch = runtime.intensities(torch.stack([image for _, image in numbered]))
        if darken is not None:
            batch = darken(batch, [chosen[number] for number in numbers])
        try:
            with runtime.autocast():
                descriptors = describe_images(network, batch, scales).float()
        except RuntimeError as error:
            if not any(said in str(error) for said in _TOO_SMALL):
                raise
            name, (height, width) = images.name(chosen[numbers[0]]), batch.shape[-2:]
            raise RunError(
                f"{name} is too small for this network: {width}x{height} pixels, at --scales {min(scales)} of that"
            ) from error
        # Where a length overflows, the descriptor of that length is zero.
        require_finite(descriptors / descriptors.norm(dim=1, keepdim=True), called, images.title)
        found.append((numbers, descriptors.cpu()))
    orders, parts = zip(*runtime.collected(found), strict=True)
    return torch.cat(parts)[torch.tensor([number for order in orders for number in order]).argsort()]


def selection_score(
    network: FeatureModel, pairs: PlacePairs, size: int, runtime: Runtime, batch_size: int = 16, workers: int = 0
) -> dict[str, float]:
    """The numbers that select checkpoints: mean average precision of the queries by day and in each selection night.

    Arguments as for `describe`; `pairs` refuse night images.
    """
    return selection_numbers(
        pairs.images, lambda nights: precisions(network, pairs, size, runtime, nights, batch_size, workers)
    )


def precisions(
    network: FeatureModel,
    pairs: PlacePairs,
    size: int,
    runtime: Runtime,
    nights: Sequence[SelectionNight] = (by_day,),
    batch_size: int = 16,
    workers: int = 0,
) -> list[float]:
    """Mean average precision of the queries in each of some nights, searched in the data base by day."""
    positions, relevances = pairs.relevances()
    database = describe(network, pairs.images, size, runtime, None, (1.0,), batch_size, workers)
    found = []
    for night in nights:

        def darken(batch: Tensor, at: Sequence[int], night: SelectionNight = night) -> Tensor:
            # One image at a time: its draws then depend on itself alone, not on the batch it came in.
            dark = [night(batch[i : i + 1], generator_for("selection", place)) for i, place in enumerate(at)]
            return torch.cat(dark)

        queries = database[positions]
        if night is not by_day:
            queries = describe(network, pairs.images, size, runtime, positions, (1.0,), batch_size, workers, darken)
        score = score_rankings(nearest(queries, database), relevances, [""] * len(relevances))
        found.append(score.mean_average_precision)
    return found


def warn_of_fall(score: float, start: float, run: Run) -> None:
    """Say when the number for choosing is below what it was before training, or below that of an earlier epoch."""
    better = max(start, run.progress.best)
    if score < better and run.runtime.is_main:
        kept = "the network before training" if better == start else f"best.pt of epoch {run.progress.best_epoch}"
        log.warning(
            "the number for choosing, %.1f %%, has fallen below the %.1f %% of %s; lower --optim.lr if it does not "
            "recover",
            *(100 * score, 100 * better, kept),
        )


def save_descriptors(values: Tensor, images: PlaceImages, stem: Path) -> None:
    """Write `(N, D)` as STEM.npy, and the names of the images, a line each, as STEM.txt; atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, values.numpy(), allow_pickle=False)

    write_atomically(Path(f"{stem}.npy"), write)
    save_names(images, stem)


def save_names(images: PlaceImages, stem: Path) -> None:
    """Write the names of images, a line each, as STEM.txt; atomically."""
    names = "".join(f"{images.name(i)}\n" for i in range(len(images)))
    write_atomically(Path(f"{stem}.txt"), lambda temporary: temporary.write_text(names, encoding="utf-8"))
