"""What the tests of the segmentation scripts share: the scripts as modules, and flags for a run of seconds."""

import torch
from script_modules import TaskScripts

from minmax.runtime.devices import Runtime

RUNTIME = Runtime(torch.device("cpu"))
SIZE = ["--images.size", 32, 48]

TASK = TaskScripts("segmentation")
SCRIPTS, start, command = TASK.modules, TASK.start, TASK.command


def common(streets, runs):
    return [
        *("--data", streets / "Cityscapes", "--runs", runs, "--workers", 0),
        *("--optim.epochs", 1, "--optim.batch-size", 2, *SIZE),
    ]
