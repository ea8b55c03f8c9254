"""The darkener that sees the whole scene: its closed forms, what it never does, videos, and the one that ships."""

import math

import pytest
import torch
import torch.nn.functional as F

from darkening import Darkener, DarkenerSettings, load_darkener, scene_view
from darkening.darkener_files import NIGHT_TO_LOOK_AT
from darkening.night_view import LearnedNight, NightView
from darkening.planned_night import planned_night
from darkening.scene_view import (
    SMALL_SIDE,
    SceneCurves,
    SceneMemory,
    brightness,
    darkened,
    shrunk,
    solved_strength,
    spread_weights,
    spreads,
)
from minmax.runtime.seeding import generator_for
from scenes import render_segmented


@pytest.fixture(scope="module")
def shipped():
    return load_darkener(NIGHT_TO_LOOK_AT).eval()


@pytest.fixture(scope="module")
def scenes():
    images, labels = render_segmented("day", 24, 64, seed=78)
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0, torch.from_numpy(labels)[:, None] == 10


def scene_darkener(**settings):
    torch.manual_seed(3)
    return Darkener(DarkenerSettings(width=8, view="scene", **settings)).double()


def images_of(count=2, height=40, width=30, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def even_curves(strength, density=1.0, sink=0.3, cast=(1.0, 1.0, 1.0)):
    maps = torch.tensor([math.log(density), sink], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    cast = torch.tensor(cast, dtype=torch.float64).view(1, 3, 1, 1)
    return SceneCurves(maps, cast, torch.full((1, 1, 1, 1), strength, dtype=torch.float64))


def by_curves(images, curves, rounds=8):
    return darkened(images, curves, rounds, *spreads(curves.maps, images))


def test_brightness_is_between_mean_and_largest_channel_and_white_is_below_one():
    pixel = torch.tensor([0.2, 0.4, 0.9]).view(1, 3, 1, 1)
    assert brightness(pixel).item() == pytest.approx(0.93 * (0.9 + 0.5) / 2)
    assert brightness(torch.ones(1, 3, 1, 1)).item() == pytest.approx(0.93)


def test_strength_nought_changes_nothing():
    images = images_of()
    assert torch.equal(by_curves(images, even_curves(0.0, cast=(0.9, 1.0, 0.8))), images)


def test_the_gain_is_that_of_density_curve_and_cast():
    images, curves = images_of(1), even_curves(0.7, density=1.5, sink=0.4, cast=(0.9, 0.95, 1.0))
    bright = brightness(images)
    value, bend = bright * math.exp(-0.7 * 1.5), 1 - math.exp(-0.7 * 0.4)
    for _ in range(3):
        value = value + bend * (value * value - value)
    expected = images * value / bright * curves.cast ** (1 - math.exp(-4 * 0.7))
    torch.testing.assert_close(by_curves(images, curves, rounds=3), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("strength", [0.05, 0.5, 3.0])
def test_what_was_brighter_in_a_place_stays_brighter(strength):
    ramp = torch.linspace(0, 1, 256, dtype=torch.float64).expand(1, 3, 1, -1)
    assert (by_curves(ramp, even_curves(strength)).diff() > 0).all()


@pytest.mark.parametrize(("small", "large"), [(1, 7), (2, 9), (16, 16), (12, 500)])
def test_maps_are_spread_smoothly_without_overshoot(small, large):
    weights = spread_weights(small, large, torch.empty(0, dtype=torch.float64))
    assert weights.shape == (large, small) and weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(large, dtype=torch.float64))
    if large > 100:  # a straight line stays one away from the borders
        spread = weights @ torch.arange(small, dtype=torch.float64)
        place = (torch.arange(large, dtype=torch.float64) + 0.5) * small / large - 0.5
        inside = (place > 1) & (place < small - 2)
        torch.testing.assert_close(spread[inside], place[inside])


def test_the_strength_gives_the_requested_mean_or_leaves_a_dark_day_alone():
    images = torch.cat([images_of(1), images_of(1) * 0.1])
    maps = torch.rand(2, 2, 5, 4, dtype=torch.float64)
    cast = torch.tensor([0.9, 1.0, 1.0], dtype=torch.float64).view(1, 3, 1, 1).expand(2, -1, -1, -1)
    asked = torch.full((2, 1, 1, 1), 0.2, dtype=torch.float64)
    strength = solved_strength(images, maps, cast, asked, rounds=8)
    result = by_curves(images, SceneCurves(maps, cast, strength))
    assert result[0].mean().item() == pytest.approx(0.2, abs=2e-4)
    assert strength[1].item() == 0 and torch.equal(result[1], images[1])


def test_the_density_follows_a_requested_map():
    darkener, images = scene_darkener(), torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64)
    request = torch.full((1, 1, 64, 64), 0.1)
    request[..., 32:] = 0.3
    result = darkener.darken(images, request)
    assert result.mean().item() == pytest.approx(0.2, abs=2e-3)
    assert result[..., 40:].mean() > 1.5 * result[..., :24].mean()


@torch.no_grad()
def test_strips_give_the_same_as_the_whole(monkeypatch):
    darkener, images = scene_darkener(), images_of(2, 75, 20)
    for exposure in (torch.tensor(0.2), torch.rand(2, 1, 75, 20)):
        whole = darkener.darken(images, exposure)
        torch.testing.assert_close(whole, darkener(images, exposure).image, rtol=0, atol=1e-12)
        monkeypatch.setitem(scene_view._PIXELS_AT_ONCE, "cpu", 1)  # so one row
        torch.testing.assert_close(darkener.darken(images, exposure), whole, rtol=0, atol=1e-12)
        monkeypatch.undo()


def test_small_pictures_and_none_at_all_are_darkened_too():
    darkener = scene_darkener()
    for height, width in ((1, 1), (3, 50), (8, 8)):
        images = images_of(2, height, width)
        assert darkener.darken(images, torch.tensor(0.2)).shape == images.shape
    assert darkener.darken(images_of(0), torch.tensor(0.2)).shape == (0, 3, 40, 30)


def test_the_small_copy_is_the_mean_of_areas():
    images = images_of(1, 64, 32)
    assert torch.equal(shrunk(images[..., :16, :8], SMALL_SIDE), images[..., :16, :8])
    torch.testing.assert_close(shrunk(images, SMALL_SIDE), F.avg_pool2d(images, 4))


def test_gradients_reach_every_weight():
    darkener = scene_darkener()
    curves = darkener(images_of(), torch.tensor(0.2))
    (curves.image.square().sum() + curves.scale_map.sum()).backward()
    silent = [name for name, weight in darkener.named_parameters() if not weight.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("asked", [0.05, 0.1, 0.2, 0.3])
def test_the_shipped_night_obeys_only_darkens_and_keeps_hues_but_for_one_cast(shipped, scenes, asked):
    day, _ = scenes
    night = shipped.darken(day, torch.tensor(asked))
    expected = day.mean(dim=(1, 2, 3)).clamp(max=asked)
    torch.testing.assert_close(night.mean(dim=(1, 2, 3)), expected, rtol=0, atol=5e-3)
    assert (night <= day).all()
    for before, after in zip(day, night, strict=True):
        seen = (before.amin(dim=0) > 0.05) & (after.amin(dim=0) > 0.01)
        change = (after / before)[:, seen]
        change = change / change.mean(dim=0)
        torch.testing.assert_close(change, change[:, :1].expand_as(change), rtol=1e-3, atol=1e-3)
        assert change.min() > 0.75 and change.max() < 1.25


def test_the_shipped_night_darkens_skies_more_than_streets(shipped, scenes):
    day, sky = scenes
    night = shipped.darken(day, torch.tensor(0.1))
    ratios = [
        (image.mean(dim=0)[here[0]].mean() / image.mean(dim=0)[~here[0]].mean())
        for images in (day, night)
        for image, here in zip(images, sky, strict=True)
        if 0.1 < here.float().mean() < 0.9
    ]
    before, after = torch.tensor(ratios).chunk(2)
    assert len(before) > 10
    assert (after < before).float().mean() > 0.9
    assert after.mean() < 0.9 * before.mean()


def test_the_shipped_night_is_the_same_whatever_the_size_of_the_photo(shipped, scenes):
    day, _ = scenes
    large = F.interpolate(day, scale_factor=4, mode="nearest")
    small_night, large_night = (shipped.darken(images, torch.tensor(0.1)) for images in (day, large))
    torch.testing.assert_close(F.avg_pool2d(large_night, 4), small_night, rtol=0, atol=5e-3)


def test_frames_of_a_video_darken_alike_in_parts_and_at_once_and_do_not_flicker(shipped, scenes):
    day, _ = scenes
    # A still with a light that flickers in a corner: the rest must not answer to it.
    frames = day[:1].repeat(8, 1, 1, 1)
    frames[1::2, :, 40:, 40:] = 1.0
    view = NightView(LearnedNight(shipped), (0.1, 0.1), noise=0.0)
    whole = view.for_video(64, 64, generator_for("draws"))(frames)
    darken = view.for_video(64, 64, generator_for("draws"))
    parts = torch.cat([darken(frames[:3]), darken(frames[3:])])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    alone = view(frames, generator_for("draws"))
    moves = [(nights[1:] - nights[:-1])[..., :30, :30].abs().mean() for nights in (whole, alone)]
    assert moves[0] < 0.2 * moves[1]
    # The first frame is what it is alone.
    torch.testing.assert_close(whole[:1], alone[:1], rtol=0, atol=1e-6)


def test_memory_is_an_exponential_mean_over_the_frames_since_a_cut():
    strength = torch.tensor([1.0, 2.0, 2.0, 4.0]).view(4, 1, 1, 1)
    curves = SceneCurves(torch.zeros(4, 2, 1, 1), torch.ones(4, 3, 1, 1), strength)
    small = torch.tensor([0.1, 0.2, 0.1, 0.6]).view(4, 1, 1, 1).expand(-1, 3, 2, 2)
    steadied = SceneMemory().steady(curves, small)
    second = 1.0 + (0.03 + 0.3 / 9)
    third = second + (0.03 + 0.3 * ((2 - second) / (2 + second)) ** 2) * (2 - second)
    torch.testing.assert_close(steadied.strength.flatten(), torch.tensor([1.0, second, third, 4.0]))


def test_a_planned_night_has_the_requested_mean_and_a_sky_darker_than_the_street():
    day = torch.full((1, 3, 8, 8), 0.4, dtype=torch.float64)
    day[..., :4, :] = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64).view(3, 1, 1)
    sky = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    sky[..., :4, :] = 1.0
    plan = planned_night(day, sky, torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64))
    assert plan.mean().item() == pytest.approx(0.1)
    assert plan[..., :4, :].mean() < plan[..., 4:, :].mean()
    as_bright = planned_night(day, sky, torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64))
    torch.testing.assert_close(as_bright, day)
