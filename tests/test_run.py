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

from minmax.runtime.batches import EpochBatches, few_at_a_time
from minmax.runtime.config import CommonFlags
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.optimisation import OptimConfig
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


class Noted:
    """A network's weights after each of some steps, its batches taken few at a time."""

    def __init__(self, config, at_once):
        with Run("toy", config, RUNTIME) as run:
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
            optimizer, schedule = OptimConfig(method="sgd", lr=0.01).build(network, 2)
            run.restore(network=network, optimizer=optimizer)
            loader = DataLoader(Numbers(), batch_sampler=EpochBatches(20, 10, config.seed))
            for batch in run.batches(loader, 0):
                for few in few_at_a_time(len(batch), at_once, network):
                    loss = network(batch[few].double()).square().mean()
                    run.backward({"loss": loss}, len(batch[few]) / len(batch))
                run.step(optimizer, schedule)
            run.save()
            self.weights = network.state_dict()
            self.lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


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
                run.backward({"loss": loss})
                run.step(optimizer)
                if run.progress.step == kill_at:
                    raise Killed
                if run.progress.step + 1 in save_at:
                    run._saved_at = -1e9  # the checkpoint is due after this step
            run.finish_epoch({"score": float(epoch)}, float(epoch))
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


def test_resume_refuses_a_missing_run_and_other_flags(config):
    with pytest.raises(UsageError, match="there is no run"):
        train(replace(config, resume=True))
    train(config)
    with pytest.raises(UsageError, match=r"--lr was 0\.1, now 0\.2"):
        train(replace(config, resume=True, lr=0.2))
    train(replace(config, resume=True, workers=0, save_minutes=1.0))


def test_a_batch_taken_few_at_a_time_makes_the_same_step(config):
    whole, parts = Noted(config, 0), Noted(replace(config, name="parts"), 4)
    assert [line["step"] for line in whole.lines] == [line["step"] for line in parts.lines] == [1, 2]
    for one, other in zip(whole.lines, parts.lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"])
    for name, weight in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], weight)


def test_parts_of_a_batch():
    assert list(few_at_a_time(7, 3, nn.Identity())) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(few_at_a_time(7, 0, nn.Identity())) == list(few_at_a_time(7, 9, nn.Identity())) == [slice(0, 7)]


def test_profile_tells_parts_and_operators_of_a_step(config, caplog):
    caplog.set_level("INFO")
    train(replace(config, profile=True))  # 5 steps an epoch, of which 2 are profiled
    told = (config.runs / "toy" / "toy" / "profile.txt").read_text()
    assert told.startswith("2 steps, ") and "aten::addmm" in told
    assert all(part in told for part in ("waiting for data", "backward", "optimizer", "everything else"))
    assert (config.runs / "toy" / "toy" / "profile.json").stat().st_size
    assert [line for line in caplog.messages if line.startswith("epoch 2: loss")][0].count("5 of 5 in 0 s, ") == 1


def toy_update(run, **values):
    weight = nn.Parameter(torch.ones(1))
    losses = {name: value * weight.sum() for name, value in values.items()}
    run.backward(losses)
    run.step(torch.optim.SGD([weight], 0.1))
    return weight.item()


def test_a_loss_that_is_not_finite_names_step_terms_and_checkpoint(config):
    with Run("toy", config, RUNTIME) as run:
        run.restore()
        assert toy_update(run, day=1.0, byol=2.0) == pytest.approx(0.7)
        with pytest.raises(RunError, match=r"step 0 \(day 1, byol nan\); no checkpoint"):
            toy_update(run, day=1.0, byol=float("nan"))
        run.save()
        with pytest.raises(RunError, match=r"last good checkpoint is .*last\.pt"):
            toy_update(run, day=float("inf"))


def test_an_accelerator_is_not_waited_for_in_every_step(config):
    """Losses are read some steps at a time, each recorded at its own step, and always before the run is saved."""
    with Run("toy", config, replace(RUNTIME, device=torch.device("meta"))) as run:
        run.restore()
        metrics = run.directory / "metrics.jsonl"
        for step in range(25):
            run.progress.step = step
            toy_update(run, loss=float(step))
            assert metrics.exists() == (step >= 19)
        assert len(metrics.read_text().splitlines()) == 20
        run.save()
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [(line["step"], line["loss"]) for line in lines] == [(step + 1, float(step)) for step in range(25)]
        toy_update(run, loss=float("nan"))
        with pytest.raises(RunError, match="non-finite loss at step 24"):
            run.save()


def test_gradients_are_brought_to_the_norm_and_must_be_finite(config):
    with Run("toy", config, RUNTIME) as run:
        run.restore()
        weight = nn.Parameter(torch.tensor([1.0, 1.0]))
        optimizer = torch.optim.SGD([weight], 1.0)
        run.backward({"loss": (3e3 * weight).sum()})
        run.step(optimizer, clip=0.1)
        assert (1.0 - weight).norm().item() == pytest.approx(0.1, rel=1e-4)
        run.backward({"loss": (weight - weight.detach()).square().sum().sqrt()})
        with pytest.raises(RunError, match="gradient_norm"):
            run.step(optimizer, clip=0.1)


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (OptimConfig(epochs=4, milestones=(1, 3)), [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (OptimConfig(epochs=4, decay="cosine"), [1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
        (OptimConfig(epochs=4, decay="polynomial"), [1, 0.8868, 0.7719, 0.6551, 0.5359, 0.4136, 0.2872, 0.1539]),
        (OptimConfig(epochs=4, decay="exponential"), [1, 1, 0.9900, 0.9900, 0.9802, 0.9802, 0.9704, 0.9704]),
    ],
)
def test_schedules(optim, expected):
    optimizer, schedule = optim.build(nn.Linear(1, 1), steps_per_epoch=2)
    found = []
    for _ in range(8):
        found.append(optimizer.param_groups[0]["lr"] / optim.lr)
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected, abs=1e-4)


def test_what_is_new_beside_the_network_has_a_rate_of_its_own():
    trained = nn.ModuleDict({"network": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    trained["network"].bias.requires_grad_(False)
    optimizer, _ = OptimConfig(lr=0.1, head_lr=0.3).build(trained, 1, network=trained["network"])
    groups = [([tuple(p.shape) for p in group["params"]], group["lr"]) for group in optimizer.param_groups]
    assert groups == [([(2, 2)], 0.1), ([(1, 2), (1,)], 0.3)]
    assert len(OptimConfig().build(trained, 1)[0].param_groups) == 1
    with pytest.raises(UsageError, match="--optim.head-lr: nothing new beside the network"):
        OptimConfig(head_lr=0.3).build(trained, 1)


def test_what_ended_a_run_stands_in_its_log(config):
    with pytest.raises(Killed):
        train(config, kill_at=1)
    assert "Killed" in (config.runs / "toy" / "toy" / "log.txt").read_text()


def test_best_epoch_is_the_highest_score(config):
    with Run("toy", config, RUNTIME) as run:
        run.restore()
        saved = []
        for epoch, score in enumerate((0.5, 0.4, 0.6)):
            run.finish_epoch({"day": score}, score, lambda path, epoch=epoch: saved.append((epoch, path.name)))
        assert saved == [(0, "best.pt"), (2, "best.pt")]
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
