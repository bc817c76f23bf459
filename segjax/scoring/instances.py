"""Pixel scores in which every true object weighs the same, small ones included."""

from collections.abc import Sequence

import numpy as np

from segjax.errors import UserError
from segjax.scoring.metric import ImageMetric, Scored
from segjax.scoring.per_image import confusion, nanmean, ratio

CITYSCAPES_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Average pixels of an instance in Cityscapes, from its evaluation code."""


def right_shares(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    """How much of each true object is predicted right.

    Returns:
      ``classes`` [I] int64 and ``shares`` [I] float64 of the objects: the pixels of one
      class with the same number > 0 in the instance map.
    """
    assert scored.instances is not None
    inside = (scored.instances > 0) & (scored.label < len(scored.classes))
    label = scored.label[inside].astype(np.int64)
    # One number for class and instance.
    top = int(scored.instances.max(initial=0)) + 1
    codes, index, sizes = np.unique(
        label * top + scored.instances[inside], return_inverse=True, return_counts=True
    )
    right = np.bincount(index[scored.prediction[inside] == label], minlength=len(sizes))
    return codes // top, right / sizes


def _measure(scored: Scored) -> np.ndarray:
    """[2 K]: sums of shares, then numbers of objects."""
    classes, shares = right_shares(scored)
    size = len(scored.classes)
    sums = np.bincount(classes, shares, minlength=size)
    return np.concatenate([sums, np.bincount(classes, minlength=size)])


def _combine(images: Sequence[np.ndarray]) -> dict[str, float]:
    sums, counts = np.sum(images, axis=0).reshape(2, -1)
    return {
        "instance_accuracy": float(ratio(sums.sum(), counts.sum())),
        "instance_accuracy_classes": nanmean(ratio(sums, counts)),
    }


def check_cityscapes(classes: tuple[str, ...]) -> None:
    """Raises UserError if no class has instances in Cityscapes."""
    if not set(classes) & set(CITYSCAPES_SIZES):
        raise UserError(
            "--metrics: cityscapes_iiou needs one of the classes "
            f"{', '.join(CITYSCAPES_SIZES)}; found {', '.join(classes)}"
        )


def _cityscapes(scored: Scored) -> np.ndarray:
    """[3 K]: weighted right and missed pixels, pixels wrongly predicted as the class.

    NaN for classes without instances in Cityscapes.
    """
    classes, shares = right_shares(scored)
    h = confusion(scored)
    size = len(scored.classes)
    found = np.full((3, size), np.nan)
    for k, name in enumerate(scored.classes):
        if name in CITYSCAPES_SIZES:
            right = CITYSCAPES_SIZES[name] * shares[classes == k]
            missed = CITYSCAPES_SIZES[name] * (1 - shares[classes == k])
            found[:, k] = right.sum(), missed.sum(), h[:, k].sum() - h[k, k]
    return found.ravel()


def _iiou(images: Sequence[np.ndarray]) -> dict[str, float]:
    right, missed, wrong = np.sum(images, axis=0).reshape(3, -1)
    return {"cityscapes_iiou": nanmean(ratio(right, right + missed + wrong))}


INSTANCE_ACCURACY = ImageMetric(
    "instance accuracy", frozenset({"instances"}), _measure, _combine
)
CITYSCAPES_IIOU = ImageMetric(
    title="iIoU",
    needs=frozenset({"instances"}),
    measure=_cityscapes,
    combine=_iiou,
    check=check_cityscapes,
)
