"""Rendered images, stored in a file and read back the next time."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scenes.night import Domain, NightSettings
from scenes.world import GENERATOR_VERSION


def render_or_load(
    cache_dir: Path | None,
    described: str,
    domain: Domain,
    count: int,
    size: int,
    seed: int,
    render: Callable[[int], tuple[NDArray[np.uint8], Any]],
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Images or clips and their labels, rendered, or read back from the file that an earlier call stored.

    Args:
        cache_dir: folder of the file; None renders without storing.
        described: the part of the file's name that tells what the images are but for the other arguments.
        domain: day or night.
        count: how many there are.
        size: height and width in pixels.
        seed: of everything random.
        render: gives image `i` and its label.
    """
    file = None
    if cache_dir:
        # Settings that were changed give another file.
        digest = f"-{hashlib.sha256(repr(NightSettings()).encode()).hexdigest()[:10]}"
        described += f"x{size}-seed{seed}{digest if domain == 'night' else ''}"
        file = cache_dir / f"scenes-v{GENERATOR_VERSION}-{domain}-{described}.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as stored:
                return stored["images"], stored["labels"]
    images, labels = [], []
    for i in tqdm(range(count), desc=f"{domain} scenes", leave=False, disable=None):
        image, label = render(i)
        images.append(image)
        labels.append(label)
    stacked = np.stack(images), np.asarray(labels)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, so that a reader never meets half a file.
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as stream:
            np.savez(stream, images=stacked[0], labels=stacked[1])
        temporary.replace(file)
    return stacked
