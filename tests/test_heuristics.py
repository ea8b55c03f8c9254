"""Hand-made nights: each reaches min(request, day) as its curve can, per image, in range, by its generator alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darkening import heuristics
from darkening.camera import DRAWS
from darkening.heuristics import HEURISTICS
from scenes import render_labelled

NAMES = sorted(HEURISTICS)


@pytest.fixture
def without_noise(monkeypatch):
    monkeypatch.setattr(heuristics.torch, "randn", lambda shape, generator: torch.zeros(shape))


@pytest.fixture(scope="module")
def day_images():
    return torch.from_numpy(render_labelled("day", 4, 32, seed=5)[0]).permute(0, 3, 1, 2) / 255.0


def generator_of(seed=0):
    return torch.Generator().manual_seed(seed)


def street_with_sky():
    """A third of the image is white, the rest 128 of 255 (as near to 0.5 as 8 bits are)."""
    day = torch.full((1, 3, 12, 12), 128 / 255)
    day[:, :, :4] = 1.0
    return day


def column(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


@pytest.mark.parametrize("target", [0.1, 0.2, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_each_image_is_the_requested_one_or_that_of_the_day(name, target, day_images, without_noise):
    night = HEURISTICS[name](day_images, column(target), generator_of())
    day = day_images.mean(dim=(1, 2, 3))
    assert (day < 0.6).any()
    torch.testing.assert_close(night.mean(dim=(1, 2, 3)), day.clamp(max=target), rtol=0, atol=0.002)
    assert (night <= day_images + 0.5 / 255 + 1e-6).all(), "a pixel is brighter than by day"


@pytest.mark.parametrize("name", ["brightness", "short-exposure"])
def test_a_factor_reaches_any_request_under_a_burnt_out_sky(name, without_noise):
    night = HEURISTICS[name](street_with_sky(), column(0.05), generator_of())
    assert float(night.mean()) == pytest.approx(0.05, abs=0.002)


def test_a_power_stays_below_6_under_a_burnt_out_sky():
    day = street_with_sky()
    for asked, power in ((0.05, 6.0), (0.3, 6.0), (0.4, math.log(0.1) / math.log(128 / 255)), (0.7, 1.0)):
        night = HEURISTICS["gamma"](day, column(asked), generator_of())
        torch.testing.assert_close(night, day**power, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**20), target=st.floats(0.0, 1.0), contrast=st.floats(0.1, 4.0))
def test_every_night_is_in_range_and_of_the_same_shape(name, seed, target, contrast):
    images = torch.rand(2, 3, 7, 5, generator=generator_of(seed)) ** contrast
    night = HEURISTICS[name](images, column(target, target), generator_of(seed))
    assert night.shape == images.shape and night.dtype == images.dtype
    assert night.min() >= 0 and night.max() <= 1


@pytest.mark.parametrize("target", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_black_and_white_images_stay_finite_and_in_range(name, level, target):
    images = torch.full((1, 3, 8, 8), level)
    night = HEURISTICS[name](images, column(target), generator_of())
    assert torch.isfinite(night).all() and night.min() >= 0 and night.max() <= 1
    if level == 0.0:
        assert night.mean() < 0.1  # nothing but noise


@pytest.mark.parametrize("name", NAMES)
def test_each_image_is_darkened_as_if_it_were_alone(name, day_images, without_noise):
    targets = column(0.1, 0.2, 0.3, 0.4)
    draws = torch.rand(4, DRAWS, generator=generator_of())
    together = HEURISTICS[name](day_images, targets, generator_of(), draws)
    for i in range(4):
        alone = HEURISTICS[name](day_images[i : i + 1], targets[i : i + 1], generator_of(), draws[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_an_exposure_map_counts(name, day_images, without_noise):
    exposure = 0.1 + torch.linspace(-0.05, 0.05, 32).view(1, 1, 1, 32).expand(4, 1, 32, 32)
    by_map = HEURISTICS[name](day_images, exposure, generator_of())
    by_number = HEURISTICS[name](day_images, column(0.1).expand(4, 1, 1, 1), generator_of())
    torch.testing.assert_close(by_map, by_number, rtol=0, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize("name", ["gamma", "brightness"])
def test_tones_keep_their_order_and_black_stays(name):
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(1, 3, 4, 64)
    night = HEURISTICS[name](ramp, column(0.2), generator_of())[0, 0, 0]
    assert (night.diff() > 0).all() and night[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_night_is_a_function_of_its_generator_and_keeps_its_input(name, day_images):
    kept = day_images.clone()
    first, again, other = (HEURISTICS[name](day_images, column(0.1), generator_of(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) is (name not in ("short-exposure", "dim"))
    assert torch.equal(day_images, kept)


def test_the_short_exposure_is_noisy_and_gives_8_bits(day_images):
    flat = torch.full((1, 3, 64, 64), 0.5)
    night = HEURISTICS["short-exposure"](flat, column(0.1), generator_of())
    assert 0.01 < float(night.std()) < 0.1
    torch.testing.assert_close(night * 255, (night * 255).round())
