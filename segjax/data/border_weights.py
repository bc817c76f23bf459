"""U-Net's weights of the borders between instances (MICCAI 2015, section 3)."""

import math

import cv2
import numpy as np

from segjax.labels import VOID

_SMALLEST = 1e-4
"""Weights below it are 0: no instance is looked for farther away."""


def border_weights(instance: np.ndarray, *, weight: float, sigma: float) -> np.ndarray:
    """The exponential term of equation 2, weight * exp(-(d1 + d2)^2 / (2 sigma^2)).

    d1 and d2 are the Euclidean distances to the nearest pixels of the nearest and of
    the second nearest instance.  Pixels of instances have no such weight, nor has a
    background pixel with fewer than two instances around it.

    Args:
      instance: integers [H, W], 0 = background.
      weight: w0 of the paper, 10; above 0.
      sigma: in pixels, 5 in the paper; above 0.

    Returns:
      float32 [H, W].
    """
    height, width = instance.shape
    # d2 is at least half of the sum.
    reach = math.ceil(sigma * math.sqrt(2 * max(math.log(weight / _SMALLEST), 0)))
    # Squares of distances that do not occur, whose weights vanish.
    first = np.full((height, width), 1e9, np.float32)
    second = first.copy()
    for rows, columns, mask in _instances(instance, reach):
        distance = cv2.distanceTransform(
            (~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        )
        near, next_near = first[rows, columns], second[rows, columns]
        np.minimum(next_near, np.maximum(near, distance), out=next_near)
        np.minimum(near, distance, out=near)
    exponent = (first + second) ** 2 / (2 * sigma**2)
    weights = np.where(instance == 0, weight * np.exp(-exponent), 0)
    return np.where(weights < _SMALLEST, 0, weights).astype(np.float32)


def _instances(instance: np.ndarray, reach: int):
    """Rows and columns around each instance, and its pixels in them."""
    rows, columns = np.nonzero(instance)
    if not len(rows):
        return
    ids, index = np.unique(instance[rows, columns], return_inverse=True)
    low = np.full((2, len(ids)), np.iinfo(np.int64).max)
    high = np.full((2, len(ids)), -1)
    for axis, at in enumerate((rows, columns)):
        np.minimum.at(low[axis], index, at)
        np.maximum.at(high[axis], index, at)
    for k, (top, left, bottom, right) in zip(ids, zip(*low, *high)):
        box = (
            slice(max(top - reach, 0), bottom + reach + 1),
            slice(max(left - reach, 0), right + reach + 1),
        )
        yield *box, instance[box] == k


def separate(
    label: np.ndarray, instance: np.ndarray, *, gap: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts touching instances apart: pixels near another instance become background.

    The paper computes "the separation border" by morphology; here a pixel of an
    instance within ``gap`` pixels (in rows or columns) of another instance becomes
    background, so that a network can learn a border between the two.

    Args:
      label: uint8 [H, W], class 0 is the background; void stays void.
      instance: uint16 [H, W], 0 = background.
      gap: in pixels, 1 or more; the cut is twice as wide.

    Returns:
      label and instance with the cut.
    """
    kernel = np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)
    largest = cv2.dilate(instance, kernel, borderType=cv2.BORDER_REPLICATE)
    # 0 is no instance: it must not be the smallest.
    top = np.iinfo(instance.dtype).max
    others = np.where(instance == 0, top, instance)
    smallest = cv2.erode(others, kernel, borderType=cv2.BORDER_REPLICATE)
    cut = (instance > 0) & ((largest > instance) | (smallest < instance))
    label = np.where(cut & (label != VOID), 0, label)
    return label.astype(np.uint8), np.where(cut, 0, instance).astype(instance.dtype)
