"""Flags, YAML, exit codes."""

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from script_modules import load_module

from minmax.augmentation import AugmentConfig
from minmax.runtime import config as config_module
from minmax.runtime.config import (
    CommonFlags,
    from_plain,
    parse_flags,
    read_recipe,
    replace_settings,
    run_script,
    shrink_settings,
    to_plain,
    write_yaml,
)
from minmax.runtime.errors import RunError, SettingError, UsageError, check, check_range


@dataclass(frozen=True)
class Settings:
    """Settings of a library, which knows no flags."""

    least_share: float = 0.5
    """A share."""
    span: tuple[float, float] = (0.0, 1.0)
    """Two numbers."""

    def __post_init__(self):
        check(self, "least_share", 0 <= self.least_share <= 1, "a share in [0, 1]")
        check_range(self, "span", 0.0, 1.0)


@dataclass(frozen=True)
class Group:
    rate: float = 0.1
    """A number."""
    span: tuple[float, float] = (0.0, 0.2)
    """Two numbers."""
    inner_part: Settings = Settings()

    def __post_init__(self):
        check_range(self, "span", 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Flags(CommonFlags):
    """Flags of a test."""

    count: int = 3
    """A whole number."""
    folder: Path | None = None
    """A path."""
    steps: tuple[int, ...] = (1, 2)
    """Several numbers."""
    group: Group = field(default_factory=Group)


def test_flags_survive_the_way_through_yaml(tmp_path):
    config = Flags(
        name="x", seed=5, folder=Path("a/b"), steps=(), group=Group(1e-5, (0.1, 0.3)), runs=tmp_path, precision="bf16"
    )
    write_yaml(config, tmp_path / "config.yaml")
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert from_plain(Flags, plain, "config.yaml") == config
    assert plain == to_plain(config)


WRONG = [
    ({"group": {"ratio": 1}}, "ratio"),
    ({"count": 2.7}, "count"),
    ({"quick": "nope"}, "quick"),
    ({"group": {"rate": "fast"}}, "rate"),
    ({"group": 3}, "group"),
    ({"group": {"span": [0.1]}}, "span"),
    ({"group": {"span": [0.3, 0.1]}}, "span 0.3 0.1: expected two numbers"),
    (
        {"group": {"inner_part": {"least_share": 2.0}}},
        "least_share 2.0: expected a share in [0, 1] @ $.group.inner_part",
    ),
    ({"steps": 3}, "steps"),
    ({"precision": "fp64"}, "precision"),
    ({"workers": -1}, "--workers -1: expected 0 or more"),
]


@pytest.mark.parametrize(("change", "named"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_unknown_names_and_wrong_types_are_refused_by_name(change, named):
    with pytest.raises(UsageError, match="old.yaml") as caught:
        from_plain(Flags, {"name": "x"} | change, "old.yaml")
    assert named in str(caught.value)


def test_numbers_may_be_written_by_hand(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\ngroup: {rate: 1e-4, span: [0, 1]}\n")  # YAML 1.1 reads 1e-4 as a word
    assert parse_flags(Flags, None, ["--config", str(file)]).group == Group(1e-4, (0.0, 1.0))


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "a/"])
def test_a_run_has_a_plain_name(name):
    with pytest.raises(UsageError, match="--name .*: expected a plain folder name"):
        Flags(name=name)


def test_a_config_file_gives_the_defaults_and_flags_override_them(tmp_path):
    file = tmp_path / "config.yaml"
    write_yaml(Flags(name="old", seed=4, count=9, steps=(7,), resume=True, group=Group(0.5, (0.1, 0.3))), file)
    found = parse_flags(Flags, None, ["--config", str(file), "--name", "new", "--group.rate", "0.25"])
    assert (found.name, found.seed, found.count, found.steps) == ("new", 4, 9, (7,))
    assert found.group == Group(0.25, (0.1, 0.3))
    assert found.resume is False  # asked anew each time
    assert parse_flags(Flags, None, [f"--config={file}", "--count", "1"]).count == 1


RECIPE = "{day: {}, darkener: {}, adapt: {count: 5, group: {rate: 1e-3}}, test: {}}"


@pytest.fixture
def script(tmp_path):
    """The config of a script train.py whose defaults differ from those of its groups, and that needs a checkpoint."""
    source = """
from dataclasses import dataclass, field
from pathlib import Path
from test_config import Flags, Group

@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    name: str = "adapt"
    checkpoint: Path
    group: Group = field(default_factory=lambda: Group(span=(0.5, 0.6)))
"""
    (tmp_path / "train.py").write_text(source)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return load_module("some_train", tmp_path / "train.py").Config


def test_a_script_reads_its_section_of_a_recipe_and_flags_override_it(script, tmp_path):
    flags = ["--config", str(tmp_path / "recipe.yaml"), "--checkpoint", "day.pt"]
    found = parse_flags(script, None, flags)
    assert (found.name, found.count, found.checkpoint) == ("adapt", 5, Path("day.pt").absolute())
    assert found.group == Group(1e-3, (0.5, 0.6)), "what a recipe leaves out is the script's own"
    assert parse_flags(script, None, [*flags, "--count", "2"]).count == 2


def test_what_must_be_typed_is_asked_for_beside_a_recipe(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_flags(script, None, ["--config", str(tmp_path / "recipe.yaml")])
    assert "--checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("adapt: {colour: 1}", "section adapt, does not fit the flags of train.py: extra fields found (colour) @ $"),
        ("adapt: {group: {ratio: 1}}", "train.py: extra fields found (ratio) @ $.group"),
        ("adapt: {count: many}", "train.py: invalid value for type, expected int @ $.count"),
        ("adapt:", "section adapt, does not fit the flags of train.py: expected names and values"),
        ("{day: {}, test: {}}", "has no section for train.py: expected adapt, found day test"),
    ],
)
def test_what_does_not_fit_in_a_recipe_is_named_with_its_script(script, tmp_path, recipe, message):
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(UsageError) as caught:
        parse_flags(script, None, ["--config", str(tmp_path / "recipe.yaml")])
    assert str(caught.value).startswith(f"--config {tmp_path / 'recipe.yaml'}") and message in str(caught.value)


def test_a_recipe_has_all_sections(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    assert list(read_recipe(file)) == ["day", "darkener", "adapt", "test"]
    for wrong in ("day: {}", "{name: x}", "[]", RECIPE.replace("{day", "{night: {}, day")):
        file.write_text(wrong)
        with pytest.raises(UsageError, match="is no recipe: expected the sections day darkener adapt test, found"):
            read_recipe(file)


def test_quick_shrinks_all_but_what_was_typed(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("{name: x, count: 9, group: {rate: 0.5}}")
    smaller = {"count": 1, "steps": (1,), "group": {"rate": 0.1, "span": (0.0, 0.1)}}
    found = parse_flags(Flags, None, ["--config", str(file), "--steps", "4", "5", "--group.span", "0.2", "0.3"])
    found = replace_settings(found, name="y")
    shrunk_to = shrink_settings(found, **smaller)
    assert (shrunk_to.count, shrunk_to.steps, shrunk_to.group) == (1, (4, 5), Group(0.1, (0.2, 0.3)))
    assert shrink_settings(Flags(name="x"), **smaller).group == Group(0.1, (0.0, 0.1))
    file.write_text("{name: x, count: 9, quick: true}")  # of a quick run, begun with --count 9
    assert shrink_settings(parse_flags(Flags, None, ["--config", str(file)]), **smaller).count == 9


def test_replaced_changes_values_inside_groups():
    config = Flags(name="x")
    changed = replace_settings(config, count=1, group={"rate": 2.0})
    assert (changed.count, changed.group.rate, changed.group.span) == (1, 2.0, (0.0, 0.2))
    assert config == Flags(name="x")


def end_of_script(monkeypatch, capsys, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    monkeypatch.setattr("logging.root.handlers", [])
    with pytest.raises(SystemExit) as caught:
        run_script(Flags, main, "A script.")
    printed = capsys.readouterr()
    assert printed.out == ""
    return caught.value.code, printed.err.splitlines()


@pytest.mark.parametrize(("error", "code"), [(UsageError, 2), (RunError, 1)])
def test_errors_of_input_are_one_line_and_an_exit_code(error, code, monkeypatch, capsys):
    def main(config):
        raise error(f"no folder {config.name}")

    assert end_of_script(monkeypatch, capsys, main, "--name", "x") == (code, ["error: no folder x"])


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--name", "x"])
    with pytest.raises(ZeroDivisionError):
        run_script(Flags, lambda config: 1 // 0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "-2"], "error: --workers -2: expected 0 or more"),
        (
            ["--group.inner-part.least-share", "2"],
            "error: --group.inner-part.least-share 2.0: expected a share in [0, 1]",
        ),
        (
            ["--runs", "none", "--resume"],
            f"error: --resume: there is no run at none/{Path(__file__).parent.name}/x; start",
        ),
        (["--config", "nothing.yaml"], "error: --config nothing.yaml: [Errno 2] No such file"),
    ],
)
def test_bad_flags_are_refused_in_one_line(arguments, message, monkeypatch, capsys):
    code, lines = end_of_script(monkeypatch, capsys, pytest.fail, "--name", "x", *arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith(message)


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--config"], "--config"), (["--config", "--quick"], "--config"), (["--resume", "--name"], "--name")],
)
def test_a_flag_without_its_value_is_told_by_its_name(flags, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(Flags, None, flags)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_scripts_without_runs_have_no_resume(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(Group, None, ["--resume"])
    assert stop.value.code == 2 and "--resume" in capsys.readouterr().err


def test_settings_from_python_are_value_errors_that_name_the_field():
    with pytest.raises(ValueError) as caught:
        Settings(span=(0.5, 0.1))
    assert isinstance(caught.value, SettingError)
    assert str(caught.value) == "span 0.5 0.1: expected two numbers, 0.0 <= LOW <= HIGH <= 1.0"


@pytest.mark.parametrize("content", ["colour: 3\nname: x", "a: [", "- 1", "just words", "\x00", ""])
def test_bad_config_files_are_refused_in_one_line(content, tmp_path, monkeypatch, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    code, lines = end_of_script(monkeypatch, capsys, pytest.fail, "--config", str(file))
    assert code == 2 and len(lines) == 1 and str(file) in lines[0]


@pytest.mark.parametrize(("typed", "flip"), [([], True), (["true"], True), (["false"], False)])
def test_mirroring_is_a_boolean_that_is_typed_as_a_word(typed, flip):
    flags = ["--flip", *typed] if typed else []
    config = parse_flags(AugmentConfig, None, flags)
    assert config == AugmentConfig(flip)
    assert from_plain(AugmentConfig, to_plain(config), "config.yaml") == config


@pytest.mark.parametrize("typed", ["no", "False", "0"])
def test_other_words_are_no_boolean(typed, capsys):
    with pytest.raises(SystemExit):
        parse_flags(AugmentConfig, None, ["--flip", typed])
    assert "expected one of" in " ".join(capsys.readouterr().err.lower().split())


def test_an_installed_package_keeps_runs_in_the_working_folder(tmp_path, monkeypatch):
    assert CommonFlags(name="x").runs == Path(__file__).resolve().parents[1] / "runs"
    file = tmp_path / "site-packages" / "minmax" / "runtime" / "config.py"
    file.parent.mkdir(parents=True)
    shutil.copy(config_module.__file__, file)
    installed = load_module("installed_config", file)
    monkeypatch.chdir(tmp_path)
    assert installed.CommonFlags(name="x").runs == tmp_path / "runs"
