"""Flags and configs that are misspelt, out of range, of another type, or hostile."""

import dataclasses
import random
from types import SimpleNamespace
from typing import get_type_hints

import action_scripts as action
import classification_scripts as classification
import place_scripts as places
import pytest
import segmentation_scripts as segmentation
from faults import CodeRun, SilentlyWrong, fault, refused, start
from script_modules import REPOSITORY, load_module

from darkening import apply, preview, starting_point
from minmax import export
from minmax.runtime.config import read_yaml
from minmax.runtime.errors import UsageError

TASKS = {
    "classification": classification,
    "segmentation": segmentation,
    "visual-place-recognition": places,
    "low-light-action-recognition": action,
}
SCRIPTS = {f"{task}/{name}": scripts.SCRIPTS[name] for task, scripts in TASKS.items() for name in scripts.SCRIPTS}
SCRIPTS |= {"apply": apply, "preview": preview, "starting_point": starting_point, "export": export}
SCRIPTS["reproduce"] = load_module("reproduce_for_flags", REPOSITORY / "reproduce.py")
SCRIPTS["demo"] = load_module("demo_for_flags", REPOSITORY / "demo.py")
REQUIRED = {"checkpoint": "best.pt", "input": "day.png", "output": "night.png"}


def flags_of(config_class, prefix="--"):
    """Every flag of a script with the type of its field."""
    found = {}
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, name = hints[field.name], f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(kind):
            found |= flags_of(kind, f"{name}.")
        else:
            found[name] = kind
    return found


def parse(script, *flags):
    """Read flags as a script does, and do nothing with them."""
    module = SCRIPTS[script]
    needed = [field.name for field in dataclasses.fields(module.Config) if field.name in REQUIRED]
    needed = [part for name in needed for part in (f"--{name}", REQUIRED[name])]
    silent = SimpleNamespace(__file__=module.__file__, Config=module.Config, main=lambda config: None, __doc__=None)
    return start(silent, *needed, *flags)


def flags_typed(*kinds):
    every = [(script, name, kind) for script in SCRIPTS for name, kind in flags_of(SCRIPTS[script].Config).items()]
    return [(script, name) for script, name, kind in every if kind in kinds]


@fault(*("flags", "a word in place of a number", "refused, the flag named"), trials=flags_typed(int, float))
def test_word(trial):
    said = parse(trial[0], trial[1], "moon")
    if said.code == 0:
        raise SilentlyWrong(said.out)
    assert said.code == 2 and trial[1] in said.out


@fault(
    *("flags", "NaN or infinity in place of a number", "refused, the flag named"),
    trials=[(*flag, value) for flag in flags_typed(float) for value in ("nan", "inf")],
)
def test_not_finite(trial):
    said = parse(*trial)
    if said.code == 0:
        raise SilentlyWrong(f"{trial}: {said.out}")
    assert said.code == 2 and trial[1] in said.out


@fault(
    *("flags", "a number far below zero", "refused, or a value that the flag may have; no traceback"),
    trials=flags_typed(int, float),
)
def test_negative(trial):
    assert parse(trial[0], f"{trial[1]}=-1000000000").code in (0, 2)


def misspelt(name, seed):
    """A flag with one letter left out or two exchanged."""
    drawn = random.Random(seed)
    position = drawn.randrange(2, len(name) - 1)
    if drawn.random() < 0.5:
        return name[:position] + name[position + 1 :]
    return name[:position] + name[position + 1] + name[position] + name[position + 2 :]


@fault(
    *("flags", "a flag with a letter too few, or two exchanged", "refused, and the right one is named"),
    trials=[(script, seed) for script in SCRIPTS for seed in range(5)],
)
def test_misspelt(trial):
    script, seed = trial
    known = flags_of(SCRIPTS[script].Config)
    name = random.Random(seed).choice([name for name in known if len(name) > 7])
    wrong = misspelt(name, seed)
    if wrong in known:
        pytest.skip("that is another flag")
    said = parse(script, wrong, "1")
    if said.code == 0:
        raise SilentlyWrong(said.out)
    assert said.code == 2 and name in said.out


CONFIGS = {
    "object": "!!python/object/apply:os.system ['touch canary']\n",
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "bytes": b"\xff\xfe\x00name",
    "list": "- 1\n- 2\n",
    "word": "moon\n",
    "empty": "",
    "depth": "[" * 3000 + "]" * 3000,
    "tab": "\tname: x\n",
    "twice": "name: x\n  seed: 1\n",
    "unknown": "moon: 1\n",
    "type": "seed: one\n",
    "null": "seed: null\n",
}


@fault(
    *("configs", "a file of aliases, depth, objects, bytes, or other names and types", "refused, the file named"),
    trials=[(name, script) for name in CONFIGS for script in list(SCRIPTS)[:16]],
)
def test_config(trial, tmp_path, monkeypatch):
    name, script = trial
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    content = CONFIGS[name]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = parse(script, "--config", file)
    if (tmp_path / "canary").exists():
        raise CodeRun(name)
    refused(said, file)


@fault(*("configs", "an alias for an alias for ..., a billion times", "refused at once"), trials=1)
def test_billion(trial, tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="alias"):
        read_yaml(tmp_path / "run.yaml")
