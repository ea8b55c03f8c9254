"""The comparison, with stand-ins for the scripts: what is started when, with which flags, and what is reported."""

import contextlib
import json
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from action_scripts import SCRIPTS as ACTION_SCRIPTS
from classification_scripts import SCRIPTS
from place_scripts import SCRIPTS as PLACE_SCRIPTS
from scipy import stats
from segmentation_scripts import SCRIPTS as SEGMENTATION_SCRIPTS
from torch import nn

from darkening.darkener_files import SHIPPED
from minmax.byol import MomentumPair, ViewPair
from minmax.features import FeatureModel
from minmax.runtime import commands
from minmax.runtime.config import parse_flags, to_plain
from minmax.runtime.errors import RunError, UsageError
from reproduction import table_report, table_rows

MODULES = {
    "classification": SCRIPTS,
    "segmentation": SEGMENTATION_SCRIPTS,
    "visual-place-recognition": PLACE_SCRIPTS,
    "low-light-action-recognition": ACTION_SCRIPTS,
}


class Scripts:
    """In place of subprocess.Popen: does in no time what the next script needs, and remembers what was started."""

    def __init__(self):
        self.started = []  # (script, run, flags) in this order
        self.ended = []
        self.failing = set()
        self.shares = {}  # top-1 by day and by night of a run
        self.splits = ("test_day", "test_night")
        self.streets, self.places = ("day", "night"), "tokyo"
        self.slow = {}  # events that runs wait for
        self.task = "classification"
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    def __call__(self, command, stdout, stderr):
        script, flags = Path(command[1]).name, command[2:]
        given = {flag: Path(value) for flag, value in zip(flags, flags[1:], strict=False) if flag.startswith("--")}
        run = str(given.get("--name") or given.get("--output", Path("help/test")).parent.name)
        with self.lock:
            self.started.append((script, run, flags))
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        for needed in ("--checkpoint", "--darkener"):
            if needed in given and str(given[needed]) not in SHIPPED:
                assert given[needed].is_file(), f"{run} was started before what it needs"
                assert str(given[needed].parent.name).rsplit("-", 1)[1] == run.rsplit("-", 1)[1], "of another seed"
        return contextlib.nullcontext(SimpleNamespace(wait=lambda: self.run(script, run, given, stderr)))

    def run(self, script, run, given, stderr):
        time.sleep(0.01)
        if run in self.slow:
            assert self.slow[run].wait(20), f"{run} was waited for"
        failed = run in self.failing
        if script == "test.py" and "--output" in given:
            day, night = self.shares.get(run, (0.5, 0.5))
            split = {
                "test_day": {"top1": day, "balanced": day / 2},
                "test_night": {"top1": night, "balanced": night / 2},
            }
            found = {name: split[name] for name in self.splits}
            if self.task == "low-light-action-recognition":
                found = {"test_night": {"top1": night, "top5": day}}
            if self.task == "segmentation":
                found = {"file": "best.pt"} | dict(
                    zip(self.streets, [{"mean_iou": day}, {"mean_iou": night}], strict=True)
                )
            if self.task == "visual-place-recognition":
                found = {"file": "best.pt", self.places: {"mean_average_precision": day, "recall": {"1": night}}}
            given["--output"].mkdir(parents=True, exist_ok=True)
            found = {"results": {"checkpoint": found}}
            (given["--output"] / "results.json").write_text(json.dumps(found))
        elif "--runs" in given:
            folder = given["--runs"] / self.task / run
            folder.mkdir(parents=True, exist_ok=True)
            results = ["best.pt", *(["last-epoch.pt", "kept.pt"] if script == "train.py" else [])]
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
    rows, table = config.rows, table_rows.load_rows()
    assert set(rows) == set(table.rows) - {"joint-pass"}
    runs = ["day", *table.darkeners, *(row for row in rows if not table.rows[row].of)]
    assert sorted(scripts.trained()) == sorted(f"{run}-{seed}" for run in runs for seed in (0, 1))
    assert sorted(scripts.tested()) == sorted(f"{run}-{seed}" for run in ("day", *rows) for seed in (0, 1))


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


PATH = re.compile(r"/([\w-]+)-0/(best|last-epoch|kept)\.pt$")


@pytest.fixture
def parsed(reproduce, scripts, tmp_path):
    """The configs that the real scripts make of a recipe and the flags beside it, by script and run."""

    def parsed(**given):
        config = config_of(reproduce, tmp_path, **{"rows": (), **given})
        scripts.task = config.task
        reproduce.main(config)
        return {
            (script, run.removesuffix("-0")): parse_flags(MODULES[config.task][Path(script).stem].Config, None, flags)
            for script, run, flags in scripts.started
        }

    return parsed


def rows_of(found):
    return {run: config for (script, run), config in found.items() if script == "train.py"}


@pytest.mark.parametrize(
    ("task", "count"),
    [
        ("classification", 26),
        ("segmentation", 21),
        ("visual-place-recognition", 19),
        ("low-light-action-recognition", 21),
    ],
)
@pytest.mark.parametrize("recipe", ["paper", "small"])
def test_the_scripts_of_every_task_accept_every_row(reproduce, parsed, task, count, recipe):
    table = table_rows.load_rows().rows
    found = parsed(task=task, recipe=recipe, data="streets" if task == "segmentation" else "scenes")
    rows = rows_of(found)
    there = {name: row for name, row in table.items() if task not in row.lacking}
    assert set(rows) == {name for name, row in there.items() if not (row.of or row.day)} and len(rows) == count
    for name, row in there.items():
        if row.of:
            assert PATH.search(str(found["test.py", name].checkpoint)).groups() == (row.of, row.result[:-3])
    assert {script for script, _ in found} == {"train_day.py", "train_darkener.py", "train.py", "test.py"}
    for name, config in rows.items():
        darkener = PATH.search(str(config.darkener))
        assert (darkener[1] if darkener else None) == table[name].darkener
        assert PATH.search(str(config.checkpoint)).groups() == ("day", "best")
        assert PATH.search(str(found["test.py", name].checkpoint)).groups() == (name, "last-epoch")
    assert PATH.search(str(found["test.py", "day"].checkpoint)).groups() == ("day", "best")
    if recipe == "small":
        different = {json.dumps({**to_plain(config), "name": ""}, sort_keys=True) for config in rows.values()}
        assert len(different) == count, "two rows are the same"


@pytest.mark.parametrize(("jobs", "quick"), [(1, False), (2, True)])
def test_the_flags_of_the_rows_mean_what_their_titles_say(parsed, jobs, quick):
    found = parsed(jobs=jobs, quick=quick)
    for config in found.values():
        assert (config.data, config.device, config.precision, config.quick) == ("scenes", "cpu", "fp32", quick)
        assert (config.workers, config.threads > 0) == ((2, False) if jobs == 1 else (0, True))
        assert config.images.size == 64
    rows = rows_of(found)
    sources = ("continued", "augmix", "brightness", "gamma", "short-exposure", "full")
    assert [rows[name].night.source for name in sources] == [
        *("day", "augmix", "brightness", "gamma", "short-exposure", None)
    ]
    assert (
        rows["full"].darkener and not rows["dim-camera"].darkener
    )  # where there is one, nights are learned by default
    assert {name for name, config in rows.items() if config.byol.weight == 0} == {
        *("continued", "no-byol", "neither-similarity", "maet")
    }
    assert {name for name, config in rows.items() if config.night.camera.share == 1} == {
        *("camera", "gamma-camera", "dim-camera", "look-camera", "maet")
    }
    assert rows["two-pass"].byol.batch_norm == "separate"
    assert {name for name, config in rows.items() if config.byol.batch_norm == "frozen"} == {"frozen-statistics"}
    assert rows["dark-exposures"].night.exposure == (0.0, 0.2)
    darkeners = {run: config for (script, run), config in found.items() if script == "train_darkener.py"}
    assert {name for name, config in darkeners.items() if config.loss.similarity == 0} == {"darkener-no-similarity"}
    assert {name for name, config in darkeners.items() if config.features == "unnormalised"} == {
        "darkener-unnormalised"
    }
    assert {name for name, config in rows.items() if config.byol.distance == "cosine"} == {"cosine"}
    assert {name for name, config in rows.items() if config.keep.distillation} == {"distilled"}
    tests = {name: (config.adabn, config.brighten) for (script, name), config in found.items() if script == "test.py"}
    assert {name: how for name, how in tests.items() if how != (False, "none")} == {
        **{"adabn": (True, "none"), "brighten-gamma": (False, "gamma"), "brighten-clahe": (False, "clahe")}
    }
    normalised = {name: config.normalization for (script, name), config in found.items() if script == "train_day.py"}
    assert normalised == {"day": "auto", "ciconv": "ciconv"}
    curves = {name: config.darkener.curve for name, config in darkeners.items() if config.init == "scratch"}
    assert curves == {"darkener-gamma-curve": "gamma", "darkener-reciprocal-curve": "reciprocal"}


def test_a_row_that_is_the_network_of_another_needs_it(reproduce, scripts, tmp_path):
    with pytest.raises(UsageError, match="--rows kept: expected the row full as well, whose network it is"):
        config_of(reproduce, tmp_path, rows=("kept",))
    reproduce.main(config_of(reproduce, tmp_path, rows=("kept", "full", "adabn")))
    assert scripts.trained() == ["day-0", "darkener-0", "full-0"]
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [title for title, (one,) in found["results"].items() if "selection" in one] == ["full method"]


def test_segmentation_is_told_its_nights(parsed):
    nights = (Path("dusk"), Path("dark"))
    found = parsed(task="segmentation", data="streets", night=nights, rows=("gamma",))
    assert [config.night for (script, _), config in found.items() if script == "test.py"] == [nights, nights]
    assert {config.data for config in found.values()} == {str(Path("streets").absolute())}
    assert {config.images.size for config in found.values()} == {(120, 160)}


def test_the_built_in_streets_have_a_size_of_their_own(parsed):
    assert {config.images.size for config in parsed(task="segmentation", rows=("full",)).values()} == {(96, 96)}


def test_the_strong_recipe_fine_tunes_published_weights_or_those_that_it_is_given(parsed, tmp_path):
    found = parsed(recipe="strong", flip=False, rows=("gamma",))
    assert found["train_day.py", "day"].pretrained and found["train_day.py", "day"].init is None
    trained = [found["train_day.py", "day"], found["train.py", "gamma"]]
    assert {config.optim.method for config in trained} == {"adamw"}
    assert {config.augment.flip for config in trained} == {False}


def test_weights_in_a_file_take_the_place_of_published_ones(parsed):
    day = parsed(recipe="strong", init=Path("weights.pth"), rows=("gamma",))["train_day.py", "day"]
    assert (day.model, day.pretrained) == ("timm/tf_efficientnet_lite0", False)
    assert day.init == Path("weights.pth").absolute()


def test_a_recipe_of_the_users_own_is_read_by_every_script_before_anything_starts(reproduce, scripts, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("{day: {jitter: 0.1}, darkener: {}, adapt: {jitter: 0.2}, test: {}}")
    reproduce.main(config_of(reproduce, tmp_path, recipe=str(mine), rows=("gamma",)))
    first = [(script, flags[:2], flags[-1]) for script, _, flags in scripts.started[:4]]
    names = ("train_day.py", "train_darkener.py", "train.py", "test.py")
    assert first == [(name, ["--config", str(mine)], "--help") for name in names]
    given = {
        script: parse_flags(SCRIPTS[Path(script).stem].Config, None, flags) for script, _, flags in scripts.started[4:]
    }
    assert (given["train_day.py"].jitter, given["train.py"].jitter) == (0.1, 0.2)
    mine.write_text("{day: {}, adapt: {}}")
    with pytest.raises(UsageError, match=r"mine.yaml is no recipe: expected the sections day darkener adapt test"):
        reproduce.main(config_of(reproduce, tmp_path, recipe=str(mine)))


@pytest.mark.parametrize("task", ["segmentation", "low-light-action-recognition"])
def test_no_script_mirrors_data_that_must_not_be(parsed, task):
    found = parsed(task=task, data="streets", flip=False, rows=("gamma", "full"))
    mirroring = [config for config in found.values() if hasattr(config, "augment")]
    assert len(mirroring) == len([1 for script, _ in found if script in ("train_day.py", "train.py")]) + (
        len([1 for script, _ in found if script == "train_darkener.py"]) if task != "segmentation" else 0
    )
    assert {config.augment.flip for config in mirroring} == {False}


def test_the_rows_compare_features_by_what_their_titles_say(parsed):
    network = FeatureModel(nn.Sequential(nn.Conv2d(3, 3, 1)), ["0"])
    build = SCRIPTS["train"].build_pair
    rows = {run: config for (script, run), config in parsed(recipe="small").items() if script == "train.py"}
    plain = {name for name, config in rows.items() if type(build(network, config.byol)) is ViewPair}
    assert plain == {"continued", "no-byol", "neither-similarity", "cosine", "maet"}
    assert all(isinstance(build(network, rows[name].byol), MomentumPair) for name in set(rows) - plain)


def test_rows_name_darkeners_and_tasks_that_there_are(reproduce):
    table = table_rows.load_rows()
    assert len({row.title for row in table.rows.values()} | {"daytime model"}) == len(table.rows) + 1
    assert {row.darkener for row in table.rows.values()} == {None, *table.darkeners}
    assert {task for row in table.rows.values() for task in row.lacking} <= set(get_args(table_rows.Task))


def test_the_commands_of_the_help_text_are_accepted(reproduce, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    lines = re.findall(r"^    python reproduce.py (.*)$", reproduce.__doc__, re.MULTILINE)
    configs = [parse_flags(reproduce.Config, None, line.split()) for line in lines]
    names = [config.recipe_file.relative_to(reproduce.REPOSITORY).parts[0] for config in configs[:6]]
    assert names == ["classification", "segmentation", *["classification"] * 3, "segmentation"]
    assert [config.recipe_file.stem for config in configs[:2]] == ["demo", "paper"]
    assert configs[6].recipe_file == tmp_path / "mine.yaml"
    assert (len(configs[2].rows), configs[3].jobs, configs[4].flip) == (32, 2, False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"jobs": 0}, "--jobs 0: expected 1 or more"),
        ({"seeds": ()}, "--seeds : expected at least one seed, each once"),
        ({"seeds": (1, 0, 1)}, "--seeds 1 0 1: expected at least one seed, each once"),
        ({"rows": ("full", "full")}, "--rows full full: expected each row once"),
        (
            {"task": "low-light-action-recognition", "rows": ("full", "pixels", "nonsense")},
            "--rows pixels nonsense: expected rows that low-light-action-recognition has: continued, augmix, ",
        ),
        (
            {"task": "segmentation", "recipe": "moon"},
            "--recipe moon: expected paper, small, strong, or a file of yours laid out like these",
        ),
        (
            {"task": "visual-place-recognition", "flip": False},
            "--flip false: expected no such flag for visual-place-recognition, which mirrors nothing",
        ),
        ({"against": "full"}, "--against full: expected one of the rows, day, continued, gamma"),
        ({"shard": "0/2"}, "--shard 0/2: expected i/n, such as 1/3, 2/3 and 3/3"),
        ({"shard": "3/2"}, "--shard 3/2: expected i/n, such as 1/3, 2/3 and 3/3"),
        ({"table": "6", "data": ""}, "--table 6: expected one of 1, 2, 3, 4, 5, demo"),
        ({"table": "1"}, "--data scenes: expected the data of table 1"),
        ({"table": "demo", "data": "photos"}, "--data photos: expected none: this table is of the built-in scenes"),
        ({"night": (Path("dusk"),)}, "--night dusk: expected none: the nights of classification are in its --data"),
    ],
)
def test_bad_flags_are_refused(reproduce, tmp_path, flags, message):
    with pytest.raises(UsageError) as caught:
        config_of(reproduce, tmp_path, **flags)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "changed",
    [{"quick": False}, {"recipe": "paper"}, {"data": "photos"}, {"precision": "bf16"}, {"flip": False},
     {"init": Path("weights.pth")}],
)  # fmt: skip
def test_runs_of_other_settings_never_enter_a_table(reproduce, scripts, tmp_path, changed):
    reproduce.main(config_of(reproduce, tmp_path))
    table = (tmp_path / "comparison.md").read_text()
    scripts.started.clear()
    with pytest.raises(UsageError, match=r"the finished run .*day-0 is of .*; choose another --runs, or remove it"):
        reproduce.main(config_of(reproduce, tmp_path, **changed))
    assert scripts.started == [] and (tmp_path / "comparison.md").read_text() == table


# ------------------------------------------------------------------------------------------ what is reported

CHOOSING = "for choosing (day images only)"


def cells(table):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [rows[0], *rows[2:]]


def test_the_table_holds_the_mean_and_the_range_over_the_seeds(reproduce, scripts, tmp_path, capsys):
    scripts.shares = {f"day-{seed}": share for seed, share in enumerate([(0.9, 0.5), (0.8, 0.3), (0.94, 0.4)])}
    scripts.shares |= {f"continued-{seed}": (0.4, 0.4) for seed in range(3)}
    reproduce.main(config_of(reproduce, tmp_path, rows=("gamma", "continued"), seeds=(2, 0, 1)))
    text = (tmp_path / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    head, table, _, gains, choice, _ = text.split("\n\n")
    assert head == "scenes, recipe small, seeds 2 0 1; a smoke test (--quick): the figures mean nothing"
    assert choice == "By day images only one would choose: gamma night"
    by_seed = "25.0 (25.0, 25.0, 25.0)"
    half = ["50.0 (50.0 to 50.0)", "25.0 (25.0 to 25.0)"]
    day = ["88.0 (80.0 to 94.0)", "44.0 (40.0 to 47.0)", "40.0 (30.0 to 50.0)", "20.0 (15.0 to 25.0)"]
    assert cells(table) == [
        ["", "day, top-1", "day, balanced", "night, top-1", "night, balanced", CHOOSING],
        ["daytime model", *day, "-"],
        ["gamma night", *half, *half, by_seed],
        ["trained on by day", *2 * ["40.0 (40.0 to 40.0)", "20.0 (20.0 to 20.0)"], by_seed],
    ]
    # The daytime model minus the row trained on by day: 54, 50 and 40 points by day, 0, 10 and -10 by night, of which
    # the half intervals are 4.303 times the standard errors 4.163 and 5.774.
    assert cells(gains)[1:2] == [
        [
            "daytime model",
            "+48.0 (+30.1 to +65.9)",
            "+24.0 (+15.0 to +33.0)",
            "+0.0 (-24.8 to +24.8)",
            "+0.0 (-12.4 to +12.4)",
        ]
    ]
    assert [row[0] for row in cells(gains)] == ["", "daytime model", "gamma night"]
    found = json.loads((tmp_path / "comparison.json").read_text())
    gain = found["differences"]["daytime model"]["night, top-1"]
    test = stats.ttest_1samp(gain["by_seed"], 0).confidence_interval(0.95)
    assert (gain["low"], gain["high"]) == pytest.approx((test.low, test.high)) and found[
        "against"
    ] == "trained on by day"
    assert (found["seeds"], found["chosen"]) == ([2, 0, 1], "gamma night")
    assert [by_seed["test_night"]["top1"] for by_seed in found["results"]["daytime model"]] == [0.4, 0.5, 0.3]
    # The score of the last epoch, whose weights are tested, not the best one.
    assert {by_seed["selection"] for by_seed in found["results"]["gamma night"]} == {0.25}


@pytest.mark.parametrize(
    ("task", "columns", "day"),
    [
        ("classification", ["night, top-1", "night, balanced"], ["12.5", "6.2"]),
        ("segmentation", ["day, mean IoU", "night, mean IoU"], ["25.0", "12.5"]),
        ("visual-place-recognition", ["tokyo, mAP", "tokyo, R@1"], ["25.0", "12.5"]),
        ("low-light-action-recognition", ["night, top-1", "night, top-5"], ["12.5", "25.0"]),
    ],
)
def test_each_task_reports_its_own_measures_of_what_there_is(reproduce, scripts, tmp_path, task, columns, day):
    scripts.task, scripts.shares, scripts.splits = task, {"day-3": (0.25, 0.125)}, ("test_night",)
    reproduce.main(config_of(reproduce, tmp_path, task=task, data="", rows=("gamma",), seeds=(3,)))
    head, table, _, gains, *_ = (tmp_path / "comparison.md").read_text().split("\n\n")
    assert head.startswith(f"{task}, recipe small, seeds 3")
    gamma = ["50.0", "25.0" if task == "classification" else "50.0"]
    assert cells(table) == [
        ["", *columns, CHOOSING],
        ["daytime model", *day, "-"],
        ["gamma night", *gamma, "25.0 (25.0)"],
    ]
    assert not any("--data" in flags for _, _, flags in scripts.started)
    # Without `continued` against the daytime model; one seed has no interval.
    by = [f"{100 * (float(found) - float(before)) / 100:+.1f}" for found, before in zip(gamma, day, strict=True)]
    assert cells(gains)[1:] == [["gamma night", *by]]


def test_the_row_with_the_best_mean_for_choosing_is_named(reproduce):
    scores = {"gamma night": (0.5, 0.6), "full method": (0.4, 0.8), "trained on by day": (0.55, 0.5)}
    results = {title: [{"selection": score} for score in by_seed] for title, by_seed in scores.items()}
    assert table_report.preferred_row({"daytime model": [{}, {}], **results}) == "full method"


def test_what_could_not_be_measured_has_a_dash(reproduce):
    day = [{"night": {"mean_iou": 0.5}}]
    found = [{"night": {"mean_iou": value}, "selection": score} for value, score in ((0.5, 0.25), (None, 0.5))]
    table = table_report.comparison_table({"daytime model": day, "full method": found}, "segmentation")
    assert cells(table)[1:] == [["daytime model", "50.0", "-"], ["full method", "-", "37.5 (25.0, 50.0)"]]


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
    assert set(scripts.trained()) <= {"day-1", "day-2", "darkener-1", "darkener-2", "continued-1"}


def test_control_c_starts_nothing_more_and_waits_for_what_runs(reproduce, scripts, tmp_path, monkeypatch):
    def interrupted(running, **_):
        time.sleep(0.005)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "wait", interrupted)
    with pytest.raises(RunError) as caught:
        reproduce.main(config_of(reproduce, tmp_path, seeds=(0, 1, 2), jobs=2))
    assert str(caught.value) == "stopped; the same command goes on from here"
    assert scripts.ended and sorted(scripts.ended) == sorted((script, run) for script, run, _ in scripts.started)
    assert {run for _, run in scripts.ended} == {"day-0", "day-1"}


# ------------------------------------------------------------------------------------------ side by side, and in shares


def test_no_thread_waits_for_a_daytime_model_while_another_seed_could_go_on(reproduce, scripts, tmp_path):
    done = scripts.slow["day-0"] = threading.Event()
    config = config_of(reproduce, tmp_path, seeds=(0, 1), jobs=2, rows=("continued", "gamma", "full"))
    thread = threading.Thread(target=reproduce.main, args=[config])
    thread.start()
    for _ in range(400):
        if ("test.py", "full-1") in scripts.ended:
            break
        time.sleep(0.01)
    assert ("test.py", "full-1") in scripts.ended, "all of seed 1 was possible beside the daytime model of seed 0"
    done.set()
    thread.join()
    assert (tmp_path / "comparison.md").is_file()


def test_shares_of_seeds_are_trained_apart_and_measured_by_the_last(reproduce, scripts, tmp_path):
    def share(shard):
        scripts.started.clear()
        reproduce.main(config_of(reproduce, tmp_path, rows=("gamma", "full"), seeds=(0, 1, 2), shard=shard))
        return scripts.trained(), len(scripts.tested())

    of = [[f"{run}-{seed}" for run in ("day", "darkener", "gamma", "full")] for seed in range(3)]
    assert share("1/2") == ([*of[0], *of[2]], 0) and not (tmp_path / "comparison.md").exists()
    assert share("1/2") == ([], 0)
    assert share("2/2") == (of[1], 9) and (tmp_path / "comparison.md").is_file()
    assert share("") == ([], 9)


def test_shares_of_rows_need_what_they_have_in_common(reproduce, scripts, tmp_path):
    def share(shard, **given):
        scripts.started.clear()
        reproduce.main(
            config_of(reproduce, tmp_path, **{"rows": ("gamma", "full", "no-byol"), "shard": shard, **given})
        )
        return scripts.trained()

    with pytest.raises(UsageError) as caught:
        share("1/2")
    assert str(caught.value) == (
        "--shard 1/2: expected at most 1 shares, a seed each, until what rows start from is finished; "
        "not yet: day-0 darkener-0"
    )
    assert scripts.started == []
    assert share("", rows=("full",)) == ["day-0", "darkener-0", "full-0"]
    assert (share("1/2"), share("2/2")) == (["gamma-0", "no-byol-0"], [])


# ------------------------------------------------------------------------------------------ tables of the paper

STREETS = ("NighttimeDrivingTest", "Dark_Zurich_val_anon")


@pytest.fixture
def data_of(reproduce, tmp_path):
    """Folders that hold a file of every part of a table's data sets, as flags."""

    def data_of(table, lacking=""):
        known = table_rows.load_tables()
        table = known.tables[table]
        places = {name: tmp_path / "data" for name in table.data}
        places |= {name: tmp_path / Path(known.datasets[name].place).name for name in table.night}
        for name, place in places.items():
            for globs in known.datasets[name].files.values() if name != lacking else ():
                for glob in globs:
                    file = place / glob.replace("[A-Z]", "A").replace("*", "a")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
        night = tuple(places[name] for name in table.night)
        return {"data": str(tmp_path / "data") if table.data else "", "night": night, "rows": (), "recipe": "paper"}

    return data_of


def test_tables_name_rows_measures_and_data_sets_that_there_are(reproduce):
    known, rows = table_rows.load_tables(), table_rows.load_rows().rows
    assert list(known.tables) == ["1", "2", "3", "4", "5", "demo"]
    assert set(known.datasets) == {name for table in known.tables.values() for name in (*table.data, *table.night)}
    for dataset in known.datasets.values():
        assert set(dataset.counts) <= set(dataset.files) and "http" in dataset.source
    for table in known.tables.values():
        assert all(name == "day" or table.task not in rows[name].lacking for name in table.rows)
        figures = [*(line.paper for line in table.rows.values()), *table.others.values()]
        assert {len(paper) for paper in figures} <= {0, len(table.columns)}
        assert {column.measure for column in table.columns} <= set(table_rows.MEASURES[table.task])


@pytest.mark.parametrize(
    ("name", "ours", "paper"),
    [
        ("1", ["similarity min-max", "65.87", "25.0", "-40.9", "1"], ["IRM", "54.52", "-", "-", "-"]),
        ("2", ["full", "65.87", "25.0", "-40.9", "1"],
         ["darkener and model in turns (section 3.4)", "63.84", "-", "-", "-"]),
        ("3", ["similarity min-max", "44.9", "75.0", "+30.1", "40.2", "25.0", "1"],
         ["CIConv", "41.2", "-", "-", "34.5", "-", "-"]),
        ("4", ["the same with BYOL between descriptors", "-", "75.0", "-", "1"], ["CIConv-GeM", "88.3", "-", "-", "-"]),
        ("5", ["similarity min-max", "51.52", "25.0", "-26.5", "1"], ["SGZ", "46.42", "-", "-", "-"]),
        ("demo", ["similarity min-max", "75.0", "25.0", "1"], None),
    ],
)  # fmt: skip
def test_a_table_has_the_papers_figures_beside_ours(reproduce, scripts, data_of, tmp_path, name, ours, paper):
    table = table_rows.load_tables().tables[name]
    scripts.task, scripts.streets, scripts.places = table.task, STREETS, "247tokyo1k"
    scripts.shares = {"full-0": (0.75, 0.25)}
    reproduce.main(config_of(reproduce, tmp_path, table=name, **data_of(name)))
    text = (tmp_path / f"table-{name}.md").read_text()
    lines = cells(text.split("\n\n")[2 if paper else 1])
    assert [line[0] for line in lines[1:]] == [*(row.title for row in table.rows.values()), *table.others]
    assert ours in lines and (paper is None or paper in lines)
    assert (f"Luo et al., ICCV 2023, Table {name}." in text) == (paper is not None)
    assert table.note in text and "no night image chose anything" in text
    assert {run.rsplit("-", 1)[0] for run in scripts.tested()} == set(table.rows)
    lines = [" ".join(map(str, flags)) for _, _, flags in scripts.started if "--night" in flags]
    nights = {tuple(re.search("--night ([^-].*?)( --|$)", line)[1].split()) for line in lines}
    assert len(nights) == bool(table.night) and all(Path(folder).is_dir() for night in nights for folder in night)
    assert ("NOT COMPLETE" in text) == (name in ("1", "2", "3", "5"))
    assert ("; fingerprint " in text) == bool(table.night)


def test_dark_zurich_may_lie_in_one_folder_with_its_test_images(reproduce, scripts, data_of, tmp_path):
    scripts.task, scripts.shares = "segmentation", {"full-0": (0.75, 0.25)}
    scripts.streets = (STREETS[0], f"{STREETS[1]}, Dark Zurich, val")
    reproduce.main(config_of(reproduce, tmp_path, table="3", **data_of("3")))
    lines = cells((tmp_path / "table-3.md").read_text().split("\n\n")[2])
    assert ["similarity min-max", "44.9", "75.0", "+30.1", "40.2", "25.0", "1"] in lines


def test_rows_beside_those_of_a_table_stand_below_its_own(reproduce, scripts, data_of, tmp_path):
    given = {**data_of("1"), "rows": ("gamma",), "seeds": (0, 1)}
    reproduce.main(config_of(reproduce, tmp_path, table="1", **given))
    lines = cells((tmp_path / "table-1.md").read_text().split("\n\n")[2])
    assert ["similarity min-max", "65.87", "-", "-", "-"] in lines, "not asked for"
    assert ["gamma night", "-", "50.0 (50.0 to 50.0)", "-", "2"] in lines


@pytest.mark.parametrize(("name", "lacking"), [("1", "codan"), ("3", "dark-zurich"), ("4", "tokyo247"), ("5", "arid")])
def test_without_its_data_a_table_tells_where_they_are_to_be_had(reproduce, scripts, data_of, tmp_path, name, lacking):
    with pytest.raises(UsageError) as caught:
        reproduce.main(config_of(reproduce, tmp_path, table=name, **data_of(name, lacking)))
    head, line = str(caught.value).split("\n")
    dataset = table_rows.load_tables().datasets[lacking]
    assert head == f"--table {name} needs data that are not there" and line.startswith(
        f"{dataset.title}: not found in "
    )
    assert line.endswith(f"; from {dataset.source}") and scripts.started == []


def test_check_tells_what_is_there_and_whether_it_is_complete(
    reproduce, scripts, data_of, tmp_path, capsys, monkeypatch
):
    config = config_of(reproduce, tmp_path, table="4", check=True, **data_of("4"))
    (tmp_path / "data/test/247tokyo1k/jpg/.DS_Store").touch()
    reproduce.main(config)
    where = tmp_path / "data"
    assert capsys.readouterr().out == (
        f"retrieval-SfM-120k: there, 2 of 2 lists, 1 images, in {where}\n"
        f"Tokyo 24/7: there, 1 of 1 list, 1 images, in {where}\n"
    )
    (where / "train/retrieval-SfM-120k/retrieval-SfM-120k-whiten.pkl").unlink()
    (where / "test/247tokyo1k/gnd_247tokyo1k.pkl").unlink()
    with pytest.raises(RunError, match="not all data are there and complete"):
        reproduce.main(config_of(reproduce, tmp_path, task="visual-place-recognition", check=True, data=str(where)))
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"retrieval-SfM-120k: NOT COMPLETE, 1 of 2 lists, 1 images, in {where}"
    assert second.startswith(f"Tokyo 24/7: not found in {where}, no test/247tokyo1k/gnd_247tokyo1k.pkl; from ")
    reproduce.main(config_of(reproduce, tmp_path, check=True))
    assert "need no files" in capsys.readouterr().out and scripts.started == []


@pytest.mark.parametrize("flag", ["task segmentation", "task classification", "recipe small"])
def test_a_table_sets_task_and_recipe(reproduce, scripts, flag):
    config = parse_flags(reproduce.Config, None, ["--table", "demo", *f"--{flag}".split()])
    with pytest.raises(UsageError, match=f"--table demo sets --{flag.split()[0]}: leave it out, or --table"):
        reproduce.main(config)


def test_smoke_tests_and_the_demo_have_runs_of_their_own(reproduce):
    flags = (["--table", "1"], ["--table", "2", "--quick"], ["--table", "demo"], ["--table", "demo", "--quick"], [])
    runs = [parse_flags(reproduce.Config, None, line).runs.name for line in flags]
    assert runs == ["reproduce", "reproduce-quick", "reproduce-demo", "reproduce-demo-quick", "reproduce"]
