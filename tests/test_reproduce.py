"""The comparison, with stand-ins for the scripts: what is started when, with which flags, and what is reported."""

import contextlib
import json
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from action_scripts import SCRIPTS as ACTION_SCRIPTS
from classification_scripts import SCRIPTS
from place_scripts import SCRIPTS as PLACE_SCRIPTS
from segmentation_scripts import SCRIPTS as SEGMENTATION_SCRIPTS
from torch import nn

from minmax.byol import MomentumPair, ViewPair
from minmax.features import FeatureModel
from minmax.runtime import commands
from minmax.runtime.config import parse_flags, run_script, to_plain
from minmax.runtime.errors import RunError, UsageError

REPOSITORY = Path(__file__).resolve().parents[1]


class Scripts:
    """In place of subprocess.Popen: does in no time what the next script needs, and remembers what was started."""

    def __init__(self):
        self.started = []  # (script, run, flags) in this order
        self.ended = []
        self.failing = set()
        self.shares = {}  # top-1 by day and by night of a run
        self.splits = ("test_day", "test_night")
        self.task = "classification"
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    def __call__(self, command, stdout, stderr):
        script, flags = Path(command[1]).name, command[2:]
        given = {flag: Path(value) for flag, value in zip(flags, flags[1:], strict=False) if flag.startswith("--")}
        run = str(given["--name"]) if "--name" in given else given["--output"].parent.name
        with self.lock:
            self.started.append((script, run, flags))
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        for needed in ("--checkpoint", "--darkener"):
            if needed in given:
                assert given[needed].is_file(), f"{run} was started before what it needs"
                assert str(given[needed].parent.name).rsplit("-", 1)[1] == run.rsplit("-", 1)[1], "of another seed"
        return contextlib.nullcontext(SimpleNamespace(wait=lambda: self.run(script, run, given, stderr)))

    def run(self, script, run, given, stderr):
        time.sleep(0.01)
        failed = run in self.failing
        if script == "test.py":
            by_split = zip(("test_day", "test_night"), self.shares.get(run, (0.5, 0.5)), strict=True)
            numbers = {split: {"top1": share, "balanced": share / 2, "top5": share} for split, share in by_split}
            given["--output"].mkdir(parents=True, exist_ok=True)
            found = {"results": {"checkpoint": {split: numbers[split] for split in self.splits}}}
            if self.task == "segmentation":
                by_set = {name: {"mean_iou": self.shares.get(run, (0.5, 0.5))[0]} for name in ("day", "night")}
                found = {"results": {"checkpoint": {"file": "best.pt", **by_set}}}
            if self.task == "visual-place-recognition":
                shares = self.shares.get(run, (0.5, 0.5))
                score = {"mean_average_precision": shares[0], "recall": {"1": shares[1]}}
                found = {"results": {"checkpoint": {"file": "best.pt", "tokyo": score}}}
            (given["--output"] / "results.json").write_text(json.dumps(found))
        else:
            folder = given["--runs"] / self.task / run
            folder.mkdir(parents=True, exist_ok=True)
            results = ["best.pt", *(["last-epoch.pt"] if script == "train.py" else [])]
            for name in ("config.yaml", *([] if failed else results)):
                (folder / name).touch()
            scores = [{"kind": "validation", "score": score} for score in (0.9, 0.25)]
            lines = [{"kind": "train", "byol": 1.0}, scores[0], {"kind": "train", "byol": 0.5}, scores[1]]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if failed:
            (stderr or sys.stderr).write("some line\nerror: no memory left\n")
        with self.lock:
            self.running -= 1
            self.ended.append((script, run))
        return int(failed)

    def trained(self):
        return [run for script, run, _ in self.started if script != "test.py"]

    def tested(self):
        return [run for script, run, _ in self.started if script == "test.py"]


@pytest.fixture
def scripts(monkeypatch):
    stand_in = Scripts()
    monkeypatch.setattr(commands, "subprocess", SimpleNamespace(Popen=stand_in))
    return stand_in


def config_of(reproduce, runs, **given):
    options = {"data": "scenes", "recipe": "small", "rows": ("continued", "gamma"), "seeds": (0,), "device": "cpu"}
    return reproduce.Config(runs=runs, **{**options, "quick": True, **given})


# ------------------------------------------------------------------------------------------ what is started


def test_one_job_runs_everything_in_order(reproduce, scripts, tmp_path):
    reproduce.main(config_of(reproduce, tmp_path, rows=("continued", "full"), seeds=(0, 1)))
    expected = []
    for seed in (0, 1):
        expected += [("train_day.py", f"day-{seed}"), ("train_darkener.py", f"darkener-{seed}")]
        expected += [("test.py", f"day-{seed}")]
        for row in ("continued", "full"):
            expected += [("train.py", f"{row}-{seed}"), ("test.py", f"{row}-{seed}")]
    assert [(script, run) for script, run, _ in scripts.started] == expected
    assert scripts.most_running == 1
    seeds = [(run, flags[flags.index("--seed") + 1]) for script, run, flags in scripts.started if script != "test.py"]
    assert all(run.endswith(f"-{seed}") for run, seed in seeds)


@pytest.mark.parametrize("jobs", [2, 5])
def test_more_jobs_run_side_by_side_and_none_before_what_it_needs(reproduce, scripts, tmp_path, jobs):
    config = config_of(reproduce, tmp_path, seeds=(0, 1), jobs=jobs, rows=())
    reproduce.main(config)  # the stand-in looks for the checkpoints that are named
    assert 1 < scripts.most_running <= jobs
    rows = config.chosen_rows
    assert set(rows) == set(reproduce.ROWS) - {"joint-pass"}
    runs = [*rows, "day", *reproduce.DARKENERS]
    assert sorted(scripts.trained()) == sorted(f"{run}-{seed}" for run in runs for seed in (0, 1))
    assert sorted(scripts.tested()) == sorted(f"{run}-{seed}" for run in ("day", *rows) for seed in (0, 1))
    for seed in (0, 1):
        ends = [run for _, run in scripts.ended]
        for row in rows:
            begin = next(i for i, (_, run, _) in enumerate(scripts.started) if run == f"{row}-{seed}")
            assert begin > [run for _, run, _ in scripts.started].index(f"day-{seed}")
        assert ends.index(f"day-{seed}") < ends.index(f"full-{seed}")


@pytest.mark.parametrize(
    ("rows", "darkeners"),
    [
        (("continued", "brightness", "gamma", "short-exposure"), []),
        (("gamma", "full", "cosine"), ["darkener-0"]),
        (("no-similarity",), ["darkener-no-similarity-0"]),
        (("unnormalised", "full"), ["darkener-0", "darkener-unnormalised-0"]),
    ],
)
def test_a_darkener_is_trained_when_a_row_needs_it(reproduce, scripts, tmp_path, rows, darkeners):
    reproduce.main(config_of(reproduce, tmp_path, rows=rows))
    assert [run for script, run, _ in scripts.started if script == "train_darkener.py"] == darkeners


def test_rows_and_seeds_can_be_added(reproduce, scripts, tmp_path):
    reproduce.main(config_of(reproduce, tmp_path))
    assert scripts.trained() == ["day-0", "continued-0", "gamma-0"]
    scripts.started.clear()
    reproduce.main(config_of(reproduce, tmp_path, rows=("continued", "gamma", "full")))
    assert scripts.trained() == ["darkener-0", "full-0"]
    scripts.started.clear()
    reproduce.main(config_of(reproduce, tmp_path, seeds=(0, 1)))
    assert scripts.trained() == ["day-1", "continued-1", "gamma-1"]
    scripts.started.clear()
    reproduce.main(config_of(reproduce, tmp_path, seeds=(1,)))
    assert scripts.trained() == []
    assert list(json.loads((tmp_path / "comparison.json").read_text())["seeds"]) == [1]


# ------------------------------------------------------------------------------------------ flags


PATH = r"classification/([\w-]+)-0/(best|last-epoch)\.pt$"


@pytest.fixture
def parsed(reproduce, scripts, tmp_path):
    """The configs that the real scripts make of the flags of a recipe, by script and run."""

    def parsed(recipe, **given):
        config = config_of(reproduce, tmp_path, recipe=recipe, rows=(), **given)
        scripts.task = config.task
        reproduce.main(config)
        modules = {
            "classification": SCRIPTS,
            "segmentation": SEGMENTATION_SCRIPTS,
            "visual-place-recognition": PLACE_SCRIPTS,
            "low-light-action-recognition": ACTION_SCRIPTS,
        }[config.task]
        return {
            (script, run.removesuffix("-0")): parse_flags(modules[Path(script).stem].Config, None, flags)
            for script, run, flags in scripts.started
        }

    return parsed


@pytest.mark.parametrize("recipe", ["paper", "small"])
@pytest.mark.parametrize(("jobs", "quick"), [(1, False), (2, True)])
def test_the_scripts_accept_the_flags_of_every_row_and_mean_them(reproduce, parsed, recipe, jobs, quick):
    found = parsed(recipe, jobs=jobs, quick=quick)
    assert {script for script, _ in found} == {"train_day.py", "train_darkener.py", "train.py", "test.py"}
    for config in found.values():
        assert (config.data, config.device, config.precision, config.quick) == ("scenes", "cpu", "fp32", quick)
        assert (config.images.size, config.images.evaluation) == (
            (224, "native") if recipe == "paper" else (64, "resize")
        )
        assert (config.workers, config.threads > 0) == ((2, False) if jobs == 1 else (0, True))
    rows = {run: config for (script, run), config in found.items() if script == "train.py"}
    assert set(rows) == set(reproduce.ROWS) - {"joint-pass"}
    for name, config in rows.items():
        darkener = re.search(PATH, str(config.darkener))
        assert (darkener[1] if darkener else None) == reproduce.ROWS[name].darkener
        assert re.search(PATH, str(config.checkpoint))[1] == "day"
        assert re.search(PATH, str(found["test.py", name].checkpoint)).groups() == (name, "last-epoch")
    assert re.search(PATH, str(found["test.py", "day"].checkpoint)).groups() == ("day", "best")

    sources = ("continued", "augmix", "brightness", "gamma", "short-exposure", "full")
    assert [rows[name].night.source for name in sources] == [
        *("day", "augmix", "brightness", "gamma", "short-exposure", "learned")
    ]
    assert {name for name, config in rows.items() if config.byol.weight == 0} == {"continued", "no-byol"}
    assert {name for name, config in rows.items() if config.byol.distance == "cosine"} == {"cosine"}
    assert rows["two-pass"].byol.batch_norm == rows["two-pass-reestimated"].byol.batch_norm == "separate"
    assert {name for name, config in rows.items() if config.byol.batch_norm == "frozen"} == {"frozen-statistics"}
    assert {name for name, config in rows.items() if config.statistics == "reestimated"} == {"two-pass-reestimated"}
    assert rows["dark-exposures"].night.exposure == (0.0, 0.2)
    darkeners = {run: config for (script, run), config in found.items() if script == "train_darkener.py"}
    assert {name for name, config in darkeners.items() if config.loss.similarity == 0} == {"darkener-no-similarity"}
    assert {name for name, config in darkeners.items() if config.features == "unnormalised"} == {
        "darkener-unnormalised"
    }


@pytest.mark.parametrize("recipe", ["paper", "small"])
def test_the_scripts_of_segmentation_accept_their_flags_too(reproduce, parsed, recipe):
    found = parsed(recipe, task="segmentation", data="streets", night=(Path("dusk"), Path("dark")))
    rows = {run: config for (script, run), config in found.items() if script == "train.py"}
    assert set(rows) == set(reproduce.ROWS) - set(reproduce.LACKING["segmentation"])
    tests = [config for (script, _), config in found.items() if script == "test.py"]
    assert len(tests) == len(rows) + 1
    assert all((config.data, config.night) == ("streets", (Path("dusk"), Path("dark"))) for config in tests)
    assert {config.images.size for config in [*rows.values(), *tests]} == {
        (512, 1024) if recipe == "paper" else (120, 160)
    }
    assert {config.classes for config in tests} == {"all" if recipe == "paper" else "occurring"}


@pytest.mark.parametrize("recipe", ["paper", "small"])
def test_segmentation_takes_the_built_in_scenes_in_their_own_size(parsed, recipe, tmp_path):
    for config in parsed(recipe, task="segmentation", data="scenes").values():
        assert config.images.size == (96, 96)


@pytest.mark.parametrize("recipe", ["paper", "small"])
def test_the_scripts_of_place_recognition_accept_their_flags_too(reproduce, parsed, recipe):
    found = parsed(recipe, task="visual-place-recognition")
    rows = {run: config for (script, run), config in found.items() if script == "train.py"}
    assert set(rows) == set(reproduce.ROWS) - set(reproduce.LACKING["visual-place-recognition"])
    sizes = {config.images.size for (script, _), config in found.items() if script in ("train_day.py", "train.py")}
    assert sizes == {362 if recipe == "paper" else 64}
    assert {config.whitening for (script, _), config in found.items() if script == "test.py"} == {recipe == "paper"}


@pytest.mark.parametrize("recipe", ["paper", "small"])
def test_the_scripts_of_action_recognition_accept_their_flags_too(reproduce, parsed, recipe):
    found = parsed(recipe, task="low-light-action-recognition")
    rows = {run: config for (script, run), config in found.items() if script == "train.py"}
    assert set(rows) == set(reproduce.ROWS) - set(reproduce.LACKING["low-light-action-recognition"])
    assert {config.clips.length for config in found.values()} == {16 if recipe == "paper" else 8}


@pytest.mark.parametrize(
    ("task", "count"),
    [
        ("classification", 18),
        ("segmentation", 15),
        ("visual-place-recognition", 13),
        ("low-light-action-recognition", 15),
    ],
)
def test_no_two_rows_of_the_small_recipe_are_the_same(parsed, task, count):
    data = "streets" if task == "segmentation" else "scenes"
    found = parsed("small", task=task, data=data)
    configs = [to_plain(config) for (script, _), config in found.items() if script == "train.py"]
    different = {json.dumps({**config, "name": ""}, sort_keys=True) for config in configs}
    assert len(configs) == len(different) == count


def test_the_strong_recipe_fine_tunes_the_weights_that_it_is_given(parsed, tmp_path):
    found = parsed("strong", init=tmp_path / "weights.pth", flip=False)
    day = found["train_day.py", "day"]
    assert (day.model, day.init) == ("timm/tf_efficientnet_lite0", tmp_path / "weights.pth")
    trained = [day, *(config for (script, _), config in found.items() if script == "train.py")]
    assert {config.optim.method for config in trained} == {"adamw"}
    assert {config.augment.flip for config in trained} == {False}
    assert {config.images.size for config in found.values()} == {64}


@pytest.mark.parametrize("task", ["segmentation", "low-light-action-recognition"])
def test_no_script_mirrors_data_that_must_not_be(parsed, task):
    found = parsed("small", task=task, data="streets", flip=False, init=Path("weights.pth"))
    mirroring = [config for config in found.values() if hasattr(config, "augment")]
    assert len(mirroring) == len([1 for script, _ in found if script in ("train_day.py", "train.py")]) + (
        len([1 for script, _ in found if script == "train_darkener.py"]) if task != "segmentation" else 0
    )
    assert {config.augment.flip for config in mirroring} == {False}
    assert found["train_day.py", "day"].init == Path("weights.pth").absolute()


def test_the_rows_compare_features_by_what_their_titles_say(parsed):
    network = FeatureModel(nn.Sequential(nn.Conv2d(3, 3, 1)), ["0"])
    build = SCRIPTS["train"].build_pair
    rows = {run: config for (script, run), config in parsed("small").items() if script == "train.py"}
    plain = {name for name, config in rows.items() if type(build(network, config.byol)) is ViewPair}
    assert plain == {"continued", "no-byol", "cosine"}
    assert all(isinstance(build(network, rows[name].byol), MomentumPair) for name in set(rows) - plain)


def test_every_row_and_recipe_can_be_named(reproduce):
    assert set(get_args(reproduce.RowName)) == set(reproduce.ROWS)
    assert set(get_args(reproduce.DarkenerName)) == set(reproduce.DARKENERS)
    assert len({row.title for row in reproduce.ROWS.values()} | {"daytime model"}) == len(reproduce.ROWS) + 1
    assert set(get_args(reproduce.Task)) == set(reproduce.RECIPES)
    for task, recipes in reproduce.RECIPES.items():
        of_this_task = {"strong"} if task == "classification" else set()
        assert set(recipes) == {"paper", "small"} | of_this_task
    assert set(get_args(reproduce.RecipeName)) == {"paper", "small", "strong"}


def test_the_commands_of_the_help_text_are_accepted(reproduce):
    lines = re.findall(r"^    python reproduce.py (.*)$", reproduce.__doc__, re.MULTILINE)
    first, second, signs, third, fourth = (parse_flags(reproduce.Config, None, line.split()) for line in lines)
    assert (fourth.task, fourth.rows) == ("visual-place-recognition", ("continued", "gamma", "no-byol", "full"))
    assert (first.recipe, first.seeds, len(first.chosen_rows)) == ("paper", (0, 1, 2), 18)
    assert (signs.recipe, signs.init, signs.flip) == ("strong", Path("tf_efficientnet_lite0.pth"), False)
    assert (second.recipe, second.jobs, second.rows) == ("small", 2, ("continued", "gamma", "no-similarity", "full"))
    assert (third.task, third.night, third.rows) == ("segmentation", (Path("NIGHT"),), ("continued", "gamma", "full"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"jobs": 0}, "--jobs 0: expected 1 or more"),
        ({"seeds": ()}, "--seeds : expected at least one seed, each once"),
        ({"seeds": (1, 0, 1)}, "--seeds 1 0 1: expected at least one seed, each once"),
        ({"rows": ("full", "full")}, "--rows full full: expected each row once"),
        (
            {"task": "segmentation", "rows": ("full", "two-pass-reestimated")},
            "--rows full two-pass-reestimated: expected rows that segmentation has; it lacks two-pass-reestimated",
        ),
        (
            {"recipe": "strong"},
            "--recipe strong needs --init weights.pth, ImageNet weights of timm's tf_efficientnet_lite0",
        ),
        ({"task": "segmentation", "recipe": "strong"}, "--recipe strong: expected paper or small"),
        (
            {"task": "segmentation", "rows": ("augmix",)},
            "--rows augmix: expected rows that segmentation has; it lacks augmix",
        ),
        (
            {"task": "visual-place-recognition", "flip": False},
            "--flip false: expected no such flag for visual-place-recognition, which mirrors nothing",
        ),
        ({"night": (Path("dusk"),)}, "--night dusk: expected none: the nights of classification are in its --data"),
    ],
)
def test_bad_flags_are_refused(reproduce, tmp_path, flags, message):
    with pytest.raises(UsageError) as caught:
        config_of(reproduce, tmp_path, **flags)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"quick": False}, "--quick True, not False"),
        ({"recipe": "paper"}, "--recipe small, not paper"),
        ({"data": "photos", "precision": "bf16"}, "--data scenes, not {here}/photos and --precision fp32, not bf16"),
    ],
)
def test_runs_of_other_settings_never_enter_a_table(reproduce, scripts, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    reproduce.main(config_of(reproduce, runs))
    table = (runs / "comparison.md").read_text()
    scripts.started.clear()
    with pytest.raises(UsageError) as caught:
        reproduce.main(config_of(reproduce, runs, **flags))
    expected = f"--runs {runs} holds runs of {message.format(here=tmp_path)}; choose another folder"
    assert str(caught.value) == expected
    assert scripts.started == [] and (runs / "comparison.md").read_text() == table


def test_runs_of_an_earlier_recipe_never_enter_a_table(reproduce, scripts, tmp_path, monkeypatch):
    reproduce.main(config_of(reproduce, tmp_path))
    changed = replace(reproduce.RECIPES["classification"]["small"], day=("--optim.epochs", "21"))
    monkeypatch.setitem(reproduce.RECIPES["classification"], "small", changed)
    with pytest.raises(UsageError, match="holds runs of other flags of --recipe small, .*; choose another folder"):
        reproduce.main(config_of(reproduce, tmp_path))


# ------------------------------------------------------------------------------------------ what is reported

CHOOSING = "for choosing (day images only)"


def test_the_table_holds_the_mean_and_the_range_over_the_seeds(reproduce, scripts, tmp_path, capsys):
    scripts.shares = {f"day-{seed}": share for seed, share in enumerate([(0.9, 0.5), (0.8, 0.3), (0.94, 0.4)])}
    scripts.shares |= {f"continued-{seed}": (0.4, 0.4) for seed in range(3)}
    scripts.shares |= {f"gamma-{seed}": (0.7 + 0.1 * seed, 0.5) for seed in range(3)}
    reproduce.main(config_of(reproduce, tmp_path, rows=("gamma", "continued"), seeds=(2, 0, 1)))
    text = (tmp_path / "comparison.md").read_text()
    head, table, choice = text.split("\n\n")
    assert choice == "By day images only one would choose: gamma night\n"
    assert head == "scenes, recipe small, seeds 2 0 1"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["", "day top-1", "day balanced", "night top-1", "night balanced", CHOOSING]
    by_seed = "25.0 (25.0, 25.0, 25.0)"
    assert rows[2:] == [
        [
            "daytime model",
            "88.0 (80.0 to 94.0)",
            "44.0 (40.0 to 47.0)",
            "40.0 (30.0 to 50.0)",
            "20.0 (15.0 to 25.0)",
            "-",
        ],
        [
            "gamma night",
            "80.0 (70.0 to 90.0)",
            "40.0 (35.0 to 45.0)",
            "50.0 (50.0 to 50.0)",
            "25.0 (25.0 to 25.0)",
            by_seed,
        ],
        ["trained on by day", *2 * ["40.0 (40.0 to 40.0)", "20.0 (20.0 to 20.0)"], by_seed],
    ]
    assert text in capsys.readouterr().out
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["seeds"] == [2, 0, 1]
    assert list(found["results"]) == ["daytime model", "gamma night", "trained on by day"]
    assert [by_seed["test_night"]["top1"] for by_seed in found["results"]["daytime model"]] == [0.4, 0.5, 0.3]
    assert [round(by_seed["test_day"]["top1"], 6) for by_seed in found["results"]["gamma night"]] == [0.9, 0.7, 0.8]
    # The score of the last epoch, whose weights are tested, not the best one.
    assert {by_seed["selection"] for by_seed in found["results"]["gamma night"]} == {0.25}


def test_one_seed_has_no_range_and_a_missing_split_no_column(reproduce, scripts, tmp_path):
    scripts.splits, scripts.shares = ("test_night",), {"day-3": (0.0, 0.625)}
    reproduce.main(config_of(reproduce, tmp_path, rows=("gamma",), seeds=(3,)))
    lines = (tmp_path / "comparison.md").read_text().split("\n\n")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == ["", "night top-1", "night balanced", CHOOSING]
    assert rows[2:] == [["daytime model", "62.5", "31.2", "-"], ["gamma night", "50.0", "25.0", "25.0 (25.0)"]]


def test_segmentation_reports_the_mean_iou_on_each_data_set(reproduce, scripts, tmp_path):
    scripts.task, scripts.shares = "segmentation", {"day-0": (0.25, 0)}
    reproduce.main(config_of(reproduce, tmp_path, task="segmentation", data="", rows=("gamma",)))
    head, table, _ = (tmp_path / "comparison.md").read_text().split("\n\n")
    assert head == "segmentation, recipe small, seeds 0"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["", "day, mean IoU", "night, mean IoU", CHOOSING]
    assert rows[2:] == [["daytime model", "25.0", "25.0", "-"], ["gamma night", "50.0", "50.0", "25.0 (25.0)"]]
    assert not any("--data" in flags for _, _, flags in scripts.started)


def test_the_row_with_the_best_mean_for_choosing_is_named(reproduce):
    scores = {"gamma night": (0.5, 0.6), "full method": (0.4, 0.8), "trained on by day": (0.55, 0.5)}
    results = {title: [{"selection": score} for score in by_seed] for title, by_seed in scores.items()}
    assert reproduce.preferred_row({"daytime model": [{}, {}], **results}) == "full method"


def test_what_could_not_be_measured_has_a_dash(reproduce):
    day = [{"night": {"mean_iou": 0.5}}]
    found = [{"night": {"mean_iou": value}, "selection": score} for value, score in ((0.5, 0.25), (None, 0.5))]
    table = reproduce.comparison_table({"daytime model": day, "full method": found}, "segmentation")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows == [["daytime model", "50.0", "-"], ["full method", "-", "37.5 (25.0, 50.0)"]]


def test_place_recognition_reports_precision_and_recall(reproduce, scripts, tmp_path):
    scripts.task, scripts.shares = "visual-place-recognition", {"day-0": (0.25, 0.125)}
    reproduce.main(config_of(reproduce, tmp_path, task="visual-place-recognition", rows=("gamma",)))
    table = (tmp_path / "comparison.md").read_text().split("\n\n")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["", "tokyo, mAP", "tokyo, R@1", CHOOSING]
    assert rows[2:] == [["daytime model", "25.0", "12.5", "-"], ["gamma night", "50.0", "50.0", "25.0 (25.0)"]]


# ------------------------------------------------------------------------------------------ when something fails


def test_a_failing_training_ends_everything_at_once(reproduce, scripts, tmp_path, capfd):
    scripts.failing = {"gamma-0"}
    with pytest.raises(RunError) as caught:
        reproduce.main(config_of(reproduce, tmp_path, rows=("continued", "gamma", "full"), seeds=(0, 1)))
    assert str(caught.value) == "classification/train.py ended with exit code 1: its message stands above"
    assert "error: no memory left" in capfd.readouterr().err
    assert scripts.trained() == ["day-0", "darkener-0", "continued-0", "gamma-0"], "the queue was not cancelled"
    assert not (tmp_path / "comparison.md").exists()
    scripts.failing.clear()
    scripts.started.clear()
    reproduce.main(config_of(reproduce, tmp_path, rows=("continued", "gamma", "full"), seeds=(0, 1)))
    again = ["gamma-0", "full-0", "day-1", "darkener-1", "continued-1", "gamma-1", "full-1"]
    assert scripts.trained() == again
    assert [run for _, run, flags in scripts.started if "--resume" in flags] == ["gamma-0"]
    assert (tmp_path / "comparison.md").is_file()


def test_a_failing_darkener_ends_everything_side_by_side(reproduce, scripts, tmp_path, capfd):
    scripts.failing = {"darkener-1"}
    rows = ("full", "no-byol", "continued", "gamma", "short-exposure")
    with pytest.raises(RunError) as caught:
        reproduce.main(config_of(reproduce, tmp_path, rows=rows, seeds=(1, 2, 3), jobs=2))
    said = "some line\nerror: no memory left"
    assert str(caught.value) == f"classification/train_darkener.py ended with exit code 1: {said}"
    assert capfd.readouterr().err == "", "what runs side by side is quiet"
    assert set(scripts.trained()) == {"day-1", "darkener-1"}


def test_a_failure_has_an_exit_code(reproduce, scripts, tmp_path, monkeypatch, capfd):
    scripts.failing = {"day-0"}
    flags = ["--data", "scenes", "--rows", "gamma", "--seeds", "0", "--runs", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *flags])
    with pytest.raises(SystemExit) as caught:
        run_script(reproduce.Config, reproduce.main, reproduce.__doc__)
    assert caught.value.code == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "error: classification/train_day.py ended with exit code 1: its message stands above"


def test_control_c_cancels_the_queue_and_waits_for_what_runs(reproduce, tmp_path, monkeypatch):
    begun, done = threading.Event(), []

    def interrupted():
        begun.wait()
        raise KeyboardInterrupt

    def start_seed(commands, recipe, testing, rows, seed, pool):
        pool.submit(lambda: (begun.set(), time.sleep(0.1), done.append("running")))
        pool.submit(done.append, "queued")
        return {"daytime model": SimpleNamespace(result=interrupted)}

    monkeypatch.setattr(reproduce, "start_seed", start_seed)
    with pytest.raises(RunError) as caught:
        reproduce.main(config_of(reproduce, tmp_path))
    assert str(caught.value) == "stopped; the same command goes on from here"
    assert done == ["running"]
