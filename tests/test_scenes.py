"""The procedural scenes: determinism, pairing of day and night, value ranges, and the physics of lamps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from scenes import CLASSES, render_labelled
from scenes.night import NightSettings, lamp_light, render_night
from scenes.objects import CLASS_LABELS
from scenes.sprites import BACKGROUND, FAR, MAIN_OBJECT, POLE, Camera, Lamp
from scenes.world import Scene, build_scene, render_day

Domain = Literal["day", "night"]


@pytest.mark.parametrize("domain", ["day", "night"])
def test_same_seed_gives_same_images_and_a_larger_count_only_adds_to_them(domain: Domain) -> None:
    few, few_labels = render_labelled(domain, 6, 32, seed=3)
    more, more_labels = render_labelled(domain, 10, 32, seed=3)
    assert few.dtype == np.uint8 and few.shape == (6, 32, 32, 3) and few_labels.dtype == np.int64
    np.testing.assert_array_equal(few, more[:6])
    np.testing.assert_array_equal(few_labels, more_labels[:6])
    assert not np.array_equal(few, render_labelled(domain, 6, 32, seed=4)[0])


def test_labels_are_balanced_and_not_in_a_fixed_order() -> None:
    labels = render_labelled("day", 40, 16, seed=0)[1]
    np.testing.assert_array_equal(np.bincount(labels), np.full(len(CLASSES), 5))
    assert not np.array_equal(labels[:8], labels[8:16])


def test_day_and_night_of_a_seed_show_the_same_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Scene] = []

    def record(scene: Scene, *_: object) -> NDArray[np.uint8]:
        seen.append(scene)
        return np.zeros(scene.albedo.shape, np.uint8)

    monkeypatch.setattr("scenes.night.render_day", record)
    monkeypatch.setattr("scenes.night.render_night", record)
    np.testing.assert_array_equal(render_labelled("day", 5, 32, seed=8)[1], render_labelled("night", 5, 32, seed=8)[1])
    assert len(seen) == 10
    for day, night in zip(seen[:5], seen[5:], strict=True):
        np.testing.assert_array_equal(day.albedo, night.albedo)
        np.testing.assert_array_equal(day.depth, night.depth)
        assert day.lamps == night.lamps


def test_night_is_dark_and_day_is_not() -> None:
    day = render_labelled("day", 24, 32, seed=1)[0].mean(axis=(1, 2, 3)) / 255
    night = render_labelled("night", 24, 32, seed=1)[0].mean(axis=(1, 2, 3)) / 255
    assert 0.4 < day.mean() < 0.5
    assert 0.08 < night.mean() < 0.2
    assert (night < day).all()


@pytest.mark.parametrize("object_class", range(len(CLASSES)))
def test_buffers_hold_the_main_object_and_stay_in_range(object_class: int) -> None:
    for seed in range(8):
        scene = build_scene(seed, object_class, seed + 100, size=64)
        main = scene.owner == MAIN_OBJECT
        assert (scene.label[main] == CLASS_LABELS[object_class]).any()
        assert set(np.unique(scene.label[main])) <= {CLASS_LABELS[object_class], POLE}
        np.testing.assert_allclose(scene.depth[main], scene.outline[3], rtol=1e-6)
        assert scene.albedo.min() >= 0 and scene.albedo.max() <= 1 and scene.emission.min() >= 0
        assert scene.depth.min() > 0 and scene.depth.max() <= FAR
        assert scene.label.max() < 19
        for buffer in (scene.albedo, scene.depth, scene.emission, scene.normal):
            assert buffer.dtype == np.float32 and np.isfinite(buffer).all()


def test_odd_sizes_render_too() -> None:
    scene = build_scene(0, 0, 0, size=50)
    for image in (render_day(scene, np.random.default_rng(0)), render_night(scene, np.random.default_rng(0))):
        assert image.shape == (50, 50, 3) and image.dtype == np.uint8


def test_camera_moves_near_things_more_than_far_ones() -> None:
    moved, still = Camera(shift=1.0), Camera()
    near_shift, far_shift = still.project((0.0, 1.0), (5.0, 40.0))[:, 0] - moved.project((0.0, 1.0), (5.0, 40.0))[:, 0]
    assert near_shift == pytest.approx(0.2) and far_shift == pytest.approx(0.025)


def test_pixel_positions_project_back_onto_their_pixels() -> None:
    scene = build_scene(5, 2, 6, Camera(0.3, 1.2, 1.1, 0.4), size=16)
    centres = (np.arange(16) + 0.5) / 16
    projected = scene.camera.project(scene.positions[..., :2], scene.positions[..., 2])
    np.testing.assert_allclose(projected[..., 0], np.tile(centres, (16, 1)), atol=1e-5)
    np.testing.assert_allclose(projected[..., 1], np.tile(centres[:, None], (1, 16)), atol=1e-5)


def test_a_lamp_lights_its_surroundings_but_not_its_own_body() -> None:
    scene = build_scene(0, 0, 1, size=64)
    left, right, top, z = scene.outline
    lamp = Lamp(((left + right) / 2, top, z - 1.0), (0.0, -1.0, 0.2), (1.0, 1.0, 1.0), MAIN_OBJECT)
    main = scene.owner == MAIN_OBJECT
    own = lamp_light(scene, lamp, (1.0, 1.0, 1.0), spread=1.0)
    foreign = lamp_light(scene, lamp._replace(owner=BACKGROUND + 99), (1.0, 1.0, 1.0), spread=1.0)
    assert not own[main].any() and own[~main].any()
    assert foreign[main].any()
    np.testing.assert_array_equal(own[~main], foreign[~main])


def test_lamp_light_falls_off_with_the_square_of_the_distance() -> None:
    scene = build_scene(0, 0, 1, size=32)
    pixel = tuple(np.argwhere(scene.owner == MAIN_OBJECT)[0])
    point = scene.positions[pixel]
    white = (1.0, 1.0, 1.0)
    lamps = [Lamp((point[0], point[1], point[2] - distance), (0.0, 0.0, 1.0), white, 99) for distance in (5.0, 10.0)]
    near, far = (lamp_light(scene, lamp, white, spread=1.0)[pixel] for lamp in lamps)
    np.testing.assert_allclose(near / far, 4.0, rtol=0.05)


def test_lamps_and_lit_windows_make_no_difference_by_day() -> None:
    scene = build_scene(2, 1, 3, size=32)
    dark = replace(scene, emission=np.zeros_like(scene.emission), lamps=())
    first, second = (render_day(s, np.random.default_rng(0)) for s in (scene, dark))
    np.testing.assert_array_equal(first, second)


def test_cache_returns_what_was_rendered_and_other_lamps_are_another_file_by_night_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = render_labelled("night", 4, 32, 0, tmp_path)
    loaded = render_labelled("night", 4, 32, 0, tmp_path)
    for i in range(2):
        np.testing.assert_array_equal(rendered[i], loaded[i])
        assert rendered[i].dtype == loaded[i].dtype
    render_labelled("day", 4, 32, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2

    for module in ("night", "cache"):
        monkeypatch.setattr(f"scenes.{module}.NightSettings", lambda: NightSettings(ambient=(0.1, 0.2)))
    render_labelled("day", 4, 32, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not np.array_equal(render_labelled("night", 4, 32, 0, tmp_path)[0], rendered[0])
    assert len(list(tmp_path.iterdir())) == 3
