"""What the tests of the action scripts share: the scripts as modules, and flags for a run of seconds."""

from script_modules import TaskScripts

SIZE = ["--clips.length", 4, "--clips.interval", 2, "--clips.size", 32]
SMALL = ["--model", "i3d_resnet18", "--width", 4]

TASK = TaskScripts("low-light-action-recognition")
SCRIPTS, start, command = TASK.modules, TASK.start, TASK.command


def common(data, runs):
    return ["--data", data, "--runs", runs, "--workers", 0, "--optim.epochs", 1, "--optim.batch-size", 2, *SIZE]
