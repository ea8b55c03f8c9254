"""What test.py of classification reports: tables, JSON, confusion matrices and changed verdicts."""

import json
import logging

import numpy as np
import pytest
import torch
from class_accuracy import ClassAccuracy
from class_folders import ImageConfig, LabelledImages
from classification_scripts import CLASSES, SIZE, start
from classifier import ClassifierSettings, build_classifier, save_classifier
from PIL import Image
from verdict_pictures import changed_verdicts, draw_verdicts

from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_confusion, shorten, write_json

NIGHT_PICTURES = {"night_wrong_to_right.png", "night_right_to_wrong.png"}


@pytest.fixture(scope="module")
def always(tmp_path_factory):
    """Checkpoints of classifiers that see one class everywhere, with a confidence of 1 / (1 + exp(-2))."""
    folder = tmp_path_factory.mktemp("always")
    paths = {}
    for i, name in enumerate(CLASSES):
        settings = ClassifierSettings("resnet18", CLASSES)
        network = build_classifier(settings)
        with torch.no_grad():
            network.model.fc.weight.zero_()
            network.model.fc.bias.zero_()[i] = 2
        paths[name] = folder / f"{name}.pt"
        save_classifier(network, settings, paths[name])
    return paths


def strictly(path):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def names_in(folder):
    return {file.name for file in folder.iterdir()}


def test_a_comparison_is_reported_down_to_each_image(always, data, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    flags = ["--checkpoint", always["car"], "--before", always["bus"], "--data", data, *SIZE, "--output", out]
    found = start("test", *flags)
    assert names_in(out) == {"results.json", "results.md", "confusion.png", *NIGHT_PICTURES}
    assert "changed: 6 wrong to right" in caplog.text and "changed: 6 right to wrong" in caplog.text
    printed = capsys.readouterr().out
    assert printed == (out / "results.md").read_text()
    assert f"before: {always['bus']}  \nafter: {always['car']}\n" in printed
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    assert ["test_night after", "12", "50.0", "50.0", "38.1"] in lines  # 1 / (1 + exp(-2)) - 0.5
    assert ["test_day before", "test_day after", "test_night before", "test_night after"] in [x[1:] for x in lines]
    assert ["bus", "100.0", "0.0", "100.0", "0.0"] in lines

    results = strictly(out / "results.json")
    assert (results["data"], results["size"], results["evaluation"]) == (str(data), 32, "resize")
    assert results["changes"]["test_night"] == {"wrong_to_right": 6, "right_to_wrong": 6}
    assert results["results"]["before"]["file"] == str(always["bus"])
    night = results["results"]["checkpoint"]["test_night"]
    assert night["top1"] == night["balanced"] == 0.5 and night["count"] == 12
    assert night["calibration_error"] == found["checkpoint"]["test_night"].calibration_error
    assert night["per_class"] == {"bus": 0.0, "car": 1.0} and night["class_counts"] == {"bus": 6, "car": 6}
    assert night["confusion"] == [[0, 6], [0, 6]] and night["predictions"] == [1] * 12
    first = night["images"][0]
    assert first.pop("confidence") == pytest.approx(0.880797, abs=1e-6)
    assert first == {"name": "test_night/bus/0.png", "truth": "bus", "prediction": "car"}
    assert len(night["images"]) == 12 and (data / night["images"][11]["name"]).is_file()


@pytest.mark.parametrize("before", [None, "car"])
def test_pictures_of_a_former_run_do_not_stay(before, always, data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in NIGHT_PICTURES:
        (tmp_path / name).write_bytes(b"of a former run")
    flags = [] if before is None else ["--before", always[before]]
    start("test", "--checkpoint", always["car"], "--data", data, *SIZE, "--output", tmp_path, *flags)
    assert names_in(tmp_path) == {"results.json", "results.md", "confusion.png"}
    assert ("changed: 0 right to wrong" in caplog.text) == (before is not None)
    assert ("changes" in strictly(tmp_path / "results.json")) == (before is not None)


def test_named_splits_are_measured_and_nothing_else(always, data, tmp_path):
    flags = ["--checkpoint", always["car"], "--before", always["bus"], "--data", data, *SIZE, "--output", tmp_path]
    found = start("test", *flags, "--splits", "val", "train", "val")
    assert list(found["checkpoint"]) == ["val", "train"]
    results = strictly(tmp_path / "results.json")["results"]
    assert set(results["before"]) == set(results["checkpoint"]) == {"file", "val", "train"}
    assert not NIGHT_PICTURES & names_in(tmp_path)


def link(data, root, *splits):
    root.mkdir()
    for split in splits:
        (root / split).symlink_to(data / split)
    return root


def test_by_default_the_test_split_that_exists_is_measured(always, data, tmp_path):
    own = link(data, tmp_path / "own", "val", "test_day")
    found = start("test", "--checkpoint", always["car"], "--data", own, *SIZE, "--output", tmp_path / "out")
    assert list(found["checkpoint"]) == ["test_day"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"no test_day/ or test_night/ in .*own; .*--splits val"),
        (["--splits", "val", "test_night", "train"], r"--splits test_night train: no such folder in .*own"),
    ],
)
def test_a_split_that_is_not_there_is_refused_before_work(flags, message, always, data, tmp_path):
    own = link(data, tmp_path / "own", "val")
    with pytest.raises(UsageError, match=message):
        start("test", "--checkpoint", always["car"], "--data", own, "--output", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


# --- parts


class GreyImages(LabelledImages):
    """Grey 8x8 images that remember which of them were asked for."""

    def __init__(self, classes, labels):
        super().__init__("test_night", classes, labels)
        self.loaded = []

    def load(self, index):
        self.loaded.append(index)
        return torch.full((3, 8, 8), index, dtype=torch.uint8)

    def name(self, index):
        return f"test_night/{index}$\\frac$.png"  # no formula of matplotlib's

    def fingerprint(self):
        return ""


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    images = GreyImages(("a", "b"), [0, 0])
    never = float("nan")
    found = ClassAccuracy(torch.tensor([0, 1]), torch.tensor([never, 0.75]), torch.tensor([0, 0]), 2)
    write_json({"split": found.as_plain(images), "x": (float("inf"),)}, tmp_path / "a.json")
    plain = strictly(tmp_path / "a.json")
    assert plain["x"] == [None]
    assert plain["split"]["per_class"] == {"a": 0.5, "b": None} and plain["split"]["balanced"] == 0.5
    assert plain["split"]["calibration_error"] is None
    assert [image["confidence"] for image in plain["split"]["images"]] == [None, 0.75]


def test_changed_verdicts():
    labels, sure = torch.tensor([0, 1, 2, 0, 1, 2]), torch.ones(6)
    before = ClassAccuracy(torch.tensor([0, 1, 0, 1, 0, 0]), sure, labels, 3)
    after = ClassAccuracy(torch.tensor([0, 2, 2, 2, 1, 0]), sure, labels, 3)
    assert changed_verdicts(before, after) == {"wrong_to_right": [2, 4], "right_to_wrong": [1]}
    assert changed_verdicts(after, before) == {"wrong_to_right": [1], "right_to_wrong": [2, 4]}


def test_shown_images_are_spread_over_those_that_changed(tmp_path):
    images = GreyImages(("a", "$b\\frac$"), [0] * 50)
    labels, sure = torch.zeros(50, dtype=torch.int64), torch.ones(50)
    both = [ClassAccuracy(said, sure, labels, 2) for said in (labels + 1, labels)]
    picture = tmp_path / "a.png"
    draw_verdicts("Night", list(range(2, 50)), both, images, ImageConfig(evaluation="native"), picture)
    assert sorted(set(images.loaded)) == list(range(2, 50, 3))
    assert names_in(tmp_path) == {"a.png"}
    Image.open(picture).verify()


FULL, NONE = (8, 48, 107), (211, 211, 211)  # the blue of 100 %, the grey of a class without images


@pytest.mark.parametrize("count", [2, 40])
def test_confusion_matrices_are_drawn_for_few_and_many_classes(count, tmp_path):
    confusion = 3 * torch.eye(count, dtype=torch.int64)
    missing = confusion.clone()
    missing[1] = 0
    names = ["$\\frac$", *(f"class {i}" for i in range(1, count))]
    draw_confusion([[("before", confusion)]], names, tmp_path / "whole.png")
    draw_confusion([[("before", confusion), ("after", missing)]] * 2, names, tmp_path / "sub" / "missing.png")
    whole, other = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("whole.png", "sub/missing.png"))
    assert all((pixels == FULL).all(axis=-1).sum() > 1000 for pixels in (whole, other))
    assert (whole == NONE).all(axis=-1).sum() < 1000 < (other == NONE).all(axis=-1).sum()  # letters have grey edges
    assert other.shape[0] > 1.5 * whole.shape[0] and other.shape[1] > 1.5 * whole.shape[1]


def test_a_long_name_keeps_its_ends():
    assert shorten("short", 5) == "short"
    assert shorten("golden_retriever_17", 10) == "golde…r_17"
