"""Scores of boundaries: the BF score of SegNet and Boundary IoU.

Void is neither inside nor outside of a class: where a class meets void or the border of
the image, BF sees no boundary; Boundary IoU sees none at void, but one at the border of
the image, as its authors define it. Predictions on void pixels count as void.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from segjax.labels import VOID
from segjax.scoring.metric import ImageMetric, Scored
from segjax.scoring.per_image import nanmean, ratio

TOLERANCE = 0.0075
"""Of the diagonal: how far a boundary may be off (SegNet, PAMI 2017, section 4)."""
WIDTH = 0.02
"""Of the diagonal: the width of the band of Boundary IoU (Cheng et al., CVPR 2021)."""


def diagonal(shape: tuple[int, ...]) -> float:
    """The diagonal of an image [H, W], in pixels."""
    height, width = shape
    return float(np.hypot(height, width))


def boundary(mask: np.ndarray, void: np.ndarray) -> np.ndarray:
    """Pixels of a mask beside a pixel of another class, [H, W] bool.

    Args:
      mask: [H, W] bool.
      void: [H, W] bool, not part of the mask.
    """
    # Cross-shaped erosion, for which void and the outside count as part of the mask.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    filled = (mask | void).astype(np.uint8)
    return mask & ~_erode(filled, cross, outside=1)


def f1(truth: np.ndarray, predicted: np.ndarray, tolerance: float) -> float:
    """The F1 score of two sets of boundary pixels (Csurka et al., BMVC 2013).

    Precision is the share of predicted pixels that are at most ``tolerance`` away from
    a true one, recall the share of true pixels that are so from a predicted one.
    Distances are Euclidean, and many pixels may be near the same one.

    Args:
      truth: [H, W] bool.
      predicted: [H, W] bool.
      tolerance: in pixels.

    Returns:
      In 0..1; 0 if only one has pixels, NaN if neither has.
    """
    if not truth.any() or not predicted.any():
        return 0.0 if truth.any() or predicted.any() else float("nan")
    # Of pixels that are just as far away as is tolerated, rounding must not decide.
    far = tolerance + 1e-4
    precision = float((_distance(truth)[predicted] <= far).mean())
    recall = float((_distance(predicted)[truth] <= far).mean())
    both = precision + recall
    return 2 * precision * recall / both if both else 0.0


def band(mask: np.ndarray, width: int, void: np.ndarray) -> np.ndarray:
    """Pixels of a mask at most ``width`` inside of its contour, [H, W] bool.

    Args:
      mask: [H, W] bool.
      width: in pixels of the chessboard distance. The border of the image is a contour.
      void: [H, W] bool, not part of the mask. Beside it is no contour.
    """
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return mask & ~_erode((mask | void).astype(np.uint8), square, outside=0)


def _erode(mask: np.ndarray, kernel: np.ndarray, outside: int) -> np.ndarray:
    eroded = cv2.erode(
        mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=outside
    )
    return eroded.astype(bool)


def _distance(points: np.ndarray) -> np.ndarray:
    """Euclidean distance to the nearest point, [H, W] float32."""
    outside = (~points).astype(np.uint8)
    return cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _f1_of_classes(scored: Scored) -> np.ndarray:
    """[K]; NaN for classes without a boundary."""
    void = scored.label == VOID
    tolerance = TOLERANCE * diagonal(scored.label.shape)
    found = np.full(len(scored.classes), np.nan)
    for k in range(len(found)):
        true, predicted = scored.label == k, (scored.prediction == k) & ~void
        found[k] = f1(boundary(true, void), boundary(predicted, void), tolerance)
    return found


def _mean_of_images(images: Sequence[np.ndarray]) -> dict[str, float]:
    return {"boundary_f1": nanmean(np.array([nanmean(image) for image in images]))}


def _bands_of_classes(scored: Scored) -> np.ndarray:
    """[2 K]: pixels in the bands of both, then in the band of either."""
    void = scored.label == VOID
    width = max(1, round(WIDTH * diagonal(scored.label.shape)))
    found = np.zeros((2, len(scored.classes)))
    for k in range(len(scored.classes)):
        true, predicted = (
            band(mask & ~void, width, void)
            for mask in (scored.label == k, scored.prediction == k)
        )
        found[:, k] = (true & predicted).sum(), (true | predicted).sum()
    return found.ravel()


def _boundary_iou(images: Sequence[np.ndarray]) -> dict[str, float]:
    both, either = np.sum(images, axis=0).reshape(2, -1)
    return {"boundary_iou": nanmean(ratio(both, either))}


BOUNDARY_F1 = ImageMetric("boundary F1", frozenset(), _f1_of_classes, _mean_of_images)
BOUNDARY_IOU = ImageMetric(
    "boundary IoU", frozenset(), _bands_of_classes, _boundary_iou
)
