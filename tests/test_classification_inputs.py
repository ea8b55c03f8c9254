"""Bad input of the classification scripts: one clear message each, and nothing half-done."""

import pytest
from class_folders import ImageConfig, open_split
from classification_scripts import common, start

from minmax.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--night.exposure", 0.5, 0.2], "--night.exposure 0.5 0.2: expected two numbers"),
        (["--night.source", "learned"], "needs --darkener"),
        (["--darkener", "some.pt"], "no checkpoint at"),
        (["--checkpoint", "some.pt"], "no checkpoint at"),
        (["--data", "nowhere"], "no data at "),
        (["--data", "ANOTHER"], "no folder .*train; expected .*<Class>.*found training"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_work(more, message, data, checkpoint, tmp_path):
    (tmp_path / "another" / "training").mkdir(parents=True)
    flags = [*common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma"]
    with pytest.raises(UsageError, match=message):
        start("train", *flags, *(tmp_path / "another" if flag == "ANOTHER" else flag for flag in more))
    assert not (tmp_path / "classification").exists(), "something was written"


def test_a_split_without_a_readable_image_is_refused_whatever_may_be_left_out(tmp_path):
    (tmp_path / "test_day" / "car").mkdir(parents=True)
    (tmp_path / "test_day" / "car" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="1 of 1 images in .*test_day cannot be read"):
        open_split(str(tmp_path), "test_day", ImageConfig(skip_corrupt=1.0), cache=tmp_path / "runs")


def test_data_may_lie_below_the_home_folder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(data.parent))
    found = open_split(f"~/{data.name}", "val", ImageConfig(), cache=tmp_path / "runs")
    assert found.fingerprint() == open_split(str(data), "val", ImageConfig(), cache=tmp_path / "runs").fingerprint()
