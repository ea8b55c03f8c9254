"""What the tests of the classification scripts share: the scripts as modules, and flags for a run of seconds."""

import importlib.util
import sys
from pathlib import Path

import torch

from minmax.runtime.config import parse_flags
from minmax.runtime.devices import Runtime

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "classification"
RUNTIME = Runtime(torch.device("cpu"))
CLASSES = ("bus", "car")  # of the fixture `data`
SIZE = ["--images.size", "32"]


def load_script(name):
    """A script as a module under a name of its own: four tasks have a train.py."""
    spec = importlib.util.spec_from_file_location(f"classification_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: load_script(name) for name in ("train_day", "train_darkener", "train", "test")}


def start(script, *flags):
    """Call main of a script with flags as typed."""
    module = SCRIPTS[script]
    return module.main(parse_flags(module.Config, None, [str(flag) for flag in flags]))


def common(data, runs):
    return ["--data", data, "--runs", runs, "--workers", 0, "--optim.epochs", 1, "--optim.batch-size", 4, *SIZE]


def command(script, *flags):
    return [sys.executable, str(FOLDER / f"{script}.py"), *map(str, flags)]
