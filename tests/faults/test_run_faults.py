"""Runs that are killed, told to stop, out of disk, without permission, or continued with something else."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from classifier import ClassifierSettings, build_classifier, save_classifier
from faults import SilentlyWrong, TracebackSeen, WorkLost, fault, files_in, refused, start
from script_modules import REPOSITORY
from test_every_task import TASKS

SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
GAMMA = ("--night.source", "gamma")
OFTEN = ("--save-minutes", 1e-9)


@pytest.fixture(scope="session")
def day_models(tmp_path_factory, segmenter, recogniser):
    """A small network for each task: runs are saved after each step."""
    torch.manual_seed(0)
    files = []
    for model in ("shufflenet_v2_x0_5", "squeezenet1_1"):  # the second is a place network's trunk
        settings = ClassifierSettings(model, ("bus", "car"))
        files.append(tmp_path_factory.mktemp(model) / "best.pt")
        save_classifier(build_classifier(settings), settings, files[-1])
    return dict(zip(TASKS, (files[0], segmenter, files[1], recogniser), strict=True))


def flags_of(name, request, runs):
    task = TASKS[name]
    checkpoint = request.getfixturevalue("day_models")[name]
    more = ["--checkpoint", checkpoint, *task.flags, *GAMMA, "--threads", 1]
    return [*task.scripts.common(request.getfixturevalue(task.data), runs), *more, "--optim.epochs", 3]


class Process:
    """One command, started as one process or, as torchrun does, as two."""

    def __init__(self, command, count, folder):
        self.errors = [folder / f"stderr{rank}.txt" for rank in range(count)]
        self.parts = []
        port = str(20000 + random.SystemRandom().randrange(20000))
        for rank, file in enumerate(self.errors):
            shared = {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {**os.environ, **(shared | place if count > 1 else {})}
            with file.open("w") as stderr:
                self.parts.append(subprocess.Popen(command, env=environment, stderr=stderr, stdout=stderr))

    def kill_at(self, metrics, lines, number):
        """Send a signal to all once the run has recorded so many lines; whether it still ran."""
        while all(part.poll() is None for part in self.parts):
            if metrics.is_file() and metrics.read_text().count("\n") >= lines:
                for part in self.parts:
                    part.send_signal(number)
                break
            time.sleep(0.005)
        return [part.wait() for part in self.parts]

    def check(self):
        """No process has said a traceback."""
        for file in self.errors:
            text = file.read_text()
            if "Traceback" in text:
                raise TracebackSeen(text[-2000:])


@pytest.fixture(scope="session")
def whole(request, tmp_path_factory):
    """Gives the uninterrupted run of a task in so many processes; each is trained once."""
    done = {}

    def run(name, count):
        if (name, count) not in done:
            runs = tmp_path_factory.mktemp("whole")
            command = TASKS[name].scripts.command("train", *flags_of(name, request, runs), *OFTEN)
            process = Process(command, count, runs)
            assert [part.wait() for part in process.parts] == [0] * count, process.errors[0].read_text()
            done[name, count] = runs / name / "adapt"
        return done[name, count]

    return run


def same_weights(first, second):
    """Whether two checkpoints hold the same network, bit for bit."""
    a, b = (torch.load(file, weights_only=True)["network"] for file in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@fault(
    *("runs", "killed at two random steps, continued with --name and --resume alone", "the same run, bit for bit"),
    trials=[(name, how, count) for name in TASKS for how, count in (("kill -9", 1), ("SIGTERM", 1), ("kill -9", 2))],
)
def test_killed(trial, request, tmp_path, whole):
    name, how, count = trial
    expected = whole(name, count)
    steps = (expected / "metrics.jsonl").read_text().count("\n")
    drawn = random.Random(str(trial))
    command = TASKS[name].scripts.command("train", *flags_of(name, request, tmp_path), *OFTEN)
    again = TASKS[name].scripts.command("train", "--name", "adapt", "--runs", tmp_path, "--resume")
    run = tmp_path / name / "adapt"
    for _ in range(2):
        process = Process(command, count, tmp_path)
        process.kill_at(run / "metrics.jsonl", drawn.randrange(1, steps), SIGNALS[how])
        process.check()
        if (run / "config.yaml").is_file():
            command = again
    process = Process(again, count, tmp_path)
    assert [part.wait() for part in process.parts] == [0] * count, process.errors[0].read_text()
    process.check()
    if (run / "metrics.jsonl").read_text() != (expected / "metrics.jsonl").read_text():
        raise WorkLost("the numbers of the run are others")
    for file in ("best.pt", "last-epoch.pt"):
        if not same_weights(run / file, expected / file):
            raise WorkLost(f"{file} is another")


@fault(*("runs", "continued for more epochs: --resume --optim.epochs 4", "as if started with four"), trials=TASKS)
def test_extended(trial, request, tmp_path):
    scripts, flags = TASKS[trial].scripts, flags_of(trial, request, tmp_path)
    scripts.start("train", *flags, "--optim.epochs", 2, "--name", "longer")
    longer = scripts.start("train", "--runs", tmp_path, "--name", "longer", "--resume", "--optim.epochs", 4)
    once = scripts.start("train", *flags, "--optim.epochs", 4, "--name", "once")
    if not same_weights(longer, once):
        raise WorkLost("four epochs are not two and two")


@fault(
    *("runs", "continued with fewer epochs, or another rate or seed", "refused, the flag named"),
    trials=[(name, flags) for name in TASKS for flags in (("--optim.epochs", 2), ("--optim.lr", 0.5), ("--seed", 3))],
)
def test_other_flags(trial, request, tmp_path):
    name, flags = trial
    scripts = TASKS[name].scripts
    scripts.start("train", *flags_of(name, request, tmp_path), "--name", "run")
    module = scripts.SCRIPTS["train"]
    refused(start(module, "--runs", tmp_path, "--name", "run", "--resume", *flags), "other flags", flags[0])


@fault(*("runs", "continued after data and checkpoint have moved and been touched", "goes on"), trials=TASKS)
def test_moved(trial, request, tmp_path):
    task = TASKS[trial]
    scripts, module = task.scripts, task.scripts.SCRIPTS["train"]
    scripts.start("train", *flags_of(trial, request, tmp_path), "--name", "run")
    moved, checkpoint = tmp_path / "moved", tmp_path / "day.pt"
    for file, content in files_in(request.getfixturevalue(task.data)).items():
        (moved / file).parent.mkdir(parents=True, exist_ok=True)
        (moved / file).write_bytes(content)
    checkpoint.write_bytes(request.getfixturevalue("day_models")[trial].read_bytes())
    flags = scripts.common(moved, tmp_path)
    data = flags[flags.index("--data") + 1]
    name = ("--runs", tmp_path, "--name", "run", "--resume", "--optim.epochs", 4)
    said = start(module, *name, "--data", data, "--checkpoint", checkpoint)
    assert said.code == 0, said.out


@fault(*("runs", "continued with another picture or video in the data", "refused"), trials=TASKS)
def test_other_data(trial, request, tmp_path):
    task = TASKS[trial]
    scripts, module = task.scripts, task.scripts.SCRIPTS["train"]
    copied = tmp_path / "data"
    for file, content in files_in(request.getfixturevalue(task.data)).items():
        (copied / file).parent.mkdir(parents=True, exist_ok=True)
        (copied / file).write_bytes(content)
    flags = [*flags_of(trial, request, tmp_path), "--name", "run"]
    own = scripts.common(copied, tmp_path)
    scripts.start("train", *flags, "--data", own[own.index("--data") + 1])
    files = sorted(file for file in copied.rglob("*") if file.is_file() and "train" in str(file.relative_to(copied)))
    pictures = [file for file in files if file.suffix not in (".pkl", ".txt") and "gtFine" not in str(file)]
    pictures[0].write_bytes(pictures[1].read_bytes())
    said = start(module, "--runs", tmp_path, "--name", "run", "--resume", "--optim.epochs", 4)
    refused(said, "made with data")


def limited(size):
    """Let no file of this process grow beyond a size, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@fault(
    *("runs", "no room on the disk for what is written next", "one line, exit code 1; the last state stays whole"),
    trials=[(name, seed) for name in TASKS for seed in range(2)],
)
def test_full_disk(trial, request, tmp_path):
    name, seed = trial
    scripts = TASKS[name].scripts
    scripts.start("train", *flags_of(name, request, tmp_path), "--optim.epochs", 1, "--name", "run")
    run = tmp_path / name / "run"
    before = (run / "last.pt").read_bytes()
    command = scripts.command("train", "--runs", tmp_path, "--name", "run", "--resume", "--optim.epochs", 4)
    size = random.Random(seed).randrange(5000, len(before) // 2)
    ended = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=lambda: limited(size))
    if "Traceback" in ended.stderr or not ended.stderr.count("error: "):
        raise TracebackSeen(ended.stderr[-2000:])
    assert ended.returncode == 1 and "could not write" in ended.stderr, ended.stderr
    if (run / "last.pt").read_bytes() != before:
        raise WorkLost("last.pt is another")
    if list(run.glob(".*.tmp")):
        raise WorkLost("half a file was left")


@fault(
    *("runs", "a folder of runs that cannot be made or written to", "refused, or one line with exit code 1"),
    trials=[(name, where) for name in TASKS for where in ("/proc/runs", "/dev/null/runs", "file")],
)
def test_no_permission(trial, request, tmp_path):
    name, where = trial
    if where == "file":
        where = tmp_path / "runs"
        where.touch()
    said = start(TASKS[name].scripts.SCRIPTS["train"], *flags_of(name, request, where))
    if said.code == 0:
        raise SilentlyWrong(said.out)
    assert str(where) in said.error


@fault(*("runs", "a process that loads data is killed", "one line, exit code 1"), trials=TASKS)
def test_worker_killed(trial, request, tmp_path):
    command = TASKS[trial].scripts.command("train", *flags_of(trial, request, tmp_path))
    command += ["--workers", "1", "--optim.epochs", "200"]
    process = Process(command, 1, tmp_path)
    [training] = process.parts
    metrics = tmp_path / trial / "adapt" / "metrics.jsonl"
    while training.poll() is None and not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.01)
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children")
    while not (workers := children.read_text().split()):
        time.sleep(0.001)
    os.kill(int(workers[0]), signal.SIGKILL)
    training.wait()
    process.check()
    said = process.errors[0].read_text()
    assert training.wait() == 1 and "a process that loads data was killed" in said, said


@fault(*("runs", "two processes train one run", "the second is refused"), trials=TASKS)
def test_twice(trial, request, tmp_path):
    flags = flags_of(trial, request, tmp_path)
    process = Process(TASKS[trial].scripts.command("train", *flags, "--optim.epochs", 500), 1, tmp_path)
    config = tmp_path / trial / "adapt" / "metrics.jsonl"
    while process.parts[0].poll() is None and not config.is_file():
        time.sleep(0.01)
    module = TASKS[trial].scripts.SCRIPTS["train"]
    try:
        refused(start(module, "--runs", tmp_path, "--resume"), "another process is training")
        refused(start(module, *flags), "exists")
    finally:
        process.parts[0].kill()
        process.parts[0].wait()


@fault(
    *(
        "runs",
        "half a line at the end of metrics.jsonl, a config that is cut, or a last.pt that is",
        "goes on, or refused",
    ),
    trials=[(what, seed) for what in ("metrics.jsonl", "config.yaml", "last.pt") for seed in range(10)],
)
def test_damaged(trial, request, tmp_path):
    what, seed = trial
    scripts = TASKS["classification"].scripts
    scripts.start("train", *flags_of("classification", request, tmp_path), "--name", "run")
    file = tmp_path / "classification" / "run" / what
    content = file.read_bytes()
    file.write_bytes(content[: random.Random(seed).randrange(len(content))])
    said = start(scripts.SCRIPTS["train"], "--runs", tmp_path, "--name", "run", "--resume", "--optim.epochs", 4)
    if what == "metrics.jsonl":
        assert said.code == 0, said.out
        for line in file.read_text().splitlines():
            json.loads(line)
    elif what == "last.pt":
        refused(said, file)
    else:
        assert said.code in (0, 2), said.out


@fault(*("runs", "a run of --help, from any folder, of every module", "exit code 0"), trials=["apply", "preview"])
def test_help(trial, tmp_path):
    command = [sys.executable, "-m", f"darkening.{trial}", "--help"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
