"""Accuracy and calibration of a classifier: closed forms, another library, and what `measure` keeps."""

import math

import pytest
import torch
from class_accuracy import ClassAccuracy, measure
from class_folders import ImageConfig, open_split
from classification_scripts import RUNTIME
from torchmetrics.functional.classification import multiclass_calibration_error


def verdicts(confidences, right):
    labels = torch.zeros(len(right), dtype=torch.int64)
    predictions = 1 - torch.tensor(right, dtype=torch.int64)
    confusion = torch.bincount(2 * labels + predictions, minlength=4).view(2, 2)
    return ClassAccuracy(confusion, predictions, torch.tensor(confidences), labels)


@pytest.mark.parametrize(
    ("confidences", "right", "error"),
    [
        ([0.75] * 4 + [0.5] * 2, [1, 1, 1, 0, 1, 0], 0),
        ([1.0] * 3, [1, 1, 1], 0),
        ([1.0] * 3, [0, 0, 0], 1),
        # Bins by hand: |1 - 1.8| of two images at 0.9, |1 - 0.7|, |0 - 0.3|; over four images.
        ([0.9, 0.7, 0.3, 0.9], [1, 1, 0, 0], 1.4 / 4),
        # The last bin holds a confidence of exactly 1 as well: |1 - 1.95| over two images.
        ([1.0, 0.95], [0, 1], 0.95 / 2),
        # Neighbours across the bound 14/15 are not averaged: |0 - 0.95| + |1 - 0.92|.
        ([0.95, 0.92], [0, 1], (0.95 + 0.08) / 2),
    ],
)
def test_calibration_error_in_closed_form(confidences, right, error):
    assert verdicts(confidences, right).calibration_error == pytest.approx(error, abs=1e-7)


def test_calibration_error_agrees_with_an_independent_library():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 6, generator=generator)).softmax(dim=1)
    labels = torch.randint(0, 6, (500,), generator=generator)
    confidences, predictions = probabilities.max(dim=1)
    ours = ClassAccuracy(torch.zeros(6, 6), predictions, confidences, labels).calibration_error
    assert ours == pytest.approx(float(multiclass_calibration_error(probabilities, labels, 6, n_bins=15)), abs=1e-5)
    assert ours > 0.1


def test_calibration_error_needs_confidences():
    with pytest.raises(ValueError, match="confidence of every image"):
        _ = ClassAccuracy(torch.eye(2), torch.zeros(2)).calibration_error


class HalfPrecision(torch.nn.Module):
    """Logits as autocast gives them."""

    def forward(self, images):
        return torch.tensor([0.0, 1.0], dtype=torch.bfloat16).expand(len(images), 2)


def test_measure_keeps_labels_and_confidences_in_single_precision(data):
    images = open_split(str(data), "test_day", ImageConfig(size=32))
    [found] = measure(HalfPrecision(), images, ImageConfig(size=32), RUNTIME, batch_size=5)
    assert found.labels.tolist() == images.labels == [0] * 6 + [1] * 6
    assert found.confusion.tolist() == [[0, 6], [0, 6]] and found.predictions.tolist() == [1] * 12
    assert found.confidences.dtype == torch.float32 and found.confidences.shape == (12,)
    confidence = 1 / (1 + math.exp(-1))
    assert found.confidences.tolist() == pytest.approx([confidence] * 12, abs=1e-6)
    assert found.calibration_error == pytest.approx(confidence - 0.5, abs=1e-6)
