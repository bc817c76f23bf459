"""Objects and their boxes, found in full masks; boxes as labels.

Weak labels are simulated: the papers, too, take the boxes from the masks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from segjax.labels import VOID


class Box(NamedTuple):
    """The smallest rectangle around an object, in pixels; bottom and right excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Object(NamedTuple):
    """An object that is known by its box: its class and where it is."""

    class_id: int
    box: Box


def find(label: np.ndarray, instance: np.ndarray | None = None) -> list[Object]:
    """The objects of a mask, those with the largest boxes first.

    Args:
      label: uint8 [H, W], train ids, 0 = background, 255 = void.
      instance: integers [H, W], 0 = no instance: an instance is an object of the class
        that most of its pixels have, unless that is the background or void. None: each
        4-connected region of a class is an object.

    Returns:
      Objects in the order in which they are painted: smaller boxes lie on top.
    """
    found = []
    if instance is None:
        for k in np.unique(label[(label != 0) & (label != VOID)]):
            mask = (label == k).astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
            for left, top, width, height, _ in stats[1:].tolist():
                box = Box(top, left, top + height, left + width)
                found.append(Object(int(k), box))
    else:
        for number in np.unique(instance[instance > 0]):
            mask = (instance == number) & (label != VOID)
            counts = np.bincount(label[mask], minlength=1)
            k = int(counts.argmax())
            if k and counts[k]:
                found.append(Object(k, box_of(mask)))
    return sorted(found, key=lambda o: (-o.box.area, o.class_id, o.box))


def box_of(mask: np.ndarray) -> Box:
    """The box of a bool mask [H, W] that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def rectangles(objects: Sequence[Object], size: tuple[int, int]) -> np.ndarray:
    """Boxes filled with their classes, the last ones on top; the rest is background.

    Bbox-Rect of WSSL (Papandreou et al., ICCV 2015, section 3.2).

    Args:
      objects: in the order of :func:`find`.
      size: height and width.

    Returns:
      uint8 [H, W].
    """
    label = np.zeros(size, np.uint8)
    for item in objects:
        label[item.box.pixels] = item.class_id
    return label


def paint(
    objects: Sequence[Object], masks: Sequence[np.ndarray], size: tuple[int, int]
) -> np.ndarray:
    """Masks with the classes of their objects, the last ones on top.

    Args:
      objects: in the order of :func:`find`.
      masks: bool [H, W] of each object.
      size: height and width.

    Returns:
      uint8 [H, W], 0 where there is no mask.
    """
    label = np.zeros(size, np.uint8)
    for item, mask in zip(objects, masks, strict=True):
        label[mask] = item.class_id
    return label
