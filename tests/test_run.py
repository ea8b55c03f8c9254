"""Runs: folder, refusal to overwrite, exact resume, batches as a function of (seed, epoch, position)."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minmax.runtime.batches import EpochBatches
from minmax.runtime.config import CommonFlags
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.run import Run

RUNTIME = Runtime(torch.device("cpu"))
EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Config(CommonFlags):
    name: str = "toy"
    lr: float = 0.1


class Numbers(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, position):
        epoch, index = position
        return torch.tensor([float(index), float(epoch)])


class Killed(Exception):
    """Stands for kill -9: nothing is saved on the way out."""


def train(config, kill_at=None, save_at=()):
    """A toy training with dropout; `kill_at` dies before that step is counted, `save_at` writes checkpoints."""
    with Run("toy", config, RUNTIME) as run:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
        loader = DataLoader(Numbers(), batch_sampler=EpochBatches(20, 4, config.seed))
        run.restore(network=network, optimizer=optimizer)
        for epoch in run.epochs(EPOCHS):
            for batch in run.batches(loader, epoch):
                loss = network(batch + torch.rand(4, 2, generator=run.generator("noise"))).square().mean()
                numbers = run.read_losses({"loss": loss})
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.record("train", numbers)
                if run.progress.step == kill_at:
                    raise Killed
                if run.progress.step + 1 in save_at:
                    run._saved_at = -1e9  # the checkpoint is due after this step
            run.record("validation", {"score": float(epoch)})
            run.finish_epoch(float(epoch))
            run.save()
        return network.state_dict(), (run.directory / "metrics.jsonl").read_text()


@pytest.fixture
def config(tmp_path):
    return Config(runs=tmp_path)


def test_interrupted_twice_and_resumed_equals_uninterrupted(config, tmp_path):
    whole, whole_metrics = train(config)
    broken = replace(config, name="broken")
    with pytest.raises(Killed):
        train(broken, kill_at=4, save_at={2})
    with pytest.raises(Killed):
        train(replace(broken, resume=True), kill_at=9, save_at={8})
    resumed, metrics = train(replace(broken, resume=True))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert metrics == whole_metrics
    assert len(metrics.splitlines()) == 15 + EPOCHS


def test_resume_without_a_checkpoint_starts_at_the_beginning(config):
    whole, _ = train(config)
    broken = replace(config, name="broken")
    with pytest.raises(Killed):
        train(broken, kill_at=1)
    resumed, metrics = train(replace(broken, resume=True))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(metrics.splitlines()) == 15 + EPOCHS


def test_half_a_line_of_metrics_left_by_a_kill_is_dropped(config):
    train(config)
    metrics = config.runs / "toy" / "toy" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"kind": "tr')
    _, after = train(replace(config, resume=True))
    assert [json.loads(line)["step"] for line in after.splitlines()][-1] == 15


def test_an_existing_run_is_not_overwritten(config):
    train(config)
    with pytest.raises(UsageError, match=r"exists; choose another --name, or continue it with --resume"):
        train(config)


def test_resume_refuses_a_missing_run_and_other_flags(config):
    with pytest.raises(UsageError, match="there is no run"):
        train(replace(config, resume=True))
    train(config)
    with pytest.raises(UsageError, match=r"--lr was 0\.1, now 0\.2"):
        train(replace(config, resume=True, lr=0.2))
    train(replace(config, resume=True, workers=0, save_minutes=1.0))


def test_a_loss_that_is_not_finite_names_step_terms_and_checkpoint(config):
    with Run("toy", config, RUNTIME) as run:
        run.restore()
        assert run.read_losses({"day": torch.tensor(1.0), "byol": torch.tensor(2.0)}) == {"day": 1.0, "byol": 2.0}
        with pytest.raises(RunError, match=r"step 0 \(day 1, byol nan\); no checkpoint"):
            run.read_losses({"day": torch.tensor(1.0), "byol": torch.tensor(float("nan"))})
        run.save()
        with pytest.raises(RunError, match=r"last good checkpoint is .*last\.pt"):
            run.read_losses({"day": torch.tensor(float("inf"))})


def test_what_ended_a_run_stands_in_its_log(config):
    with pytest.raises(Killed):
        train(config, kill_at=1)
    assert "Killed" in (config.runs / "toy" / "toy" / "log.txt").read_text()


def test_best_epoch_is_the_highest_score(config):
    with Run("toy", config, RUNTIME) as run:
        run.restore()
        assert [run.finish_epoch(score) for score in (0.5, 0.4, 0.6)] == [True, False, True]
        assert (run.progress.best, run.progress.best_epoch) == (0.6, 3)


def collect(epoch, first, **kwargs):
    batches = EpochBatches(23, 4, 7, **kwargs)
    batches.start_at(epoch, first)
    return list(batches)


def test_batches_cover_an_epoch_once_and_continue_anywhere():
    whole = collect(2, 0)
    assert len(whole) == 5
    indices = [index for batch in whole for _, index in batch]
    assert len(set(indices)) == len(indices) == 20
    assert {epoch for batch in whole for epoch, _ in batch} == {2}
    assert collect(2, 3) == whole[3:]
    assert collect(3, 0) != whole


def test_processes_share_the_batches_of_one_larger_process():
    one = EpochBatches(23, 8, 7)
    shares = [collect(0, 0, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == list(one)


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(UsageError, match=r"3 training images do not fill one batch of 4"):
        EpochBatches(3, 4, 0)


def test_a_run_that_another_process_trains_is_left_alone(config):
    train(config)
    folder = config.runs / "toy" / "toy"
    other = (
        "import sys, time; from pathlib import Path; from minmax.runtime.exclusive import claim;"
        "lock = claim(Path(sys.argv[1])); print('claimed', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", other, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"claimed\n"
        before = (folder / "metrics.jsonl").read_text()
        with pytest.raises(UsageError, match=r"another process is training .*toy; stop it or wait for its end"):
            train(replace(config, resume=True))
        assert (folder / "metrics.jsonl").read_text() == before
        process.kill()  # the lock goes with the process
    train(replace(config, resume=True))


def test_a_disk_without_locks_is_warned_of(config, monkeypatch, caplog):
    monkeypatch.setattr("minmax.runtime.exclusive.FileLock.acquire", Mock(side_effect=NotImplementedError("no flock")))
    train(config)
    assert "no flock): make sure that no other process trains it" in caplog.text
