"""Candidate masks of an image: regions of several segmentations, grouped step by step.

In the manner of selective search (Uijlings et al., IJCV 2013): the regions of
Felzenszwalb and Huttenlocher's segmentation at several scales, and all regions that
arise when the two most similar neighbors are merged again and again. Similarity is that
of their color histograms, sizes and boxes; the paper's texture is left out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from segjax.errors import UserError

SCALES = (50.0, 100.0, 200.0, 400.0)
"""Of the segmentations; larger ones have larger regions."""
BINS = 25
"""Of the histogram of each channel of Lab."""
MOST_REGIONS = 200
"""About the largest number of regions of a segmentation."""


class Candidates(NamedTuple):
    """Masks that are unions of the same small pieces of an image."""

    pieces: np.ndarray
    """Integers [H, W]: the piece 0..L-1 of each pixel."""
    members: np.ndarray
    """bool [P, L]: which pieces form each of P masks."""

    def mask(self, index: int) -> np.ndarray:
        """bool [H, W] of one of them."""
        return self.members[index][self.pieces]


def propose(image: np.ndarray, scales: Sequence[float] = SCALES) -> Candidates:
    """Candidates of an image.

    Args:
      image: uint8 [H, W, 3], or gray [H, W, 1].
      scales: of the segmentations.

    Returns:
      A few hundred masks, none of them twice.

    Raises:
      UserError: scikit-image is not installed.
    """
    felzenszwalb = _felzenszwalb()
    color = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    lab = cv2.cvtColor(color, cv2.COLOR_RGB2LAB)
    smallest = max(4, image.shape[0] * image.shape[1] // MOST_REGIONS)
    segmentations = [
        felzenszwalb(color, scale=scale, sigma=0.8, min_size=smallest)
        for scale in scales
    ]
    return combine([(regions, group(lab, regions)) for regions in segmentations])


def combine(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Candidates:
    """Masks over several segmentations of an image as candidates over common pieces.

    Args:
      parts: of each segmentation, the region of each pixel, integers [H, W] from 0, and
        the regions of each mask, bool [P, R].
    """
    stacked = np.stack([regions for regions, _ in parts], axis=-1)
    size = stacked.shape[:2]
    kinds, pieces = np.unique(
        stacked.reshape(-1, len(parts)), axis=0, return_inverse=True
    )
    members = [masks[:, kinds[:, i]] for i, (_, masks) in enumerate(parts)]
    unique = np.unique(np.concatenate(members), axis=0)
    return Candidates(pieces.reshape(size), unique)


def group(lab: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The regions of a segmentation, and those that arise when neighbors are merged.

    Args:
      lab: uint8 [H, W, 3], colors.
      regions: integers [H, W], 0..R-1.

    Returns:
      bool [2 R - 1, R], the regions in each mask, in the order in which they arise.
    """
    count = int(regions.max()) + 1
    state = _Regions(lab, regions)
    members = [*np.eye(count, dtype=bool)]
    current = dict(enumerate(members))
    for _ in range(count - 1):
        a, b = state.merge()
        current[a] = current[a] | current.pop(b)
        members.append(current[a])
    return np.array(members)


class _Regions:
    """What regions look like, and how similar neighbors are; changes by merging."""

    def __init__(self, lab: np.ndarray, regions: np.ndarray):
        count = int(regions.max()) + 1
        flat = regions.ravel()
        self.sizes = np.bincount(flat, minlength=count).astype(float)
        self.total = flat.size
        bins = lab.reshape(-1, 3).astype(int) * BINS // 256
        width = 3 * BINS
        index = flat[:, None] * width + np.arange(3) * BINS + bins
        histograms = np.bincount(index.ravel(), minlength=count * width)
        self.histograms = histograms.reshape(count, width) / (3 * self.sizes[:, None])
        rows, columns = np.indices(regions.shape)
        self.low = np.full((count, 2), np.iinfo(np.int64).max)
        self.high = np.full((count, 2), -1)
        for axis, at in enumerate((rows.ravel(), columns.ravel())):
            np.minimum.at(self.low[:, axis], flat, at)
            np.maximum.at(self.high[:, axis], flat, at + 1)
        self.neighbors = np.zeros((count, count), bool)
        for one, other in (
            (regions[1:], regions[:-1]),
            (regions[:, 1:], regions[:, :-1]),
        ):
            self.neighbors[one.ravel(), other.ravel()] = True
        self.neighbors |= self.neighbors.T.copy()
        np.fill_diagonal(self.neighbors, False)
        self.similarity = np.full((count, count), -np.inf)
        for k in range(count):
            self._compare(k)

    def _compare(self, k: int) -> None:
        """The similarities of region k to its neighbors, which are symmetric."""
        others = np.flatnonzero(self.neighbors[k])
        self.similarity[k] = self.similarity[:, k] = -np.inf
        color = np.minimum(self.histograms[others], self.histograms[k]).sum(1)
        sizes = self.sizes[others] + self.sizes[k]
        low = np.minimum(self.low[others], self.low[k])
        high = np.maximum(self.high[others], self.high[k])
        gaps = (high - low).prod(1) - sizes
        similarity = color + (1 - sizes / self.total) + (1 - gaps / self.total)
        self.similarity[k, others] = self.similarity[others, k] = similarity

    def merge(self) -> tuple[int, int]:
        """Merges the two most similar neighbors (a, b) into a."""
        count = len(self.sizes)
        a, b = sorted(divmod(int(self.similarity.argmax()), count))
        both = self.sizes[a] + self.sizes[b]
        weights = self.sizes[[a, b], None] / both
        self.histograms[a] = (weights * self.histograms[[a, b]]).sum(0)
        self.sizes[a] = both
        self.low[a] = np.minimum(self.low[a], self.low[b])
        self.high[a] = np.maximum(self.high[a], self.high[b])
        self.neighbors[a] |= self.neighbors[b]
        self.neighbors[a, [a, b]] = False
        self.neighbors[:, a] = self.neighbors[a]
        self.neighbors[b] = self.neighbors[:, b] = False
        self.similarity[b] = self.similarity[:, b] = -np.inf
        self._compare(a)
        return a, b


def _felzenszwalb() -> Any:
    # Imported on demand: only BoxSup needs it.
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError as error:
        raise UserError(
            "candidate masks need scikit-image, which is not installed: "
            "pip install 'segjax[weak]'"
        ) from error
    return felzenszwalb
