"""What only an accelerator can show: `pytest -m gpu`; GPU_TEST_DEVICE=cpu runs the same bodies without one."""

import contextlib
import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from script_modules import REPOSITORY, load_module
from torch import nn

from darkening import CameraConfig, Darkener, DarkenerSettings, NightView
from minmax.byol import build_pair
from minmax.photometric_jitter import jitter
from minmax.runtime.devices import open_runtime
from minmax.runtime.seeding import generator_for

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("GPU_TEST_DEVICE", "cuda")


@pytest.fixture(autouse=True)
def exact_arithmetic(monkeypatch):
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def train():
    return load_module("classification_train_on_gpu", REPOSITORY / "classification" / "train.py")


@contextlib.contextmanager
def no_waiting():
    """Whatever waits for the device raises."""
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


class Training:
    """The steps of classification/train.py on one batch, as its main has them; `batch` and labels are on the CPU."""

    def __init__(self, train, device, precision="fp32", count=8):
        from classifier import ClassifierSettings, build_classifier

        self.train = train
        with open_runtime(device, precision) as self.runtime:
            pass
        torch.manual_seed(0)
        self.config = train.Config(checkpoint=Path("none"))
        self.config = replace(self.config, optim=replace(self.config.optim, method="sgd", lr=0.01))
        network = build_classifier(ClassifierSettings("resnet18", ("bus", "car")))
        self.pair = self.runtime.place(build_pair(network, self.config.byol)).train()
        self.parallel = self.runtime.parallel(self.pair)
        self.optimizer, self.schedule = self.config.optim.build(self.pair, 100)
        self.batch = torch.randint(256, (count, 3, 64, 64), dtype=torch.uint8)
        self.labels = torch.arange(count) % 2
        if self.runtime.device.type == "cuda":  # as the loader gives them
            self.batch, self.labels = self.batch.pin_memory(), self.labels.pin_memory()
        self.night_view = NightView("dim", camera=CameraConfig(share=1.0))

    def step(self, number=0):
        """The losses by name, on the device."""
        day = self.runtime.intensities(self.batch)
        night = self.night_view(day, generator_for("night", number))
        day = jitter(day, self.config.jitter, generator_for("day jitter", number))
        night = jitter(night, self.config.jitter, generator_for("night jitter", number))
        labels = self.runtime.to_device(self.labels)
        losses = self.train.step(self.parallel, nn.Identity(), day, night, labels, self.config, self.runtime)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.schedule.step()
        self.pair.update_target()
        return {name: loss.detach() for name, loss in losses.items()}


def test_a_step_on_the_device_is_the_cpus(train):
    here, there = Training(train, "cpu"), Training(train, DEVICE)
    expected, found = here.step(), there.step()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name].cpu(), loss, rtol=1e-3, atol=1e-3, msg=name)
    weights = dict(there.pair.named_parameters())
    for name, weight in here.pair.named_parameters():
        torch.testing.assert_close(weights[name].cpu(), weight, rtol=5e-3, atol=5e-3, msg=name)


def test_a_step_never_waits_for_the_device(train):
    training = Training(train, DEVICE)
    training.step()  # makes handles, workspaces and the optimiser's state
    with no_waiting():
        losses = training.step(1)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("view", ["pixels", "camera"])
def test_a_learned_night_never_waits_for_the_device(view):
    night = NightView(Darkener(DarkenerSettings(view=view)).to(DEVICE))
    images = torch.rand(2, 3, 32, 32).to(DEVICE)
    night(images, generator_for("night"))
    with no_waiting():
        dark = night(images, generator_for("night"))
    assert dark.shape == images.shape and bool(dark.isfinite().all())


def test_data_parallel_moves_the_target(train):
    devices = "cuda:0,1" if DEVICE == "cuda" else DEVICE
    if DEVICE == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one device")
    training = Training(train, devices)
    before = copy.deepcopy(training.pair.target.state_dict())
    training.step()
    after, online = training.pair.target.state_dict(), training.pair.online.state_dict()
    name = "model.layer4.1.conv2.weight"
    assert not torch.equal(after[name], before[name])
    torch.testing.assert_close(after[name], torch.lerp(before[name], online[name], 0.01))


def test_bf16_stays_finite(train):
    training = Training(train, DEVICE, "bf16")
    for number in range(3):
        losses = training.step(number)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(bool(parameter.isfinite().all()) for parameter in training.pair.parameters())


@pytest.mark.parametrize("night", ["dim", "gamma", "camera"])
def test_a_night_is_the_same_on_every_device(night):
    """All draws come from the CPU: only rounding, which may move an 8-bit value by one, tells devices apart."""
    torch.manual_seed(0)
    images = torch.rand(3, 3, 48, 64)
    camera = CameraConfig() if night == "camera" else CameraConfig(share=1.0)
    made_by = Darkener(DarkenerSettings(view="camera")) if night == "camera" else night
    here = NightView(made_by, camera=camera)(images, generator_for("night"))
    if night == "camera":
        made_by = copy.deepcopy(made_by).to(DEVICE)
    there = NightView(made_by, camera=camera)(images.to(DEVICE), generator_for("night"))
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1.5 / 255)
    assert (there.cpu() - here).abs().mean() < 1e-4
