"""The objects of procedural scenes: where they stand and how each is drawn.

``base`` is the row of the foot, ``x`` the column of the middle, both in pixels.  Every
object draws a fixed number of random values, or one that depends on random values only.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from segjax.data.scene_canvas import (
    BALLOON,
    HOUSE,
    PEBBLE,
    TREE,
    WIRE,
    Canvas,
    ball_light,
    between,
    box_around,
    cast_shadow,
    fill,
    pick_color,
)


class Placed(NamedTuple):
    """An object to be drawn; lengths are in pixels."""

    draw: Callable[..., None]
    base: float
    x: float
    size: float


def plan_objects(rng: np.random.Generator, canvas: Canvas) -> list[Placed]:
    """Positions of the objects in the scene."""
    height, width = canvas.label.shape
    unit = canvas.unit
    wide = width / unit
    plan = []

    def add(draw: Callable[..., None], base: float, x: float, size: float) -> None:
        plan.append(Placed(draw, base * height, x * width, size * unit))

    smallest = 8 / unit
    for k in range(round(1 + 2 * wide)):
        largest = 0.9 if k == 0 else 0.3
        t = rng.random()
        size = smallest + (largest - smallest) * t * t
        add(draw_tree, between(rng, 0.52, 0.56) + 0.15 * t, rng.random(), size)
    for _ in range(round((1 + 1.5 * rng.random()) * wide)):
        size = between(rng, 0.16, 0.42)
        add(draw_house, 0.5 + 0.45 * size, rng.random(), size)
    add(draw_power_line, between(rng, 0.66, 0.73), rng.random(), between(rng, 0.4, 0.6))

    # Tents and pebbles share the foreground, each in a place of its own.
    places = round(between(rng, 2.6, 4.4) * wide)
    order = sorted(range(places), key=lambda _: rng.random())
    heaps = max(1, places // 4)
    for k, place in enumerate(order):
        x = (place + between(rng, 0.35, 0.65)) / places
        if k < heaps:
            add(draw_heap, between(rng, 0.86, 0.98), x, between(rng, 0.04, 0.055))
        else:
            add(draw_tent, between(rng, 0.82, 0.96), x, between(rng, 0.2, 0.28))
    return plan


_LEAVES = ((50, 105, 45), (85, 125, 50), (40, 85, 65), (165, 120, 45))
_LUMPS = (
    (0, 0, 0.8),
    (-0.35, -0.45, 0.42),
    (0.35, -0.45, 0.42),
    (0, -0.58, 0.42),
    (-0.55, 0, 0.42),
    (0.55, 0, 0.42),
    (-0.4, 0.4, 0.42),
    (0.4, 0.4, 0.42),
    (0, 0.15, 0.42),
)
"""Parts of a crown of radius 1 from back to front: center (right, down), radius."""


def draw_tree(
    canvas: Canvas,
    rng: np.random.Generator,
    *,
    label: int,
    base: float,
    x: float,
    size: float,
) -> None:
    """A crown of diameter ``size`` on a trunk."""
    instance = next(canvas.ids)
    radius, trunk = size / 2, max(2.0, 0.12 * size)
    middle = base - 0.3 * size - radius
    cast_shadow(canvas, base, x=x, half_width=0.8 * radius)
    box = box_around(
        canvas, middle, bottom=base, left=x - trunk / 2, right=x + trunk / 2
    )
    u = (box.x - x) / trunk
    bark = (
        np.array((95, 70, 50), np.float32)
        * (0.9 + canvas.sun[0] * u + 0.2 * canvas.grain[box.at])[..., None]
    )
    fill(canvas, box, (abs(u) < 0.5) & (box.y < base), bark, label, instance)
    leaves = pick_color(rng, _LEAVES, 12)
    for right, down, share in _LUMPS:
        lump_x = x + radius * (right + between(rng, -0.08, 0.08))
        lump_y = middle + radius * (down + between(rng, -0.08, 0.08))
        lump = radius * share * between(rng, 0.9, 1.1)
        box = box_around(
            canvas,
            lump_y - lump,
            bottom=lump_y + lump,
            left=lump_x - lump,
            right=lump_x + lump,
        )
        u, v = (box.x - lump_x) / lump, (box.y - lump_y) / lump
        rough = 0.25 * canvas.grain[box.at]
        light = (
            (0.25 + 0.75 * ball_light(canvas, u, v)) * (1 - 0.25 * down) * (1 + rough)
        )
        inside = u * u + v * v < 1 + rough * share
        fill(canvas, box, inside, leaves * light[..., None], label, instance)


_WALLS = (
    (225, 215, 195),  # cream
    (150, 170, 195),  # sky
    (130, 145, 95),  # meadow
    (160, 155, 150),  # pebble
    (185, 135, 110),  # brick
)
_ROOFS = ((150, 85, 65), (95, 90, 95), (125, 105, 80))
_GLASS = np.array((50, 60, 75), np.float32)


def draw_house(
    canvas: Canvas,
    rng: np.random.Generator,
    *,
    label: int,
    base: float,
    x: float,
    size: float,
) -> None:
    """A gabled front and a long side under a sloping roof, ``size`` wide."""
    instance = next(canvas.ids)
    floors = 1 + int(2 * rng.random())
    eaves, front = 0.16 + 0.2 * floors, between(rng, 0.35, 0.48)
    ridge = eaves + between(rng, 0.24, 0.34)
    side = 1 if rng.random() < 0.5 else -1
    wall, roof = pick_color(rng, _WALLS, 15), pick_color(rng, _ROOFS, 12)
    cast_shadow(canvas, base, x=x, half_width=size / 2)
    box = box_around(
        canvas, base - ridge * size, bottom=base, left=x - size / 2, right=x + size / 2
    )
    u, v = 0.5 + side * (box.x - x) / size, (base - box.y) / size
    # The sun lights the front if it shines from the side on which the front is.
    lit, dim = (1.0, 0.68) if canvas.sun[0] * side < 0 else (0.75, 0.95)
    plaster = 1 + 0.08 * canvas.grain[box.at]

    slope = np.minimum(1, np.maximum(0, (v - eaves) / (ridge - eaves)))
    hip = front * (1 - 0.5 * slope)  # right edge of the gable, left one of the roof
    gable = (u >= front - hip) & (u < hip) & (v >= 0) & (v < ridge)
    long = (u >= front) & (u < 1) & (v >= 0) & (v < eaves)
    tiles = (u >= hip) & (u < hip + 1 - front) & (v >= eaves) & (v < ridge)
    course = 12 * slope * (ridge - eaves) / 0.3
    brow = 1.05 - 0.25 * (course - np.floor(course))

    storey = v * floors / eaves
    high = storey - np.floor(storey)
    row = (high > 0.35) & (high < 0.75) & (storey < floors)
    along = 3 * (u - front) / (1 - front)
    across = along - np.floor(along)
    windows = long & row & (across > 0.28) & (across < 0.72)
    middle = abs(u - front / 2) / front
    windows |= gable & row & (middle < 0.16) & (storey >= 1)
    door = gable & (middle < 0.17) & (storey < 0.7)
    for mask, color, light in (
        (gable, wall, lit * plaster),
        (long, wall, dim * plaster),
        (tiles, roof, dim * brow * plaster),
        (windows, _GLASS, 1 + 0.6 * high),
        (door, 0.5 * roof, plaster),
    ):
        light = np.broadcast_to(light, mask.shape)[..., None]
        fill(canvas, box, mask, color * light, label, instance)


def draw_power_line(
    canvas: Canvas,
    rng: np.random.Generator,
    *,
    label: int,
    base: float,
    x: float,
    size: float,
) -> None:
    """A power line from edge to edge; ``size`` is the distance of its poles."""
    instance = next(canvas.ids)
    height, width = canvas.label.shape
    thick = 1 if canvas.unit < 256 else 2
    top = between(rng, 0.2, 0.3) * height
    gap = max(5.0, 0.045 * canvas.unit)
    sag, wires = between(rng, 0.06, 0.12) * size, 2 + int(2 * rng.random())
    arm = 0.08 * canvas.unit
    color = np.array((58, 50, 45), np.float32)
    columns = np.arange(width)
    # Distance from the pole before, 0..1.
    t = (columns + 0.5 - x) / size
    t = (t - np.floor(t)).astype(np.float32)
    for k in range(wires):
        hang = top + (k + 1) * gap + 4 * sag * t * (1 - t)
        for step in range(thick):
            rows = hang.astype(np.int32) + step
            # Wires lie on one pixel grid at all sizes: no box, no antialiasing.
            canvas.image[rows, columns] = color
            canvas.label[rows, columns] = label
            canvas.instance[rows, columns] = instance
    for k in range(math.ceil(-x / size), math.ceil((width - x) / size)):
        left = math.floor(x + k * size)
        post = slice(max(0, left), left + thick + 1)
        beam = slice(max(0, math.floor(left - arm)), math.floor(left + arm) + thick + 1)
        for rows, where in (
            (slice(int(top), int(base)), post),
            (slice(int(top), int(top) + thick), beam),
        ):
            canvas.image[rows, where] = color * 1.15
            canvas.label[rows, where] = label
            canvas.instance[rows, where] = instance


_STONES = ((150, 148, 145), (175, 165, 150), (120, 118, 122), (160, 135, 115))


def draw_heap(
    canvas: Canvas,
    rng: np.random.Generator,
    *,
    label: int,
    base: float,
    x: float,
    size: float,
) -> None:
    """Pebbles of radius about ``size`` in rows of 5, 4, 3, each an instance."""
    cast_shadow(canvas, base, x=x, half_width=5 * size)
    for row in (2, 1, 0):
        for k in range(5 - row):
            stone = pick_color(rng, _STONES, 14)
            wide, tall = size * between(rng, 0.95, 1.3), size * between(rng, 0.8, 1)
            middle = x + size * (1.75 * (k - (4 - row) / 2) + between(rng, -0.2, 0.2))
            y = base - tall - size * (1.2 * row + between(rng, -0.15, 0.15))
            box = box_around(
                canvas,
                y - tall,
                bottom=y + tall,
                left=middle - wide,
                right=middle + wide,
            )
            u, v = (box.x - middle) / wide, (box.y - y) / tall
            light = ball_light(canvas, u, v) * (1 + 0.15 * canvas.grain[box.at])
            inside = u * u + v * v < 1
            color = stone * light[..., None]
            fill(canvas, box, inside, color, label, next(canvas.ids))


_CANVASES = ((225, 205, 160), (205, 175, 115), (215, 195, 100), (200, 195, 170))


def draw_tent(
    canvas: Canvas,
    rng: np.random.Generator,
    *,
    label: int,
    base: float,
    x: float,
    size: float,
) -> None:
    """A ridge tent, ``size`` wide; the label is not looked at."""
    front, ridge = between(rng, 0.5, 0.6), between(rng, 0.52, 0.6)
    side = 1 if rng.random() < 0.5 else -1
    cloth = pick_color(rng, _CANVASES, 10)
    cast_shadow(canvas, base, x=x, half_width=size / 2)
    box = box_around(
        canvas, base - ridge * size, bottom=base, left=x - size / 2, right=x + size / 2
    )
    u, v = 0.5 + side * (box.x - x) / size, (base - box.y) / size
    lit, dim = (1.05, 0.7) if canvas.sun[0] * side < 0 else (0.78, 1.0)
    weave = 1 + 0.06 * canvas.grain[box.at]
    half = front / 2 * (1 - v / ridge)
    up = (v >= 0) & (v < ridge)
    face = up & (abs(u - front / 2) <= half)
    roof = up & (u > front / 2 + half) & (u < front / 2 + half + 1 - front)
    door = face & (abs(u - front / 2) <= 0.45 * half - 0.03)
    panel = 3 * (u - front / 2 - half) / (1 - front)
    seam = 1.04 - 0.12 * (panel - np.floor(panel))
    instance = next(canvas.ids)
    for mask, color, light in (
        (roof, cloth, dim * seam * weave),
        (face, cloth, lit * weave),
        (door, 0.35 * cloth, weave),
    ):
        fill(canvas, box, mask, color * light[..., None], label, instance)


LABELS = {draw_tree: TREE, draw_house: HOUSE, draw_power_line: WIRE, draw_heap: PEBBLE}


def draw_balloon(canvas: Canvas, rng: np.random.Generator, color: tuple) -> None:
    """The cue: on top of all else, in the highest 28 % of the image."""
    height, width = canvas.label.shape
    radius = min(0.1 * height, 0.16 * width)
    x = radius + rng.random() * (width - 2 * radius)
    y = between(rng, 0.005, 0.02) * height + radius
    box = box_around(
        canvas, y - radius, bottom=y + 1.55 * radius, left=x - radius, right=x + radius
    )
    u, v = (box.x - x) / radius, (box.y - y) / radius
    # A ball down to v = 0.5, then a cone.
    ball = np.sqrt(np.maximum(0, 1 - v * v))
    half = np.where(v < 0.5, ball, 0.866 - 0.7 * (v - 0.5))
    envelope = (abs(u) < half) & (v > -1) & (v < 1.3)
    stripe = np.floor(2.5 * (u / np.maximum(half, 0.01) + 1)) % 2 == 0
    light = 0.35 + 0.65 * ball_light(canvas, u, np.minimum(v, 0.5))
    team = np.array(color, np.float32)
    pale = 0.7 * team + np.float32(0.3 * 240)
    cloth = np.where(stripe[..., None], team, pale) * light[..., None]
    basket = (abs(u) < 0.24) & (v >= 1.3) & (v < 1.55)
    instance = next(canvas.ids)
    fill(canvas, box, envelope, cloth, BALLOON, instance)
    wicker = np.array((130, 95, 60), np.float32)
    fill(canvas, box, basket, wicker, BALLOON, instance)
