"""Data bases whose descriptors do not fit into memory: kept on disk, made and searched some thousand rows at a time."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from descriptors import save_names
from numpy.lib.format import open_memmap
from place_images import PlaceImages
from torch import Tensor

from minmax.runtime.report import write_json

log = logging.getLogger(__name__)
Numbers = Literal["float32", "float16"]
ROWS = 8192  # that are in memory together: 64 MB of 2048 numbers
_QUERIES = 512  # at a time


def describe_onto_disk(
    images: PlaceImages,
    stem: Path,
    describe: Callable[[Sequence[int]], Tensor],
    numbers: Numbers,
    how: Mapping[str, Any],
    rows: int = ROWS,
) -> Path:
    """Write descriptors `(N, D)` into STEM.npy, and the names of the images into STEM.txt; returns the former.

    STEM.json tells how many rows are done, and of what: a second call goes on there, or starts again for anything else.

    Args:
        images: what to describe.
        stem: of the files.
        describe: gives the descriptors `(n, D)` of the images at some positions.
        numbers: what they are stored as.
        how: all that they depend on, as plain values.
        rows: how many are described before they are written.
    """
    file, record = Path(f"{stem}.npy"), Path(f"{stem}.json")
    how = {**how, "images": images.fingerprint(), "numbers": numbers}
    before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() and file.is_file() else {}
    done = before["done"] if before.get("how") == how else 0
    if done:
        log.info("%s: %d of %d descriptors are there already", file, done, len(images))
    else:
        record.unlink(missing_ok=True)
        save_names(images, stem)
    for start in range(done, len(images), rows):
        found = describe(range(start, min(start + rows, len(images)))).numpy()
        # Opened anew each time: what is mapped counts as the process's memory until it is closed.
        shape = (len(images), found.shape[1])
        stored = open_memmap(file, "r+") if start else open_memmap(file, "w+", numbers, shape)
        stored[start : start + len(found)] = found
        stored.flush()
        write_json({"how": how, "done": start + len(found)}, record)
    return file


def best(queries: Tensor, database: Path, count: int, rows: int = ROWS) -> Tensor:
    """Positions `(Q, count)` of the most similar descriptors in a file, by decreasing similarity, in float32.

    Args:
        queries: descriptors `(Q, D)` of unit length.
        database: an .npy file of descriptors `(N, D)` of unit length, N at least `count`.
        count: how many of each query's.
        rows: how many of the file are in memory together.
    """
    parts = queries.split(_QUERIES)
    found = [(part.new_empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.int64)) for part in parts]
    for start in range(0, len(np.load(database, mmap_mode="r")), rows):
        stored = np.load(database, mmap_mode="r")[start : start + rows].astype(np.float32)
        for i, (part, (values, positions)) in enumerate(zip(parts, found, strict=True)):
            near = (part @ torch.from_numpy(stored).T).topk(min(count, len(stored)), dim=1)
            values, positions = torch.cat([values, near.values], 1), torch.cat([positions, near.indices + start], 1)
            kept = values.topk(min(count, values.shape[1]), dim=1)
            found[i] = kept.values, positions.gather(1, kept.indices)
    return torch.cat([positions for _, positions in found])
