"""Data bases beyond memory: descriptors on disk and the search in them are those of the forms in memory."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from large_databases import best, describe_onto_disk
from place_images import ScenePlaces
from place_scripts import start
from ranking import Relevance, nearest, score_rankings

from minmax.runtime.errors import UsageError


def unit_vectors(count, seed):
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("numbers", "count", "rows"), [("float32", 7, 16), ("float16", 7, 3), ("float32", 100, 1000)])
def test_the_best_in_a_file_are_the_first_of_the_whole_ranking(numbers, count, rows, tmp_path):
    queries, database = unit_vectors(600, 0), unit_vectors(100, 1).numpy().astype(numbers)
    np.save(tmp_path / "x.npy", database)
    whole = nearest(queries, torch.from_numpy(database.astype(np.float32)))
    assert torch.equal(best(queries, tmp_path / "x.npy", count, rows), whole[:, :count])


def test_what_comes_behind_the_results_that_are_looked_at_is_not_found():
    wanted = [Relevance((0, 3), junk=(1,))]
    whole, two = (score_rankings(torch.tensor([[1, 0, 2, 3]]), wanted, ["a"], count) for count in (None, 2))
    assert whole.average_precisions == [pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)]
    assert two.average_precisions == [0.5]


def test_descriptors_on_disk_go_on_where_they_stopped_and_start_again_for_others(tmp_path):
    images = ScenePlaces("x", np.arange(10 * 12, dtype=np.uint8).reshape(10, 2, 2, 3), is_night=False)
    found, asked = unit_vectors(10, 0), []

    def describe(positions):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(positions)
        return found[positions.start : positions.stop]

    def describe_all(numbers="float32", how=(("network", "1"),)):
        return describe_onto_disk(images, tmp_path / "x", describe, numbers, dict(how), rows=4)

    with pytest.raises(KeyboardInterrupt):
        describe_all()
    assert (asked, json.loads((tmp_path / "x.json").read_text())["done"]) == ([range(4), range(4, 8)], 8)
    asked.clear()
    assert np.array_equal(np.load(describe_all()), found) and asked == [range(8, 10)]
    assert len((tmp_path / "x.txt").read_text().splitlines()) == 10
    asked.clear()
    describe_all()
    assert asked == []
    for other in ({"numbers": "float16"}, {"how": (("network", "2"),)}):
        asked.clear()
        with pytest.raises(KeyboardInterrupt):
            describe_all(**other)
        assert asked == [range(4), range(4, 8)]


def test_the_test_script_finds_on_disk_what_it_finds_in_memory(places, checkpoint, tmp_path):
    flags = ("--checkpoint", checkpoint, "--data", places, "--images.size", 48, "--whitening")
    (whole,) = start("test", *flags, "--output", tmp_path / "a")["checkpoint"].values()
    (on_disk,) = start("test", *flags, "--output", tmp_path / "b", "--best", 20)["checkpoint"].values()
    assert on_disk.average_precisions == pytest.approx(whole.average_precisions, nan_ok=True)
    assert (on_disk.recalls, on_disk.by_place.keys()) == (whole.recalls, whole.by_place.keys())
    kept = [np.load(tmp_path / x / "descriptors/checkpoint/247tokyo1k-database.npy") for x in "ab"]
    assert np.allclose(*kept, atol=1e-6)
    assert "mAP@20 %" in (tmp_path / "b/results.md").read_text()
    start("test", *flags, "--output", tmp_path / "c", "--best", 20, "--stored", "float16")
    assert np.load(tmp_path / "c/descriptors/checkpoint/247tokyo1k-database.npy").dtype == np.float16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--best", 10), "--best 10: expected 20 or more"),
        (("--best", 20, "--adabn"), "--adabn true: expected none beside --best"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message, checkpoint):
    with pytest.raises(UsageError, match=message):
        start("test", "--checkpoint", checkpoint, *flags)
