"""The four scripts of visual place recognition, end to end on built-in places and on files in the real layouts."""

import json

import numpy as np
import pytest
import torch
from fake_devices import TwoParts
from place_checkpoints import load_place_network
from place_files import write_folders
from place_scripts import SCRIPTS, common, start

from minmax.runtime.errors import UsageError


def test_four_scripts_on_the_real_layouts(places, checkpoint, tmp_path):
    flags = common(places, tmp_path)
    day = start("train_day", *flags, "--checkpoint", checkpoint)
    crops = ("--images.short-side", 40, "--images.crop", 32, "--optim.epochs", 1, "--optim.batch-size", 4)
    where = ("--data", places, "--runs", tmp_path, "--workers", 0)
    darkener = start("train_darkener", *where, *crops, "--checkpoint", day)
    adapted = start("train", *flags, "--checkpoint", day, "--darkener", darkener, "--optim.lr", 1e-4)
    found = start("test", "--checkpoint", adapted, "--data", places, "--images.size", 48, "--scales", 1, 0.5)
    score = found["checkpoint"]["247tokyo1k"]
    assert score.answerable == 4 and set(score.by_place) == {"day00", "day10", "day20", "day30"}
    kept = adapted.parent / "test" / "descriptors" / "checkpoint"
    descriptors = np.load(kept / "247tokyo1k-database.npy", allow_pickle=False)
    assert descriptors.shape == (8, 512)
    assert len((kept / "247tokyo1k-database.txt").read_text().splitlines()) == 8
    kinds = [json.loads(line)["kind"] for line in (adapted.parent / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["train"] * 3 + ["validation"]


def test_folders_of_places_go_through_all_scripts(checkpoint, tmp_path):
    write_folders(tmp_path / "data")
    flags = common(tmp_path / "data", tmp_path)
    adapted = start("train", *flags, "--checkpoint", checkpoint, "--night.source", "gamma")
    found = start("test", "--checkpoint", adapted, "--data", tmp_path / "data", "--images.size", 48)
    assert found["checkpoint"]["data"].answerable == 5


def test_whitening_is_learned_once_and_changes_the_descriptors(places, checkpoint, tmp_path, caplog):
    (tmp_path / "copy.pt").write_bytes(checkpoint.read_bytes())
    flags = ("--checkpoint", tmp_path / "copy.pt", "--data", places, "--images.size", 48)
    plain = start("test", *flags, "--output", tmp_path / "a")
    with caplog.at_level("INFO"):
        first = start("test", *flags, "--whitening", "--output", tmp_path / "b")
        assert caplog.text.count("whitening learned") == 1
        second = start("test", *flags, "--whitening", "--output", tmp_path / "c")
        assert caplog.text.count("whitening learned") == 1
        start("test", *flags, "--whitening", "--scales", 1, 0.5, "--output", tmp_path / "d")
        assert caplog.text.count("whitening learned") == 2
    (tmp_path / "copy.whitening.safetensors").write_bytes(b"broken")
    with pytest.raises(UsageError, match="is broken"):
        start("test", *flags, "--whitening", "--output", tmp_path / "e")
    arrays = [np.load(tmp_path / x / "descriptors/checkpoint/247tokyo1k-queries.npy") for x in "abc"]
    assert not np.allclose(arrays[0], arrays[1]) and np.array_equal(arrays[1], arrays[2])
    assert torch.equal(first["checkpoint"]["247tokyo1k"].rankings, second["checkpoint"]["247tokyo1k"].rankings)
    assert plain["checkpoint"]["247tokyo1k"].answerable == 4


def weights(path):
    return load_place_network(path)[0].state_dict()


def test_tuples_in_memory_together_or_not_give_one_step(places, checkpoint, tmp_path):
    flags = ("--checkpoint", checkpoint, "--night.source", "gamma", "--night.contrast", 0, 1, "--optim.lr", 1e-5)
    one, two = (
        weights(start("train", *common(places, tmp_path), *flags, "--optim.at-once", n, "--name", f"n{n}"))
        for n in (1, 2)
    )
    worst = max(float((one[name] - two[name]).abs().max()) for name in one if one[name].is_floating_point())
    # Adam's first steps are of the size of the rate, whatever the gradient: a sign that flips costs two of them.
    assert worst < 3e-6


@pytest.mark.parametrize("script", ["train_day", "train"])
def test_several_devices_share_out_the_images_of_one_shape(script, places, checkpoint, tmp_path, monkeypatch):
    flags = [*common(places, tmp_path), "--checkpoint", checkpoint, "--optim.lr", 1e-5, "--optim.at-once", 2]
    flags += ["--night.source", "gamma"] if script == "train" else []
    one = weights(start(script, *flags, "--name", "one"))
    monkeypatch.setattr("minmax.runtime.devices._choose_device", lambda *_: (torch.device("cpu"), (0, 1)))
    monkeypatch.setattr(torch.nn, "DataParallel", TwoParts)
    monkeypatch.setattr(TwoParts, "sizes", [])
    two = weights(start(script, *flags, "--name", "two"))
    assert max(TwoParts.sizes) >= 2
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_a_falling_score_is_shown(places, checkpoint, tmp_path, caplog, monkeypatch):
    scores = iter([0.9, 0.5, 0.95, 0.93])
    monkeypatch.setattr(
        SCRIPTS["train"], "selection_score", lambda *a, **k: dict.fromkeys(("day", "darkened", "score"), next(scores))
    )
    flags = (*common(places, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma", "--optim.epochs", 3)
    start("train", *flags)
    assert "50.0 %, has fallen below the 90.0 % of the network before training" in caplog.text
    assert "93.0 %, has fallen below the 95.0 % of best.pt of epoch 2" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--byol.distance", "cosine"), "pulls day and night together so already"),
        (("--byol.batch-norm", "joint"), "use frozen"),
        (("--byol.head-norm", "batch"), "is a batch of one; use layer"),
        (("--night.source", "learned"), "needs --darkener"),
        (("--tuples.margin", 3), "--tuples.margin 3.*at most 2"),
        (("--images.size", 8), "--images.size 8"),
        (("--tuples.pool", 2), "--tuples.pool 2: expected more than the 2 negatives"),
        (("--tuples.negatives", 8), "has 8 places; --tuples.negatives 8"),
    ],
)
def test_settings_that_do_not_go_with_tuples_are_refused(flags, message, places, checkpoint, tmp_path):
    given = ("--night.source", "gamma", *flags)
    with pytest.raises(UsageError, match=message):
        start("train", *common(places, tmp_path), "--checkpoint", checkpoint, *given)
    assert not (tmp_path / "visual-place-recognition").exists()


def test_flags_that_cannot_be_are_refused(places, checkpoint, tmp_path):
    with pytest.raises(UsageError, match="--scales 0"):
        start("test", "--checkpoint", checkpoint, "--data", places, "--scales", 0)
    with pytest.raises(UsageError, match="drop --pretrained"):
        start("train_day", *common(places, tmp_path), "--checkpoint", checkpoint, "--pretrained")
