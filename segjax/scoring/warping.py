"""Warping error: topological differences of two binary images.

Jain et al., Boundary Learning by Optimization with Topological Constraints, CVPR 2010.
The truth is warped towards the proposal by flipping simple points, which changes no
topology. What then still differs is an error of topology: pixels whose flip would split
or merge objects, or make or fill an object or a hole.
"""

import functools
from typing import NamedTuple

import numpy as np

from segjax.scoring.flooding import components

# The neighbors (row, column), in the order of the bits of a neighborhood's number.
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
RADIUS = 20
"""Of the window in which Fiji looks whether a pixel holds two parts together."""


class Warped(NamedTuple):
    """What is left after warping."""

    image: np.ndarray
    """The warped truth, [H, W] bool."""
    wrong: np.ndarray
    """Pixels that still differ, [H, W] bool."""


@functools.cache
def simple_points() -> tuple[bool, ...]:
    """Whether a pixel is simple, by the number of its neighborhood.

    Objects are 4-connected and the background is 8-connected. A pixel is simple if its
    eight neighbors hold one component of the object that touches its side and one of
    the background (Bertrand and Malandain, 1994): flipping it changes no topology.
    """
    found = []
    for number in range(256):
        patch = np.zeros((3, 3), bool)
        for bit, (row, column) in enumerate(AROUND):
            patch[1 + row, 1 + column] = number >> bit & 1
        ground = ~patch
        ground[1, 1] = False
        objects = components(patch, 4)[[0, 1, 1, 2], [1, 0, 2, 1]]
        count = len(set(objects.tolist()) - {0})
        found.append(count == 1 and components(ground, 8).max() == 1)
    return tuple(found)


def warp(
    truth: np.ndarray, proposal: np.ndarray, order: np.ndarray, allowed: np.ndarray
) -> Warped:
    """Flips simple points of the truth that differ until their number stays the same.

    Args:
      truth: [H, W] bool, True = object. Outside of the image is background.
      proposal: [H, W] bool.
      order: [H, W] float64; pixels with larger values are flipped first. Ties go column
        by column.
      allowed: [H, W] bool, where pixels may be flipped and count as different.
    """
    # Column by column: the flat index is x * stride + y, with a frame of one pixel.
    pixels, goal, may, first = (
        np.pad(x.T, 1).ravel() for x in (truth, proposal, allowed, order)
    )
    stride = truth.shape[0] + 2
    a, b, c, d, e, f, g, h = (column * stride + row for row, column in AROUND)
    wrong = np.flatnonzero((pixels != goal) & may)
    todo = wrong[np.argsort(-first[wrong], kind="stable")].tolist()
    simple, image = simple_points(), pixels.astype(int).tolist()
    before = len(todo) + 1
    # A pixel that has been flipped is right, so the others are all that is wrong.
    while len(todo) < before:
        before, left = len(todo), []
        for p in todo:
            number = (
                image[p + a]
                | image[p + b] << 1
                | image[p + c] << 2
                | image[p + d] << 3
                | image[p + e] << 4
                | image[p + f] << 5
                | image[p + g] << 6
                | image[p + h] << 7
            )
            if simple[number]:
                image[p] = 1 - image[p]
            else:
                left.append(p)
        todo = left
    shape = truth.shape[1] + 2, stride
    warped = np.array(image, bool).reshape(shape)[1:-1, 1:-1].T
    return Warped(warped, (warped != proposal) & allowed)


def splits_and_merges(warped: Warped) -> int:
    """How many of the wrong pixels would split or merge objects, as Fiji decides it.

    A background pixel merges if its eight neighbors hold background and at least two
    objects. An object's pixel splits if they do, or if without it they would within a
    window of 41 pixels.
    """
    image = np.pad(warped.image, RADIUS)
    labels = np.pad(components(warped.image), 1, constant_values=-1)
    count = 0
    for row, column in np.argwhere(warped.wrong).tolist():
        around = _ids(labels[row : row + 3, column : column + 3])
        if len(around) == 2 and 0 in around and warped.image[row, column]:
            window = image[row : row + 2 * RADIUS + 1, column : column + 2 * RADIUS + 1]
            window = window.copy()
            window[RADIUS, RADIUS] = False
            near = slice(RADIUS - 1, RADIUS + 2)
            around = _ids(components(window)[near, near])
        count += len(around) > 2
    return count


def _ids(patch: np.ndarray) -> set[int]:
    """The labels around the center of a 3 x 3 patch; -1 is outside of the image."""
    ids = patch.ravel().tolist()
    return {*ids[:4], *ids[5:]} - {-1}
