"""What the scripts of all four tasks do alike: built-in data, help, rows to compare, interruptions, processes."""

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
from PIL import Image
from place_checkpoints import load_place_network
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


class Shown(NamedTuple):
    """What test.py finds on built-in data."""

    day: tuple[Any, ...]
    """Flags of train_day.py, for a small network."""
    test: tuple[Any, ...]
    """Flags of test.py."""
    printed: str
    pictures: tuple[str, ...]
    agrees: Callable[[dict[str, Any], Any], bool]
    """Whether what is stored of the night is what was found."""


STREETS = ("--model", "refinenet_resnet18", "--width", 8)
SHOWN = {
    "classification": Shown(
        *((), classification.SIZE, "balanced", ("confusion.png",)),
        lambda stored, score: stored["top1"] == score.top1,
    ),
    "segmentation": Shown(
        *(STREETS, ("--images.size", 64, 64), "| traffic light |"),
        ("scenes__test_day.png", "scenes__test_night.png", "confusion.png"),
        lambda stored, score: stored["mean_iou"] == score.mean() and score.confusion.sum() == 16 * 64 * 64,
    ),
    "visual-place-recognition": Shown(
        *(("--model", "resnet18"), ("--images.size", 64), "| scenes, night queries after "),
        ("scenes--day-queries.png", "scenes--night-queries.png"),
        lambda stored, score: (
            stored["mean_average_precision"] == score.mean_average_precision
            and (len(stored["queries"]), *score.rankings.shape) == (12, 12, 18)
        ),
    ),
    "low-light-action-recognition": Shown(
        *(action.SMALL, (*action.SIZE, "--clips.rounds", 2), "| approaching"),
        ("strips_test_day.png", "strips_test_night.png", "confusion.png"),
        lambda stored, score: (
            (stored["top1"], stored["count"]) == (score.top1, 32)
            and score.probabilities.sum(dim=1).tolist() == pytest.approx([1.0] * 32, abs=1e-5)
        ),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_four_scripts_on_built_in_data(name, tmp_path, capsys):
    task, shown, start = TASKS[name], SHOWN[name], TASKS[name].scripts.start
    scenes, out = ["--data", "scenes", "--quick", "--runs", tmp_path], tmp_path / "out"
    day = start("train_day", *scenes, *shown.day)
    darkener = start("train_darkener", *scenes, "--checkpoint", day)
    adapted = start("train", *scenes, "--checkpoint", day, "--darkener", darkener)
    both = ("--checkpoint", adapted, "--before", day)
    found = start("test", *both, "--data", "scenes", "--quick", *shown.test, "--output", out)
    by_day, night = found["before"]
    assert list(found["checkpoint"]) == [by_day, night] and "day" in by_day and "night" in night
    assert shown.printed in capsys.readouterr().out
    stored = json.loads((out / "results.json").read_text())["results"]["checkpoint"]
    assert shown.agrees(stored[night], found["checkpoint"][night])
    for rival in (["--adabn"], ["--brighten", "clahe"]):
        start(
            "test",
            "--checkpoint",
            adapted,
            "--data",
            "scenes",
            "--quick",
            *shown.test,
            "--output",
            tmp_path / "2",
            *rival,
        )
        assert (
            json.loads((tmp_path / "2" / "results.json").read_text())["results"]["checkpoint"][night] != stored[night]
        )
    (first,) = (adapted.parent / "pictures").glob("first_*.png")
    drawn = [darkener.parent / "pictures" / "darkened.png", adapted.parent / "pictures" / "curves.png", first]
    for picture in (*drawn, *(out / picture for picture in shown.pictures)):
        Image.open(picture).verify()
    for file in ("config.yaml", "environment.jsonl", "log.txt", "metrics.jsonl", "last.pt", "best.pt"):
        assert (adapted.parent / file).is_file(), file
    before, after = (task.load(path)[0].state_dict() for path in (day, adapted))
    assert any(not torch.equal(before[tensor], after[tensor]) for tensor in before)
    if name == "visual-place-recognition":
        assert all(torch.equal(before[tensor], after[tensor]) for tensor in before if "running_" in tensor)
    task.scripts.TASK.assert_goes_on_only_with_its_day_model(day, *scenes)


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
def test_the_day_is_kept_by_distillation_and_by_a_mixture_of_weights(name, request, tmp_path):
    task = TASKS[name]
    flags = flags_of(task, request, tmp_path)
    kept = ("--keep.distillation", 1, "--keep.shares", 0.25, "--optim.epochs", 2)
    adapted = task.scripts.start("train", *flags, *GAMMA, *kept)
    files = flags[flags.index("--checkpoint") + 1], adapted, adapted.parent / "kept.pt"
    before, after, mixed = (task.load(path)[0].state_dict() for path in files)
    for tensor, value in mixed.items():
        share = torch.lerp(before[tensor], after[tensor], 0.25) if value.is_floating_point() else after[tensor]
        torch.testing.assert_close(value, share)
    lines = [json.loads(line) for line in (adapted.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["kept"] for line in lines if line["kind"] == "train"][-1] > 0


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_train_together(name, request, tmp_path):
    """Two gloo ranks run the real script; they must agree and write one run."""
    task = TASKS[name]
    flags = [*flags_of(task, request, tmp_path), *GAMMA, "--threads", 1]
    assert run_ranks(task.scripts.command("train", *flags)) == [0, 0]
    lines = (tmp_path / name / "adapt" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["train", "validation"]  # all images in one or two steps
