"""Intersection over union: the authors' numbers, torchmetrics, and cases worked out by hand."""

import json
from pathlib import Path

import pytest
import torch
from miou import StreetScore, count_confusion
from street_labels import CLASSES, COLOURS, VOID, to_train_ids
from torchmetrics.functional.classification import multiclass_jaccard_index

EXPECTED = json.loads((Path(__file__).parent / "segmentation_numbers.json").read_text())


def draw(seed):
    return torch.rand((1, 64, 64), generator=torch.Generator().manual_seed(seed))


PREDICTION = (20 * draw(301)).floor().long()
RANDOM = (20 * draw(302)).floor().long()
MIXED = torch.where(draw(303) < 0.6, PREDICTION, RANDOM)


@pytest.mark.parametrize(("case", "truth"), [("random", RANDOM), ("mixed", MIXED)])
def test_parity_of_iou_per_class_and_mean(case, truth):
    expected = EXPECTED["miou"][case]
    score = StreetScore(count_confusion(PREDICTION, truth))
    assert score.confusion.sum(dim=1).tolist() == expected["rows"]
    assert score.confusion.sum(dim=0).tolist() == expected["columns"]
    assert score.per_class() == pytest.approx(expected["per_class"], rel=1e-12)
    assert score.mean() == pytest.approx(expected["miou"], rel=1e-12)


def test_parity_of_an_absent_class():
    case = next(name for name in EXPECTED["miou"] if name.startswith("absent_class_5"))
    expected = EXPECTED["miou"][case]
    prediction, truth = PREDICTION.clone(), MIXED.clone()
    prediction[prediction == 5] = 6
    truth[truth == 5] = VOID
    score = StreetScore(count_confusion(prediction, truth))
    assert score.per_class()[5] != score.per_class()[5] and expected["per_class"][5] is None
    assert score.mean() == pytest.approx(expected["miou"], rel=1e-12)


def test_parity_of_counts_over_a_batch():
    case = next(name for name in EXPECTED["miou"] if name.startswith("accumulated"))
    both = torch.cat([PREDICTION, PREDICTION]), torch.cat([RANDOM, MIXED])
    assert StreetScore(count_confusion(*both)).mean() == pytest.approx(EXPECTED["miou"][case]["miou"], rel=1e-12)
    one_by_one = count_confusion(PREDICTION, RANDOM) + count_confusion(PREDICTION, MIXED)
    assert torch.equal(one_by_one, count_confusion(*both))


def test_mean_iou_is_that_of_torchmetrics_where_void_is_never_predicted():
    prediction = PREDICTION.clamp(max=VOID - 1)
    expected = multiclass_jaccard_index(prediction, MIXED, num_classes=VOID, ignore_index=VOID, average="none")
    assert StreetScore(count_confusion(prediction, MIXED)).per_class() == pytest.approx(expected.tolist(), rel=1e-6)


def test_a_class_that_is_predicted_but_does_not_occur_counts_only_among_all():
    truth = torch.tensor([[0, 0, 1, VOID]])
    prediction = torch.tensor([[0, 2, 1, 2]])
    score = StreetScore(count_confusion(prediction, truth))
    assert score.per_class()[:3] == [0.5, 1.0, 0.0]
    assert score.mean("occurring") == 0.75
    assert score.mean("all") == 0.5
    assert score.accuracy == pytest.approx(2 / 3)
    assert (score.count("occurring"), score.count()) == (2, 3)


def test_labels_of_one_byte_count_like_those_of_eight():
    assert torch.equal(count_confusion(PREDICTION, RANDOM), count_confusion(PREDICTION.byte(), RANDOM.byte()))


def test_the_classes_are_those_of_cityscapes():
    assert (len(CLASSES), CLASSES[0], CLASSES[10], CLASSES[18]) == (19, "road", "sky", "bicycle")
    assert COLOURS[0].tolist() == [128, 64, 128] and COLOURS[VOID].tolist() == [0, 0, 0]
    ids = torch.arange(34, dtype=torch.uint8).numpy()
    assert to_train_ids(ids).tolist() == EXPECTED["label_id_to_train_id"]
    with pytest.raises(ValueError, match="holds the ids 34, 200"):
        to_train_ids(torch.tensor([7, 34, 200, 255], dtype=torch.uint8).numpy())
