"""Clips of built-in scenes in which the main object moves: its class is how it moves, not what it is.

Light is drawn once per clip, sensor noise anew for every frame.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenes.cache import render_or_load
from scenes.night import Domain, render
from scenes.objects import CLASSES
from scenes.sprites import Camera, Placed, Rng, Sprite
from scenes.world import build_scene

MOTION_VERSION: Final = 1

MOTIONS: Final = ("standing", "passing", "approaching", "receding", "jumping", "shaking")
"""None is the mirror image of another, so clips may be flipped."""

PLACES: Final = 6  # street cameras, each at its own place

Move = Callable[[Placed], Placed]


def _shifted(placed: Placed, right: float = 0.0, up: float = 0.0) -> Placed:
    """Moved by shares of what the frame shows at its depth."""
    sprite, height = placed.sprite, up * placed.z
    if up:
        shapes = [shape._replace(polygons=shape.polygons + (0.0, height)) for shape in sprite.shapes]
        lamps = [(x, y + height, axis, colour) for x, y, axis, colour in sprite.lamps]
        sprite = Sprite(sprite.label, shapes, lamps)
    return placed._replace(sprite=sprite, x=placed.x + right * placed.z)


def _nearer(placed: Placed, share: float) -> Placed:
    """At a share of its distance, in the same direction."""
    return placed._replace(x=placed.x * share, z=placed.z * share)


def draw_motion(motion: int, frames: int, rng: Rng) -> list[Move]:
    """Draw how the object moves: what becomes of it in each of `frames` frames.

    `motion` indexes MOTIONS; reach, direction and phase are drawn from `rng`.
    """
    time = np.linspace(0.0, 1.0, frames)
    side, phase = float(rng.choice((-1.0, 1.0))), rng.uniform(0.0, 1.0)
    name = MOTIONS[motion]
    if name == "passing":
        return [partial(_shifted, right=s) for s in side * rng.uniform(0.4, 0.7) * (time - 0.5)]
    if name in ("approaching", "receding"):
        shares = rng.uniform(1.8, 2.6) ** (time - 0.5)
        return [partial(_nearer, share=s) for s in (shares if name == "receding" else shares[::-1])]
    if name == "jumping":
        wave = np.abs(np.sin(2 * np.pi * (rng.uniform(1.2, 2.0) * time + phase)))
        return [partial(_shifted, up=h) for h in rng.uniform(0.2, 0.35) * wave]
    if name == "shaking":
        return [partial(_shifted, right=s) for s in side * rng.uniform(0.08, 0.14) * (-1.0) ** np.arange(frames)]
    return [partial(_shifted)] * frames


def motion_label(index: int, seed: int) -> int:
    """Class of clip `index`: every run of six clips is a permutation of the classes."""
    block, place = divmod(index, len(MOTIONS))
    return int(np.random.default_rng((seed, block, 1)).permutation(len(MOTIONS))[place])


def render_clip(domain: Domain, index: int, frames: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Render one clip, uint8 (T, H, W, 3) in sRGB; arguments as for `render_clips`."""
    # Scene, motion and light are drawn separately: a clip is the same by day and by night.
    streams = np.random.SeedSequence((seed, index, 2)).spawn(4)
    scene_seed, motion_seed, light_seed, noise_seed = streams
    rng = np.random.default_rng(scene_seed)
    place_seed, object_seed, thing = (int(rng.integers(most)) for most in (PLACES, 2**32, len(CLASSES)))
    # The camera of a place does not move, and sees more around the object than pictures do.
    place = np.random.default_rng((place_seed, 3))
    camera = Camera(
        place.uniform(-0.4, 0.4), place.uniform(1.1, 1.8), place.uniform(0.9, 1.0), place.uniform(0.42, 0.52)
    )
    noise = np.random.default_rng(noise_seed)
    pictures = []
    for move in draw_motion(motion_label(index, seed), frames, np.random.default_rng(motion_seed)):
        scene = build_scene(place_seed, thing, object_seed, camera, size, move)
        pictures.append(render(domain, scene, np.random.default_rng(light_seed), noise))
    return np.stack(pictures)


def render_clips(
    domain: Domain, count: int, frames: int, size: int, seed: int, cache_dir: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Render balanced labelled clips: uint8 (N, T, H, W, 3) in sRGB, and labels int64 (N,), indices of MOTIONS.

    Clip i depends on the seed and on i alone, and day and night of one seed show the same motions of the same things.
    Light and camera of a clip are drawn once, the noise of its pixels anew for every frame. With a `cache_dir` the
    result is stored there and read back the next time.
    """

    def clip(index: int) -> tuple[NDArray[np.uint8], int]:
        return render_clip(domain, index, frames, size, seed), motion_label(index, seed)

    described = f"clips{MOTION_VERSION}-{count}x{frames}"
    return render_or_load(cache_dir, described, domain, count, size, seed, clip)
