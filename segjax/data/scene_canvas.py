"""Drawing of procedural scenes: the canvas, random values, texture, filled shapes.

Everything here gives the same bits on every platform; see ``scenes``.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SKY, GROUND, TREE, HOUSE, WIRE, PEBBLE, BALLOON, TENT_RED, TENT_BLUE = range(9)
BACKGROUND = (SKY, GROUND)


class Canvas(NamedTuple):
    """The scene so far; painting changes the arrays in place."""

    image: np.ndarray  # float32 [h, w, 3], 0..255
    label: np.ndarray  # uint8 [h, w]
    instance: np.ndarray  # int32 [h, w], 0 = background
    grain: np.ndarray  # float32 [h, w], fractal texture, about -1..1
    sun: tuple[float, float, float]  # unit vector to the light: right, down, viewer
    unit: int  # min(h, w)
    ids: Iterator[int]  # of the next objects


class Box(NamedTuple):
    """The part of a bounding box inside the image."""

    at: tuple[slice, slice]
    y: np.ndarray  # float32 [rows, 1], pixel centers
    x: np.ndarray  # float32 [1, columns]


# Random values and colors.


def between(rng: np.random.Generator, low: float, high: float) -> float:
    # rng.uniform leaves the compiler free to fuse multiply and add, which rounds
    # differently from one platform to the next.
    return low + (high - low) * rng.random()


def pick(rng: np.random.Generator, choices: tuple) -> tuple:
    return choices[int(len(choices) * rng.random())]


def pick_color(rng: np.random.Generator, choices: tuple, spread: float) -> np.ndarray:
    """One of the colors, each channel moved by up to ``spread``; float32 [3]."""
    color = pick(rng, choices)
    moved = [channel + between(rng, -spread, spread) for channel in color]
    return np.array(moved, np.float32)


def mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """a where t = 0, b where t = 1; t gets a channel axis."""
    t = t[..., None]
    return a * (1 - t) + b * t


def fractal_noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
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


def box_around(
    canvas: Canvas, top: float, *, bottom: float, left: float, right: float
) -> Box:
    height, width = canvas.label.shape
    rows = slice(*(min(max(math.floor(v), 0), height) for v in (top, bottom + 1)))
    columns = slice(*(min(max(math.floor(v), 0), width) for v in (left, right + 1)))
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] + 0.5
    return Box((rows, columns), y, x)


def fill(
    canvas: Canvas,
    box: Box,
    mask: np.ndarray,
    color: np.ndarray,
    label: int,
    instance: int,
) -> None:
    """Sets the pixels of a mask [rows, columns]; color is [3] or [rows, columns, 3]."""
    color = np.broadcast_to(color, (*mask.shape, 3))
    canvas.image[box.at][mask] = color[mask]
    canvas.label[box.at][mask] = label
    canvas.instance[box.at][mask] = instance


def ball_light(canvas: Canvas, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Light on a unit ball at (u, v), 0.45..1.15: ambient and Lambert's cosine."""
    right, down, front = canvas.sun
    z = np.sqrt(np.maximum(0, 1 - u * u - v * v))
    return 0.45 + 0.7 * np.maximum(0, right * u + down * v + front * z)


def cast_shadow(canvas: Canvas, base: float, *, x: float, half_width: float) -> None:
    """Darkens the ground around the foot of an object, away from the sun."""
    depth = 0.22 * half_width + 1
    x = x - 0.6 * canvas.sun[0] * half_width
    reach = 1.25 * half_width
    box = box_around(
        canvas, base - depth, bottom=base + depth, left=x - reach, right=x + reach
    )
    u, v = (box.x - x) / reach, (box.y - base) / depth
    shade = 1 - 0.5 * np.minimum(1, 2 * np.maximum(0, 1 - u * u - v * v))
    ground = (canvas.label[box.at] == GROUND)[..., None]
    canvas.image[box.at] *= np.where(ground, shade[..., None], 1)
