"""Little procedural landscapes, each class of which tests one ability of a network.

A rolling meadow under a cloudy sky with trees, houses, a power line, a heap of pebbles,
tents, and one balloon.  What the classes test:

* ``tent_red``, ``tent_blue``: **context**.  All tents of a scene belong to the team of
  its balloon, red or blue.  Nothing else depends on the team: the balloon flies at the
  top, the tents stand in the lower part at least a third of the image height below it,
  and outside the balloon not one bit of the image changes with the team.  Telling the
  two classes apart takes a receptive field, or a pooling pyramid, that reaches from the
  tents to the balloon; guessing gets half of the tent pixels right.
* ``wire``: **resolution**.  Wires are 1 or 2 px thick, poles 2 or 3, at any image size.
* ``tree``: **scale**.  Crowns measure from 8 px to 0.9 of the shorter image side, and
  reach out of the image.
* ``pebble``: **instances**.  Pebbles touch and overlap; the instance map tells them
  apart.
* ``house``: **shape**.  Walls have any muted color, those of sky, meadow and pebbles
  included; windows, doors and roofs give them away.
* ``sky``, ``ground``: the background, with clouds, grass and shadows, in colors that
  run from blue noon to dusk and from green to sand.
* ``balloon``: the cue, one class for both teams.

Across all of them: a lighting gradient, shading by one sun per scene, occlusion from
back to front, and sensor noise.  Background pixels next to an object are void.

Layout and large-scale texture depend on seed, index and the ratio of the sides only:
another size shows (nearly) the same picture at another resolution, with wires of the
same thickness in pixels.  Arrays go through elementwise ``+ - * / sqrt`` and integer
operations only, which IEEE 754 defines to the last bit, and random numbers through
Philox: every platform makes the same scenes.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from segjax.errors import UserError
from segjax.labels import VOID

CLASSES = (
    "sky",
    "ground",
    "tree",
    "house",
    "wire",
    "pebble",
    "balloon",
    "tent_red",
    "tent_blue",
)
PALETTE = np.array(
    [
        (135, 206, 235),
        (170, 190, 90),
        (30, 120, 50),
        (150, 90, 60),
        (40, 40, 40),
        (150, 150, 160),
        (250, 200, 40),
        (225, 60, 60),
        (70, 80, 220),
    ],
    np.uint8,
)
"""Color of class k, RGB [K, 3]."""
SKY, GROUND, TREE, HOUSE, WIRE, PEBBLE, BALLOON, TENT_RED, TENT_BLUE = range(9)
BACKGROUND = (SKY, GROUND)
MIN_SIDE, MAX_SIDE = 32, 4096

_TEAMS = ((225, 30, 35), (35, 60, 225))
"""Color of the balloon: red, blue."""


class _Canvas(NamedTuple):
    """The scene so far; painting changes the arrays in place."""

    image: np.ndarray  # float32 [h, w, 3], 0..255
    label: np.ndarray  # uint8 [h, w]
    instance: np.ndarray  # int32 [h, w], 0 = background
    grain: np.ndarray  # float32 [h, w], fractal texture, about -1..1
    sun: tuple[float, float, float]  # unit vector to the light: right, down, viewer
    unit: int  # min(h, w)
    ids: Iterator[int]  # of the next objects


class _Box(NamedTuple):
    """The part of a bounding box inside the image."""

    at: tuple[slice, slice]
    y: np.ndarray  # float32 [rows, 1], pixel centers
    x: np.ndarray  # float32 [1, columns]


def scene(
    seed: int, index: int, size: tuple[int, int], *, swap_team: bool = False
) -> dict[str, np.ndarray]:
    """Draws one scene; the same arguments give the same bits on every platform.

    Args:
      seed: of the stream of scenes, >= 0.
      index: position in the stream, >= 0.
      size: (h, w) in pixels, 32..4096 each.
      swap_team: draws the same scene with the balloon of the other team: the image
        changes on the balloon only, the tents change their class and nothing else
        does.

    Returns:
      ``image`` uint8 [h, w, 3] RGB; ``label`` uint8 [h, w], positions in ``CLASSES``,
      255 = void; ``instance`` uint16 [h, w], ids 1..n of the objects (each tree, house,
      pebble, tent, the power line, the balloon), 0 on background and void.

    Raises:
      UserError: negative seed or index, or a size out of range.
    """
    height, width = _check(seed, index, size)
    # Textures and noise draw more values for larger images: each has its own stream,
    # so that the others do not change with size.
    streams = np.random.SeedSequence((seed, index)).spawn(5)
    layout, grain, clouds, streaks, noise = (
        np.random.Generator(np.random.Philox(stream)) for stream in streams
    )
    side = 1.0 if layout.random() < 0.5 else -1.0
    sun = (side * _between(layout, 0.3, 0.6), -0.55)
    canvas = _Canvas(
        image=np.empty((height, width, 3), np.float32),
        label=np.zeros((height, width), np.uint8),
        instance=np.zeros((height, width), np.int32),
        grain=_fractal(grain, (height, width), first=6),
        sun=(*sun, math.sqrt(1 - sun[0] * sun[0] - sun[1] * sun[1])),
        unit=min(height, width),
        ids=itertools.count(1),
    )
    # Taking turns makes the classes balanced in every split.
    blue = (index % 2 == 1) != swap_team
    _background(canvas, layout, clouds, streaks)
    # Objects further up stand further away and are drawn first.
    for paint, *where in sorted(_plan(layout, canvas), key=lambda item: item[1]):
        label = TENT_RED + blue if paint is _tent else _LABELS[paint]
        paint(canvas, layout, label, *where)
    _balloon(canvas, layout, _TEAMS[blue])
    return {
        "image": _expose(canvas.image, layout, noise),
        "label": _void_border(canvas.label, 1 if canvas.unit < 256 else 2),
        "instance": _renumber(canvas.instance),
    }


def contact_sheet(
    seed: int, indices: Iterable[int], size: tuple[int, int], columns: int = 2
) -> np.ndarray:
    """Scenes beside their labels in the colors of ``PALETTE`` (void is white).

    Args:
      seed, size: see ``scene``.
      indices: of the scenes, row by row.
      columns: pairs of image and label per row.

    Returns:
      uint8 [rows * h, columns * 2 * w, 3] RGB; missing pairs are white.
    """
    colors = np.full((256, 3), 255, np.uint8)
    colors[: len(PALETTE)] = PALETTE
    scenes = [scene(seed, index, size) for index in indices]
    pairs = [np.hstack([made["image"], colors[made["label"]]]) for made in scenes]
    height, width = size
    blank = np.full((height, 2 * width, 3), 255, np.uint8)
    pairs += [blank] * (-len(pairs) % columns)
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    return np.vstack([np.hstack(row) for row in rows])


def _check(seed: int, index: int, size: tuple[int, int]) -> tuple[int, int]:
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise UserError(f"scenes: found {name} {value}, expected 0 or more")
    if len(size) != 2 or not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise UserError(
            f"scenes: found size {tuple(size)}, expected (height, width) of "
            f"{MIN_SIDE} to {MAX_SIDE} pixels each"
        )
    return size[0], size[1]


# Random values and colors.


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    # rng.uniform leaves the compiler free to fuse multiply and add, which rounds
    # differently from one platform to the next.
    return low + (high - low) * rng.random()


def _pick(rng: np.random.Generator, choices: tuple) -> tuple:
    return choices[int(len(choices) * rng.random())]


def _color(rng: np.random.Generator, choices: tuple, spread: float) -> np.ndarray:
    """One of the colors, each channel moved by up to ``spread``; float32 [3]."""
    color = _pick(rng, choices)
    moved = [channel + _between(rng, -spread, spread) for channel in color]
    return np.array(moved, np.float32)


def _mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """a where t = 0, b where t = 1; t gets a channel axis."""
    t = t[..., None]
    return a * (1 - t) + b * t


def _fractal(
    rng: np.random.Generator,
    shape: tuple[int, int],
    first: int,
    stretch: float = 1.0,
) -> np.ndarray:
    """Octaves of value noise, from ``first`` cells per shorter side to 2 px per cell.

    Args:
      stretch: width of a cell over its height.

    Returns:
      float32 [h, w], about -1..1.
    """
    unit = min(shape)
    total = np.zeros(shape, np.float32)
    cells, weight = first, 0.5
    while cells * 2 <= unit:
        corners = [int(shape[0] / unit * cells) + 2]
        corners += [int(shape[1] / unit * cells / stretch) + 2]
        lattice = rng.random(corners, np.float32) - np.float32(0.5)
        (top, bottom, down) = _lattice(shape[0], cells / unit)
        (left, right, along) = _lattice(shape[1], cells / unit / stretch)
        columns = lattice[:, left] * (1 - along) + lattice[:, right] * along
        down = down[:, None]
        total += weight * 2 * (columns[top] * (1 - down) + columns[bottom] * down)
        cells, weight = cells * 2, weight * 0.75
    return total


def _lattice(
    pixels: int, cells_per_pixel: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell before and after each pixel center, and the smooth way between them."""
    at = (np.arange(pixels) + 0.5) * cells_per_pixel
    before = at.astype(np.int32)
    t = (at - before).astype(np.float32)
    return before, before + 1, t * t * (3 - 2 * t)


# Painting.


def _box(canvas: _Canvas, top: float, bottom: float, left: float, right: float) -> _Box:
    height, width = canvas.label.shape
    rows = slice(*(min(max(math.floor(v), 0), height) for v in (top, bottom + 1)))
    columns = slice(*(min(max(math.floor(v), 0), width) for v in (left, right + 1)))
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] + 0.5
    return _Box((rows, columns), y, x)


def _paint(
    canvas: _Canvas,
    box: _Box,
    mask: np.ndarray,
    color: np.ndarray,
    label: int,
    instance: int,
) -> None:
    """Color is [3] or [rows, columns, 3]."""
    color = np.broadcast_to(color, (*mask.shape, 3))
    canvas.image[box.at][mask] = color[mask]
    canvas.label[box.at][mask] = label
    canvas.instance[box.at][mask] = instance


def _ball(canvas: _Canvas, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Light on a unit ball at (u, v), 0.45..1.15: ambient and Lambert's cosine."""
    right, down, front = canvas.sun
    z = np.sqrt(np.maximum(0, 1 - u * u - v * v))
    return 0.45 + 0.7 * np.maximum(0, right * u + down * v + front * z)


def _shadow(canvas: _Canvas, base: float, x: float, half_width: float) -> None:
    """Darkens the ground around the foot of an object, away from the sun."""
    depth = 0.22 * half_width + 1
    x = x - 0.6 * canvas.sun[0] * half_width
    reach = 1.25 * half_width
    box = _box(canvas, base - depth, base + depth, x - reach, x + reach)
    u, v = (box.x - x) / reach, (box.y - base) / depth
    shade = 1 - 0.5 * np.minimum(1, 2 * np.maximum(0, 1 - u * u - v * v))
    ground = (canvas.label[box.at] == GROUND)[..., None]
    canvas.image[box.at] *= np.where(ground, shade[..., None], 1)


# The background.

_SKIES = (
    ((70, 130, 205), (190, 215, 235)),  # noon
    ((120, 155, 190), (225, 225, 220)),  # haze
    ((95, 105, 160), (245, 200, 170)),  # dusk
    ((135, 145, 155), (200, 203, 205)),  # overcast
)
"""Color at the top and at the horizon."""

_GROUNDS = (
    ((125, 160, 95), (75, 125, 45)),  # meadow
    ((165, 175, 105), (120, 135, 55)),  # dry grass
    ((205, 190, 145), (175, 150, 95)),  # sand
    ((150, 135, 120), (110, 95, 70)),  # heath
)
"""Color at the horizon and at the bottom."""


def _background(
    canvas: _Canvas,
    layout: np.random.Generator,
    clouds: np.random.Generator,
    streaks: np.random.Generator,
) -> None:
    height, width = canvas.label.shape
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width
    ridge = np.full((1, width), _between(layout, 0.45, 0.53), np.float32)
    for _ in range(2):
        center, half, rise = (
            _between(layout, *limits) for limits in ((0, 1), (0.25, 0.6), (0.02, 0.07))
        )
        offset = (x - center) / half
        ridge -= rise * np.maximum(0, 1 - offset * offset)

    top, low = (np.array(c, np.float32) for c in _pick(layout, _SKIES))
    sky = _mix(top, low, np.minimum(1, y / ridge))
    cloud = _fractal(clouds, (height, width), first=4, stretch=3.0)
    cover = _between(layout, -0.15, 0.25)
    alpha = 0.85 * np.minimum(1, np.maximum(0, 2.5 * (cloud - cover)))
    sky = _mix(sky, np.float32(238) + 25 * cloud[..., None], alpha)

    far, near = (np.array(c, np.float32) for c in _pick(layout, _GROUNDS))
    depth = np.maximum(0, (y - ridge) / (1 - ridge))
    streak = _fractal(streaks, (height, width), first=8, stretch=4.0)
    grass = 1 + (0.06 + 0.16 * depth) * (canvas.grain + streak)
    ground = _mix(far, near, np.minimum(1, 1.5 * depth)) * grass[..., None]

    below = y > ridge
    canvas.image[:] = np.where(below[..., None], ground, sky)
    canvas.label[:] = np.where(below, GROUND, SKY)


# The objects.  ``base`` is the row of the foot, ``x`` the column of the middle, both in
# pixels; every object draws a fixed number of random values, or one that depends on
# random values only.


def _plan(rng: np.random.Generator, canvas: _Canvas) -> list[tuple]:
    """What stands where: (painter, base, x, size), all but painter in pixels."""
    height, width = canvas.label.shape
    unit = canvas.unit
    wide = width / unit
    plan = []

    def add(paint, base, x, size):
        plan.append((paint, base * height, x * width, size * unit))

    smallest = 8 / unit
    for k in range(round(1 + 2 * wide)):
        largest = 0.9 if k == 0 else 0.3
        t = rng.random()
        size = smallest + (largest - smallest) * t * t
        add(_tree, _between(rng, 0.52, 0.56) + 0.15 * t, rng.random(), size)
    for _ in range(round((1 + 1.5 * rng.random()) * wide)):
        size = _between(rng, 0.16, 0.42)
        add(_house, 0.5 + 0.45 * size, rng.random(), size)
    add(_line, _between(rng, 0.66, 0.73), rng.random(), _between(rng, 0.4, 0.6))

    # Tents and pebbles share the foreground, each in a place of its own.
    places = round(_between(rng, 2.6, 4.4) * wide)
    order = sorted(range(places), key=lambda _: rng.random())
    heaps = max(1, places // 4)
    for k, place in enumerate(order):
        x = (place + _between(rng, 0.35, 0.65)) / places
        if k < heaps:
            add(_heap, _between(rng, 0.86, 0.98), x, _between(rng, 0.04, 0.055))
        else:
            add(_tent, _between(rng, 0.82, 0.96), x, _between(rng, 0.2, 0.28))
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


def _tree(canvas, rng, label, base, x, size):
    """A crown of diameter ``size`` on a trunk."""
    instance = next(canvas.ids)
    radius, trunk = size / 2, max(2.0, 0.12 * size)
    middle = base - 0.3 * size - radius
    _shadow(canvas, base, x, 0.8 * radius)
    box = _box(canvas, middle, base, x - trunk / 2, x + trunk / 2)
    u = (box.x - x) / trunk
    bark = (
        np.array((95, 70, 50), np.float32)
        * (0.9 + canvas.sun[0] * u + 0.2 * canvas.grain[box.at])[..., None]
    )
    _paint(canvas, box, (abs(u) < 0.5) & (box.y < base), bark, label, instance)
    leaves = _color(rng, _LEAVES, 12)
    for right, down, share in _LUMPS:
        lump_x = x + radius * (right + _between(rng, -0.08, 0.08))
        lump_y = middle + radius * (down + _between(rng, -0.08, 0.08))
        lump = radius * share * _between(rng, 0.9, 1.1)
        box = _box(canvas, lump_y - lump, lump_y + lump, lump_x - lump, lump_x + lump)
        u, v = (box.x - lump_x) / lump, (box.y - lump_y) / lump
        rough = 0.25 * canvas.grain[box.at]
        light = (0.25 + 0.75 * _ball(canvas, u, v)) * (1 - 0.25 * down) * (1 + rough)
        inside = u * u + v * v < 1 + rough * share
        _paint(canvas, box, inside, leaves * light[..., None], label, instance)


_WALLS = (
    (225, 215, 195),  # cream
    (150, 170, 195),  # sky
    (130, 145, 95),  # meadow
    (160, 155, 150),  # pebble
    (185, 135, 110),  # brick
)
_ROOFS = ((150, 85, 65), (95, 90, 95), (125, 105, 80))
_GLASS = np.array((50, 60, 75), np.float32)


def _house(canvas, rng, label, base, x, size):
    """A gabled front and a long side under a sloping roof, ``size`` wide."""
    instance = next(canvas.ids)
    floors = 1 + int(2 * rng.random())
    eaves, front = 0.16 + 0.2 * floors, _between(rng, 0.35, 0.48)
    ridge = eaves + _between(rng, 0.24, 0.34)
    side = 1 if rng.random() < 0.5 else -1
    wall, roof = _color(rng, _WALLS, 15), _color(rng, _ROOFS, 12)
    _shadow(canvas, base, x, size / 2)
    box = _box(canvas, base - ridge * size, base, x - size / 2, x + size / 2)
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
        _paint(canvas, box, mask, color * light, label, instance)


def _line(canvas, rng, label, base, x, size):
    """A power line from edge to edge; ``size`` is the distance of its poles."""
    instance = next(canvas.ids)
    height, width = canvas.label.shape
    thick = 1 if canvas.unit < 256 else 2
    top = _between(rng, 0.2, 0.3) * height
    gap = max(5.0, 0.045 * canvas.unit)
    sag, wires = _between(rng, 0.06, 0.12) * size, 2 + int(2 * rng.random())
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


def _heap(canvas, rng, label, base, x, size):
    """Pebbles of radius about ``size`` in rows of 5, 4, 3, each an instance."""
    _shadow(canvas, base, x, 5 * size)
    for row in (2, 1, 0):
        for k in range(5 - row):
            stone = _color(rng, _STONES, 14)
            wide, tall = size * _between(rng, 0.95, 1.3), size * _between(rng, 0.8, 1)
            middle = x + size * (1.75 * (k - (4 - row) / 2) + _between(rng, -0.2, 0.2))
            y = base - tall - size * (1.2 * row + _between(rng, -0.15, 0.15))
            box = _box(canvas, y - tall, y + tall, middle - wide, middle + wide)
            u, v = (box.x - middle) / wide, (box.y - y) / tall
            light = _ball(canvas, u, v) * (1 + 0.15 * canvas.grain[box.at])
            inside = u * u + v * v < 1
            color = stone * light[..., None]
            _paint(canvas, box, inside, color, label, next(canvas.ids))


_CANVASES = ((225, 205, 160), (205, 175, 115), (215, 195, 100), (200, 195, 170))


def _tent(canvas, rng, label, base, x, size):
    """A ridge tent, ``size`` wide; the label is not looked at."""
    front, ridge = _between(rng, 0.5, 0.6), _between(rng, 0.52, 0.6)
    side = 1 if rng.random() < 0.5 else -1
    cloth = _color(rng, _CANVASES, 10)
    _shadow(canvas, base, x, size / 2)
    box = _box(canvas, base - ridge * size, base, x - size / 2, x + size / 2)
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
        _paint(canvas, box, mask, color * light[..., None], label, instance)


_LABELS = {_tree: TREE, _house: HOUSE, _line: WIRE, _heap: PEBBLE}


def _balloon(canvas: _Canvas, rng: np.random.Generator, color: tuple) -> None:
    """The cue: on top of all else, in the highest 28 % of the image."""
    height, width = canvas.label.shape
    radius = min(0.1 * height, 0.16 * width)
    x = radius + rng.random() * (width - 2 * radius)
    y = _between(rng, 0.005, 0.02) * height + radius
    box = _box(canvas, y - radius, y + 1.55 * radius, x - radius, x + radius)
    u, v = (box.x - x) / radius, (box.y - y) / radius
    # A ball down to v = 0.5, then a cone.
    ball = np.sqrt(np.maximum(0, 1 - v * v))
    half = np.where(v < 0.5, ball, 0.866 - 0.7 * (v - 0.5))
    envelope = (abs(u) < half) & (v > -1) & (v < 1.3)
    stripe = np.floor(2.5 * (u / np.maximum(half, 0.01) + 1)) % 2 == 0
    light = 0.35 + 0.65 * _ball(canvas, u, np.minimum(v, 0.5))
    team = np.array(color, np.float32)
    pale = 0.7 * team + np.float32(0.3 * 240)
    cloth = np.where(stripe[..., None], team, pale) * light[..., None]
    basket = (abs(u) < 0.24) & (v >= 1.3) & (v < 1.55)
    instance = next(canvas.ids)
    _paint(canvas, box, envelope, cloth, BALLOON, instance)
    wicker = np.array((130, 95, 60), np.float32)
    _paint(canvas, box, basket, wicker, BALLOON, instance)


# The finished scene.


def _expose(
    image: np.ndarray, layout: np.random.Generator, noise: np.random.Generator
) -> np.ndarray:
    """A lighting gradient, and noise of standard deviation 2 to 7; uint8."""
    height, width, channels = image.shape
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - 0.5
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width - 0.5
    gain = _between(layout, 0.8, 1.05)
    light = gain + _between(layout, -0.4, 0.4) * x + _between(layout, -0.2, 0.2) * y
    data = np.frombuffer(noise.bytes(height * width * channels), np.uint8)
    data = data.reshape(image.shape)
    # Two dice of 16 sides in one byte: triangular, standard deviation 6.5.
    dice = (data & 15).astype(np.float32) + (data >> 4) - 15
    image = image * light[..., None] + _between(layout, 0.3, 1.1) * dice
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _void_border(label: np.ndarray, reach: int) -> np.ndarray:
    """Makes background void up to ``reach`` px from an object, diagonals included."""
    near = np.pad(label > max(BACKGROUND), reach)
    height, width = label.shape
    near = np.any([near[k : k + height] for k in range(2 * reach + 1)], axis=0)
    near = np.any([near[:, k : k + width] for k in range(2 * reach + 1)], axis=0)
    return np.where(near & (label <= max(BACKGROUND)), VOID, label).astype(np.uint8)


def _renumber(instance: np.ndarray) -> np.ndarray:
    """Ids 1..n without those of objects that are hidden or out of the image."""
    seen = np.bincount(instance.ravel()) > 0
    seen[0] = False
    return np.where(seen, np.cumsum(seen), 0).astype(np.uint16)[instance]
