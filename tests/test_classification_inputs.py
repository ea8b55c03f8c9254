"""Bad input of the classification scripts: one clear message each, and nothing half-done."""

import dataclasses
import os
import shutil
import sys

import pytest
import torch
from classification_scripts import CLASSES, SCRIPTS, common, start
from classifier import ClassifierSettings, build_classifier, save_classifier

from minmax.runtime.config import run_script
from minmax.runtime.errors import UsageError


def break_class(root):
    for file in (root / "train" / "car").iterdir():
        file.unlink()


def break_files(root):
    (root / "train" / "bus" / "1.jpg").write_bytes((root / "train" / "bus" / "1.jpg").read_bytes()[:200])
    (root / "train" / "car" / "zero.png").write_bytes(b"")
    (root / "train" / "car" / "text.jpg").write_text("not a picture")


@pytest.fixture
def own_data(data, tmp_path):
    return shutil.copytree(data, tmp_path / "own")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_class, r"the class folder .*train/car holds no images"),
        (
            lambda root: (root / "train").rename(root / "training"),
            r"no folder .*train; expected .*<Class>.*found .*training",
        ),
        (
            lambda root: (root / "val" / "car").rename(root / "val" / "tram"),
            r"holds the classes bus, tram; expected bus, car",
        ),
        (break_files, r"3 of 14 images .*\n(.*\n)*.*bus/1\.jpg.*\n.*car/text\.jpg.*\n.*car/zero\.png"),
    ],
)
def test_bad_folders_are_refused_before_work(harm, message, own_data, checkpoint, tmp_path):
    harm(own_data)
    flags = [*common(own_data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma"]
    with pytest.raises(UsageError, match=message):
        start("train", *flags)
    assert not (tmp_path / "classification").exists(), "nothing was written"


def test_corrupt_files_are_left_out_only_up_to_the_share_allowed(own_data, checkpoint, tmp_path):
    break_files(own_data)
    flags = [*common(own_data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma"]
    with pytest.raises(UsageError, match="3 of 14"):
        start("train", *flags, "--images.skip-corrupt", 0.2)
    start("train", *flags, "--images.skip-corrupt", 0.25)


def other_architecture(path):
    settings = ClassifierSettings("resnet34", CLASSES)
    save_classifier(build_classifier(dataclasses.replace(settings, model="resnet18")), settings, path)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_architecture, r"does not fit ResNet: tensors \d+ missing .*layer1\.2"),
        (lambda path: torch.save({"format": RunsCode()}, path), "refused .* could run code"),
        (lambda path: None, "no checkpoint at"),
    ],
)
def test_bad_checkpoints_are_refused(make, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    make(path)
    with pytest.raises(UsageError, match=message):
        start("train", *common(data, tmp_path), "--checkpoint", path, "--night.source", "gamma")
    assert not (tmp_path / "code-was-run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--night.exposure", "0.5", "0.2"], "--night.exposure 0.5 0.2: expected two numbers"),
        (["--night.source", "learned"], "needs --darkener"),
        (["--night.source", "gamma", "--darkener", "some.pt"], "no checkpoint at"),
        (["--data", "nowhere"], "no data at "),
    ],
)
def test_bad_flags_end_with_exit_code_2(flags, message, data, checkpoint, tmp_path, capfd, monkeypatch):
    module = SCRIPTS["train"]
    own = [*common(data, tmp_path), "--checkpoint", checkpoint]
    if "--night.source" not in flags:
        own += ["--night.source", "gamma"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, own), *flags])
    with pytest.raises(SystemExit) as stop:
        run_script(module.Config, module.main, module.__doc__)
    assert stop.value.code == 2
    assert message in " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "classification").exists()
