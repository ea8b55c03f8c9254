"""Procedural street scenes: what is there (buffers in linear light), and how it looks by day.

A scene is put together from three independent descriptions: a *place* (street, buildings, lamps), a main *object*
with what stands around it, and a *camera*.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from scenes.objects import DISTANT, OBJECTS, low_clutter, post
from scenes.sprites import (
    BACKGROUND,
    BUILDING,
    FAR,
    GLASS,
    MAIN_OBJECT,
    ON_GROUND,
    POLE,
    ROAD,
    SIDEWALK,
    SKY,
    STREET_LAMPS,
    TERRAIN,
    UPWARDS,
    Camera,
    Canvas,
    Floats,
    Lamp,
    Placed,
    Rng,
    Shape,
    Sprite,
    Surface,
    paint_colour,
)

GENERATOR_VERSION: Final = 1


@dataclass(frozen=True)
class Scene:
    """One view of a scene, light-free: all that day and night rendering need.

    albedo (H, W, 3) in 0..1 and emission (H, W, 3) from 0 up are linear light, normal (H, W, 3) is about unit length,
    depth (H, W) is in metres; label (H, W) uint8 has semantic ids and owner (H, W) uint8 tells the main object apart.
    `outline` is the main object's upright rectangle: left, right, top and depth in metres.
    """

    camera: Camera
    albedo: Floats
    label: NDArray[np.uint8]
    depth: Floats
    emission: Floats
    normal: Floats
    owner: NDArray[np.uint8]
    lamps: tuple[Lamp, ...]
    outline: tuple[float, float, float, float]

    @cached_property
    def positions(self) -> Floats:
        """World position of what each pixel shows: (H, W, 3) in metres."""
        rows, columns = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in self.depth.shape)
        scale = self.depth / self.camera.zoom
        x = (columns - 0.5) * scale + self.camera.shift
        y = self.camera.height - (rows - self.camera.horizon)[:, None] * scale
        return np.stack([x, y, self.depth], axis=-1).astype(np.float32)


def _house(rng: Rng) -> Sprite:
    """A facade with rows of windows, some of them lit."""
    sprite, half, top = Sprite(BUILDING), rng.uniform(4.0, 8.0), rng.uniform(6.0, 20.0)
    wall = 0.5 * paint_colour(rng) + 0.5 * rng.uniform(0.1, 0.5)  # walls are less colourful than cars
    sprite.box(-half, 0.0, half, top, wall)
    x, y = np.meshgrid(np.arange(-half + 1.2, half - 0.6, 2.2), np.arange(1.2, top - 1.5, 3.0))
    corners = np.array([(-0.5, 0.0), (0.5, 0.0), (0.5, 1.5), (-0.5, 1.5)]) * rng.uniform(0.8, 1.4)
    windows = np.stack([x.ravel(), y.ravel()], axis=-1)[:, None] + corners
    lit = rng.random(len(windows))
    sprite.fill(windows, GLASS)
    for low, high, light in ((0.0, 0.12, (0.5, 0.35, 0.15)), (0.12, 0.18, (0.25, 0.28, 0.3))):
        chosen = windows[(lit >= low) & (lit < high)]
        if len(chosen):
            sprite.fill(chosen, GLASS, emission=np.multiply(rng.uniform(0.1, 0.6), light))
    return sprite


def _street_lamp(rng: Rng) -> Sprite:
    """A tall post whose arm holds a lamp that shines down."""
    top = rng.uniform(4.5, 7.0)
    sprite = post(rng, POLE, top)
    sprite.box(-0.05, top, 0.7, top + 0.12, (0.2, 0.2, 0.2))
    sprite.box(0.35, top - 0.1, 0.85, top, (0.5, 0.5, 0.5), emission=(1.0, 1.0, 1.0))
    sprite.lamps.append((0.6, top - 0.1, (0.0, -1.0, 0.0), (1.0, 1.0, 1.0)))
    return sprite


def _place(rng: Rng) -> tuple[list[Shape], list[Placed]]:
    """Draw a place: shapes on the ground, as (x, z) instead of (x, y), and what stands along the street."""
    verge = TERRAIN if rng.random() < 0.3 else SIDEWALK
    verge_albedo = np.array((0.14, 0.18, 0.07)) if verge == TERRAIN else np.full(3, rng.uniform(0.2, 0.4))
    asphalt, paint = np.full(3, rng.uniform(0.07, 0.18)), (0.6, 0.6, 0.57)
    middle, half, bend = rng.uniform(-2.5, 2.5), rng.uniform(2.5, 4.5), rng.uniform(-8.0, 8.0)

    def band(left: float, right: float, near: float = 0.4, far: float = FAR) -> NDArray[np.float64]:
        drift = bend * far / FAR
        return np.array([[(left, near), (right, near), (right + drift, far), (left + drift, far)]])

    ground = [
        Shape(band(-200.0, 200.0), Surface(verge_albedo, verge, UPWARDS), None),
        Shape(band(middle - half - 0.25, middle + half + 0.25), Surface((0.35,) * 3, SIDEWALK, UPWARDS), None),
        Shape(band(middle - half, middle + half), Surface(asphalt, ROAD, UPWARDS), None),
    ]
    dashes = [band(middle - 0.07, middle + 0.07, near, near + 1.5) for near in np.arange(1.5, 30.0, 4.0)]
    ground.append(Shape(np.concatenate(dashes), Surface(paint, ROAD, UPWARDS), None))
    if rng.random() < 0.3:
        crossing, near = np.arange(middle - half + 0.4, middle + half - 0.5, 1.0), rng.uniform(4.0, 12.0)
        stripes = [band(left, left + 0.5, near, near + 2.5) for left in crossing]
        ground.append(Shape(np.concatenate(stripes), Surface(paint, ROAD, UPWARDS), None))

    standing, x = [], rng.uniform(-30.0, -24.0)
    while x < 26.0:
        house = _house(rng)
        width = house.bounds()[1]
        standing.append(Placed(house, x + width, rng.uniform(26.0, 40.0), BACKGROUND))
        x += 2 * width + max(0.0, rng.uniform(-3.0, 5.0))
    side = float(rng.choice((-1.0, 1.0)))
    # The first lamp stands about beside the viewer, so that some scenes are lit from the front and others from behind.
    for z in np.cumsum([rng.uniform(-4.0, 3.0), *rng.uniform(6.0, 12.0, 2)]):
        standing.append(Placed(_street_lamp(rng), middle + side * (half + 0.6), float(z), STREET_LAMPS, -side))
        side *= float(rng.choice((-1.0, 1.0)))
    for owner in range(STREET_LAMPS + 1, STREET_LAMPS + 1 + int(rng.integers(1, 5))):
        sprite = DISTANT[int(rng.integers(len(DISTANT)))](rng)
        x, z, side = rng.uniform(-9.0, 9.0), rng.uniform(22.0, 26.0), float(rng.choice((-1.0, 1.0)))
        standing.append(Placed(sprite, x, z, owner, side))
    return ground, standing


def _main_object(object_class: int, rng: Rng) -> list[Placed]:
    """Draw the main object, 45 to 75 % of the reference camera's frame, and what may hide a part of it."""
    sprite = OBJECTS[object_class](rng)
    left, right, top = sprite.bounds()
    stretch = rng.uniform(0.65, 1.0) * rng.choice((-1.0, 1.0))
    z = max(abs(stretch) * (right - left), top) / rng.uniform(0.45, 0.75)
    x = rng.uniform(-0.16, 0.16) * z
    placed = [Placed(sprite, x, z, MAIN_OBJECT, stretch)]
    if rng.random() < 0.4:
        reach = 0.5 * (right - left) + 0.05 * z
        occluder = post(rng, POLE, 4.0) if rng.random() < 0.25 else low_clutter(rng)
        placed.append(Placed(occluder, x + rng.uniform(-1.0, 1.0) * reach, z * rng.uniform(0.8, 0.97), BACKGROUND))
    return placed


def build_scene(
    place_seed: int,
    object_class: int,
    object_seed: int,
    camera: Camera | None = None,
    size: int = 64,
    move: Callable[[Placed], Placed] | None = None,
) -> Scene:
    """Build one view of a scene from the seed of its place, its main object and the camera.

    `object_class` indexes CLASSES; the buffers of the scene are `size` x `size` pixels. The same place seed is the
    same place for any object and camera. `move` displaces the main object, and nothing else.
    """
    camera = camera or Camera()
    ground, standing = _place(np.random.default_rng(place_seed))
    object_rng = np.random.default_rng(object_seed)
    main, *around = _main_object(object_class, object_rng)
    if move is not None:
        main = move(main)
    left, right, top = main.sprite.bounds()
    edges = sorted((main.x + main.stretch * left, main.x + main.stretch * right))
    canvas, lamps = Canvas(size, camera), []
    for shape in ground:
        canvas.paint_ground(shape)
    for placed in sorted([*standing, main, *around], key=lambda item: -item.z):
        lamps += placed.lamps()
        if placed.z > 1.0:  # anything beside or behind the viewer lights the scene unseen
            canvas.paint_sprite(placed)

    nearest = canvas.nearest()
    depth = np.asarray(canvas.depths, np.float32)[nearest]
    below = np.maximum((np.arange(size, dtype=np.float32) + 0.5) / size - camera.horizon, 1e-4)
    ground_depth = np.minimum(camera.height * camera.zoom / below, FAR)
    texture = cv2.resize(object_rng.standard_normal((size // 4, size // 4), np.float32), (size, size))
    texture = texture + 0.7 * object_rng.standard_normal((size, size), np.float32)
    albedo = canvas.look_up([surface.albedo for surface in canvas.surfaces])
    return Scene(
        camera=camera,
        albedo=np.clip(albedo * (1 + 0.05 * texture[..., None]), 0.0, 1.0),
        label=np.asarray([surface.label for surface in canvas.surfaces], np.uint8)[nearest],
        depth=np.where(depth != ON_GROUND, depth, ground_depth[:, None]).astype(np.float32),
        emission=canvas.look_up([surface.emission for surface in canvas.surfaces]),
        normal=canvas.look_up([surface.normal for surface in canvas.surfaces]),
        owner=np.asarray(canvas.owners, np.uint8)[nearest],
        lamps=tuple(lamps),
        outline=(edges[0], edges[1], top, main.z),
    )


def encode(linear: NDArray[Any]) -> NDArray[np.uint8]:
    """Encode linear light (clipped to 0..1) as 8-bit sRGB."""
    clipped = np.clip(linear, 0.0, 1.0)
    curve = np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * np.power(clipped, 1 / 2.4) - 0.055)
    return np.asarray(np.round(255 * curve), np.uint8)


def _cast_shadow(scene: Scene, sun: NDArray[np.float64]) -> Floats:
    """Shadow of the main object on the ground: (H, W) in 0..1, its silhouette mapped from upright to lying."""
    left, right, top, z = scene.outline
    size = len(scene.depth)
    reach = -sun / max(sun[1], 0.2)  # where the shadow of a point one metre up falls
    z_top = max(z + top * reach[2], 0.6)
    drift = top * reach[0]
    upright = scene.camera.project([(left, 0), (right, 0), (right, top), (left, top)], z)
    lying = scene.camera.project([(left, 0), (right, 0), (right + drift, 0), (left + drift, 0)], (z, z, z_top, z_top))
    transform = cv2.getPerspectiveTransform((size * upright).astype(np.float32), (size * lying).astype(np.float32))
    mask = (scene.owner == MAIN_OBJECT).astype(np.float32)
    shadow = cv2.warpPerspective(mask, transform, (size, size))
    on_ground = (scene.normal[..., 1] > 0.9) & (scene.owner == BACKGROUND)
    return np.asarray(cv2.blur(shadow, (3, 3)) * on_ground, np.float32)


def render_day(scene: Scene, rng: Rng, noise: Rng | None = None) -> NDArray[np.uint8]:
    """Render a scene in daylight as sRGB, uint8 (H, W, 3).

    Sun, sky, haze and the camera's metering, white balance and noise are drawn from `rng`; no lamp is on. The noise of
    single pixels is drawn from `noise` where it is given: the frames of a clip share their light, not their noise.
    """
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.2)
    sun = np.array((np.cos(azimuth) * np.cos(height), np.sin(height), np.sin(azimuth) * np.cos(height)))
    overcast = rng.uniform(0.0, 1.0)
    sky = (1 - overcast) * np.array((0.3, 0.5, 0.9)) + overcast * np.array((0.7, 0.74, 0.8))
    sunlight = 1.6 * (1 - overcast) * np.array((1.0, 0.93, 0.8))
    direct = np.clip(scene.normal @ sun.astype(np.float32), 0.0, None) * (1 - _cast_shadow(scene, sun))
    # The open sky lights what faces up fully and what stands upright by half, the ground's reflection adds the rest.
    skylight = 0.65 + 0.35 * scene.normal[..., 1:2]
    light = scene.albedo * (direct[..., None] * sunlight + skylight * (0.5 + 0.5 * sky))

    size = len(scene.depth)
    clouds = cv2.resize(rng.standard_normal((4, 3), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    gradient = np.linspace(0.75, 1.15, size, dtype=np.float32)[:, None] + 0.12 * clouds
    is_sky = (scene.label == SKY)[..., None]
    horizon = 0.6 * sky + 0.3
    clearness = np.exp(-scene.depth / rng.uniform(120.0, 800.0))[..., None]
    light = np.where(is_sky, sky * gradient[..., None], light * clearness + horizon * (1 - clearness))

    exposure = rng.uniform(0.17, 0.27) / light.mean()
    white_balance = rng.uniform(0.92, 1.08, 3)
    grain = (noise or rng).normal(0.0, rng.uniform(0.002, 0.01), light.shape)
    return encode(light * exposure * white_balance + grain)
