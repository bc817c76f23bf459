"""Paired differences: two methods on the same images."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
CONFIDENCE = 0.95
_AT_ONCE = 4_000_000  # numbers per block of draws


class Pair(NamedTuple):
    """The first method minus the second one, in mIoU of single images, 0 to 1."""

    first: int
    second: int
    mean: float
    low: float  # of the confidence interval of the mean
    high: float
    better: int  # images on which the first one is better
    worse: int
    equal: int


def compare(scores: np.ndarray, seed: int = 0) -> list[Pair]:
    """All pairs of methods.

    Args:
      scores: [methods, images], mIoU of single images; NaN, where all is void, counts
        for no pair.
      seed: of the bootstrap.

    Returns:
      In the order (0, 1), (0, 2), .., (1, 2), ..; numbers of pairs without images are
      NaN.
    """
    pairs = []
    for i, j in itertools.combinations(range(len(scores)), 2):
        differences = scores[i] - scores[j]
        differences = differences[~np.isnan(differences)]
        low, high = interval(differences, seed)
        pairs.append(
            Pair(
                first=i,
                second=j,
                mean=float(differences.mean()) if len(differences) else np.nan,
                low=low,
                high=high,
                better=int((differences > 0).sum()),
                worse=int((differences < 0).sum()),
                equal=int((differences == 0).sum()),
            )
        )
    return pairs


def interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of values [n]: Efron, 1979.

    Images are drawn with replacement, DRAWS times.
    """
    count = len(values)
    if not count:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    block = max(1, min(DRAWS, _AT_ONCE // count))
    for start in range(0, DRAWS, block):
        size = min(block, DRAWS - start), count
        means.append(values[rng.integers(0, count, size)].mean(axis=1))
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return float(low), float(high)


def telling_images(
    scores: np.ndarray, pairs: Sequence[tuple[int, int]], count: int
) -> dict[int, list[tuple[int, int]]]:
    """The images on which methods differ most, and for which pairs.

    Args:
      scores: [methods, images] as for :func:`compare`.
      pairs: of methods.
      count: how many images of each pair and direction.

    Returns:
      image -> (better, worse) methods; by pairs, those of the largest lead first.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for i, j in pairs:
        for better, worse in ((i, j), (j, i)):
            lead = np.nan_to_num(scores[better] - scores[worse], nan=-np.inf)
            for image in np.argsort(-lead, kind="stable")[:count]:
                if lead[image] > 0:
                    found.setdefault(int(image), []).append((better, worse))
    return found
