"""What the tests of the retrieval scripts share: the scripts as modules, and flags for a run of seconds."""

from script_modules import TaskScripts

TASK = TaskScripts("visual-place-recognition")
SCRIPTS, start, command = TASK.modules, TASK.start, TASK.command


def common(root, runs):
    return [
        *("--data", root, "--runs", runs, "--workers", 0, "--images.size", 48),
        *("--optim.epochs", 1, "--optim.batch-size", 2, "--tuples.queries", 6, "--tuples.negatives", 2),
    ]
