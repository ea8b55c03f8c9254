"""What the scripts of all four tasks do alike: help, rows to compare, interrupted runs, several processes."""

import json
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import action_scripts as action
import classification_scripts as classification
import place_scripts as places
import pytest
import segmentation_scripts as segmentation
import torch
from classifier import load_classifier
from gem import load_place_network
from recogniser import load_recogniser
from script_modules import run_ranks
from segmenter import load_segmenter


class Task(NamedTuple):
    scripts: Any
    data: str
    """A fixture, as `checkpoint`."""
    checkpoint: str
    flags: tuple[Any, ...]
    load: Callable[..., Any]
    second_epoch: int
    """The call of `step` in its second batch."""


TASKS = {
    "classification": Task(classification, "data", "checkpoint", (), load_classifier, 5),
    "segmentation": Task(segmentation, "streets", "segmenter", ("--night.cell", 8), load_segmenter, 5),
    # A batch of two tuples, each a step.
    "visual-place-recognition": Task(places, "places", "checkpoint", ("--optim.lr", 1e-4), load_place_network, 9),
    "low-light-action-recognition": Task(action, "videos", "recogniser", (), load_recogniser, 5),
}


def flags_of(task, request, tmp_path):
    """The flags of train.py on files of the task."""
    data, checkpoint = (request.getfixturevalue(name) for name in (task.data, task.checkpoint))
    return [*task.scripts.common(data, tmp_path), "--checkpoint", checkpoint, *task.flags]


@pytest.mark.parametrize("script", ["train_day", "train_darkener", "train", "test"])
@pytest.mark.parametrize("name", TASKS)
def test_every_script_explains_itself_from_any_folder(name, script):
    command = TASKS[name].scripts.command(script, "--help")
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    assert "--data" in shown and "--device" in shown


GAMMA = ("--night.source", "gamma")
ROWS = {
    "classification": [GAMMA, ("--night.source", "brightness"), ("--night.source", "short-exposure")],
    "segmentation": [
        ("--night.source", "short-exposure", "--byol.distance", "cosine"),
        ("--night.source", "brightness", "--byol.batch-norm", "joint"),
        (*GAMMA, "--photometry.cutout", 1, "--photometry.blur", 1, "--images.scale", 0.5, 0.6),
    ],
    "visual-place-recognition": [("--night.source", "short-exposure", "--optim.at-once", 2)],
    "low-light-action-recognition": [
        ("--night.source", "short-exposure", "--byol.distance", "cosine"),
        ("--night.source", "brightness", "--byol.batch-norm", "joint", "--shift", 0),
        (*GAMMA, "--optim.method", "adamw"),
    ],
}
CONTROL = ("--night.source", "day", "--byol.weight", 0)


@pytest.mark.parametrize(("name", "flags"), [(name, flags) for name in TASKS for flags in (CONTROL, *ROWS[name])])
def test_rows_to_compare_are_flags(name, flags, request, tmp_path):
    task = TASKS[name]
    assert task.scripts.start("train", *flags_of(task, request, tmp_path), *flags).is_file()


@pytest.mark.parametrize("name", TASKS)
def test_a_run_that_is_interrupted_within_an_epoch_goes_on_exactly(name, request, tmp_path, monkeypatch):
    task, module = TASKS[name], TASKS[name].scripts.SCRIPTS["train"]
    flags = [*flags_of(task, request, tmp_path), *GAMMA, "--optim.epochs", 2, "--save-minutes", 1e-9]
    whole = task.scripts.start("train", *flags, "--name", "whole")
    step, calls = module.step, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == task.second_epoch:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "step", interrupted)
        task.scripts.start("train", *flags, "--name", "parts")
    progress = torch.load(tmp_path / name / "parts" / "last.pt", weights_only=True)["progress"]
    assert progress["epoch"] == progress["batch"] == 1
    parts = task.scripts.start("train", *flags, "--name", "parts", "--resume")
    first, second = (task.load(path)[0].state_dict() for path in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole.parent / "metrics.jsonl").read_text() == (parts.parent / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_train_together(name, request, tmp_path):
    """Two gloo ranks run the real script; they must agree and write one run."""
    task = TASKS[name]
    flags = [*flags_of(task, request, tmp_path), *GAMMA, "--threads", 1]
    assert run_ranks(task.scripts.command("train", *flags)) == [0, 0]
    lines = (tmp_path / name / "adapt" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["train", "validation"]  # all images in one or two steps
