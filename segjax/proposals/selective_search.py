"""Selective search (Uijlings et al., IJCV 2013), with the segments behind the boxes.

Regions of a graph segmentation (Felzenszwalb and Huttenlocher, OpenCV's) are merged,
the most similar neighbors first, until one is left; every region on the way is a
proposal. The "fast" choice of the paper: two color spaces, two sizes of the first
regions, similarity with and without color. OpenCV has it, too, but without the
segments, and ranks at random.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from segjax.errors import UserError

SPACES = (cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2LAB)
SCALES = (50.0, 100.0)
"""k of the graph segmentation; its smallest region has k pixels, too."""
SIGMA = 0.8
_COLOR_BINS, _TEXTURE_BINS, _DIRECTIONS = 25, 10, 8


class Segments(NamedTuple):
    """Proposals as unions of small regions."""

    boxes: np.ndarray
    """int32 [N, 4], inclusive, the most promising first."""
    regions: np.ndarray
    """int32 [M, H, W]: the small regions of each of M segmentations, 0..n-1."""
    members: list[tuple[int, np.ndarray]]
    """Of each proposal: which of the M, and its small regions there."""

    def mask(self, index: int) -> np.ndarray:
        """The pixels of a proposal, bool [H, W]."""
        which, ids = self.members[index]
        chosen = np.zeros(self.regions[which].max() + 1, bool)
        chosen[ids] = True
        return chosen[self.regions[which]]


def segments(image: np.ndarray, *, count: int) -> Segments:
    """The ``count`` best segments of an image; the same image has the same ones.

    Larger regions come first on average: the rank of a region is its place from the
    end of its merging, times a number that is drawn (section 3.3), with a fixed seed.
    Of several segments with the same box, the best one stays.

    Args:
      image: uint8 [H, W, 1] or [H, W, 3], RGB.
      count: the most segments.

    Raises:
      UserError: other channels.
    """
    check(image.shape[2])
    colors = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    rng = np.random.default_rng(0)
    maps: list[np.ndarray] = []
    rows: list[tuple] = []
    for space in SPACES:
        converted = cv2.cvtColor(colors, space)
        for scale in SCALES:
            regions = graph_regions(converted, scale)
            for with_color in (True, False):
                tree = list(merge(converted, regions, with_color=with_color))
                place = np.arange(len(tree), 0, -1)
                ranks = place * rng.random(len(tree))
                rows += [
                    (rank, len(maps), box, ids) for rank, (box, ids) in zip(ranks, tree)
                ]
            maps.append(regions)
    rows.sort(key=lambda row: row[0])
    best: dict[tuple, tuple[int, np.ndarray]] = {}
    for _, which, box, ids in rows:
        if len(best) < count:
            best.setdefault(box, (which, ids))
    found = np.array(list(best), np.int32).reshape(-1, 4)
    return Segments(found, np.stack(maps), list(best.values()))


def check(channels: int) -> None:
    """Raises UserError unless images with this number of channels can be searched."""
    if channels not in (1, 3):
        raise UserError(
            "selective search takes RGB or gray images, these have "
            f"{channels} channels: use edge_boxes"
        )


def graph_regions(image: np.ndarray, scale: float) -> np.ndarray:
    """The graph segmentation of uint8 [H, W, 3] -> int32 [H, W], 0..n-1."""
    graph = cv2.ximgproc.segmentation.createGraphSegmentation(SIGMA, scale, int(scale))
    regions = graph.processImage(image)
    _, numbers = np.unique(regions, return_inverse=True)
    return numbers.reshape(regions.shape).astype(np.int32)


class _Region(NamedTuple):
    size: int
    box: tuple[int, int, int, int]
    histogram: np.ndarray
    ids: np.ndarray


def merge(
    image: np.ndarray, regions: np.ndarray, *, with_color: bool
) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
    """Merges neighbors until one region is left (algorithm 1).

    The similarity is the sum of those of color (if asked for), texture, size and fill
    (section 3.2), each from 0 to 1.

    Args:
      image: uint8 [H, W, 3].
      regions: int32 [H, W], 0..n-1.
      with_color: whether color counts.

    Yields:
      Box and small regions, of the n regions first, then of each union.
    """
    from scipy import ndimage  # takes 0.2 s, which no --help should wait for

    pixels, count = regions.size, int(regions.max()) + 1
    texture = _texture_histograms(image, regions, count)
    parts = [_color_histograms(image, regions, count), texture]
    histograms = np.concatenate(parts if with_color else [texture], axis=1)
    sizes = np.bincount(regions.ravel(), minlength=count)
    alive: dict[int, _Region] = {}
    for k, (rows, columns) in enumerate(ndimage.find_objects(regions + 1)):
        box = columns.start, rows.start, columns.stop - 1, rows.stop - 1
        alive[k] = _Region(int(sizes[k]), box, histograms[k], np.array([k], np.int32))
        yield box, alive[k].ids

    def similarity(a: _Region, b: _Region) -> float:
        left, top, right, bottom = union(a.box, b.box)
        box = (right - left + 1) * (bottom - top + 1)
        # Histograms of color and of texture each sum to 1.
        shared = float(np.minimum(a.histogram, b.histogram).sum())
        size = 1 - (a.size + b.size) / pixels
        return shared + size + 1 - (box - a.size - b.size) / pixels

    neighbors = _neighbors(regions, count)
    queue = [
        (-similarity(alive[a], alive[b]), a, b)
        for a in neighbors
        for b in neighbors[a]
        if a < b
    ]
    heapq.heapify(queue)
    while queue:
        _, a, b = heapq.heappop(queue)
        if a not in alive or b not in alive:
            continue
        first, second = alive.pop(a), alive.pop(b)
        size = first.size + second.size
        weighted = first.size * first.histogram + second.size * second.histogram
        new = _Region(
            size,
            union(first.box, second.box),
            weighted / size,
            np.concatenate([first.ids, second.ids]),
        )
        around = (neighbors.pop(a) | neighbors.pop(b)) - {a, b}
        alive[count], neighbors[count] = new, around
        for other in sorted(around):
            neighbors[other] = (neighbors[other] - {a, b}) | {count}
            row = -similarity(alive[other], new), other, count
            heapq.heappush(queue, row)
        count += 1
        yield new.box, new.ids


def union(first: Sequence[int], second: Sequence[int]) -> tuple[int, int, int, int]:
    """The smallest box around two."""
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )


def _neighbors(regions: np.ndarray, count: int) -> dict[int, set[int]]:
    """Regions that share the side of a pixel."""
    pairs = np.concatenate(
        [
            np.stack([regions[:, :-1].ravel(), regions[:, 1:].ravel()], 1),
            np.stack([regions[:-1].ravel(), regions[1:].ravel()], 1),
        ]
    )
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    found: dict[int, set[int]] = {k: set() for k in range(count)}
    for a, b in pairs.tolist():
        found[a].add(b)
        found[b].add(a)
    return found


def _histograms(
    bins: Sequence[np.ndarray], regions: np.ndarray, count: int, number: int
) -> np.ndarray:
    """Of maps of bins 0..number-1, one after the other; they sum to 1 together."""
    flat = regions.ravel().astype(np.int64) * number
    rows = [np.bincount(flat + part.ravel(), minlength=count * number) for part in bins]
    joined = np.concatenate([row.reshape(count, number) for row in rows], axis=1)
    return joined / joined.sum(1, keepdims=True)


def _color_histograms(image: np.ndarray, regions: np.ndarray, count: int) -> np.ndarray:
    bins = image.astype(np.int64) * _COLOR_BINS // 256
    return _histograms(list(np.moveaxis(bins, 2, 0)), regions, count, _COLOR_BINS)


def _texture_histograms(
    image: np.ndarray, regions: np.ndarray, count: int
) -> np.ndarray:
    """Gaussian derivatives of deviation 1 in 8 directions, of each channel."""
    bins = []
    for channel in np.moveaxis(image, 2, 0):
        smooth = cv2.GaussianBlur(channel.astype(np.float32), (0, 0), 1.0)
        gx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0)
        gy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        for k in range(_DIRECTIONS):
            angle = 2 * np.pi * k / _DIRECTIONS
            response = np.maximum(gx * np.cos(angle) + gy * np.sin(angle), 0)
            top = max(float(response.max()), 1e-6)
            part = (response * (_TEXTURE_BINS / top)).astype(np.int64)
            bins.append(np.minimum(part, _TEXTURE_BINS - 1))
    return _histograms(bins, regions, count, _TEXTURE_BINS)
