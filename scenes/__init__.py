"""Built-in street scenes by day and by night, so that a fresh machine shows the method without a download."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenes.cache import render_or_load
from scenes.motion import MOTIONS, render_clips
from scenes.night import Domain, render
from scenes.objects import CLASSES
from scenes.places import render_places
from scenes.sprites import Camera
from scenes.world import Scene, build_scene

__all__ = [
    "CLASSES",
    "MOTIONS",
    "render_clips",
    "render_labelled",
    "render_places",
    "render_segmented",
]


def _label(index: int, seed: int) -> int:
    """Class of image `index`: every run of eight images is a permutation of the classes, whatever their count."""
    block, place = divmod(index, len(CLASSES))
    return int(np.random.default_rng((seed, block)).permutation(len(CLASSES))[place])


def _render_one(domain: Domain, index: int, size: int, seed: int) -> tuple[NDArray[np.uint8], Scene]:
    # Scene and light are drawn separately, so that a scene is the same by day and by night.
    scene_seed, light_seed = np.random.SeedSequence((seed, index)).spawn(2)
    place_seed, object_seed = (int(word) for word in scene_seed.generate_state(2))
    rng = np.random.default_rng(scene_seed)
    camera = Camera(rng.uniform(-0.4, 0.4), rng.uniform(1.1, 1.8), rng.uniform(0.9, 1.1), rng.uniform(0.42, 0.52))
    scene = build_scene(place_seed, _label(index, seed), object_seed, camera, size)
    return render(domain, scene, np.random.default_rng(light_seed)), scene


def render_labelled(
    domain: Domain, count: int, size: int, seed: int, cache_dir: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Render balanced labelled scenes: images uint8 (N, H, W, 3) in sRGB and labels int64 (N,), indices of CLASSES.

    Image i depends on the seed and on i alone, and day and night of one seed show the same scenes. With a
    `cache_dir` the result is stored there and read back the next time.
    """

    def labelled(index: int) -> tuple[NDArray[np.uint8], int]:
        return _render_one(domain, index, size, seed)[0], _label(index, seed)

    return render_or_load(cache_dir, str(count), domain, count, size, seed, labelled)


def render_segmented(
    domain: Domain, count: int, size: int, seed: int, cache_dir: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render the same scenes with the class of every pixel: images, and labels uint8 (N, H, W).

    Labels are train ids of Cityscapes, 0 to 18; every pixel has one, and not all of them occur. Arguments as for
    `render_labelled`.
    """

    def segmented(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image, scene = _render_one(domain, index, size, seed)
        return image, scene.label

    return render_or_load(cache_dir, f"pixels-{count}", domain, count, size, seed, segmented)
