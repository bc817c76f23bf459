"""Object proposals: boxes that may hold an object, and segments (NumPy and OpenCV).

:func:`propose` finds the boxes of an image, best first; ``stored.boxes`` keeps them on
disk. A further method is a function in a file here and a line in :data:`METHODS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from segjax import errors
from segjax.proposals import edge_boxes, selective_search


class Settings(NamedTuple):
    """Which proposals."""

    method: str = "edge_boxes"
    """Of :data:`METHODS`."""
    number: int = 2000
    """The most of an image (DeconvNet, section 4.4: about 2000)."""
    edge_model: str = ""
    """edge_boxes: file of a structured forest; "": edges are gradients."""


METHODS: dict[str, Callable[[np.ndarray, Settings], np.ndarray]] = {
    "edge_boxes": lambda image, settings: edge_boxes.boxes(
        image, count=settings.number, model=settings.edge_model
    ),
    "selective_search": lambda image, settings: (
        selective_search.segments(image, count=settings.number).boxes
    ),
}
"""Each maps uint8 [H, W, C] to int32 [N, 4]: see :func:`propose`."""


def check(settings: Settings, channels: int) -> None:
    """Raises UserError unless images with this number of channels can be searched."""
    if settings.method not in METHODS:
        raise errors.unknown("the method of proposals", settings.method, METHODS)
    if settings.method == "selective_search":
        selective_search.check(channels)
    elif settings.edge_model:
        edge_boxes.check(settings.edge_model, channels)


def propose(image: np.ndarray, settings: Settings) -> np.ndarray:
    """The proposals of one image; a function of its pixels and the settings alone.

    Args:
      image: uint8 [H, W, C].
      settings: method and number.

    Returns:
      int32 [N, 4], N at most ``settings.number``: left, top, right and bottom pixel,
      inclusive, inside the image; the most promising box first.

    Raises:
      UserError: an unknown method, or an image or a model that it cannot use.
    """
    check(settings, image.shape[2])
    return METHODS[settings.method](image, settings)
