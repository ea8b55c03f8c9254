"""The four scripts of classification, end to end on built-in scenes and on class folders, and their parts."""

import json

import pytest
import torch
from class_accuracy import selection_score
from class_folders import ImageConfig, LabelledImages, TrainingViews, open_split
from classification_scripts import CLASSES, RUNTIME, SIZE, common, start
from classifier import load_classifier
from fake_devices import TwoParts
from PIL import Image

from darkening import load_darkener
from darkening.selection_nights import SELECTION_NIGHTS
from minmax.runtime.errors import UsageError


def test_four_scripts_on_class_folders(data, tmp_path):
    flags = common(data, tmp_path)
    day = start("train_day", *flags)
    assert load_classifier(day)[1].classes == CLASSES
    asked = ("--request.exposure", 0.1, 0.4, "--request.contrast", 0, 1.5)
    darkener = start("train_darkener", *flags, "--checkpoint", day, "--init", "scratch", *asked)
    trained_on = load_darkener(darkener).trained_on
    assert (trained_on.exposure, trained_on.contrast) == ((0.1, 0.4), (0.0, 1.5))
    with pytest.raises(UsageError, match="exposure_patch 8: expected 0 for view scene"):
        start("train_darkener", *flags, "--checkpoint", day, "--name", "scene", "--darkener.view", "scene")
    flags = (*flags, "--checkpoint", day, "--darkener", darkener)
    with pytest.raises(UsageError, match=r"--night.exposure 0.0 0.2: expected 0.1 to 0.4, what the darkener was"):
        start("train", *flags)
    adapted = start("train", *flags, "--night.exposure", 0.1, 0.3)
    chosen_by = json.loads((adapted.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"day", *SELECTION_NIGHTS, "darkened", "score"} < set(chosen_by)
    found = start("test", "--checkpoint", adapted, "--data", data, *SIZE)["checkpoint"]
    assert found["test_night"].confusion.sum() == 12
    assert (adapted.parent / "test" / "results.json").is_file()


def test_a_config_replays_a_run_whatever_the_number_of_workers(data, checkpoint, tmp_path):
    first = start("train", *common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma")
    again = start("train", "--config", first.parent / "config.yaml", "--name", "again", "--workers", 2)
    first, again = load_classifier(first)[0].state_dict(), load_classifier(again)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_night_images_are_never_trained_or_selected_on(data):
    night = open_split(str(data), "test_night", ImageConfig(size=32))
    with pytest.raises(ValueError, match="holds night images"):
        TrainingViews(night, 32, 0)
    with pytest.raises(ValueError, match="holds night images"):
        selection_score(torch.nn.Identity(), night, ImageConfig(size=32), RUNTIME)


def test_native_evaluation_counts_sizes_upright(tmp_path):
    def save(name, size, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / "test_day" / "bus").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "test_day" / "bus" / name, exif=exif)

    config = ImageConfig(size=32, evaluation="native")
    save("a.jpg", (32, 24), 1)
    save("b.jpg", (24, 32), 6)
    assert len(open_split(str(tmp_path), "test_day", config, cache=tmp_path)) == 2
    save("b.jpg", (32, 24), 6)
    with pytest.raises(UsageError, match="images of 2 sizes"):
        open_split(str(tmp_path), "test_day", config, cache=tmp_path)


def test_views_depend_on_seed_epoch_and_image_alone(data):
    images = open_split(str(data), "train", ImageConfig(size=32))
    views = TrainingViews(images, 32, seed=3)
    first = views[2, 5]
    views[2, 6], views[0, 5]
    torch.manual_seed(99)
    assert torch.equal(views[2, 5].day, first.day)
    assert not torch.equal(first.day, first.night)
    assert not torch.equal(views[3, 5].day, first.day)
    assert not torch.equal(TrainingViews(images, 32, seed=4)[2, 5].day, first.day)
    assert first.day.shape == (3, 32, 32)
    assert first.day.dtype == first.night.dtype == torch.uint8


def test_without_flips_views_are_the_same_crops_never_mirrored():
    class Slope(LabelledImages):
        """Pictures that grow brighter to the right."""

        def load(self, index):
            return torch.linspace(0, 255, 48).to(torch.uint8).expand(3, 48, 48)

        def name(self, index):
            return str(index)

        def fingerprint(self):
            return "slope"

    images = Slope("train", ("a",), [0] * 20)
    mirrored, plain = TrainingViews(images, 32, seed=0), TrainingViews(images, 32, seed=0, flip=False)
    turned = 0
    for index in range(20):
        for some, never in zip(mirrored[0, index][:2], plain[0, index][:2], strict=True):
            assert never[0, 0, 0] < never[0, 0, -1]
            is_turned = bool(some[0, 0, 0] > some[0, 0, -1])
            assert torch.equal(some.flip(-1) if is_turned else some, never)
            turned += is_turned
    assert 10 <= turned <= 30


def test_several_devices_share_out_darkener_and_frozen_model(data, checkpoint, tmp_path, monkeypatch):
    flags = (*common(data, tmp_path), "--checkpoint", checkpoint)
    one = load_darkener(start("train_darkener", *flags, "--name", "one")).state_dict()
    monkeypatch.setattr("minmax.runtime.devices._choose_device", lambda *_: (torch.device("cpu"), (0, 1)))
    monkeypatch.setattr(torch.nn, "DataParallel", TwoParts)
    monkeypatch.setattr(TwoParts, "sizes", [])
    two = load_darkener(start("train_darkener", *flags, "--name", "two")).state_dict()
    # Three steps of four images; darkener, day and darkened images of the frozen model.
    assert TwoParts.sizes == [2, 2] * 3 * 3
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
