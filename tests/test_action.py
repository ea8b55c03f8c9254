"""The four scripts of action recognition, end to end on built-in clips and on videos in the real layouts."""

import json
import shutil

import pytest
import torch
from action_scripts import SIZE, SMALL, common, start
from clip_accuracy import ClipAccuracy, selection_score
from clips import ClipConfig, SceneClips
from video_files import save_video

from darkening.apply import Config as ApplyConfig
from darkening.apply import main as darken
from darkening.night_view import NightConfig
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError

RUNTIME = Runtime(torch.device("cpu"))
CLASSES = ("Run", "Sit")


@pytest.fixture(scope="module")
def arid(tmp_path_factory):
    """Videos as NormalLight and ARID lie when unpacked, with the list files of the first split."""
    root = tmp_path_factory.mktemp("arid") / "NormalLight"
    lists = root / "raw" / "list_cvt"
    lists.mkdir(parents=True)
    rows = {"train": [], "test": []}
    for split, names in (("train", ("day_1", "day_2", "day_3")), ("test", ("10_1",))):
        for label, action in enumerate(CLASSES):
            for name in names:
                path = f"{action}/{action}_{name}.avi"
                save_video(root / "raw" / "data" / path, frames=9, darker=4 if split == "test" else 1)
                rows[split].append(f"{len(rows[split])}\t{label}\t{path}\n")
        (lists / f"ARID_split1_{split}.txt").write_text("".join(rows[split]))
    (lists / "mapping_table.txt").write_text("0\tRun\n1\tSit\n")
    return root


def test_four_scripts_on_a_class_tree_of_videos(videos, tmp_path):
    flags = common(videos, tmp_path)
    day = start("train_day", *flags, *SMALL)
    darkener = start("train_darkener", *flags, "--checkpoint", day)
    adapted = start("train", *flags, "--checkpoint", day, "--darkener", darkener)
    found = start("test", "--checkpoint", adapted, "--data", videos, *SIZE, "--clips.rounds", 3)["checkpoint"]
    assert {split: len(accuracy.labels) for split, accuracy in found.items()} == {"test_day": 2, "test_night": 4}


def test_the_scripts_read_the_data_sets_own_lists(arid, tmp_path):
    flags = [*common(arid, tmp_path), "--clips.validation", 0.3]
    day = start("train_day", *flags, *SMALL)
    adapted = start("train", *flags, "--checkpoint", day, "--night.source", "gamma")
    used = json.loads((adapted.parent / "environment.jsonl").read_text().splitlines()[0])["data"]
    assert "training" in used and "validation" in used
    found = start("test", "--checkpoint", adapted, "--data", arid, *SIZE, "--clips.rounds", 1)["checkpoint"]
    assert list(found) == ["test_night"] and len(found["test_night"].labels) == 2


def test_night_videos_may_lie_in_a_folder_of_their_own(videos, arid, recogniser, tmp_path):
    night = tmp_path / "ARID" / "clips"
    shutil.copytree(videos / "test_night", night)
    flags = ("--checkpoint", recogniser, *SIZE, "--clips.rounds", 1, "--output", tmp_path / "out")
    found = start("test", *flags, "--data", videos, "--night", night)["checkpoint"]
    assert len(found["test_day"].labels) == 2 and len(found["test_night"].labels) == 4


@pytest.mark.parametrize("sampling", ["random", "uniform"])
def test_the_batch_size_of_a_test_changes_nothing(sampling, videos, recogniser, tmp_path):
    where = ("--checkpoint", recogniser, "--data", videos, *SIZE, "--clips.rounds", 3, "--clips.sampling", sampling)
    one, many = (
        start("test", *where, "--batch-size", size, "--output", tmp_path / str(size))["checkpoint"] for size in (1, 8)
    )
    for split in one:
        torch.testing.assert_close(one[split].probabilities, many[split].probabilities)


@pytest.fixture
def darkened(videos, tmp_path):
    folder = tmp_path / "dark"
    night = NightConfig(source="gamma", exposure=(0.1, 0.1))
    darken(ApplyConfig(input=videos / "train", output=folder, night=night, workers=0, device="cpu"))
    return folder


def test_nights_made_in_advance_are_paired_by_name(videos, recogniser, darkened, tmp_path):
    flags = (*common(videos, tmp_path), "--checkpoint", recogniser, "--darkened", darkened)
    adapted = start("train", *flags)
    assert torch.load(adapted, weights_only=True)["config"]["darkened"] == str(darkened)
    with pytest.raises(UsageError, match="nights are made already"):
        start("train", *flags, "--night.source", "gamma", "--name", "b")


DARKENED = {
    "missing": (lambda f: (f / "Run/train_1.avi").unlink(), "lacks 1 of 6 videos: Run/train_1.avi"),
    "length": (lambda f: save_video(f / "Run/train_0.mp4", frames=4), "train_0.mp4 has 4 frames, by day it has 5"),
    "twice": (lambda f: shutil.copytree(f / "Run", f / "again" / "Run"), "is there twice"),
    "broken": (lambda f: (f / "Sit/train_2.mkv").write_bytes(b""), "1 of 6 videos of train in"),
}


@pytest.mark.parametrize("case", DARKENED)
def test_a_folder_of_nights_that_does_not_fit_is_refused(case, videos, recogniser, darkened, tmp_path):
    spoil, message = DARKENED[case]
    spoil(darkened)
    with pytest.raises(UsageError) as caught:
        start("train", *common(videos, tmp_path), "--checkpoint", recogniser, "--darkened", darkened)
    assert message in str(caught.value)
    assert not (tmp_path / "low-light-action-recognition").exists()


GAMMA = ("--night.source", "gamma")
REFUSED = {
    "other classes": ("train", (*GAMMA, "--data", "scenes"), "the network knows Run, Sit, the scenes show standing"),
    "no data": ("train", (*GAMMA, "--data", "nowhere"), "no data at"),
    "no darkener": ("train", ("--night.source", "learned"), "--night.source learned: needs --darkener"),
    "night of scenes": ("test", ("--data", "scenes", "--night", "x"), "--data scenes brings its own nights"),
    "no such split": ("test", ("--splits", "val", "--data", "EMPTY"), "no class folders in"),
    "length": ("train", ("--clips.length", 0), "--clips.length 0: expected 1 or more"),
    "shift": ("train", ("--shift", -1), "--shift -1.0: expected 0 or more"),
    "batch": ("train", ("--optim.batch-size", 1), "--optim.batch-size 1: expected 2 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_cannot_work_are_refused_before_any_work(case, videos, recogniser, tmp_path):
    script, flags, message = REFUSED[case]
    (tmp_path / "empty" / "data").mkdir(parents=True)
    flags = [tmp_path / "empty" if flag == "EMPTY" else flag for flag in flags]
    runs = [] if script == "test" else ["--runs", tmp_path / "runs"]
    where = [] if "--data" in flags else ["--data", videos]
    with pytest.raises(UsageError) as caught:
        start(script, "--checkpoint", recogniser, *where, *runs, *flags)
    assert message in str(caught.value)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("low-light-action-recognition/*"))


def test_selection_refuses_a_night_split(tmp_path):
    config = ClipConfig(length=2, size=16)
    clips = SceneClips("test_night", 2, config, tmp_path)
    with pytest.raises(ValueError, match="zero-shot"):
        selection_score(torch.nn.Identity(), clips, config, RUNTIME)


def test_accuracy_of_an_example_done_by_hand():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.2, 0.5, 0.3]])
    accuracy = ClipAccuracy.of(probabilities, torch.tensor([0, 2, 1, 0]))
    assert accuracy.top1 == accuracy.top(1) == 0.5 and accuracy.top(2) == 0.75 and accuracy.top(5) == 1.0
    assert accuracy.confusion.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert accuracy.per_class == [0.5, 0.0, 1.0]
