"""Descriptors of many images of many shapes: those of equal shape go through the network together."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from place_images import PlaceImages
from place_network import unwrap
from place_pairs import PlacePairs
from ranking import nearest, score_rankings
from torch import Tensor
from torch.utils.data import Dataset

from darkening.selection_nights import SelectionNight, by_day, selection_numbers
from minmax.features import FeatureModel
from minmax.runtime.batches import one_pass
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError
from minmax.runtime.seeding import generator_for

_SHAPES_HELD = 16  # batches that may fill at the same time
# Parts of torch's messages when an image, or a map inside a network, shrinks to nothing.
_TOO_SMALL = ("too small", "should be greater than 0", "can't be greater than actual input size")


class WholePlaces(Dataset[Tensor]):
    """Chosen images, uint8 `(3, H, W)` in formats of their own."""

    def __init__(self, images: PlaceImages, positions: Sequence[int], size: int) -> None:
        self.images, self.positions, self.size = images, positions, size

    def __len__(self) -> int:
        """Number of images."""
        return len(self.positions)

    def __getitem__(self, index: int) -> Tensor:
        """One of the chosen images."""
        return self.images.load(self.positions[index], self.size)


def batches_by_shape(
    images: PlaceImages, positions: Sequence[int], size: int, batch_size: int, workers: int, runtime: Runtime
) -> Iterator[tuple[list[int], Tensor]]:
    """This process's batches of images of one shape each, uint8 `(n, 3, H, W)`, with their numbers among the chosen.

    Each shape fills a batch of its own; when too many batches are open, the fullest goes first.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for number, image in one_pass(WholePlaces(images, positions, size), None, images.title, workers, runtime):
        held = waiting.setdefault(tuple(image.shape), [])
        held.append((number, image))
        full = tuple(image.shape) if len(held) == batch_size else None
        if full is None and len(waiting) > _SHAPES_HELD:
            full = max(waiting, key=lambda shape: len(waiting[shape]))
        if full is not None:
            yield _stacked(waiting.pop(full))
    for rest in waiting.values():
        yield _stacked(rest)


def _stacked(held: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    return [number for number, _ in held], torch.stack([image for _, image in held])


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
        shown = (
            images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        )
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
    """
    runtime.evaluate(network)
    chosen = range(len(images)) if positions is None else positions
    found: list[tuple[list[int], Tensor]] = []
    for numbers, pixels in batches_by_shape(images, chosen, size, batch_size, workers, runtime):
        batch = runtime.intensities(pixels)
        if darken is not None:
            batch = darken(batch, [chosen[number] for number in numbers])
        try:
            with runtime.autocast():
                found.append((numbers, describe_images(network, batch, scales).float().cpu()))
        except RuntimeError as error:
            if not any(said in str(error) for said in _TOO_SMALL):
                raise
            name, (height, width) = images.name(chosen[numbers[0]]), batch.shape[-2:]
            raise RunError(
                f"{name} is too small for this network: {width}x{height} pixels, at --scales {min(scales)} of that"
            ) from error
    orders, parts = zip(*runtime.collected(found), strict=True)
    return torch.cat(parts)[torch.tensor([number for order in orders for number in order]).argsort()]


def selection_score(
    network: FeatureModel, pairs: PlacePairs, size: int, runtime: Runtime, batch_size: int = 16, workers: int = 0
) -> dict[str, float]:
    """The numbers that select checkpoints: mean average precision of the queries by day and in each selection night.

    Arguments as for `describe`; `pairs` refuse night images.
    """
    return selection_numbers(
        pairs.images, lambda nights: _precisions(nights, network, pairs, size, runtime, batch_size, workers)
    )


def day_precision(
    network: FeatureModel, pairs: PlacePairs, size: int, runtime: Runtime, batch_size: int = 16, workers: int = 0
) -> float:
    """Mean average precision of day queries; arguments as for `selection_score`."""
    [precision] = _precisions([by_day], network, pairs, size, runtime, batch_size, workers)
    return precision


def _precisions(
    nights: Sequence[SelectionNight],
    network: FeatureModel,
    pairs: PlacePairs,
    size: int,
    runtime: Runtime,
    batch_size: int,
    workers: int,
) -> Iterator[float]:
    """Mean average precision of the queries in each of `nights`, searched in the data base by day."""
    positions, relevances = pairs.relevances()
    database = describe(network, pairs.images, size, runtime, None, (1.0,), batch_size, workers)
    for night in nights:

        def darken(batch: Tensor, at: Sequence[int], night: SelectionNight = night) -> Tensor:
            # One image at a time: its draws then depend on itself alone, not on the batch it came in.
            dark = [night(batch[i : i + 1], generator_for("selection", place)) for i, place in enumerate(at)]
            return torch.cat(dark)

        queries = database[positions]
        if night is not by_day:
            queries = describe(network, pairs.images, size, runtime, positions, (1.0,), batch_size, workers, darken)
        rankings = nearest(queries, database)
        yield score_rankings(rankings, relevances, [""] * len(relevances)).mean_average_precision


def draw_positions(count: int, of: int, *keys: int | str) -> list[int]:
    """Draw `count` different positions below `of`, or all in a new order if there are fewer, seeded by `keys`."""
    return torch.randperm(of, generator=generator_for(*keys))[:count].tolist()
