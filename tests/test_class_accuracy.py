"""Accuracy and calibration of a classifier: closed forms, another library, and what `measure` keeps."""

import math

import pytest
import torch
from class_accuracy import ClassAccuracy, measure
from class_folders import ImageConfig, open_split
from classification_scripts import RUNTIME
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)


def verdicts(confidences, right):
    labels = torch.zeros(len(right), dtype=torch.int64)
    return ClassAccuracy(1 - torch.tensor(right), torch.tensor(confidences), labels, 2)


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
    ours = ClassAccuracy(predictions, confidences, labels, 6).calibration_error
    assert ours == pytest.approx(float(multiclass_calibration_error(probabilities, labels, 6, n_bins=15)), abs=1e-5)
    assert ours > 0.1


def test_metrics_agree_with_an_independent_library():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (200,), generator=generator)
    random = torch.randint(0, 5, (200,), generator=generator)
    predicted = torch.where(torch.rand(200, generator=generator) < 0.5, truth, random)
    ours = ClassAccuracy(predicted, torch.ones(200), truth, 5)
    assert torch.equal(ours.confusion, multiclass_confusion_matrix(predicted, truth, num_classes=5))
    assert ours.top1 == pytest.approx(float(multiclass_accuracy(predicted, truth, 5, average="micro")))
    assert ours.balanced == pytest.approx(float(multiclass_accuracy(predicted, truth, 5, average="macro")))


def test_accuracies_count_only_classes_that_occur():
    found = ClassAccuracy(torch.tensor([0] * 8 + [1, 1, 0, 1]), torch.ones(12), torch.tensor([0] * 10 + [1] * 2), 3)
    assert found.confusion.tolist() == [[8, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert found.top1 == 9 / 12 and found.balanced == pytest.approx(0.65, abs=1e-12)
    assert found.per_class[:2] == [0.8, 0.5] and math.isnan(found.per_class[2])


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
