"""Scores of the confusion matrices of single images."""

from collections.abc import Sequence

import numpy as np

from segjax.labels import VOID
from segjax.scoring.metric import ImageMetric, Scored


def confusion(scored: Scored) -> np.ndarray:
    """Confusion matrix [K, K] int64 of one image, rows = truth; void does not count."""
    classes = len(scored.classes)
    known = scored.label != VOID
    pairs = scored.label[known].astype(np.int64) * classes + scored.prediction[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def nanmean(values: np.ndarray) -> float:
    """The mean of the numbers that are not NaN; NaN if there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def ratio(numerator: np.ndarray | float, denominator: np.ndarray | float) -> np.ndarray:
    """The quotient in float64; 0 / 0 is NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator, np.float64) / denominator


def iou(scored: Scored) -> np.ndarray:
    """IoU [K] float64 of one image; NaN for classes in neither truth nor prediction.

    Pixels whose truth is void do not count, whatever is predicted there.
    """
    h = confusion(scored)
    right = np.diag(h)
    return ratio(right, h.sum(0) + h.sum(1) - right)


def _combine(images: Sequence[np.ndarray]) -> dict[str, float]:
    return {"image_miou": nanmean(np.array([nanmean(image) for image in images]))}


IMAGE_IOU = ImageMetric("mIoU per image", frozenset(), iou, _combine)


def _counts(scored: Scored) -> np.ndarray:
    """[3 K]: right, true and predicted pixels of every class."""
    h = confusion(scored)
    return np.concatenate([np.diag(h), h.sum(1), h.sum(0)]).astype(np.float64)


def _ade20k(images: Sequence[np.ndarray]) -> dict[str, float]:
    right, truth, predicted = np.sum(images, axis=0).reshape(3, -1)
    accuracy = float(ratio(right.sum(), truth.sum()))
    miou = nanmean(ratio(right, truth + predicted - right))
    return {"ade20k_score": (accuracy + miou) / 2}


ADE20K = ImageMetric("ADE20K", frozenset(), _counts, _ade20k)
"""The mean of pixel accuracy and mIoU of the whole set, as the benchmark ranks."""
