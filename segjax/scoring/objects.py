"""Scores of objects: SEG of the Cell Tracking Challenge, detection, splits and merges.

True objects are the pixels of one class with the same number in the instance map.
Predicted objects are the 4-connected components of each class of the prediction. Void
pixels belong to neither, but may join the parts of a predicted object, so that the void
borders which some truths have between objects do not divide what is predicted as one.
Objects are compared within their class; classes without a true object in any image,
such as the background, do not count.
"""

from collections.abc import Sequence

import numpy as np

from segjax.labels import VOID
from segjax.scoring.flooding import components
from segjax.scoring.metric import ImageMetric, Scored
from segjax.scoring.per_image import nanmean, ratio

THRESHOLDS = np.arange(50, 100, 5) / 100
"""IoU above which objects match: 0.5, 0.55, ..., 0.95."""


def compare(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compares the objects of one image and class.

    With R a true and S a predicted object:

    * SEG: sum over R of IoU(R, S) for the S that holds more than half of R, else 0
      (Cell Tracking Challenge);
    * R is split if it holds more than half of each of two or more S;
    * R are merged if one S holds more than half of each of two or more R; counted is
      this S;
    * R and S match at a threshold t if IoU(R, S) > t.

    Args:
      truth: [H, W] integers, 0 = no object.
      predicted: [H, W] integers, 0 = no object.

    Returns:
      [15] float64: true objects, predicted objects, sum of SEG, split objects, merging
      objects, and the matches at each of THRESHOLDS.
    """
    (true_index, true_sizes), (index, sizes) = _number(truth), _number(predicted)
    pairs = true_index * (len(sizes) + 1) + index
    codes, shared = np.unique(pairs[(true_index > 0) & (index > 0)], return_counts=True)
    r, s = codes // (len(sizes) + 1) - 1, codes % (len(sizes) + 1) - 1
    iou = shared / (true_sizes[r] + sizes[s] - shared)
    most_of_true = 2 * shared > true_sizes[r]
    most_of_predicted = 2 * shared > sizes[s]
    return np.array(
        [
            len(true_sizes),
            len(sizes),
            iou[most_of_true].sum(),
            np.count_nonzero(np.bincount(r[most_of_predicted]) > 1),
            np.count_nonzero(np.bincount(s[most_of_true]) > 1),
            *(iou[:, None] > THRESHOLDS).sum(0),
        ],
        np.float64,
    )


def _number(objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Objects as 1, 2, ... [H, W] int64, 0 = none, and their sizes in pixels."""
    index = np.zeros(objects.shape, np.int64)
    inside = objects > 0
    _, index[inside], sizes = np.unique(
        objects[inside], return_inverse=True, return_counts=True
    )
    index[inside] += 1
    return index, sizes


def _measure(scored: Scored) -> np.ndarray:
    """``compare`` of every class: K x 15 numbers."""
    assert scored.instances is not None
    void = scored.label == VOID
    found = np.zeros((len(scored.classes), 5 + len(THRESHOLDS)))
    for k in range(len(scored.classes)):
        truth = np.where(scored.label == k, scored.instances, 0)
        predicted = np.where(void, 0, components(scored.prediction == k))
        found[k] = compare(truth, predicted)
    return found.ravel()


def _combine(images: Sequence[np.ndarray]) -> dict[str, float]:
    """Counts are added over the images; only ``dsb2018_ap`` averages over them."""
    stack = np.stack(images).reshape(len(images), -1, 5 + len(THRESHOLDS))
    counted = stack[:, stack[:, :, 0].sum(0) > 0].sum(1)
    true, predicted, seg, split, merging, hits = (counted.sum(0)[i] for i in range(6))
    matches = counted[:, 5:]
    either = counted[:, :1] + counted[:, 1:2] - matches
    return {
        "seg": float(ratio(seg, true)),
        "object_precision": float(ratio(hits, predicted)),
        "object_recall": float(ratio(hits, true)),
        "object_f1": float(ratio(2 * hits, true + predicted)),
        "dsb2018_ap": nanmean(ratio(matches, either).mean(1)),
        "split_objects": float(split),
        "merging_objects": float(merging),
        "true_objects": float(true),
        "predicted_objects": float(predicted),
    }


OBJECTS = ImageMetric("objects", frozenset({"instances"}), _measure, _combine)
