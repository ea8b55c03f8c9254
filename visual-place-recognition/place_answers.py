"""How a network answers the queries of a test set: descriptors, optional whitening, and what they find."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from descriptors import describe
from place_images import PlaceImages
from place_pairs import PlacePairs
from ranking import RetrievalScore, nearest, score_rankings
from retrieval_sets import RetrievalSet
from torch import Tensor
from whitening import Whitening, learn_whitening, load_whitening, save_whitening

from minmax.features import FeatureModel
from minmax.runtime.checkpoints import file_digest, write_atomically
from minmax.runtime.comparison import file_name
from minmax.runtime.devices import Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Describer:
    """A network, how images are shown to it, and the whitening of its descriptors; fields as for `describe`."""

    network: FeatureModel
    runtime: Runtime
    size: int
    scales: tuple[float, ...] = (1.0,)
    batch_size: int = 16
    workers: int = 0
    whitening: Whitening | None = None

    def __call__(self, images: PlaceImages, positions: Sequence[int] | None = None) -> Tensor:
        """Descriptors `(N, D)` of images, or of those at some positions."""
        found = describe(
            *(self.network, images, self.size, self.runtime, positions, self.scales, self.batch_size, self.workers)
        )
        return self.whitening(found) if self.whitening else found


def add_whitening(describer: Describer, checkpoint: Path, pairs: PlacePairs) -> Describer:
    """Add a whitening: loaded from the file beside the checkpoint, or learned from pairs and saved there."""
    precision = describer.runtime.precision
    learned_from = [*(file_digest(checkpoint), describer.size, list(describer.scales), precision, pairs.fingerprint())]
    key = hashlib.sha256(json.dumps(learned_from).encode()).hexdigest()
    file = checkpoint.with_name(f"{checkpoint.stem}.whitening.safetensors")
    whitening = load_whitening(key, file)
    if whitening is None:
        used, positions = torch.cat([pairs.queries, pairs.positives]).unique(return_inverse=True)
        described = describer(pairs.images, used.tolist())
        queries, positives = positions.chunk(2)
        if len(queries) < described.shape[1]:
            log.warning(
                "the whitening is learned from %d pairs for %d dimensions, which is too few: it may do harm",
                len(queries),
                described.shape[1],
            )
        whitening = learn_whitening(described, queries, positives)
        save_whitening(whitening, key, file)
        log.info("whitening learned from %d pairs: %s", len(queries), file)
    return replace(describer, whitening=whitening)


def answer(test: RetrievalSet, describer: Describer, folder: Path) -> RetrievalScore:
    """Describe, rank and score one test set; its descriptors are saved in `folder`."""
    database, queries = describer(test.database), describer(test.queries)
    save_descriptors(database, test.database, folder / f"{file_name(test.title)}-database")
    save_descriptors(queries, test.queries, folder / f"{file_name(test.title)}-queries")
    return score_rankings(nearest(queries, database), test.relevances, test.places)


def save_descriptors(values: Tensor, images: PlaceImages, stem: Path) -> None:
    """Write `(N, D)` as STEM.npy, and the names of the images, a line each, as STEM.txt; atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, values.numpy(), allow_pickle=False)

    names = "".join(f"{images.name(i)}\n" for i in range(len(images)))
    write_atomically(Path(f"{stem}.npy"), write)
    write_atomically(Path(f"{stem}.txt"), lambda temporary: temporary.write_text(names, encoding="utf-8"))
