"""Rendered images, stored in a file and read back the next time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scenes.night import NightSettings
from scenes.world import GENERATOR_VERSION

Domain = Literal["day", "night"]


def cache_file(
    folder: Path | None,
    described: str,
    domain: Domain,
    size: int,
    seed: int,
    settings: NightSettings | None,
    ending: str = "",
) -> Path | None:
    """The file named after everything that the images depend on; None without a folder."""
    if folder is None:
        return None
    # Only the night depends on settings; the defaults are spelt out, so that changed defaults give another name.
    spelt_out = repr(settings or NightSettings()).encode()
    digest = f"-{hashlib.sha256(spelt_out).hexdigest()[:10]}" if domain == "night" else ""
    return folder / f"scenes-v{GENERATOR_VERSION}-{domain}-{described}x{size}-seed{seed}{digest}{ending}.npz"


def render_or_load(
    file: Path | None,
    count: int,
    shape: tuple[int, ...],
    kind: Any,
    title: str,
    render: Callable[[int], tuple[NDArray[np.uint8], Any]],
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Images or clips `(count, *shape)` and their labels: read from a file, or rendered and stored in it.

    Args:
        file: where they are stored; None renders without storing.
        count: how many there are.
        shape: of each, such as (size, size, 3).
        kind: numpy's type of the labels.
        title: what the progress bar says.
        render: gives image `i` and its label.
    """
    if file and file.exists():
        with np.load(file, allow_pickle=False) as stored:
            return stored["images"], stored["labels"].astype(kind)
    images = np.empty((count, *shape), np.uint8)
    labels = []
    for i in tqdm(range(count), desc=title, leave=False, disable=None):
        images[i], label = render(i)
        labels.append(label)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, so that a reader never meets half a file.
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as stream:
            np.savez(stream, images=images, labels=labels)
        temporary.replace(file)
    return images, np.asarray(labels, kind)
