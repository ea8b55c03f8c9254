"""Scripts as modules: four tasks have a train.py, so each is loaded under a name of its own."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minmax.runtime.config import parse_flags
from minmax.runtime.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[1]


def load_module(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_ranks(command, count=2):
    """The exit codes of one command started as several gloo processes, as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]
    return [process.wait() for process in processes]


class TaskScripts:
    """The four scripts of one task."""

    def __init__(self, task):
        self.folder = REPOSITORY / task
        self.modules = {
            name: load_module(f"{task}_{name}", self.folder / f"{name}.py")
            for name in ("train_day", "train_darkener", "train", "test")
        }

    def start(self, script, *flags):
        """Call main of a script with flags as typed."""
        module = self.modules[script]
        return module.main(parse_flags(module.Config, None, [str(flag) for flag in flags]))

    def command(self, script, *flags):
        """The command that starts a script as a process."""
        return [sys.executable, str(self.folder / f"{script}.py"), *map(str, flags)]

    def assert_goes_on_only_with_its_day_model(self, day, *flags):
        """A darkener's run that ended must not be continued against a checkpoint that has changed since."""
        payload = torch.load(day, weights_only=True)
        torch.save({**payload, "config": {"changed": True}}, day)
        with pytest.raises(UsageError, match="last.pt was made with data .*--checkpoint"):
            self.start("train_darkener", *flags, "--checkpoint", day, "--resume")
