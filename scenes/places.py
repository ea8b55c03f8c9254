"""Places seen again: each a street with a landmark, photographed from several points, each time in another light."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenes.cache import render_or_load
from scenes.night import Domain, render
from scenes.objects import CLASSES
from scenes.sprites import Camera
from scenes.world import build_scene

# What stands there for good; a parked car would leave.
LANDMARKS: Final = tuple(CLASSES.index(name) for name in ("tree", "traffic light", "road sign", "kiosk"))


def render_places(
    domain: Domain,
    places: int,
    views: int,
    size: int,
    seed: int,
    cache_dir: Path | None = None,
    first_view: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Render places, each from several points of view.

    A place, with its houses, lamps and landmark, depends on the seed and its number alone; the camera (up to a metre to
    either side, zoom 0.85 to 1.2) and the light on the view as well. A view is the same by day and by night.

    Args:
        domain: day or night.
        places: number of places.
        views: number of views of each.
        size: side of the images in pixels.
        seed: of everything.
        cache_dir: folder in which the result is stored and read back the next time.
        first_view: number of the first view; other numbers give other cameras and light.

    Returns:
        Images uint8 `(places * views, H, W, 3)` in sRGB, and the number of each one's place `(places * views,)`.
    """

    def seen(index: int) -> tuple[NDArray[np.uint8], int]:
        place, view = divmod(index, views)
        place_rng = np.random.default_rng((seed, place))
        place_seed, object_seed = (int(word) for word in place_rng.integers(2**32, size=2))
        landmark = LANDMARKS[int(place_rng.integers(len(LANDMARKS)))]
        view_rng = np.random.default_rng((seed, place, first_view + view))
        camera = Camera(
            view_rng.uniform(-1.0, 1.0),
            view_rng.uniform(1.1, 1.8),
            view_rng.uniform(0.85, 1.2),
            view_rng.uniform(0.42, 0.52),
        )
        scene = build_scene(place_seed, landmark, object_seed, camera, size)
        return render(domain, scene, view_rng), place

    described = f"places-{places}x{views}from{first_view}"
    return render_or_load(cache_dir, described, domain, places * views, size, seed, seen)
