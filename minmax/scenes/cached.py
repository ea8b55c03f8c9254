"""Rendered scenes kept in files, so that each is rendered once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minmax.scenes.night import NightSettings

Domain = Literal["day", "night"]


def described(domain: Domain, settings: NightSettings | None) -> str:
    """What a cache calls a light: only the night depends on settings; its defaults are spelt out, to notice changes."""
    digest = hashlib.sha256(repr(settings or NightSettings()).encode()).hexdigest()[:10]
    return f"{domain}-{digest}" if domain == "night" else domain


def cached_arrays(
    cache: Path | None, render: Callable[[], tuple[NDArray[np.uint8], Any]]
) -> tuple[NDArray[np.uint8], Any]:
    """The images and labels in a file, or those that `render` gives, which are then kept in it."""
    if cache and cache.exists():
        with np.load(cache, allow_pickle=False) as stored:
            return stored["images"], stored["labels"]
    images, labels = render()
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, so that a reader never meets half a file.
        temporary = cache.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as stream:
            np.savez(stream, images=images, labels=labels)
        temporary.replace(cache)
    return images, labels
