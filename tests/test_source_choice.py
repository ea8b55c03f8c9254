"""--night.source auto: what is tried, what wins, and that it goes on where it was stopped."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from darkening.camera import CameraConfig
from darkening.night_view import NightConfig
from darkening.source_choice import CANDIDATES, choose_source
from minmax.runtime.config import CommonFlags, write_yaml
from minmax.runtime.errors import UsageError
from minmax.runtime.run import run_folder


@dataclass(frozen=True)
class Optim:
    epochs: int = 9


@dataclass(frozen=True, kw_only=True)
class Flags(CommonFlags):
    name: str = "adapt"
    data: str = "scenes"
    darkener: Path | None = None
    night: NightConfig = field(default_factory=lambda: NightConfig(source="auto"))
    optim: Optim = field(default_factory=Optim)


SCORES = {
    ("learned", 0): 0.6,
    ("gamma", 0): 0.5,
    ("brightness", 0): 0.4,
    ("short-exposure", 0): 0.3,
    ("gamma", 1): 0.2,
    ("dim", 1): 0.7,
    ("day", 0): 0.65,
}


def of(config):
    return config.night.source, config.night.camera.share


@pytest.fixture
def adaptation():
    """A train.py that writes what a run leaves, and what it was called with."""
    calls = []

    def main(config):
        calls.append(config)
        folder = run_folder("task", config)
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(config, folder / "config.yaml")
        scores = (0.99, SCORES[of(config)])  # of two epochs; the last one counts
        lines = [{"kind": "validation", "day": 0.9, "darkened": 0.1, "score": score} for score in scores]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return folder

    return main, calls


def test_every_source_is_tried_for_an_epoch_and_the_best_is_taken(adaptation, tmp_path):
    main, calls = adaptation
    night = NightConfig(source="auto", cell=7, camera=CameraConfig(blurred=0.1))
    config = Flags(runs=tmp_path, darkener=tmp_path / "darkener.pt", night=night)
    chosen = choose_source(config, "task", main)
    assert [of(call) for call in calls] == list(SCORES)
    assert [call.name for call in calls] == [f"adapt-try-{name}" for name in CANDIDATES]
    assert {(call.optim.epochs, call.night.cell, call.resume) for call in calls} == {(1, 7, False)}
    assert {call.night.camera.blurred for call in (*calls, chosen) if call.night.camera.share} == {0.1}
    assert [call.darkener is not None for call in calls] == [True] + [False] * 6
    assert (of(chosen), chosen.name, chosen.optim.epochs) == (("dim", 1), "adapt", 9)
    assert (chosen.darkener, chosen.resume, chosen.night.cell) == (None, False, 7)


def test_the_learned_night_can_win_and_mixed_ones_are_not_tried(adaptation, tmp_path, monkeypatch):
    main, calls = adaptation
    night = NightConfig(source="auto", mix=("brightness",))
    config = Flags(runs=tmp_path, darkener=tmp_path / "darkener.pt", night=night)
    monkeypatch.setitem(SCORES, ("day", 0), 0.1)
    monkeypatch.setitem(SCORES, ("dim", 1), 0.1)
    chosen = choose_source(config, "task", main)
    assert [of(call) for call in calls] == [one for one in SCORES if one[0] != "brightness"]
    assert (chosen.night.source, chosen.night.mix, chosen.darkener) == ("learned", ("brightness",), config.darkener)


def test_it_goes_on_where_it_was_stopped(adaptation, tmp_path):
    main, calls = adaptation
    config = Flags(runs=tmp_path)
    first = choose_source(config, "task", main)
    choose_source(config, "task", main)
    assert [call.resume for call in calls] == [False] * 6 + [True] * 6
    main(first)
    with pytest.raises(UsageError, match="exists; choose another --name, or continue it with --resume"):
        choose_source(config, "task", main)
    again = choose_source(Flags(runs=tmp_path, resume=True), "task", main)
    assert again.resume and again.night == first.night


def test_other_sources_are_left_alone_and_several_processes_refused(adaptation, tmp_path, monkeypatch):
    main, calls = adaptation
    config = Flags(runs=tmp_path, night=NightConfig(source="gamma"))
    assert choose_source(config, "task", main) is config and calls == []
    with pytest.raises(UsageError, match="--night.camera.share 0.5: expected none; auto tries cameras itself"):
        night = NightConfig(source="auto", camera=CameraConfig(share=0.5))
        choose_source(Flags(runs=tmp_path, night=night), "task", main)
    with pytest.raises(UsageError, match="no run to continue|nothing to resume|does not exist|--resume"):
        choose_source(Flags(runs=tmp_path, name="never", resume=True), "task", main)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--night.source auto: choose in one process"):
        choose_source(Flags(runs=tmp_path), "task", main)
