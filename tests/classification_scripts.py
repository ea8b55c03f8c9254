"""What the tests of the classification scripts share: the scripts as modules, and flags for a run of seconds."""

import torch
from script_modules import TaskScripts

from minmax.runtime.devices import Runtime

RUNTIME = Runtime(torch.device("cpu"))
CLASSES = ("bus", "car")  # of the fixture `data`
SIZE = ["--images.size", "32"]

TASK = TaskScripts("classification")
SCRIPTS, start, command = TASK.modules, TASK.start, TASK.command


def common(data, runs):
    return ["--data", data, "--runs", runs, "--workers", 0, "--optim.epochs", 1, "--optim.batch-size", 4, *SIZE]
