"""Boxes int [N, 4]: left, top, right and bottom pixel, inclusive.

A box of one pixel has left = right and top = bottom. Boxes may exceed the image.
"""

import numpy as np

NONE = (0, 0, -1, -1)
"""A box without pixels."""


def areas(boxes: np.ndarray) -> np.ndarray:
    """Pixels of boxes [..., 4] -> [...]; 0 for those without."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2] + 1, 0)
    return sides.prod(-1)


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs of boxes [N, 4] and [M, 4] -> [N, M]."""
    first, second = np.asarray(first)[:, None], np.asarray(second)[None]
    common = np.concatenate(
        [
            np.maximum(first[..., :2], second[..., :2]),
            np.minimum(first[..., 2:], second[..., 2:]),
        ],
        axis=-1,
    )
    shared = areas(common)
    union = areas(first) + areas(second) - shared
    return shared / np.maximum(union, 1)


def enlarge(boxes: np.ndarray, factor: float) -> np.ndarray:
    """Boxes [..., 4] with sides ``factor`` times as long, about the same centers.

    Whole pixels are added, as many on both sides.
    """
    boxes = np.asarray(boxes)
    sides = boxes[..., 2:] - boxes[..., :2] + 1
    # Half a pixel is one; factor - 1 is a little less than meant.
    added = np.floor((factor - 1) * sides / 2 + 0.5 + 1e-9).astype(boxes.dtype)
    return np.concatenate([boxes[..., :2] - added, boxes[..., 2:] + added], axis=-1)


def tight(labels: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
    """The smallest box around each region of a map of integers [H, W]; 0 is none."""
    from scipy import ndimage  # takes 0.2 s, which no --help should wait for

    found = {}
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is not None:
            rows, columns = place
            found[number] = (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
    return found


def cut(array: np.ndarray, box: np.ndarray, fill: int) -> np.ndarray:
    """The part of [H, W] or [H, W, C] in a box; beyond the array it is ``fill``."""
    left, top, right, bottom = map(int, box)
    height, width = array.shape[:2]
    shape = bottom - top + 1, right - left + 1, *array.shape[2:]
    part = np.full(shape, fill, array.dtype)
    rows = slice(max(top, 0), min(bottom + 1, height))
    columns = slice(max(left, 0), min(right + 1, width))
    if rows.start < rows.stop and columns.start < columns.stop:
        part[
            rows.start - top : rows.stop - top,
            columns.start - left : columns.stop - left,
        ] = array[rows, columns]
    return part
