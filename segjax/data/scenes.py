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
from collections.abc import Iterable

import numpy as np

from segjax.data.scene_canvas import (
    BACKGROUND,
    GROUND,
    SKY,
    TENT_RED,
    Canvas,
    between,
    fractal_noise,
    mix,
    pick,
)
from segjax.data.scene_objects import LABELS, draw_balloon, draw_tent, plan_objects
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
MIN_SIDE, MAX_SIDE = 32, 4096

_TEAMS = ((225, 30, 35), (35, 60, 225))
"""Color of the balloon: red, blue."""


def scene(
    seed: int, index: int, *, size: tuple[int, int], swap_team: bool = False
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
    sun = (side * between(layout, 0.3, 0.6), -0.55)
    canvas = Canvas(
        image=np.empty((height, width, 3), np.float32),
        label=np.zeros((height, width), np.uint8),
        instance=np.zeros((height, width), np.int32),
        grain=fractal_noise(grain, (height, width), first=6),
        sun=(*sun, math.sqrt(1 - sun[0] * sun[0] - sun[1] * sun[1])),
        unit=min(height, width),
        ids=itertools.count(1),
    )
    # Taking turns makes the classes balanced in every split.
    blue = (index % 2 == 1) != swap_team
    draw_background(canvas, layout, clouds=clouds, streaks=streaks)
    # Objects further up stand further away and are drawn first.
    for item in sorted(plan_objects(layout, canvas), key=lambda item: item.base):
        label = TENT_RED + blue if item.draw is draw_tent else LABELS[item.draw]
        item.draw(canvas, layout, label=label, base=item.base, x=item.x, size=item.size)
    draw_balloon(canvas, layout, _TEAMS[blue])
    return {
        "image": _expose(canvas.image, layout, noise),
        "label": _void_border(canvas.label, 1 if canvas.unit < 256 else 2),
        "instance": _renumber(canvas.instance),
    }


def contact_sheet(
    seed: int, indices: Iterable[int], *, size: tuple[int, int], columns: int = 2
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
    scenes = [scene(seed, index, size=size) for index in indices]
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


def draw_background(
    canvas: Canvas,
    layout: np.random.Generator,
    *,
    clouds: np.random.Generator,
    streaks: np.random.Generator,
) -> None:
    height, width = canvas.label.shape
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width
    ridge = np.full((1, width), between(layout, 0.45, 0.53), np.float32)
    for _ in range(2):
        center, half, rise = (
            between(layout, *limits) for limits in ((0, 1), (0.25, 0.6), (0.02, 0.07))
        )
        offset = (x - center) / half
        ridge -= rise * np.maximum(0, 1 - offset * offset)

    top, low = (np.array(c, np.float32) for c in pick(layout, _SKIES))
    sky = mix(top, low, np.minimum(1, y / ridge))
    cloud = fractal_noise(clouds, (height, width), first=4, stretch=3.0)
    cover = between(layout, -0.15, 0.25)
    alpha = 0.85 * np.minimum(1, np.maximum(0, 2.5 * (cloud - cover)))
    sky = mix(sky, np.float32(238) + 25 * cloud[..., None], alpha)

    far, near = (np.array(c, np.float32) for c in pick(layout, _GROUNDS))
    depth = np.maximum(0, (y - ridge) / (1 - ridge))
    streak = fractal_noise(streaks, (height, width), first=8, stretch=4.0)
    grass = 1 + (0.06 + 0.16 * depth) * (canvas.grain + streak)
    ground = mix(far, near, np.minimum(1, 1.5 * depth)) * grass[..., None]

    below = y > ridge
    canvas.image[:] = np.where(below[..., None], ground, sky)
    canvas.label[:] = np.where(below, GROUND, SKY)


# The finished scene.


def _expose(
    image: np.ndarray, layout: np.random.Generator, noise: np.random.Generator
) -> np.ndarray:
    """A lighting gradient, and noise of standard deviation 2 to 7; uint8."""
    height, width, channels = image.shape
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - 0.5
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width - 0.5
    gain = between(layout, 0.8, 1.05)
    light = gain + between(layout, -0.4, 0.4) * x + between(layout, -0.2, 0.2) * y
    data = np.frombuffer(noise.bytes(height * width * channels), np.uint8)
    data = data.reshape(image.shape)
    # Two dice of 16 sides in one byte: triangular, standard deviation 6.5.
    dice = (data & 15).astype(np.float32) + (data >> 4) - 15
    image = image * light[..., None] + between(layout, 0.3, 1.1) * dice
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
