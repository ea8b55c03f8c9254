"""Several processes of one training: what they measure and mine together is what one of them finds alone."""

import json
import sys
from pathlib import Path

import pytest
from place_files import write_sfm
from script_modules import run_ranks
from video_files import save_truncated, save_video

PROGRAM = Path(__file__).with_name("measured_together.py")


def test_two_processes_find_together_what_one_finds(data, streets, checkpoint, segmenter, tmp_path):
    write_sfm(tmp_path)
    (tmp_path / "videos" / "val").mkdir(parents=True)
    for number in range(5):
        save_video(tmp_path / "videos" / "train" / "Sit" / f"{number}.mp4", frames=2 + number, height=16, width=16)
    save_truncated(tmp_path / "videos" / "train" / "Sit" / "cut.mp4", height=16, width=16)
    command = [sys.executable, PROGRAM, data, streets, tmp_path, checkpoint, segmenter, tmp_path]
    for count in (1, 2):
        assert run_ranks([str(part) for part in command], count) == [0] * count
    one, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert first == second
    assert (one.pop("sum"), first.pop("sum")) == ([1.0, 0.0], [2.0, 1.0])
    assert one["frames"] == [2, 3, 4, 5, 6] and one["decoded"] == 7.0
    assert (one.pop("flags"), first.pop("flags")) == ([False, False], [True, False])
    assert one.pop("places") == pytest.approx(first.pop("places"), abs=1e-6)  # images came in other batches
    assert one == first
