"""Which images share a batch: few padded shapes for images of many sizes.

Images are padded to a *padded shape* (h, w) that is no smaller than they are, and each
padded shape is compiled once.  More shapes mean less padding and more compiling.
"""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Size = tuple[int, int]

PADDING = 0.25
"""Default limit of the padding, as a fraction of the pixels of all images."""
FREE_SHAPES = 4
"""Up to this many compiled shapes are always allowed."""
PIXELS_PER_SHAPE = 2**24
"""Padding pixels an extra compiled shape must save to be worth its compile time."""

_MAX_SIZES = 192
"""With more sizes than this, sides are rounded up before shapes are chosen."""


class BatchGroup(NamedTuple):
    """The batches of one padded shape, which share a compiled function."""

    padded_shape: Size
    batch_size: int
    batches: list[list[int]]
    """Indices of the images of each batch; the last batch may have fewer."""


def plan(
    sizes: Sequence[Size],
    batch_size: int,
    *,
    padding: float = PADDING,
    devices: int = 1,
    max_pixels: float = math.inf,
    batch_pixels: float = math.inf,
    others: Sequence[Size] = (),
) -> list[BatchGroup]:
    """Plans the batches of a collection; every image occurs once.

    The batches of a padded shape are about equally full, so that little is computed
    for images that do not exist.

    Args:
      sizes: (h, w) of the images.
      batch_size: the most images of a batch; rounded up to a multiple of ``devices``.
      padding: see ``padded_shapes``.
      devices: how many devices a batch is split over; batch sizes are multiples of it.
      max_pixels: of each device's part of a batch, unless that is a single image.
      batch_pixels: the same, without influence on the padded shapes.
      others: sizes of images that are done already; padded shapes are chosen for all,
        so that the result of an image does not depend on which ones are left.
    """
    most = min(max_pixels, batch_pixels)
    shapes = padded_shapes([*sizes, *others], padding, max_pixels=max_pixels)
    members: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        members.setdefault(shapes[size[0], size[1]], []).append(index)
    groups = []
    for shape, indices in sorted(members.items()):
        per_device = math.ceil(batch_size / devices)
        per_device = max(int(min(per_device, most / math.prod(shape))), 1)
        count = math.ceil(len(indices) / (devices * per_device))
        images = math.ceil(len(indices) / count / devices) * devices
        batches = [indices[at : at + images] for at in range(0, len(indices), images)]
        groups.append(BatchGroup(shape, images, batches))
    return groups


def padded_shapes(
    sizes: Sequence[Size],
    padding: float = PADDING,
    *,
    free_shapes: int = FREE_SHAPES,
    max_pixels: float = math.inf,
) -> dict[Size, Size]:
    """Chooses the padded shape of every size.

    They are as few as possible (but ``free_shapes`` if there are that many sizes) with
    padding below the fraction ``padding`` of the pixels of all images; more of them
    where each saves ``PIXELS_PER_SHAPE`` pixels; and of these choices the one with the
    least padding.  That is a facility-location problem: shapes are merged greedily and
    then exchanged one by one, which finds the optimum of small collections or comes
    close to it.

    Args:
      sizes: (h, w) of all images, repeated as they occur.
      padding: 0 gives every size a shape of its own.
      free_shapes: as many shapes are always allowed.
      max_pixels: limit of a padded shape that is larger than the images it holds.

    Returns:
      {size: padded shape}.
    """
    # Sorted: the order of the images must not matter.
    counts = collections.Counter(sorted((h, w) for h, w in sizes))
    if padding <= 0 or len(counts) <= free_shapes:
        return {size: size for size in counts}
    rounded, unit = counts, 1
    while len(rounded) > _MAX_SIZES:
        unit = math.ceil(1.5 * unit)
        rounded = collections.Counter()
        for (h, w), number in counts.items():
            rounded[-(-h // unit) * unit, -(-w // unit) * unit] += number
    pixels = sum(h * w * number for (h, w), number in counts.items())
    limit = (1 + padding) * pixels
    chosen = _choose(rounded, limit, free_shapes=free_shapes, max_pixels=max_pixels)
    # Shapes of rounded sizes shrink to the largest sides of their images.
    groups: dict[Size, list[Size]] = {}
    for size in counts:
        fits = [shape for shape in chosen if np.greater_equal(shape, size).all()]
        groups.setdefault(min(fits, key=math.prod), []).append(size)
    return {
        size: (max(h for h, _ in group), max(w for _, w in group))
        for group in groups.values()
        for size in group
    }


def _choose(
    counts: dict[Size, int], limit: float, *, free_shapes: int, max_pixels: float
) -> list[Size]:
    """Padded shapes of few sizes: merged while there are more than ``free_shapes``."""
    sizes = np.array(list(counts))
    numbers = np.array(list(counts.values()), float)
    # The best shape of a group is as high as one of its sizes and as wide as another.
    joins = np.maximum(sizes[:, None], sizes[None]).reshape(-1, 2)
    candidates = np.unique(joins, axis=0)
    index = {tuple(shape): i for i, shape in enumerate(candidates.tolist())}
    holds = (candidates[:, None] >= sizes[None]).all(-1)
    # Pixels of all images of size s in shape c.
    largest = max(max_pixels, sizes.prod(1).max())
    allowed = holds & (candidates.prod(1) <= largest)[:, None]
    costs = np.where(allowed, candidates.prod(1)[:, None] * numbers, np.inf)

    def total(chosen: list[int]) -> float:
        return costs[chosen].min(0).sum()

    def merged(chosen: list[int]) -> list[int]:
        """Two shapes become one, at the least cost in pixels."""
        current = costs[chosen]
        owner = current.argmin(0)
        number = np.bincount(owner, numbers, len(chosen))
        pixels = np.bincount(owner, current.min(0), len(chosen))
        shape = candidates[chosen]
        area = np.maximum(shape[:, None], shape[None]).prod(-1)
        added = (number[:, None] + number) * area - pixels[:, None] - pixels
        added[area > largest] = np.inf
        np.fill_diagonal(added, np.inf)
        first, second = np.unravel_index(added.argmin(), added.shape)
        join = index[tuple(np.maximum(shape[first], shape[second]).tolist())]
        kept = [c for i, c in enumerate(chosen) if i not in (first, second)]
        return [*kept, join]

    def exchanged(chosen: list[int]) -> list[int]:
        """Each shape in turn becomes the best one beside the others, until none do."""
        chosen, best = list(chosen), total(chosen)
        changed = True
        while changed:
            changed = False
            for i in range(len(chosen)):
                others = costs[chosen[:i] + chosen[i + 1 :]].min(0, initial=np.inf)
                totals = np.minimum(costs, others).sum(1)
                if totals.min() < best:
                    chosen[i], best, changed = int(totals.argmin()), totals.min(), True
        return chosen

    chosen = [index[tuple(size)] for size in sizes.tolist()]

    def better(fewer: list[int]) -> bool:
        return total(fewer) <= min(limit, total(chosen) + PIXELS_PER_SHAPE)

    # Exchanging is slow: only where merging alone gets no further.
    while len(chosen) > free_shapes and better(fewer := merged(chosen)):
        chosen = fewer
    chosen = exchanged(chosen)
    while len(chosen) > free_shapes and better(fewer := exchanged(merged(chosen))):
        chosen = fewer
    return [tuple(shape) for shape in candidates[chosen].tolist()]
