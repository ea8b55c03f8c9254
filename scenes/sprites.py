"""What scenes are painted with: ids of what is shown, the camera, flat sprites with lamps on them, and the canvas.

World axes are in metres: x to the right, y up from the ground, z away from the viewer. Everything upright is a flat
sprite at one depth, so that a moved camera gives true parallax.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

# Semantic ids are the train ids of Cityscapes; a kiosk has no id there and counts as a building.
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)

# Who a pixel or a lamp belongs to; further ids are handed out to the other sprites of a place.
BACKGROUND, MAIN_OBJECT, STREET_LAMPS = range(3)

FACING, UPWARDS = (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)
FAR = 80.0  # metres: the sky, and where the ground fades into the horizon
ON_GROUND = 0.0  # in place of a depth: the pixel's row tells it
_OVERSAMPLING = 2
_SUBPIXEL_BITS = 4

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]
Rng = np.random.Generator

CIRCLE: Final = np.stack([f(np.linspace(0, 2 * np.pi, 20, endpoint=False)) for f in (np.cos, np.sin)], axis=-1)
BLACK: Final = (0.02, 0.02, 0.02)
GLASS: Final = (0.06, 0.08, 0.1)
WARM_WHITE: Final = (1.0, 0.8, 0.5)


def paint_colour(rng: Rng) -> NDArray[np.float64]:
    """Any paint, from near black to near white: colour alone must not give a class away."""
    grey = rng.uniform(0.06, 0.65)
    return np.clip(grey * (1 + rng.uniform(0, 0.8) * rng.uniform(-1, 1, 3)), 0.02, 0.85)


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


class Surface(NamedTuple):
    """What one painted shape is made of."""

    albedo: ArrayLike
    label: int
    normal: ArrayLike = FACING
    emission: ArrayLike = (0.0, 0.0, 0.0)


class Shape(NamedTuple):
    """Polygons (n, k, 2) in metres of one surface: filled, or drawn as lines when a width is given."""

    polygons: NDArray[np.float64]
    surface: Surface
    width: float | None


@dataclass
class Sprite:
    """A flat upright thing in its own metres, x = 0 at its middle and y = 0 at the ground, and the lamps on it."""

    label: int
    shapes: list[Shape] = field(default_factory=list)
    lamps: list[tuple[float, float, Colour, Colour]] = field(default_factory=list)  # x, y, axis, colour

    def fill(self, points: ArrayLike, albedo: ArrayLike, width: float | None = None, **surface: Any) -> None:
        """Add one polygon (k, 2) or several (n, k, 2); the label is the sprite's unless another is given."""
        polygons = np.asarray(points, np.float64)
        polygons = polygons[None] if polygons.ndim == 2 else polygons
        self.shapes.append(Shape(polygons, Surface(albedo, **{"label": self.label, **surface}), width))

    def line(self, points: Sequence[tuple[float, float]], width: float, albedo: ArrayLike) -> None:
        """Add an open line, there and back again as a polygon without area."""
        self.fill([*points, *points[::-1]], albedo, width)

    def box(self, left: float, bottom: float, right: float, top: float, albedo: ArrayLike, **surface: Any) -> None:
        """Add an upright rectangle."""
        self.fill([(left, bottom), (right, bottom), (right, top), (left, top)], albedo, **surface)

    def disc(self, x: float, y: float, radius: float, albedo: ArrayLike, **surface: Any) -> None:
        """Add a disc, or a ring when a line width is given."""
        self.fill(np.add((x, y), radius * CIRCLE), albedo, **surface)

    def bounds(self) -> tuple[float, float, float]:
        """Left, right and top in metres."""
        points = np.concatenate([shape.polygons.reshape(-1, 2) for shape in self.shapes])
        return float(points[:, 0].min()), float(points[:, 0].max()), float(points[:, 1].max())


class Placed(NamedTuple):
    """A sprite in the world; `stretch` is its foreshortening, negative when mirrored."""

    sprite: Sprite
    x: float
    z: float
    owner: int
    stretch: float = 1.0

    def lamps(self) -> list[Lamp]:
        """Its lamps at their positions in the world."""
        x, side, near = self.x, np.sign(self.stretch), self.z - 0.05
        return [
            Lamp((x + self.stretch * dx, y, near), (side * axis[0], axis[1], axis[2]), colour, self.owner)
            for dx, y, axis, colour in self.sprite.lamps
        ]


class Canvas:
    """Paints the index of a surface per pixel, so that each shape is rasterised once for all buffers."""

    def __init__(self, size: int, camera: Camera) -> None:
        self.camera, self.pixels = camera, size * _OVERSAMPLING
        self.index = np.zeros((self.pixels, self.pixels), np.uint16)
        self.surfaces = [Surface((0.0, 0.0, 0.0), SKY)]
        self.depths, self.owners = [FAR], [BACKGROUND]

    def paint_ground(self, shape: Shape) -> None:
        """Paint a shape whose polygons lie on the ground, as x and z."""
        frame = self.camera.project(shape.polygons * (1, 0), shape.polygons[..., 1])
        self._paint(shape, frame, ON_GROUND, BACKGROUND)

    def paint_sprite(self, placed: Placed) -> None:
        """Paint the shapes of an upright sprite in their order."""
        for shape in placed.sprite.shapes:
            frame = self.camera.project(shape.polygons * (placed.stretch, 1) + (placed.x, 0), placed.z)
            self._paint(shape, frame, placed.z, placed.owner)

    def _paint(self, shape: Shape, frame: NDArray[np.float64], depth: float, owner: int) -> None:
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

    def nearest(self) -> NDArray[np.uint16]:
        """Index (H, W) of the surface that each pixel shows, without antialiasing."""
        return self.index[::_OVERSAMPLING, ::_OVERSAMPLING]

    def look_up(self, values: Sequence[ArrayLike]) -> Floats:
        """Buffer (H, W, 3) of one property of the surfaces, antialiased."""
        fine = np.asarray(values, np.float32)[self.index]
        size = self.pixels // _OVERSAMPLING
        return np.asarray(cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA), np.float32)
