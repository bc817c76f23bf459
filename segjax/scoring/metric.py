"""What a metric of whole images is given and what it returns."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Scored(NamedTuple):
    """One image with its truth and its prediction, without padding."""

    label: np.ndarray
    """[H, W] uint8 train ids, 255 = void."""
    prediction: np.ndarray
    """[H, W] class ids below K, any integer type."""
    probabilities: np.ndarray | None
    """[H, W, K] float32, or None if no metric needs them."""
    instances: np.ndarray | None
    """[H, W] integers: true objects, 0 = none; or None if no metric needs them."""
    classes: tuple[str, ...]
    """The K names."""


def any_classes(classes: tuple[str, ...]) -> None:
    """The check of metrics that take all classes."""
    del classes


class ImageMetric(NamedTuple):
    """A metric that one confusion matrix of the whole data set cannot give.

    ``measure`` looks at one image and ``combine`` at the vectors of all of them, so
    that images may be measured in any order, in threads and by several processes.
    """

    title: str
    """The title of the metric in tables."""
    needs: frozenset[str]
    """Of {"probabilities", "instances"}; label and prediction are always there."""
    measure: Callable[[Scored], np.ndarray]
    """One image -> float64 vector, whose length the number of classes decides."""
    combine: Callable[[Sequence[np.ndarray]], dict[str, float]]
    """The vectors of all images, at least one, in order -> scores by name; NaN =
    undefined."""
    check: Callable[[tuple[str, ...]], None] = any_classes
    """Raises UserError for classes that the metric cannot score; to be called first."""
