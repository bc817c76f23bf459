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
    return band_confusion(labels, predictions, classes, 0)[0]


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
        # Of one label are the windows whose smallest and largest label are the same.
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
    labels: jax.Array, predictions: jax.Array, classes: int, radius: int
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
    cells = classes * classes
    distance = boundary_distance(labels, radius)
    index = (distance - 1) * cells + labels.astype(jnp.int32) * classes
    index += predictions.astype(jnp.int32)
    # The last bin collects void and is dropped; integer counts are exact.
    index = jnp.where(labels == VOID, (radius + 1) * cells, index).ravel()
    counts = jnp.zeros((radius + 1) * cells + 1, jnp.int32).at[index].add(1)
    counts = counts[:-1].reshape(radius + 1, classes, classes)
    return jnp.cumsum(counts, axis=0)


def scores(h: np.ndarray) -> dict:
    """All metrics of a confusion matrix [K, K] int64.

    Returns:
      ``pixel_accuracy``, ``mean_accuracy``, ``miou``, ``fwiou`` (floats in 0..1) and
      ``accuracy``, ``iou``, ``frequency`` (length-K arrays; NaN for absent classes).
    """
    h = np.asarray(h, np.float64)
    right, truth, predicted = np.diag(h), h.sum(1), h.sum(0)
    total = truth.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = right / truth
        iou = right / (truth + predicted - right)
        frequency = truth / total
    return {
        "pixel_accuracy": float(right.sum() / total) if total else float("nan"),
        "mean_accuracy": _nanmean(accuracy),
        "miou": _nanmean(iou),
        "fwiou": float(np.sum((frequency * iou)[truth > 0])) if total else float("nan"),
        "accuracy": accuracy,
        "iou": iou,
        "frequency": frequency,
    }


def _nanmean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def majority_baseline(h: np.ndarray) -> dict:
    """The scores of always predicting the most frequent true class of ``h``."""
    truth = np.asarray(h).sum(1)
    constant = np.zeros_like(h)
    constant[:, truth.argmax()] = truth
    return scores(constant)
