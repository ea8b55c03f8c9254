"""Whitening of descriptors that is learned from pairs of images of the same place.

Source: Mikolajczyk and Matas, "Improving descriptors for fast tree matching by optimal linear projection", ICCV 2007,
as used by Radenović et al., "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from place_images import PlaceImages
from place_pairs import PlacePairs
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minmax.runtime.checkpoints import file_digest, write_atomically
from minmax.runtime.errors import UsageError

log = logging.getLogger(__name__)
Describe = Callable[[PlaceImages, Sequence[int]], Tensor]
_FIRST_RIDGE = 1e-10
_LENGTH_FLOOR = 1e-6
_CHUNK = 2**14  # descriptors in float64 at a time


class Whitening(NamedTuple):
    """Subtract `mean` `(D,)`, multiply by `projection` `(D, D)`; both float64."""

    mean: Tensor
    projection: Tensor

    def __call__(self, descriptors: Tensor) -> Tensor:
        """Whiten `(N, D)` and bring it back to unit length."""
        whitened = (descriptors.double() - self.mean) @ self.projection.T
        unit: Tensor = whitened / (whitened.norm(dim=1, keepdim=True) + _LENGTH_FLOOR)
        return unit.to(descriptors.dtype)


def learn_whitening(descriptors: Tensor, queries: Tensor, positives: Tensor) -> Whitening:
    """Whiten the differences within pairs, then turn to the directions in which places differ most.

    Args:
        descriptors: `(N, D)`.
        queries: positions of the first image of each pair `(P,)`.
        positives: positions of the second ones `(P,)`.
    """
    import scipy.linalg

    width = descriptors.shape[1]
    mean = descriptors[queries].double().mean(dim=0)
    within, between = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))
    # In parts: all pairs at once would be gigabytes.
    for query, positive in zip(queries.split(_CHUNK), positives.split(_CHUNK), strict=True):
        difference = descriptors[query].double() - descriptors[positive].double()
        within += difference.T @ difference
    ridge, root = 0.0, None
    while root is None:  # where the matrix is singular, the smallest ridge that helps is added
        try:
            root = scipy.linalg.cholesky(within.numpy() / len(queries) + ridge * np.eye(width), lower=True)
        except scipy.linalg.LinAlgError:
            ridge = ridge * 10 if ridge else _FIRST_RIDGE
    inverse = scipy.linalg.solve_triangular(root, np.eye(width), lower=True)
    for part in descriptors.split(_CHUNK):
        turned = (part.double() - mean) @ torch.from_numpy(inverse).T
        between += turned.T @ turned
    # eigh sorts upwards; the sign of an eigenvector means nothing.
    _, directions = scipy.linalg.eigh(between.numpy())
    projection = directions[:, ::-1].T @ inverse
    return Whitening(mean, torch.from_numpy(np.ascontiguousarray(projection)))


def find_whitening(checkpoint: Path, pairs: PlacePairs, describe: Describe, how: Sequence[Any]) -> Whitening:
    """The whitening in the file beside a checkpoint, or else one that is learned from pairs and saved there.

    Args:
        checkpoint: of the network.
        pairs: to learn from.
        describe: the network's descriptors `(N, D)` of images at some positions.
        how: all that these depend on beside the network, as plain values; another `how` is another whitening.

    Raises:
        UsageError: when the file is broken.
    """
    learned_from = [file_digest(checkpoint), *how, pairs.fingerprint()]
    key = hashlib.sha256(json.dumps(learned_from).encode()).hexdigest()
    file = checkpoint.with_name(f"{checkpoint.stem}.whitening.safetensors")
    try:
        if file.is_file():
            with safe_open(file, "pt") as opened:
                learned_as = (opened.metadata() or {}).get("key")
            if learned_as == key:
                return Whitening(**load_file(file))
    except (SafetensorError, OSError, TypeError) as error:
        raise UsageError(f"{file} is broken ({error}); delete it, and it is learned again") from error
    used, positions = torch.cat([pairs.queries, pairs.positives]).unique(return_inverse=True)
    described = describe(pairs.images, used.tolist())
    queries, positives = positions.chunk(2)
    if len(queries) < described.shape[1]:
        log.warning(
            "the whitening is learned from %d pairs for %d dimensions, which is too few: it may do harm",
            *(len(queries), described.shape[1]),
        )
    whitening = learn_whitening(described, queries, positives)
    write_atomically(file, lambda temporary: save_file(whitening._asdict(), temporary, metadata={"key": key}))
    log.info("whitening learned from %d pairs: %s", len(queries), file)
    return whitening
