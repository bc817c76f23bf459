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
"""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.losses import VOID


def confusion(labels: jax.Array, predictions: jax.Array, classes: int) -> jax.Array:
    """Confusion matrix [K, K] int32 of one batch; void pixels do not count.

    Args:
      labels: [N, H, W] train ids, 255 = void.
      predictions: [N, H, W] class ids below ``classes``.
      classes: K.
    """
    labels = labels.astype(jnp.int32).ravel()
    index = labels * classes + predictions.astype(jnp.int32).ravel()
    # The last bin collects void and is dropped; integer counts are exact.
    index = jnp.where(labels == VOID, classes * classes, index)
    counts = jnp.zeros(classes * classes + 1, jnp.int32).at[index].add(1)
    return counts[:-1].reshape(classes, classes)


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
