"""Procedural street scenes: what is there (buffers in linear light), and how it looks by day.

A scene is put together from three independent descriptions: a *place* (street, buildings, lamps), a main *object*
with what stands around it, and a *camera*. World axes are in metres: x to the right, y up from the ground, z away
from the viewer. Everything upright is a flat sprite at one depth, so that a moved camera gives true parallax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

GENERATOR_VERSION: Final = 1
CLASSES: Final = ("car", "bus", "bicycle", "person", "tree", "traffic light", "road sign", "kiosk")

# Semantic ids are the train ids of Cityscapes; a kiosk has no id there and counts as a building.
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)
CLASS_LABELS: Final = (CAR, BUS, BICYCLE, PERSON, VEGETATION, TRAFFIC_LIGHT, TRAFFIC_SIGN, BUILDING)

# Who a pixel or a lamp belongs to; further ids are handed out to the other sprites of a place.
BACKGROUND, MAIN_OBJECT, STREET_LAMPS = range(3)

FACING, UPWARDS = (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)
FAR = 80.0  # metres: the sky, and where the ground fades into the horizon
_OVERSAMPLING = 2
_SUBPIXEL_BITS = 4
_ON_GROUND = 0.0  # in place of a depth: the pixel's row tells it

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]
Rng = np.random.Generator


@dataclass(frozen=True)
class Camera:
    """Where the picture is taken from: lateral shift and height in metres, zoom, and the horizon's row in [0, 1]."""

    shift: float = 0.0
    height: float = 1.5
    zoom: float = 1.0
    horizon: float = 0.48

    def project(self, points: ArrayLike, depth: ArrayLike) -> NDArray[np.float64]:
        """Project points (..., 2), x and y in metres, at a depth (...) to column and row, 0 to 1 inside the frame."""
        scale = self.zoom / np.asarray(depth, np.float64)[..., None]
        return (np.asarray(points) - (self.shift, self.height)) * (scale * (1, -1)) + (0.5, self.horizon)


class Lamp(NamedTuple):
    """A point light: position (x, y, z) in metres, the axis of its cone, linear RGB colour times power, its owner."""

    position: Colour
    axis: Colour
    colour: Colour
    owner: int


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


class _Surface(NamedTuple):
    """What one painted shape is made of."""

    albedo: ArrayLike
    label: int
    normal: ArrayLike = FACING
    emission: ArrayLike = (0.0, 0.0, 0.0)


class _Shape(NamedTuple):
    """Polygons (n, k, 2) in metres of one surface: filled, or drawn as lines when a width is given."""

    polygons: NDArray[np.float64]
    surface: _Surface
    width: float | None


@dataclass
class _Sprite:
    """A flat upright thing in its own metres, x = 0 at its middle and y = 0 at the ground, and the lamps on it."""

    label: int
    shapes: list[_Shape] = field(default_factory=list)
    lamps: list[tuple[float, float, Colour, Colour]] = field(default_factory=list)  # x, y, axis, colour

    def fill(self, points: ArrayLike, albedo: ArrayLike, width: float | None = None, **surface: Any) -> None:
        """Add one polygon (k, 2) or several (n, k, 2); the label is the sprite's unless another is given."""
        polygons = np.asarray(points, np.float64)
        polygons = polygons[None] if polygons.ndim == 2 else polygons
        self.shapes.append(_Shape(polygons, _Surface(albedo, **{"label": self.label, **surface}), width))

    def line(self, points: Sequence[tuple[float, float]], width: float, albedo: ArrayLike) -> None:
        """Add an open line, there and back again as a polygon without area."""
        self.fill([*points, *points[::-1]], albedo, width)

    def box(self, left: float, bottom: float, right: float, top: float, albedo: ArrayLike, **surface: Any) -> None:
        """Add an upright rectangle."""
        self.fill([(left, bottom), (right, bottom), (right, top), (left, top)], albedo, **surface)

    def disc(self, x: float, y: float, radius: float, albedo: ArrayLike, **surface: Any) -> None:
        """Add a disc, or a ring when a line width is given."""
        self.fill(np.add((x, y), radius * _CIRCLE), albedo, **surface)

    def bounds(self) -> tuple[float, float, float]:
        """Left, right and top in metres."""
        points = np.concatenate([shape.polygons.reshape(-1, 2) for shape in self.shapes])
        return float(points[:, 0].min()), float(points[:, 0].max()), float(points[:, 1].max())


class _Placed(NamedTuple):
    """A sprite in the world; `stretch` is its foreshortening, negative when mirrored."""

    sprite: _Sprite
    x: float
    z: float
    owner: int
    stretch: float = 1.0

    def lamps(self) -> list[Lamp]:
        x, side, near = self.x, np.sign(self.stretch), self.z - 0.05
        return [
            Lamp((x + self.stretch * dx, y, near), (side * axis[0], axis[1], axis[2]), colour, self.owner)
            for dx, y, axis, colour in self.sprite.lamps
        ]


_CIRCLE: Final = np.stack([f(np.linspace(0, 2 * np.pi, 20, endpoint=False)) for f in (np.cos, np.sin)], axis=-1)
_BLACK: Final = (0.02, 0.02, 0.02)
_GLASS: Final = (0.06, 0.08, 0.1)
_WARM_WHITE: Final = (1.0, 0.8, 0.5)
_TAIL_RED: Final = (0.5, 0.02, 0.02)


def _paint_colour(rng: Rng) -> NDArray[np.float64]:
    """Any paint, from near black to near white: colour alone must not give a class away."""
    grey = rng.uniform(0.06, 0.65)
    return np.clip(grey * (1 + rng.uniform(0, 0.8) * rng.uniform(-1, 1, 3)), 0.02, 0.85)


def _wheels(sprite: _Sprite, centres: Sequence[float], radius: float) -> None:
    for x in centres:
        sprite.disc(x, radius, radius, _BLACK)
        sprite.disc(x, radius, radius * 0.5, (0.3, 0.3, 0.32))


def _front_lamps(sprite: _Sprite, half: float, y: float, radius: float, lit: bool) -> None:
    """A vehicle seen from the front: a pair of headlights towards the viewer."""
    for x in (-half, half):
        sprite.disc(x, y, radius, (0.6, 0.6, 0.58), emission=np.multiply(1.2 * lit, _WARM_WHITE))
        if lit:
            sprite.lamps.append((x, y, (0.0, -0.15, -1.0), (0.8, 0.7, 0.5)))


def _side_lamps(sprite: _Sprite, rear: float, front: float, y: float, lit: bool) -> None:
    """A vehicle seen from the side: a headlight at its front end and a tail lamp at its rear end."""
    sprite.box(front - 0.18, y - 0.1, front, y + 0.1, (0.6, 0.6, 0.58), emission=np.multiply(1.2 * lit, _WARM_WHITE))
    sprite.box(rear, y - 0.1, rear + 0.14, y + 0.14, _TAIL_RED, emission=np.multiply(lit, _TAIL_RED))
    if lit:
        sprite.lamps.append((front, y, (1.0, -0.15, 0.0), (1.0, 0.85, 0.6)))
        sprite.lamps.append((rear, y, (-1.0, -0.1, 0.0), (0.12, 0.01, 0.01)))


def _car(rng: Rng) -> _Sprite:
    sprite, paint, lit = _Sprite(CAR), _paint_colour(rng), bool(rng.random() < 0.5)
    roof, bonnet = rng.uniform(1.35, 1.75), rng.uniform(0.75, 0.95)
    if rng.random() < 0.3:  # from the front or the rear
        sprite.box(-0.8, 0.0, -0.55, 0.5, _BLACK)
        sprite.box(0.55, 0.0, 0.8, 0.5, _BLACK)
        sprite.fill([(-0.9, 0.25), (0.9, 0.25), (0.88, bonnet), (0.62, roof), (-0.62, roof), (-0.88, bonnet)], paint)
        sprite.fill([(-0.76, bonnet + 0.04), (0.76, bonnet + 0.04), (0.56, roof - 0.1), (-0.56, roof - 0.1)], _GLASS)
        sprite.box(-0.4, 0.42, 0.4, 0.6, 0.4 * paint)
        _front_lamps(sprite, 0.68, 0.66, 0.13, lit)
        return sprite
    rear_pillar, windscreen = rng.uniform(-2.05, -1.3), rng.uniform(0.2, 0.6)
    nose = windscreen + rng.uniform(0.5, 0.8)
    cabin = np.array([(rear_pillar, bonnet), (rear_pillar + 0.3, roof), (windscreen, roof), (nose, bonnet)])
    body = [(-2.1, 0.3), (2.1, 0.3), (2.1, 0.65), (nose, bonnet), (-2.1, bonnet)]
    sprite.fill(body, paint)
    sprite.fill(cabin, paint)
    centre = cabin.mean(axis=0)
    sprite.fill(centre + (cabin - centre) * (0.84, 0.72), _GLASS)
    sprite.box(-0.45, bonnet, -0.35, roof, paint)
    _wheels(sprite, (-1.3, 1.35), rng.uniform(0.3, 0.38))
    _side_lamps(sprite, -2.1, 2.1, 0.66, lit)
    return sprite


def _bus(rng: Rng) -> _Sprite:
    sprite, paint, lit = _Sprite(BUS), _paint_colour(rng), bool(rng.random() < 0.5)
    height, stripe = rng.uniform(2.6, 3.1), _paint_colour(rng)
    inside = np.multiply(rng.uniform(0.03, 0.2) * lit, (1.0, 0.95, 0.8))
    if rng.random() < 0.3:
        sprite.box(-1.1, 0.0, -0.75, 0.6, _BLACK)
        sprite.box(0.75, 0.0, 1.1, 0.6, _BLACK)
        sprite.box(-1.25, 0.3, 1.25, height, paint)
        sprite.box(-1.1, 1.15, 1.1, height - 0.5, _GLASS, emission=inside * 0.5)
        sprite.box(-0.8, height - 0.4, 0.8, height - 0.12, _BLACK, emission=np.multiply(0.4 * lit, (1.0, 0.5, 0.1)))
        _front_lamps(sprite, 0.95, 0.75, 0.15, lit)
        return sprite
    half = rng.uniform(3.0, 4.2)
    sprite.box(-half, 0.35, half, height, paint)
    sprite.box(-half, 0.6, half, 0.95, stripe)
    count = int(rng.integers(4, 7))
    edges = np.linspace(-half + 0.15, half - 1.2, count + 1)
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        sprite.box(left + 0.08, 1.3, right - 0.08, height - 0.4, _GLASS, emission=inside)
    sprite.box(half - 1.05, 0.45, half - 0.25, height - 0.4, _GLASS, emission=inside)
    _wheels(sprite, (-half * 0.62, half * 0.5), 0.48)
    _side_lamps(sprite, -half, half, 0.75, lit)
    return sprite


def _bicycle(rng: Rng) -> _Sprite:
    sprite, paint, radius = _Sprite(BICYCLE), _paint_colour(rng), rng.uniform(0.3, 0.37)
    reach = rng.uniform(0.48, 0.58)
    for x in (-reach, reach):
        sprite.disc(x, radius, radius, _BLACK, width=0.05)
        sprite.disc(x, radius, 0.05, (0.3, 0.3, 0.3))
    rear, crank, saddle, head = (-reach, radius), (-0.06, 0.28), (-0.2, 0.85), (reach - 0.17, 0.88)
    sprite.fill([rear, crank, head, (-0.18, 0.75), rear], paint, width=0.05)
    sprite.line([crank, saddle], 0.05, paint)
    sprite.line([(reach, radius), head, (head[0] - 0.04, 1.02), (head[0] + 0.12, 1.05)], 0.045, paint)
    sprite.box(-0.33, 0.85, -0.08, 0.92, _BLACK)
    if rng.random() < 0.5:
        sprite.disc(head[0] + 0.1, 0.9, 0.05, (0.6, 0.6, 0.6), emission=_WARM_WHITE)
        sprite.lamps.append((head[0] + 0.12, 0.9, (1.0, -0.2, 0.0), (0.1, 0.1, 0.09)))
    return sprite


def _person(rng: Rng) -> _Sprite:
    sprite, coat, trousers = _Sprite(PERSON), _paint_colour(rng), _paint_colour(rng)
    skin = np.array((0.5, 0.32, 0.22)) * rng.uniform(0.3, 1.2)
    stride, lean, wide = rng.uniform(0.0, 0.3), rng.uniform(-0.06, 0.06), rng.uniform(0.17, 0.26)
    for side in (-1, 1):
        foot, reach = side * max(stride, 0.08), side * rng.uniform(0.1, 0.45)
        sprite.line([(side * 0.07, 0.85), (foot * 0.7, 0.45), (foot, 0.05)], 0.15, trousers)
        shoulder, hand = lean + side * wide, (lean + side * 0.1 + reach, rng.uniform(0.75, 1.15))
        sprite.line([(shoulder, 1.35), (shoulder + 0.3 * reach, 1.08), hand], 0.1, 0.85 * coat)
    hem, left, right = rng.uniform(0.6, 0.9), lean - wide, lean + wide
    neck = [(lean + 0.08, 1.5), (lean - 0.08, 1.5)]
    sprite.fill([(-wide, hem), (wide, hem), (right, 1.42), *neck, (left, 1.42)], coat)
    sprite.disc(lean * 1.3, 1.62, 0.125, skin)
    sprite.fill(np.add((lean * 1.3, 1.66), 0.13 * _CIRCLE[:11]), 0.3 * _paint_colour(rng))
    return sprite


def _tree(rng: Rng) -> _Sprite:
    sprite, top = _Sprite(VEGETATION), rng.uniform(3.2, 5.0)
    leaves = np.array([(0.1, 0.18, 0.05), (0.16, 0.2, 0.06), (0.3, 0.2, 0.05), (0.07, 0.12, 0.07)])[rng.integers(4)]
    crown, spread = rng.uniform(0.3, 0.5) * top, rng.uniform(0.7, 1.3)
    trunk = rng.uniform(0.1, 0.2)
    sprite.fill([(-trunk, 0), (trunk, 0), (trunk * 0.6, crown + 0.8), (-trunk * 0.6, crown + 0.8)], (0.1, 0.07, 0.05))
    if rng.random() < 0.25:  # a conifer: stacked triangles
        for bottom in np.linspace(crown * 0.6, top - 0.9, 4):
            half = spread * (top - bottom) / (top - crown * 0.6)
            sprite.fill([(-half, bottom), (half, bottom), (0, bottom + 1.1)], leaves * rng.uniform(0.7, 1.2))
        return sprite
    for _ in range(9):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.0)
        offset = distance * np.array((np.cos(angle), np.sin(angle)))
        centre = np.array((0, (crown + top) / 2)) + offset * (spread * 0.7, (top - crown) * 0.3)
        normal = np.array((0.7 * offset[0], 0.7 * offset[1], -0.7))
        radius = rng.uniform(0.3, 0.55) * spread
        wobble = 1 + rng.uniform(-0.2, 0.2, (len(_CIRCLE), 1))
        sprite.fill(centre + radius * wobble * _CIRCLE, leaves * rng.uniform(0.7, 1.3), normal=normal)
    return sprite


def _post(rng: Rng, label: int, top: float) -> _Sprite:
    sprite = _Sprite(label)
    half = rng.uniform(0.03, 0.06)
    sprite.box(-half, 0.0, half, top, np.full(3, rng.uniform(0.08, 0.4)), label=POLE)
    return sprite


def _traffic_light(rng: Rng) -> _Sprite:
    top = rng.uniform(1.9, 2.8)
    sprite, half, x = _post(rng, TRAFFIC_LIGHT, top), rng.uniform(0.17, 0.25), 0.0
    if rng.random() < 0.3:  # hung from an arm
        x = rng.uniform(0.5, 0.9)
        sprite.box(0.0, top - 0.08, x, top, (0.2, 0.2, 0.2), label=POLE)
    housing = np.full(3, 0.03) if rng.random() < 0.6 else _paint_colour(rng)
    height = 6 * half
    bottom = top - height * rng.uniform(0.5, 1.0)
    sprite.box(x - half, bottom, x + half, bottom + height, housing)
    burning = int(rng.choice((0, 2, 1), p=(0.45, 0.45, 0.1)))
    for i, lens in enumerate([(0.8, 0.05, 0.03), (0.8, 0.4, 0.03), (0.05, 0.7, 0.3)]):
        y = bottom + height * (5 - 2 * i) / 6
        albedo = np.multiply(lens, 0.6 if i == burning else 0.25)
        sprite.disc(x, y, 0.72 * half, albedo, emission=np.multiply(0.35 * (i == burning), lens))
        if i == burning:
            sprite.lamps.append((x, y, (0.0, -0.2, -1.0), (0.15 * lens[0], 0.15 * lens[1], 0.15 * lens[2])))
    return sprite


def _road_sign(rng: Rng) -> _Sprite:
    top = rng.uniform(1.2, 1.8)
    sprite, radius = _post(rng, TRAFFIC_SIGN, top), rng.uniform(0.45, 0.65)
    corners = int(rng.choice((3, 4, 8, 40)))
    turn = {3: np.pi / 2 * rng.choice((-1, 1)), 4: np.pi / 4 * rng.choice((0, 1)), 8: np.pi / 8, 40: 0.0}[corners]
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    board = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radius
    rim, face = _paint_colour(rng), _paint_colour(rng)
    sprite.fill(board + (0, top), rim)
    sprite.fill(0.78 * board + (0, top), face)
    ink = _BLACK if face.mean() > 0.25 else (0.7, 0.7, 0.7)
    mark = np.array([(-0.45, -0.1), (0.45, -0.1), (0.45, 0.1), (-0.45, 0.1)]) * radius
    sprite.fill((mark if rng.random() < 0.5 else mark[:, ::-1]) + (0, top), ink)
    return sprite


def _kiosk(rng: Rng) -> _Sprite:
    sprite, paint, roof = _Sprite(BUILDING), _paint_colour(rng), _paint_colour(rng)
    half, eaves = rng.uniform(1.1, 2.0), rng.uniform(1.9, 2.5)
    inside = np.multiply(rng.uniform(0.1, 0.4) * (rng.random() < 0.5), _WARM_WHITE)
    sprite.box(-half, 0.0, half, eaves, paint)
    door = rng.uniform(-half + 0.1, -half + 0.5)
    sprite.box(door, 0.0, door + 0.75, 1.75, 0.4 * paint)
    left, right = door + 0.95, half - 0.15
    sprite.box(left, 0.9, right, 1.75, _GLASS, emission=inside)
    sprite.box(left - 0.05, 0.8, right + 0.05, 0.9, 0.6 * roof)
    if rng.random() < 0.6:
        peak = rng.uniform(0.5, 1.1)
        sprite.fill([(-half - 0.2, eaves), (half + 0.2, eaves), (rng.uniform(-0.5, 0.5) * half, eaves + peak)], roof)
    else:
        sprite.box(-half - 0.2, eaves, half + 0.2, eaves + 0.25, roof)
        sprite.fill([(left, 1.8), (right, 1.8), (right - 0.1, eaves), (left + 0.1, eaves)], roof, normal=(0, 0.7, -0.7))
    if inside.any():
        sprite.lamps.append(((left + right) / 2, 1.4, (0.0, -0.3, -1.0), (0.4, 0.3, 0.2)))
    return sprite


_OBJECTS: Final[tuple[Callable[[Rng], _Sprite], ...]] = (
    _car, _bus, _bicycle, _person, _tree, _traffic_light, _road_sign, _kiosk
)  # fmt: skip


def _house(rng: Rng) -> _Sprite:
    sprite, half, top = _Sprite(BUILDING), rng.uniform(4.0, 8.0), rng.uniform(6.0, 20.0)
    wall = 0.5 * _paint_colour(rng) + 0.5 * rng.uniform(0.1, 0.5)  # walls are less colourful than cars
    sprite.box(-half, 0.0, half, top, wall)
    x, y = np.meshgrid(np.arange(-half + 1.2, half - 0.6, 2.2), np.arange(1.2, top - 1.5, 3.0))
    corners = np.array([(-0.5, 0.0), (0.5, 0.0), (0.5, 1.5), (-0.5, 1.5)]) * rng.uniform(0.8, 1.4)
    windows = np.stack([x.ravel(), y.ravel()], axis=-1)[:, None] + corners
    lit = rng.random(len(windows))
    sprite.fill(windows, _GLASS)
    for low, high, light in ((0.0, 0.12, (0.5, 0.35, 0.15)), (0.12, 0.18, (0.25, 0.28, 0.3))):
        chosen = windows[(lit >= low) & (lit < high)]
        if len(chosen):
            sprite.fill(chosen, _GLASS, emission=np.multiply(rng.uniform(0.1, 0.6), light))
    return sprite


def _street_lamp(rng: Rng) -> _Sprite:
    top = rng.uniform(4.5, 7.0)
    sprite = _post(rng, POLE, top)
    sprite.box(-0.05, top, 0.7, top + 0.12, (0.2, 0.2, 0.2))
    sprite.box(0.35, top - 0.1, 0.85, top, (0.5, 0.5, 0.5), emission=(1.0, 1.0, 1.0))
    sprite.lamps.append((0.6, top - 0.1, (0.0, -1.0, 0.0), (1.0, 1.0, 1.0)))
    return sprite


def _low_clutter(rng: Rng) -> _Sprite:
    """A bush, a bin or a bollard: knee to hip high, and of no class."""
    kind, height = int(rng.integers(3)), rng.uniform(0.5, 1.1)
    if kind == 0:
        sprite = _Sprite(VEGETATION)
        for x in rng.uniform(-0.5, 0.5, 5):
            leaves = np.multiply(rng.uniform(0.6, 1.3), (0.1, 0.16, 0.05))
            sprite.disc(x, height * 0.45, height * rng.uniform(0.3, 0.5), leaves)
        return sprite
    sprite, half = _Sprite(WALL), 0.28 if kind == 1 else 0.08
    sprite.box(-half, 0.0, half, height, _paint_colour(rng))
    sprite.box(-half * 1.15, height * 0.85, half * 1.15, height, _paint_colour(rng))
    return sprite


def _place(rng: Rng) -> tuple[list[_Shape], list[_Placed]]:
    """Draw a place: shapes on the ground, as (x, z) instead of (x, y), and what stands along the street."""
    verge = TERRAIN if rng.random() < 0.3 else SIDEWALK
    verge_albedo = np.array((0.14, 0.18, 0.07)) if verge == TERRAIN else np.full(3, rng.uniform(0.2, 0.4))
    asphalt, paint = np.full(3, rng.uniform(0.07, 0.18)), (0.6, 0.6, 0.57)
    middle, half, bend = rng.uniform(-2.5, 2.5), rng.uniform(2.5, 4.5), rng.uniform(-8.0, 8.0)

    def band(left: float, right: float, near: float = 0.4, far: float = FAR) -> NDArray[np.float64]:
        drift = bend * far / FAR
        return np.array([[(left, near), (right, near), (right + drift, far), (left + drift, far)]])

    ground = [
        _Shape(band(-200.0, 200.0), _Surface(verge_albedo, verge, UPWARDS), None),
        _Shape(band(middle - half - 0.25, middle + half + 0.25), _Surface((0.35,) * 3, SIDEWALK, UPWARDS), None),
        _Shape(band(middle - half, middle + half), _Surface(asphalt, ROAD, UPWARDS), None),
    ]
    dashes = [band(middle - 0.07, middle + 0.07, near, near + 1.5) for near in np.arange(1.5, 30.0, 4.0)]
    ground.append(_Shape(np.concatenate(dashes), _Surface(paint, ROAD, UPWARDS), None))
    if rng.random() < 0.3:
        crossing, near = np.arange(middle - half + 0.4, middle + half - 0.5, 1.0), rng.uniform(4.0, 12.0)
        stripes = [band(left, left + 0.5, near, near + 2.5) for left in crossing]
        ground.append(_Shape(np.concatenate(stripes), _Surface(paint, ROAD, UPWARDS), None))

    standing, x = [], rng.uniform(-30.0, -24.0)
    while x < 26.0:
        house = _house(rng)
        width = house.bounds()[1]
        standing.append(_Placed(house, x + width, rng.uniform(26.0, 40.0), BACKGROUND))
        x += 2 * width + max(0.0, rng.uniform(-3.0, 5.0))
    side = float(rng.choice((-1.0, 1.0)))
    # The first lamp stands about beside the viewer, so that some scenes are lit from the front and others from behind.
    for z in np.cumsum([rng.uniform(-4.0, 3.0), *rng.uniform(6.0, 12.0, 2)]):
        standing.append(_Placed(_street_lamp(rng), middle + side * (half + 0.6), float(z), STREET_LAMPS, -side))
        side *= float(rng.choice((-1.0, 1.0)))
    # Small in the distance: things of the very classes that the main object may have.
    kinds = (_car, _bicycle, _person, _tree, _tree, _traffic_light, _road_sign, _low_clutter)
    for owner in range(STREET_LAMPS + 1, STREET_LAMPS + 1 + int(rng.integers(1, 5))):
        sprite = kinds[int(rng.integers(len(kinds)))](rng)
        x, z, side = rng.uniform(-9.0, 9.0), rng.uniform(22.0, 26.0), float(rng.choice((-1.0, 1.0)))
        standing.append(_Placed(sprite, x, z, owner, side))
    return ground, standing


def _main_object(object_class: int, rng: Rng) -> list[_Placed]:
    """Draw the main object, 45 to 75 % of the reference camera's frame, and what may hide a part of it."""
    sprite = _OBJECTS[object_class](rng)
    left, right, top = sprite.bounds()
    stretch = rng.uniform(0.65, 1.0) * rng.choice((-1.0, 1.0))
    z = max(abs(stretch) * (right - left), top) / rng.uniform(0.45, 0.75)
    x = rng.uniform(-0.16, 0.16) * z
    placed = [_Placed(sprite, x, z, MAIN_OBJECT, stretch)]
    if rng.random() < 0.4:
        reach = 0.5 * (right - left) + 0.05 * z
        occluder = _post(rng, POLE, 4.0) if rng.random() < 0.25 else _low_clutter(rng)
        placed.append(_Placed(occluder, x + rng.uniform(-1.0, 1.0) * reach, z * rng.uniform(0.8, 0.97), BACKGROUND))
    return placed


class _Canvas:
    """Paints the index of a surface per pixel, so that each shape is rasterised once for all buffers."""

    def __init__(self, size: int, camera: Camera) -> None:
        self.camera, self.pixels = camera, size * _OVERSAMPLING
        self.index = np.zeros((self.pixels, self.pixels), np.uint16)
        self.surfaces = [_Surface((0.0, 0.0, 0.0), SKY)]
        self.depths, self.owners = [FAR], [BACKGROUND]

    def paint_ground(self, shape: _Shape) -> None:
        """Paint a shape whose polygons lie on the ground, as x and z."""
        frame = self.camera.project(shape.polygons * (1, 0), shape.polygons[..., 1])
        self._paint(shape, frame, _ON_GROUND, BACKGROUND)

    def paint_sprite(self, placed: _Placed) -> None:
        """Paint the shapes of an upright sprite in their order."""
        for shape in placed.sprite.shapes:
            frame = self.camera.project(shape.polygons * (placed.stretch, 1) + (placed.x, 0), placed.z)
            self._paint(shape, frame, placed.z, placed.owner)

    def _paint(self, shape: _Shape, frame: NDArray[np.float64], depth: float, owner: int) -> None:
        fixed_point = (frame * self.pixels - 0.5) * 2**_SUBPIXEL_BITS
        polygons = list(np.rint(fixed_point).astype(np.int32))
        value = len(self.surfaces)
        if shape.width is None:
            cv2.fillPoly(self.index, polygons, value, shift=_SUBPIXEL_BITS)
        else:
            thickness = max(1, round(shape.width * self.camera.zoom / depth * self.pixels))
            cv2.polylines(self.index, polygons, True, value, thickness, shift=_SUBPIXEL_BITS)
        self.surfaces.append(shape.surface)
        self.depths.append(depth)
        self.owners.append(owner)

    def look_up(self, values: Sequence[ArrayLike]) -> Floats:
        """Buffer (H, W, 3) of one property of the surfaces, antialiased."""
        fine = np.asarray(values, np.float32)[self.index]
        size = self.pixels // _OVERSAMPLING
        return np.asarray(cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA), np.float32)


def build_scene(
    place_seed: int, object_class: int, object_seed: int, camera: Camera | None = None, size: int = 64
) -> Scene:
    """Build one view of a scene from the seed of its place, its main object and the camera.

    `object_class` indexes CLASSES; the buffers of the scene are `size` x `size` pixels. The same place seed is the
    same place for any object and camera.
    """
    camera = camera or Camera()
    ground, standing = _place(np.random.default_rng(place_seed))
    object_rng = np.random.default_rng(object_seed)
    main, *around = _main_object(object_class, object_rng)
    left, right, top = main.sprite.bounds()
    edges = sorted((main.x + main.stretch * left, main.x + main.stretch * right))
    canvas, lamps = _Canvas(size, camera), []
    for shape in ground:
        canvas.paint_ground(shape)
    for placed in sorted([*standing, main, *around], key=lambda item: -item.z):
        lamps += placed.lamps()
        if placed.z > 1.0:  # what is beside or behind the viewer lights the scene but is not seen
            canvas.paint_sprite(placed)

    coarse = canvas.index[::_OVERSAMPLING, ::_OVERSAMPLING]
    depth = np.asarray(canvas.depths, np.float32)[coarse]
    below = np.maximum((np.arange(size, dtype=np.float32) + 0.5) / size - camera.horizon, 1e-4)
    ground_depth = np.minimum(camera.height * camera.zoom / below, FAR)
    texture = cv2.resize(object_rng.standard_normal((size // 4, size // 4), np.float32), (size, size))
    texture = texture + 0.7 * object_rng.standard_normal((size, size), np.float32)
    albedo = canvas.look_up([surface.albedo for surface in canvas.surfaces])
    return Scene(
        camera=camera,
        albedo=np.clip(albedo * (1 + 0.05 * texture[..., None]), 0.0, 1.0),
        label=np.asarray([surface.label for surface in canvas.surfaces], np.uint8)[coarse],
        depth=np.where(depth != _ON_GROUND, depth, ground_depth[:, None]).astype(np.float32),
        emission=canvas.look_up([surface.emission for surface in canvas.surfaces]),
        normal=canvas.look_up([surface.normal for surface in canvas.surfaces]),
        owner=np.asarray(canvas.owners, np.uint8)[coarse],
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


def render_day(scene: Scene, rng: Rng) -> NDArray[np.uint8]:
    """Render a scene in daylight as sRGB, uint8 (H, W, 3).

    Sun, sky, haze and the camera's metering, white balance and noise are drawn from `rng`; no lamp is on.
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
    noise = rng.normal(0.0, rng.uniform(0.002, 0.01), light.shape)
    return encode(light * exposure * white_balance + noise)
