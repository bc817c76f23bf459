"""Segmentation metrics from one confusion matrix of the whole dataset.

``h[i, j]`` counts the pixels of true class i that were predicted as class j, summed
over all images before anything is divided: the mean of per-image or per-batch IoU is
a different (and order-dependent) number.  Definitions as in FCN (section 4 of the
CVPR paper):

* pixel accuracy: sum_i h_ii / sum_ij h_ij
* mean accuracy: mean_i h_ii / sum_j h_ij, over classes present in the truth
* IoU_i: h_ii / (sum_j h_ij + sum_j h_ji - h_ii); mIoU: the mean over classes present
  in the truth or the prediction (predicted but absent counts as 0)
* frequency-weighted IoU: sum_i (sum_j h_ij / sum_ij h_ij) IoU_i

All of them can be restricted to a band around the boundaries of the true labels, the
trimap of DeepLab (ICLR version, section 5.2), as a curve over the width of the band.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.labels import VOID


def confusion(labels: jax.Array, predictions: jax.Array, classes: int) -> jax.Array:
    """Confusion matrix [K, K] int32 of one batch; void pixels do not count.

    Args:
      labels: [N, H, W] train ids, 255 = void.
      predictions: [N, H, W] class ids below ``classes``.
      classes: K.
    """
    return band_confusion(labels, predictions, classes=classes, radius=0)[0]


def boundary_distance(labels: jax.Array, radius: int) -> jax.Array:
    """Distance to the nearest pixel with another label, void being one of the labels.

    The chessboard distance, as bands are squares in DeepLab's evaluation code: it
    dilates the void pixels, which in PASCAL VOC lie on all boundaries. There both
    definitions give the same bands; this one needs no void pixels. The border of the
    image is no boundary, nor is that of a frame of void at the bottom and the right.

    Args:
      labels: [N, H, W] train ids, uint8, 255 = void.
      radius: the largest distance of interest.

    Returns:
      [N, H, W] int32, 1 beside a boundary; radius + 1 stands for all that is farther.
    """

    def grow(x: jax.Array, extreme: Callable) -> jax.Array:
        """The extreme of every 3 x 3 window."""
        for axis in (1, 2):
            pad = [(1, 1) if i == axis else (0, 0) for i in range(3)]
            padded, size = jnp.pad(x, pad, mode="edge"), x.shape[axis]
            for start in (0, 2):
                near = jax.lax.slice_in_dim(padded, start, start + size, axis=axis)
                x = extreme(x, near)
        return x

    def step(i: int, state: tuple) -> tuple:
        # A window holds a single label if its smallest and largest label are the same.
        low, high, distance = state
        low, high = grow(low, jnp.minimum), grow(high, jnp.maximum)
        return low, high, distance - (low != high)

    inside = jnp.ones(labels.shape, bool)
    for axis, other in ((1, 2), (2, 1)):
        known = jnp.any(labels != VOID, axis=other, keepdims=True)
        inside &= jax.lax.cummax(known.astype(jnp.int32), axis, reverse=True) > 0
    low, high = jnp.where(inside, labels, VOID), jnp.where(inside, labels, 0)
    start = (low, high, jnp.full(labels.shape, radius + 1, jnp.int32))
    return jax.lax.fori_loop(0, radius, step, start)[2]


def band_confusion(
    labels: jax.Array, predictions: jax.Array, *, classes: int, radius: int
) -> jax.Array:
    """Confusion matrices within bands of 1 to `radius` pixels, and of all pixels.

    Args:
      labels: [N, H, W] train ids, uint8, 255 = void.
      predictions: [N, H, W] class ids below ``classes``.
      classes: K.
      radius: 0 for all pixels only.

    Returns:
      [radius + 1, K, K] int32; the last one is ``confusion``.
    """
    pairs = classes * classes
    distance = boundary_distance(labels, radius)
    index = (distance - 1) * pairs + labels.astype(jnp.int32) * classes
    index += predictions.astype(jnp.int32)
    # The last bin collects void and is dropped; integer counts are exact.
    index = jnp.where(labels == VOID, (radius + 1) * pairs, index).ravel()
    counts = jnp.zeros((radius + 1) * pairs + 1, jnp.int32).at[index].add(1)
    counts = counts[:-1].reshape(radius + 1, classes, classes)
    return jnp.cumsum(counts, axis=0)


class Counts(NamedTuple):
    """Pixels per class, float64 [K]."""

    right: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


def _ratio(numerator: np.ndarray, denominator: np.ndarray | float) -> np.ndarray:
    """The quotient; 0 / 0 is NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator, np.float64) / denominator


def _nanmean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def _pixel_accuracy(counts: Counts) -> float:
    return float(_ratio(counts.right.sum(), counts.truth.sum()))


def _fwiou(counts: Counts) -> float:
    present = counts.truth > 0
    frequency = _ratio(counts.truth, counts.truth.sum())
    terms = (frequency * PER_CLASS["iou"](counts))[present]
    return float(terms.sum()) if present.any() else float("nan")


PER_CLASS: dict[str, Callable[[Counts], np.ndarray]] = {
    "iou": lambda c: _ratio(c.right, c.truth + c.predicted - c.right),
    "accuracy": lambda c: _ratio(c.right, c.truth),
    "frequency": lambda c: _ratio(c.truth, c.truth.sum()),
}
"""Metrics of every class, [K]; NaN for absent classes."""


class Score(NamedTuple):
    """One number for a confusion matrix."""

    title: str
    """The title of the metric in tables."""
    of: Callable[[Counts], float]


SCORES: dict[str, Score] = {
    "pixel_accuracy": Score("pixel acc", _pixel_accuracy),
    "mean_accuracy": Score("mean acc", lambda c: _nanmean(PER_CLASS["accuracy"](c))),
    "miou": Score("mIoU", lambda c: _nanmean(PER_CLASS["iou"](c))),
    "fwiou": Score("fw IoU", _fwiou),
}
"""What training logs and evaluation prints; a new metric is one line here."""


def scores(h: np.ndarray) -> dict:
    """All metrics of a confusion matrix [K, K] int64.

    Returns:
      The metrics of SCORES, floats in 0..1 (NaN for an empty matrix), and those of
      PER_CLASS, length-K arrays.
    """
    h = np.asarray(h, np.float64)
    counts = Counts(np.diag(h), h.sum(1), h.sum(0))
    return {name: score.of(counts) for name, score in SCORES.items()} | {
        name: metric(counts) for name, metric in PER_CLASS.items()
    }


def majority_baseline(h: np.ndarray) -> dict:
    """The scores of always predicting the most frequent true class of ``h`` [K, K]."""
    truth = np.asarray(h).sum(1)
    constant = np.zeros_like(h)
    constant[:, truth.argmax()] = truth
    return scores(constant)
