"""Few shapes for images of many sizes: what to pad to, so that few programs compile.

A *frame* (h, w) holds every image no larger than it; each frame is one compiled
program.  More frames mean fewer pixels of padding and more time to compile.
"""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Size = tuple[int, int]

PADDING = 0.25
PROGRAMS = 4
"""So few programs are never too many."""
WORTH = 2**24
"""Pixels that a program more must save: what is predicted while one compiles."""

_MOST_SIZES = 192


class Bucket(NamedTuple):
    """Images that share a frame, and with it a program."""

    frame: Size
    rows: int  # images of a batch
    batches: list[list[int]]  # indices of the images; the last batch may have fewer


def plan(
    sizes: Sequence[Size],
    batch: int,
    padding: float = PADDING,
    devices: int = 1,
    max_pixels: float = math.inf,
    others: Sequence[Size] = (),
) -> list[Bucket]:
    """Which images form which batch; every image occurs once.

    The batches of a frame are about equally full, so that few rows are computed for
    nothing.

    Args:
      sizes: (h, w) of the images.
      batch: most images of a batch; rounded up to a multiple of ``devices``.
      padding: see ``frames``.
      devices: the rows of a batch are split over.
      max_pixels: of a device's part of a batch, unless that is a single image.
      others: of images that are done already; frames are chosen for all, so that the
        result of an image does not depend on which ones are left.
    """
    chosen = frames([*sizes, *others], padding, max_pixels=max_pixels)
    groups: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(chosen[tuple(size)], []).append(index)
    buckets = []
    for frame, indices in sorted(groups.items()):
        most = math.ceil(batch / devices)
        most = devices * max(int(min(most, max_pixels / math.prod(frame))), 1)
        count = math.ceil(len(indices) / most)
        rows = math.ceil(len(indices) / count / devices) * devices
        batches = [indices[at : at + rows] for at in range(0, len(indices), rows)]
        buckets.append(Bucket(frame, rows, batches))
    return buckets


def frames(
    sizes: Sequence[Size],
    padding: float = PADDING,
    programs: int = PROGRAMS,
    max_pixels: float = math.inf,
) -> dict[Size, Size]:
    """The frame of every size.

    As few frames as possible, but ``programs`` if there are so many sizes, whose pixels
    exceed those of the images by no more than the fraction ``padding``, and more where
    each saves ``WORTH`` pixels; of these, the ones with the fewest pixels.  That is a
    facility-location problem: frames are merged greedily and then exchanged one by one,
    which on small collections finds the optimum or comes close to it.  Of more than 192
    sizes, sides are rounded up to a common unit first.

    Args:
      sizes: (h, w) of all images, repeated as they occur.
      padding: 0 gives every size its own frame.
      programs: frames that are never too many.
      max_pixels: of a frame that is larger than the images it holds.

    Returns:
      {size: frame}.
    """
    # Sorted: the order of the images must not matter.
    counts = collections.Counter(sorted(tuple(size) for size in sizes))
    if padding <= 0 or len(counts) <= programs:
        return {size: size for size in counts}
    rounded, unit = counts, 1
    while len(rounded) > _MOST_SIZES:
        unit = math.ceil(1.5 * unit)
        rounded = collections.Counter()
        for (h, w), number in counts.items():
            rounded[-(-h // unit) * unit, -(-w // unit) * unit] += number
    pixels = sum(h * w * number for (h, w), number in counts.items())
    limit = (1 + padding) * pixels
    chosen = _choose(rounded, limit, programs, max_pixels)
    # Frames of rounded sizes shrink to the images that they really hold.
    held: dict[Size, list[Size]] = {}
    for size in counts:
        fits = [f for f in chosen if f[0] >= size[0] and f[1] >= size[1]]
        held.setdefault(min(fits, key=math.prod), []).append(size)
    return {
        size: (max(h for h, _ in group), max(w for _, w in group))
        for group in held.values()
        for size in group
    }


def _choose(
    counts: dict[Size, int], limit: float, programs: int, max_pixels: float
) -> list[Size]:
    """Frames of few sizes: merged while there are more than ``programs``."""
    sizes = np.array(list(counts))
    numbers = np.array(list(counts.values()), float)
    # The best frame of a group is as high as one of its sizes and as wide as another.
    joins = np.maximum(sizes[:, None], sizes[None]).reshape(-1, 2)
    candidates = np.unique(joins, axis=0)
    index = {tuple(frame): i for i, frame in enumerate(candidates.tolist())}
    holds = (candidates[:, None] >= sizes[None]).all(-1)
    # Pixels of all images of size s in frame c.
    largest = max(max_pixels, sizes.prod(1).max())
    allowed = holds & (candidates.prod(1) <= largest)[:, None]
    costs = np.where(allowed, candidates.prod(1)[:, None] * numbers, np.inf)

    def total(chosen: list[int]) -> float:
        return costs[chosen].min(0).sum()

    def merged(chosen: list[int]) -> list[int]:
        """Two frames become one, at the least cost in pixels."""
        held = costs[chosen]
        owner = held.argmin(0)
        number = np.bincount(owner, numbers, len(chosen))
        pixels = np.bincount(owner, held.min(0), len(chosen))
        frame = candidates[chosen]
        area = np.maximum(frame[:, None], frame[None]).prod(-1)
        added = (number[:, None] + number) * area - pixels[:, None] - pixels
        added[area > largest] = np.inf
        np.fill_diagonal(added, np.inf)
        first, second = np.unravel_index(added.argmin(), added.shape)
        join = index[tuple(np.maximum(frame[first], frame[second]).tolist())]
        kept = [c for i, c in enumerate(chosen) if i not in (first, second)]
        return [*kept, join]

    def exchanged(chosen: list[int]) -> list[int]:
        """Each frame in turn becomes the best one beside the others, until none do."""
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
        return total(fewer) <= min(limit, total(chosen) + WORTH)

    # Exchanging takes its time: only where merging alone comes to its end.
    while len(chosen) > programs and better(fewer := merged(chosen)):
        chosen = fewer
    chosen = exchanged(chosen)
    while len(chosen) > programs and better(fewer := exchanged(merged(chosen))):
        chosen = fewer
    return [tuple(frame) for frame in candidates[chosen].tolist()]
