"""The classification scripts as processes: help, kill -9 and resume, SIGTERM, two ranks; and a compiled run."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from classification_scripts import SCRIPTS, command, common, start
from classifier import load_classifier
from script_modules import run_ranks

from minmax.features import FeatureModel


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_no_library_of_networks(script):
    python, *arguments = command(script, "--help")
    done = subprocess.run([python, "-X", "importtime", *arguments], capture_output=True, text=True, check=True, cwd="/")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in loaded
    assert not loaded & {"torchvision", "timm", "tensorboard", "matplotlib", "av", "torch._dynamo"}


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_saves_and_exits_with_its_code(data, checkpoint, tmp_path, workers):
    """To the process alone, or to all of its group as schedulers send it, the workers among them."""
    flags = [*common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma", "--optim.epochs", 1000]
    flags += ["--workers", workers]
    process = subprocess.Popen(command("train", *flags), stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "classification" / "adapt" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    if workers:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with --resume" in errors
    assert (metrics.parent / "last.pt").is_file()


def test_two_processes_learn_what_one_learns_from_twice_the_batch(data, tmp_path):
    """Without BatchNorm and draws of the processes' own, losses, accuracy and weights are those of one process."""
    shared = ("--data", data, "--runs", tmp_path, "--workers", 0, "--threads", 1, "--optim.epochs", 2)
    shared += ("--model", "timm/test_vit", "--images.size", 160, "--jitter", 0)
    start("train_day", *shared, "--name", "one", "--optim.batch-size", 6)
    assert run_ranks(command("train_day", *shared, "--name", "two", "--optim.batch-size", 3)) == [0, 0]
    folder = tmp_path / "classification"
    one, two = ([json.loads(line) for line in (folder / n / "metrics.jsonl").open()] for n in ("one", "two"))
    kinds = [[line.pop("kind") for line in lines] for lines in (one, two)]
    assert kinds == 2 * [2 * ["train", "train", "validation"]]
    assert two == [pytest.approx(line, rel=1e-4) for line in one]
    first, second = (torch.load(folder / n / "last.pt", weights_only=True)["state"]["network"] for n in ("one", "two"))
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights, rtol=1e-3, atol=1e-4, msg=name)


def test_a_compiled_run_tells_its_warm_up_and_saves_the_same_names(data, checkpoint, tmp_path, caplog, monkeypatch):
    compiled = FeatureModel.compile
    monkeypatch.setattr(FeatureModel, "compile", lambda network: compiled(network, backend="eager", fullgraph=True))
    caplog.set_level("INFO")
    flags = [*common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma"]
    plain, fast = start("train", *flags), start("train", *flags, "--compile", "--name", "compiled")
    assert caplog.text.count("--compile: the first step took") == 1
    found = [load_classifier(path)[0].state_dict() for path in (plain, fast)]
    assert list(found[0]) == list(found[1])
    for name, weights in found[0].items():
        torch.testing.assert_close(found[1][name], weights, rtol=1e-3, atol=1e-4, msg=name)
