"""BoxSup: a candidate mask for each box (Dai, He and Sun, ICCV 2015, section 3).

The candidate of a box is one that fits the box and that the network agrees with:

    cost = 1 - IoU(box, box of the candidate) + weight * cross-entropy

The first term is the paper's E_o of a candidate, the second its E_r. The cross-entropy
is the mean over the pixels of the box, the class inside the candidate and background
elsewhere, so that boxes of all sizes weigh alike; the paper has sums over images. A
candidate is clipped to the box.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from segjax.weak.candidates import Candidates
from segjax.weak.objects import Box, Object, paint


class Settings(NamedTuple):
    """How candidates are chosen."""

    weight: float = 3.0
    """Of the cross-entropy, where there is a network; lambda of the paper."""
    top: int = 5
    """One of so many candidates of the lowest costs is drawn; 1: the best one."""
    smallest_overlap: float = 0.5
    """Least IoU of a box and the box of a candidate. A box that no candidate overlaps
    so far is filled."""


DEFAULT = Settings()


def overlaps(candidates: Candidates, box: Box) -> np.ndarray:
    """IoU of a box and the smallest box around each candidate, float64 [P]."""
    low, high = _boxes(candidates)
    corners = np.array(box).reshape(2, 2)
    inner = np.minimum(high, corners[1]) - np.maximum(low, corners[0])
    shared = np.maximum(inner, 0).prod(1)
    return shared / ((high - low).prod(1) + box.area - shared)


def _boxes(candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """First and (excluded) last row and column of each candidate, [P, 2] each."""
    pieces, members = candidates
    count = members.shape[1]
    low, high = [], []
    for at in np.indices(pieces.shape):
        first = np.full(count, np.iinfo(np.int64).max)
        last = np.full(count, -1)
        np.minimum.at(first, pieces.ravel(), at.ravel())
        np.maximum.at(last, pieces.ravel(), at.ravel() + 1)
        low.append(np.where(members, first, np.iinfo(np.int64).max).min(1))
        high.append(np.where(members, last, -1).max(1))
    return np.stack(low, 1), np.stack(high, 1)


def cross_entropies(
    candidates: Candidates, item: Object, log_probabilities: np.ndarray
) -> np.ndarray:
    """E_r of each candidate of an object: the mean over its box, float64 [P].

    Args:
      candidates: of the image.
      item: class and box.
      log_probabilities: [H, W, K] of the network.
    """
    inside = log_probabilities[item.box.pixels].astype(np.float64)
    background, own = -inside[..., 0], -inside[..., item.class_id]
    count = candidates.members.shape[1]
    pieces = candidates.pieces[item.box.pixels].ravel()
    more = np.bincount(pieces, (own - background).ravel(), minlength=count)
    return (background.sum() + candidates.members @ more) / item.box.area


def choose(
    candidates: Candidates,
    item: Object,
    *,
    log_probabilities: np.ndarray | None,
    rng: np.random.Generator,
    settings: Settings = DEFAULT,
) -> np.ndarray:
    """The mask of an object, bool [H, W]; True only in its box.

    Args:
      candidates: of the image.
      item: class and box.
      log_probabilities: [H, W, K] of the network; None in the first round, in which
        only the boxes count.
      rng: draws one of the best candidates.
      settings: see :class:`Settings`.
    """
    iou = overlaps(candidates, item.box)
    costs = 1 - iou
    if log_probabilities is not None:
        entropies = cross_entropies(candidates, item, log_probabilities)
        costs = costs + settings.weight * entropies
    eligible = np.flatnonzero(iou >= settings.smallest_overlap)
    inside = np.zeros(candidates.pieces.shape, bool)
    inside[item.box.pixels] = True
    if not len(eligible):
        return inside
    best = eligible[np.argsort(costs[eligible], kind="stable")[: settings.top]]
    mask = candidates.mask(best[rng.integers(len(best))]) & inside
    return mask if mask.any() else inside


def labels(
    candidates: Candidates,
    objects: Sequence[Object],
    *,
    log_probabilities: np.ndarray | None,
    rng: np.random.Generator,
    settings: Settings = DEFAULT,
) -> np.ndarray:
    """The labels of an image for the next round of training, uint8 [H, W].

    A mask for each object, those of smaller boxes on top, and background elsewhere.

    Args:
      candidates: of the image.
      objects: in the order of ``objects.find``.
      log_probabilities: see :func:`choose`.
      rng: see :func:`choose`.
      settings: see :class:`Settings`.
    """
    masks = [
        choose(
            candidates,
            item,
            log_probabilities=log_probabilities,
            rng=rng,
            settings=settings,
        )
        for item in objects
    ]
    return paint(objects, masks, candidates.pieces.shape[:2])
