"""The four scripts of segmentation, end to end on built-in scenes and on files in the real layouts."""

import os
import shutil
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_scripts import SCRIPTS, SIZE, common, start
from street_labels import VOID

from darkening.apply import Config as ApplyConfig
from darkening.apply import main as darken
from darkening.night_view import NightConfig
from minmax.runtime.errors import UsageError

CELL = ("--night.cell", 8)
SMALL = ("--model", "refinenet_resnet18", "--width", 8)


def test_four_scripts_on_the_real_layouts(streets, tmp_path):
    flags = common(streets, tmp_path)
    day = start("train_day", *flags, *SMALL)
    darkener = start("train_darkener", *flags, "--checkpoint", day)
    adapted = start("train", *flags, "--checkpoint", day, "--darkener", darkener, *CELL)
    nights = [streets / "NighttimeDrivingTest", streets / "Dark_Zurich_val_anon"]
    nights.append(streets / "Dark_Zurich_test_anon_withoutGt")
    where = ("--checkpoint", adapted, "--data", streets / "Cityscapes", "--night", *nights)
    found = start("test", *where, *SIZE)["checkpoint"]
    assert set(found) == {"Cityscapes, val", "NighttimeDrivingTest", "Dark_Zurich_val_anon"}
    # Two images each at network size; every twelfth row is void.
    assert all(score.confusion.sum() == 2 * 32 * 48 for score in found.values())
    assert found["NighttimeDrivingTest"].count("occurring") == 2
    with zipfile.ZipFile(adapted.parent / "test" / "Dark_Zurich_test_anon_withoutGt-submission.zip") as archive:
        expected = [f"GOPR0364_frame_{i:06d}_rgb_anon.png" for i in range(2)]
        folders = ("labelTrainIds", "labelTrainIds_invalid", "confidence")
        assert sorted(archive.namelist()) == sorted(f"{folder}/{name}" for folder in folders for name in expected)
        labels, confidence = (
            np.array(Image.open(BytesIO(archive.read(f"{folder}/{expected[0]}"))))
            for folder in ("labelTrainIds", "confidence")
        )
    assert labels.shape == confidence.shape == (1080, 1920)
    assert labels.dtype == np.uint8 and labels.max() < VOID
    assert confidence.dtype == np.uint16 and 65535 / 19 < confidence.min() <= confidence.max() <= 65535


def test_scores_at_full_size_count_the_pixels_of_the_labels(streets, segmenter):
    flags = ("--checkpoint", segmenter, "--data", streets / "Cityscapes", "--night", streets / "NighttimeDrivingTest")
    found = start("test", *flags, *SIZE, "--labels", "full")["checkpoint"]
    assert all(score.confusion.sum() == 2 * 48 * 64 for score in found.values())


def test_the_batch_size_of_a_test_changes_nothing(streets, segmenter, tmp_path):
    where = ("--checkpoint", segmenter, "--data", streets / "Cityscapes", "--night", streets / "NighttimeDrivingTest")
    one, two = (
        start("test", *where, *SIZE, "--batch-size", n, "--output", tmp_path / str(n))["checkpoint"] for n in (1, 2)
    )
    assert all(torch.equal(one[title].confusion, two[title].confusion) for title in one)


def made_in_advance(day, folder, **options):
    """Darken the training images of Cityscapes' layout into a folder."""
    night = NightConfig(source="gamma", exposure=(0.1, 0.1))
    darken(ApplyConfig(input=day / "leftImg8bit" / "train", output=folder, night=night, workers=0, **options))
    return folder


def test_nights_made_in_advance_are_paired_by_name(streets, segmenter, tmp_path):
    folder = made_in_advance(streets / "Cityscapes", tmp_path / "dark")
    flags = (*common(streets, tmp_path), "--checkpoint", segmenter, "--darkened", folder)
    adapted = start("train", *flags)
    assert torch.load(adapted, weights_only=True)["config"]["darkened"] == str(folder)
    with pytest.raises(UsageError, match="nights are made already"):
        start("train", *flags, "--night.source", "gamma", "--name", "b")


def test_nights_may_be_made_at_network_size(streets, segmenter, tmp_path):
    folder = made_in_advance(streets / "Cityscapes", tmp_path / "dark", size=(32, 48))
    assert {Image.open(file).size for file in folder.rglob("*.png")} == {(48, 32)}
    flags = (*common(streets, tmp_path), "--checkpoint", segmenter, "--darkened", folder)
    assert start("train", *flags).is_file()
    with pytest.raises(UsageError, match="is 48x32, its day image 64x48; expected that, or the 64x36 of --images.size"):
        start("train", *flags, "--images.size", 36, 64, "--name", "b")


def test_day_images_of_one_name_cannot_be_paired_by_name(streets, segmenter, tmp_path):
    data = shutil.copytree(streets / "Cityscapes", tmp_path / "Cityscapes")
    for part in ("leftImg8bit", "gtFine"):
        shutil.copytree(data / part / "train" / "ulm", data / part / "train" / "aachen")
    flags = ("--checkpoint", segmenter, "--darkened", made_in_advance(data, tmp_path / "dark"))
    with pytest.raises(UsageError, match="day images are paired by name, and .*aachen/ulm_0.* have the same; rename"):
        start("train", *common(tmp_path, tmp_path), *flags)


def test_an_image_that_its_exif_entry_turns_has_no_night_made_in_advance(streets, segmenter, tmp_path):
    data = shutil.copytree(streets / "Cityscapes", tmp_path / "Cityscapes")
    file = next((data / "leftImg8bit" / "train").rglob("*.png"))
    image = Image.open(file)
    image.load()
    exif = image.getexif()
    exif[0x0112] = 3  # upside down, so of the same size
    image.save(file, exif=exif)
    flags = ("--checkpoint", segmenter, "--darkened", made_in_advance(data, tmp_path / "dark"))
    with pytest.raises(UsageError, match=f"{file.name} has an EXIF entry that turns it"):
        start("train", *common(tmp_path, tmp_path), *flags)


def test_a_continued_run_must_find_the_darkener_unchanged(streets, segmenter, darkener, tmp_path):
    copy = shutil.copy(darkener, tmp_path / "copy.pt")
    flags = (*common(streets, tmp_path), "--checkpoint", segmenter, "--darkener", copy, *CELL)
    start("train", *flags)
    torch.save({**torch.load(copy, weights_only=True), "config": {"changed": True}}, copy)
    with pytest.raises(UsageError, match="last.pt was made with data .*--darkener"):
        start("train", *flags, "--resume")


def test_a_continued_run_must_find_the_validation_images_unchanged(streets, tmp_path):
    shutil.copytree(streets / "Cityscapes", tmp_path / "Cityscapes")
    flags = (*common(tmp_path, tmp_path), *SMALL)
    start("train_day", *flags)
    first, second = sorted((tmp_path / "Cityscapes/gtFine/val").rglob("*.png"))
    os.utime(first, (1, 1))
    start("train_day", *flags, "--resume")
    first.write_bytes(second.read_bytes())
    with pytest.raises(UsageError, match="last.pt was made with data .*validation"):
        start("train_day", *flags, "--resume")


def test_a_size_that_the_network_cannot_take_is_refused(streets, tmp_path):
    flags = (*common(streets, tmp_path), "--images.size", 64, 96, "--width", 8)
    message = r"--images.crop: the model does not work on images \(3, 48, 72\): .*a multiple"
    with pytest.raises(UsageError, match=message):
        start("train_day", *flags, "--model", "refinenet_timm/hrnet_w18_small")
    assert not list(tmp_path.glob("segmentation/*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--night.source", "gamma", "--night.cell", 64), "--night.cell 64: expected at most 12, half the crop"),
        (("--night.source", "augmix", *CELL), "--night.source augmix: expected a night that leaves every pixel"),
    ],
)
def test_nights_that_do_not_fit_streets_are_refused(flags, message, streets, segmenter, tmp_path):
    with pytest.raises(UsageError, match=message):
        start("train", *common(streets, tmp_path), "--checkpoint", segmenter, *flags)


def test_without_day_data_only_the_nights_are_measured(streets, segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(SCRIPTS["test"], "DEFAULT_DATA", tmp_path / "nothing")
    flags = ("--checkpoint", segmenter, "--data", tmp_path / "nothing", *SIZE, "--output", tmp_path / "out")
    found = start("test", *flags, "--night", streets / "NighttimeDrivingTest")
    assert list(found["checkpoint"]) == ["NighttimeDrivingTest"]
    with pytest.raises(UsageError, match="no data at"):
        start("test", *flags)


NAME = "ulm_000001_000019_leftImg8bit.png"
DARKENED = {
    "surplus": (lambda f: street(f / "ulm" / "extra.png"), "holds 1 files that are no training image: extra.png"),
    "size": (lambda f: street(f / "ulm" / NAME, width=60), f"{NAME} is 60x48, its day image 64x48"),
    "broken": (lambda f: (f / "ulm" / NAME).write_bytes(b""), "1 of 6 images of"),
}


def street(file, width=64):
    Image.new("RGB", (width, 48)).save(file)


@pytest.mark.parametrize("case", DARKENED)
def test_a_folder_of_nights_that_does_not_fit_is_refused(case, streets, segmenter, tmp_path):
    spoil, message = DARKENED[case]
    folder = made_in_advance(streets / "Cityscapes", tmp_path / "dark")
    spoil(folder)
    with pytest.raises(UsageError) as caught:
        start("train", *common(streets, tmp_path), "--checkpoint", segmenter, "--darkened", folder)
    assert message in str(caught.value)
    assert not (tmp_path / "segmentation").exists()
