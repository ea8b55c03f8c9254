"""Counting a confusion matrix at 512x1024: one bincount against a loop over the pairs of classes that numpy finds.

    python benchmarks/bench_miou.py

The straightforward form is what evaluation scripts of the field do image by image: one number for each pixel's pair of
truth and prediction, `numpy.unique` over them, and a Python loop that adds the counts. Both give the same matrix.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from minmax.runtime.devices import keep_large_buffers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "segmentation"))
from miou import count_confusion  # noqa: E402  (its folder is no package)

IMAGES, SIZE, CLASSES = 8, (512, 1024), 20
ROUNDS = 9


def with_unique(predictions, labels):
    """The confusion matrix, image by image."""
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for prediction, label in zip(predictions.numpy(), labels.numpy(), strict=True):
        pairs = label.astype(np.int64) * CLASSES + prediction
        for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
            confusion[pair // CLASSES, pair % CLASSES] += count
    return confusion


def with_bincount(predictions, labels):
    """The confusion matrix as evaluation here counts it, image by image."""
    confusion = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for prediction, label in zip(predictions, labels, strict=True):
        confusion += count_confusion(prediction, label)
    return confusion


def seconds(function, *arguments):
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def street_like(generator):
    """Label maps of a few large regions with noisy borders, as argmax (int64) and as labels (uint8)."""
    coarse = torch.rand(IMAGES, CLASSES, 8, 16, generator=generator)
    scores = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    labels = scores.argmax(dim=1)
    noise = 0.1 * torch.rand(scores.shape, generator=generator)
    return (scores + noise).argmax(dim=1), labels.to(torch.uint8)


def main():
    """Check that both agree, then time them alternately."""
    keep_large_buffers()
    predictions, labels = street_like(torch.Generator().manual_seed(0))
    assert np.array_equal(with_unique(predictions, labels), with_bincount(predictions, labels).numpy())
    times = {with_unique: [], with_bincount: []}
    for _ in range(ROUNDS):
        for function, found in times.items():
            found.append(seconds(function, predictions, labels))
    slow, fast = (statistics.median(found) for found in times.values())
    print(
        f"confusion matrix of {IMAGES} images {SIZE[0]}x{SIZE[1]}: {slow:.3f} s, {fast:.3f} s, ratio {slow / fast:.1f}"
    )


if __name__ == "__main__":
    main()
