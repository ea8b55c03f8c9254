"""Drawings of what stands in a street: the main objects of the eight classes, posts and low clutter.

Each is drawn at random from a generator, in its own metres.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from scenes.sprites import (
    BICYCLE,
    BLACK,
    BUILDING,
    BUS,
    CAR,
    CIRCLE,
    GLASS,
    PERSON,
    POLE,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    VEGETATION,
    WALL,
    WARM_WHITE,
    Rng,
    Sprite,
    paint_colour,
)

CLASSES: Final = ("car", "bus", "bicycle", "person", "tree", "traffic light", "road sign", "kiosk")
CLASS_LABELS: Final = (CAR, BUS, BICYCLE, PERSON, VEGETATION, TRAFFIC_LIGHT, TRAFFIC_SIGN, BUILDING)

_TAIL_RED: Final = (0.5, 0.02, 0.02)


def _wheels(sprite: Sprite, centres: Sequence[float], radius: float) -> None:
    for x in centres:
        sprite.disc(x, radius, radius, BLACK)
        sprite.disc(x, radius, radius * 0.5, (0.3, 0.3, 0.32))


def _front_lamps(sprite: Sprite, half: float, y: float, radius: float, lit: bool) -> None:
    """A vehicle seen from the front: a pair of headlights towards the viewer."""
    for x in (-half, half):
        sprite.disc(x, y, radius, (0.6, 0.6, 0.58), emission=np.multiply(1.2 * lit, WARM_WHITE))
        if lit:
            sprite.lamps.append((x, y, (0.0, -0.15, -1.0), (0.8, 0.7, 0.5)))


def _side_lamps(sprite: Sprite, rear: float, front: float, y: float, lit: bool) -> None:
    """A vehicle seen from the side: a headlight at its front end and a tail lamp at its rear end."""
    sprite.box(front - 0.18, y - 0.1, front, y + 0.1, (0.6, 0.6, 0.58), emission=np.multiply(1.2 * lit, WARM_WHITE))
    sprite.box(rear, y - 0.1, rear + 0.14, y + 0.14, _TAIL_RED, emission=np.multiply(lit, _TAIL_RED))
    if lit:
        sprite.lamps.append((front, y, (1.0, -0.15, 0.0), (1.0, 0.85, 0.6)))
        sprite.lamps.append((rear, y, (-1.0, -0.1, 0.0), (0.12, 0.01, 0.01)))


def _car(rng: Rng) -> Sprite:
    sprite, paint, lit = Sprite(CAR), paint_colour(rng), bool(rng.random() < 0.5)
    roof, bonnet = rng.uniform(1.35, 1.75), rng.uniform(0.75, 0.95)
    if rng.random() < 0.3:  # from the front or the rear
        sprite.box(-0.8, 0.0, -0.55, 0.5, BLACK)
        sprite.box(0.55, 0.0, 0.8, 0.5, BLACK)
        sprite.fill([(-0.9, 0.25), (0.9, 0.25), (0.88, bonnet), (0.62, roof), (-0.62, roof), (-0.88, bonnet)], paint)
        sprite.fill([(-0.76, bonnet + 0.04), (0.76, bonnet + 0.04), (0.56, roof - 0.1), (-0.56, roof - 0.1)], GLASS)
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
    sprite.fill(centre + (cabin - centre) * (0.84, 0.72), GLASS)
    sprite.box(-0.45, bonnet, -0.35, roof, paint)
    _wheels(sprite, (-1.3, 1.35), rng.uniform(0.3, 0.38))
    _side_lamps(sprite, -2.1, 2.1, 0.66, lit)
    return sprite


def _bus(rng: Rng) -> Sprite:
    sprite, paint, lit = Sprite(BUS), paint_colour(rng), bool(rng.random() < 0.5)
    height, stripe = rng.uniform(2.6, 3.1), paint_colour(rng)
    inside = np.multiply(rng.uniform(0.03, 0.2) * lit, (1.0, 0.95, 0.8))
    if rng.random() < 0.3:
        sprite.box(-1.1, 0.0, -0.75, 0.6, BLACK)
        sprite.box(0.75, 0.0, 1.1, 0.6, BLACK)
        sprite.box(-1.25, 0.3, 1.25, height, paint)
        sprite.box(-1.1, 1.15, 1.1, height - 0.5, GLASS, emission=inside * 0.5)
        sprite.box(-0.8, height - 0.4, 0.8, height - 0.12, BLACK, emission=np.multiply(0.4 * lit, (1.0, 0.5, 0.1)))
        _front_lamps(sprite, 0.95, 0.75, 0.15, lit)
        return sprite
    half = rng.uniform(3.0, 4.2)
    sprite.box(-half, 0.35, half, height, paint)
    sprite.box(-half, 0.6, half, 0.95, stripe)
    count = int(rng.integers(4, 7))
    edges = np.linspace(-half + 0.15, half - 1.2, count + 1)
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        sprite.box(left + 0.08, 1.3, right - 0.08, height - 0.4, GLASS, emission=inside)
    sprite.box(half - 1.05, 0.45, half - 0.25, height - 0.4, GLASS, emission=inside)
    _wheels(sprite, (-half * 0.62, half * 0.5), 0.48)
    _side_lamps(sprite, -half, half, 0.75, lit)
    return sprite


def _bicycle(rng: Rng) -> Sprite:
    sprite, paint, radius = Sprite(BICYCLE), paint_colour(rng), rng.uniform(0.3, 0.37)
    reach = rng.uniform(0.48, 0.58)
    for x in (-reach, reach):
        sprite.disc(x, radius, radius, BLACK, width=0.05)
        sprite.disc(x, radius, 0.05, (0.3, 0.3, 0.3))
    rear, crank, saddle, head = (-reach, radius), (-0.06, 0.28), (-0.2, 0.85), (reach - 0.17, 0.88)
    sprite.fill([rear, crank, head, (-0.18, 0.75), rear], paint, width=0.05)
    sprite.line([crank, saddle], 0.05, paint)
    sprite.line([(reach, radius), head, (head[0] - 0.04, 1.02), (head[0] + 0.12, 1.05)], 0.045, paint)
    sprite.box(-0.33, 0.85, -0.08, 0.92, BLACK)
    if rng.random() < 0.5:
        sprite.disc(head[0] + 0.1, 0.9, 0.05, (0.6, 0.6, 0.6), emission=WARM_WHITE)
        sprite.lamps.append((head[0] + 0.12, 0.9, (1.0, -0.2, 0.0), (0.1, 0.1, 0.09)))
    return sprite


def _person(rng: Rng) -> Sprite:
    sprite, coat, trousers = Sprite(PERSON), paint_colour(rng), paint_colour(rng)
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
    sprite.fill(np.add((lean * 1.3, 1.66), 0.13 * CIRCLE[:11]), 0.3 * paint_colour(rng))
    return sprite


def _tree(rng: Rng) -> Sprite:
    sprite, top = Sprite(VEGETATION), rng.uniform(3.2, 5.0)
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
        wobble = 1 + rng.uniform(-0.2, 0.2, (len(CIRCLE), 1))
        sprite.fill(centre + radius * wobble * CIRCLE, leaves * rng.uniform(0.7, 1.3), normal=normal)
    return sprite


def post(rng: Rng, label: int, top: float) -> Sprite:
    """A bare post; what is added to the sprite later gets `label`, the post itself is a pole."""
    sprite = Sprite(label)
    half = rng.uniform(0.03, 0.06)
    sprite.box(-half, 0.0, half, top, np.full(3, rng.uniform(0.08, 0.4)), label=POLE)
    return sprite


def _traffic_light(rng: Rng) -> Sprite:
    top = rng.uniform(1.9, 2.8)
    sprite, half, x = post(rng, TRAFFIC_LIGHT, top), rng.uniform(0.17, 0.25), 0.0
    if rng.random() < 0.3:  # hung from an arm
        x = rng.uniform(0.5, 0.9)
        sprite.box(0.0, top - 0.08, x, top, (0.2, 0.2, 0.2), label=POLE)
    housing = np.full(3, 0.03) if rng.random() < 0.6 else paint_colour(rng)
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


def _road_sign(rng: Rng) -> Sprite:
    top = rng.uniform(1.2, 1.8)
    sprite, radius = post(rng, TRAFFIC_SIGN, top), rng.uniform(0.45, 0.65)
    corners = int(rng.choice((3, 4, 8, 40)))
    turn = {3: np.pi / 2 * rng.choice((-1, 1)), 4: np.pi / 4 * rng.choice((0, 1)), 8: np.pi / 8, 40: 0.0}[corners]
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    board = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radius
    rim, face = paint_colour(rng), paint_colour(rng)
    sprite.fill(board + (0, top), rim)
    sprite.fill(0.78 * board + (0, top), face)
    ink = BLACK if face.mean() > 0.25 else (0.7, 0.7, 0.7)
    mark = np.array([(-0.45, -0.1), (0.45, -0.1), (0.45, 0.1), (-0.45, 0.1)]) * radius
    sprite.fill((mark if rng.random() < 0.5 else mark[:, ::-1]) + (0, top), ink)
    return sprite


def _kiosk(rng: Rng) -> Sprite:
    sprite, paint, roof = Sprite(BUILDING), paint_colour(rng), paint_colour(rng)
    half, eaves = rng.uniform(1.1, 2.0), rng.uniform(1.9, 2.5)
    inside = np.multiply(rng.uniform(0.1, 0.4) * (rng.random() < 0.5), WARM_WHITE)
    sprite.box(-half, 0.0, half, eaves, paint)
    door = rng.uniform(-half + 0.1, -half + 0.5)
    sprite.box(door, 0.0, door + 0.75, 1.75, 0.4 * paint)
    left, right = door + 0.95, half - 0.15
    sprite.box(left, 0.9, right, 1.75, GLASS, emission=inside)
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


OBJECTS: Final[tuple[Callable[[Rng], Sprite], ...]] = (
    _car, _bus, _bicycle, _person, _tree, _traffic_light, _road_sign, _kiosk
)  # fmt: skip


def low_clutter(rng: Rng) -> Sprite:
    """A bush, a bin or a bollard: knee to hip high, and of no class."""
    kind, height = int(rng.integers(3)), rng.uniform(0.5, 1.1)
    if kind == 0:
        sprite = Sprite(VEGETATION)
        for x in rng.uniform(-0.5, 0.5, 5):
            leaves = np.multiply(rng.uniform(0.6, 1.3), (0.1, 0.16, 0.05))
            sprite.disc(x, height * 0.45, height * rng.uniform(0.3, 0.5), leaves)
        return sprite
    sprite, half = Sprite(WALL), 0.28 if kind == 1 else 0.08
    sprite.box(-half, 0.0, half, height, paint_colour(rng))
    sprite.box(-half * 1.15, height * 0.85, half * 1.15, height, paint_colour(rng))
    return sprite


# Small in the distance, of the same classes as the main object.
DISTANT: Final[tuple[Callable[[Rng], Sprite], ...]] = (
    _car, _bicycle, _person, _tree, _tree, _traffic_light, _road_sign, low_clutter
)  # fmt: skip
