"""Clips of built-in scenes in which the main object moves: how it moves is the class, what it is does not matter.

Light is drawn once per clip, sensor noise anew for every frame.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from minmax.scenes.cached import Domain, cached_arrays, described
from minmax.scenes.night import NightSettings, render_night
from minmax.scenes.objects import CLASSES
from minmax.scenes.sprites import Camera, Placed, Rng, Sprite
from minmax.scenes.world import build_scene, render_day

MOTION_VERSION: Final = 1

MOTIONS: Final = ("standing", "passing", "approaching", "receding", "jumping", "swaying", "shaking", "turning")
"""None of them is another one seen in a mirror, so that clips may be flipped."""

Move = Callable[[Placed], Placed]


def _transformed(sprite: Sprite, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Sprite:
    """A sprite whose points (..., 2), lamps among them, are changed within its plane."""
    shapes = [shape._replace(polygons=change(shape.polygons)) for shape in sprite.shapes]
    lamps = []
    for x, y, axis, colour in sprite.lamps:
        moved = change(np.array([x, y], np.float64))
        lamps.append((float(moved[0]), float(moved[1]), axis, colour))
    return Sprite(sprite.label, shapes, lamps)


def _shifted(placed: Placed, right: float = 0.0, up: float = 0.0) -> Placed:
    """Moved by shares of what the frame shows at its depth."""
    offset: ArrayLike = (0.0, up * placed.z)
    sprite = _transformed(placed.sprite, lambda points: points + offset) if up else placed.sprite
    return placed._replace(sprite=sprite, x=placed.x + right * placed.z)


def _leaning(placed: Placed, angle: float) -> Placed:
    """Turned within its plane about the point where it stands."""
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    return placed._replace(sprite=_transformed(placed.sprite, lambda points: points @ turn.T))


def draw_motion(motion: int, frames: int, rng: Rng) -> list[Move]:
    """Draw how the object moves: what becomes of it in each of `frames` frames.

    `motion` indexes MOTIONS; reach, direction and phase are drawn from `rng`.
    """
    time = np.linspace(0.0, 1.0, frames)
    side, phase = float(rng.choice((-1.0, 1.0))), rng.uniform(0.0, 1.0)
    wave = np.sin(2 * np.pi * (rng.uniform(1.2, 2.0) * time + phase))
    name = MOTIONS[motion]
    if name == "passing":
        path = side * rng.uniform(0.25, 0.5) * (time - 0.5)
        return [lambda placed, s=s: _shifted(placed, right=s) for s in path]
    if name in ("approaching", "receding"):
        growth = rng.uniform(1.5, 2.2) ** (time - 0.6)
        factors = growth if name == "receding" else growth[::-1]
        # What stands in front of the viewer comes near in depth, so it grows on the picture.
        return [lambda placed, f=f: placed._replace(x=placed.x * f, z=placed.z * f) for f in factors]
    if name == "jumping":
        height = rng.uniform(0.12, 0.25) * np.abs(wave)
        return [lambda placed, h=h: _shifted(placed, up=h) for h in height]
    if name == "swaying":
        angles = rng.uniform(0.25, 0.5) * wave
        return [lambda placed, a=a: _leaning(placed, a) for a in angles]
    if name == "shaking":
        path = rng.uniform(0.05, 0.1) * side * (-1.0) ** np.arange(frames)
        return [lambda placed, s=s: _shifted(placed, right=s) for s in path]
    if name == "turning":
        # A flat thing that turns about its upright axis grows narrow, then wide again.
        stretch = np.maximum(np.abs(np.cos(np.pi * (rng.uniform(0.8, 1.4) * time + phase))), 0.12)
        return [lambda placed, s=s: placed._replace(stretch=placed.stretch * s) for s in stretch]
    return [lambda placed: placed] * frames


def motion_label(index: int, seed: int) -> int:
    """Class of clip `index`: every run of eight clips is a permutation of the classes."""
    block, place = divmod(index, len(MOTIONS))
    return int(np.random.default_rng((seed, block, 1)).permutation(len(MOTIONS))[place])


def render_clip(
    domain: Domain, index: int, frames: int, size: int, seed: int, settings: NightSettings | None = None
) -> NDArray[np.uint8]:
    """Render one clip, uint8 (T, H, W, 3) in sRGB; arguments as for `render_clips`."""
    # Scene, motion and light have streams of their own: a clip is the same by day and by night.
    streams = np.random.SeedSequence((seed, index, 2)).spawn(4)
    scene_seed, motion_seed, light_seed, noise_seed = streams
    place_seed, object_seed = (int(word) for word in scene_seed.generate_state(2))
    rng = np.random.default_rng(scene_seed)
    camera = Camera(rng.uniform(-0.4, 0.4), rng.uniform(1.1, 1.8), rng.uniform(0.7, 0.9), rng.uniform(0.42, 0.52))
    thing = int(rng.integers(len(CLASSES)))
    noise = np.random.default_rng(noise_seed)
    pictures = []
    for move in draw_motion(motion_label(index, seed), frames, np.random.default_rng(motion_seed)):
        scene = build_scene(place_seed, thing, object_seed, camera, size, move)
        light = np.random.default_rng(light_seed)
        day = domain == "day"
        pictures.append(render_day(scene, light, noise) if day else render_night(scene, light, settings, noise))
    return np.stack(pictures)


def render_clips(
    domain: Domain,
    count: int,
    frames: int,
    size: int,
    seed: int,
    settings: NightSettings | None = None,
    cache_dir: Path | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Render balanced labelled clips: uint8 (N, T, H, W, 3) in sRGB, and labels int64 (N,), indices of MOTIONS.

    Clip i depends on the seed and on i alone, and day and night of one seed show the same motions of the same things.
    Light and camera of a clip are drawn once, the noise of its pixels anew for every frame. With a `cache_dir` the
    result is kept there and found again. `settings` as for `render_labelled`.
    """
    name = f"clips-v{MOTION_VERSION}-{described(domain, settings)}-{count}x{frames}x{size}-seed{seed}"

    def render() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        bar = tqdm(range(count), desc=f"{domain} clips", leave=False, disable=None)
        clips = np.stack([render_clip(domain, i, frames, size, seed, settings) for i in bar])
        return clips, np.array([motion_label(i, seed) for i in range(count)], np.int64)

    images, labels = cached_arrays(cache_dir / f"{name}.npz" if cache_dir else None, render)
    return images, np.asarray(labels, np.int64)
