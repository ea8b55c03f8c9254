"""The demo, with its scripts called in this process."""

import contextlib
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from class_folders import SCENE_SEEDS
from PIL import Image

from minmax.runtime import commands
from minmax.runtime.config import read_recipe
from minmax.runtime.errors import UsageError


def test_demo_draws_its_picture_and_goes_on_where_it_was_stopped(demo, tmp_path, monkeypatch, capsys):
    started = []

    class RunHere(contextlib.nullcontext):
        """In place of subprocess.Popen."""

        def __init__(self, command, stdout, stderr):
            super().__init__(self)
            started.append(Path(command[1]).name)
            monkeypatch.setattr(sys, "argv", command[1:])
            runpy.run_path(command[1], run_name="__main__")

        def wait(self):
            return 0

    monkeypatch.setattr(commands, "subprocess", SimpleNamespace(Popen=RunHere))
    config = demo.Config(runs=tmp_path, quick=True, device="cpu")
    demo.main(config)
    assert started == [*("train_day.py", "test.py", "train_darkener.py", "train.py", "test.py", "train.py", "test.py")]
    table = (tmp_path / "demo-seed0-quick.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]][0] == "daytime model"
    Image.open(tmp_path / "demo-seed0-quick.png").verify()

    started.clear()
    demo.main(config)
    assert started == ["test.py"] * 3, "finished trainings are not repeated"

    other = tmp_path / "demo.yaml"
    other.write_text(demo.RECIPE.read_text().replace("epochs: 3", "epochs: 4"))
    monkeypatch.setattr(demo, "RECIPE", other)
    with pytest.raises(UsageError, match=r"the finished run .*adapt-seed0-quick is of another recipe"):
        demo.main(config)


def test_the_pictures_are_as_large_as_the_recipe_says(demo):
    sections = read_recipe(demo.RECIPE)
    assert {section["images"]["size"] for section in sections.values()} == {demo.SIZE}


def test_the_picture_shows_the_scenes_that_were_tested(demo):
    assert SCENE_SEEDS["test_night"] == demo.NIGHT_SEED
