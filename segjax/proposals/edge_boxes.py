"""EdgeBoxes (Zitnick and Dollar, ECCV 2014), by OpenCV's implementation.

A box scores by the contours that lie inside it whole. The contours are those of
structured forests (Dollar and Zitnick, ICCV 2013) where the file of such a model is
given, as the paper has them; otherwise those of image gradients, which find fewer
objects with as many boxes.
"""

import functools
import os
import threading

import cv2
import numpy as np

from segjax.errors import UserError

SIGMA = 1.5
"""Of the Gaussian, in pixels, before gradients are taken."""
LEAST_SIDE = 16
"""Images with a shorter side have no proposals."""

_lock = threading.Lock()  # a forest serves one thread at a time


def boxes(image: np.ndarray, *, count: int, model: str = "") -> np.ndarray:
    """The ``count`` best boxes of an image.

    Args:
      image: uint8 [H, W, C]; C is 1 or 3 with a model.
      count: the most boxes.
      model: file of a structured forest (``model.yml.gz`` of OpenCV's extra files);
        "": gradients.

    Returns:
      int32 [N, 4], the highest score first.

    Raises:
      UserError: the model cannot be read, or does not take such images.
    """
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE:
        return np.zeros((0, 4), np.int32)
    edges, orientation = structured(image, model) if model else gradients(image)
    if not edges.any():
        return np.zeros((0, 4), np.int32)
    finder = cv2.ximgproc.createEdgeBoxes()
    finder.setMaxBoxes(count)
    # The default of 1000 pixels is meant for images of about 500x375.
    finder.setMinBoxArea(min(1000.0, 0.005 * height * width))
    found, _ = finder.getBoundingBoxes(edges, orientation)
    left, top, wide, tall = np.reshape(found, (-1, 4))[:count].T
    right = np.minimum(left + wide, width) - 1
    bottom = np.minimum(top + tall, height) - 1
    left, top = np.maximum(left, 0), np.maximum(top, 0)
    good = (left <= right) & (top <= bottom)
    return np.stack([left, top, right, bottom], -1).astype(np.int32)[good]


def gradients(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thin contours by the gradients of a smoothed image, and where they point.

    Of the channels, each pixel takes the one of the largest gradient. Only maxima along
    the gradient stay. 1 is the magnitude that one percent of the pixels exceed.

    Args:
      image: uint8 [H, W, C].

    Returns:
      Magnitudes 0..1 and directions across the contour in [0, pi), x to the right and
      y down, both float32 [H, W].
    """
    parts = [
        cv2.GaussianBlur(channel.astype(np.float32), (0, 0), SIGMA)
        for channel in np.moveaxis(image, 2, 0)
    ]
    across = np.stack([cv2.Sobel(part, cv2.CV_32F, 1, 0) for part in parts])
    down = np.stack([cv2.Sobel(part, cv2.CV_32F, 0, 1) for part in parts])
    strongest = (across**2 + down**2).argmax(0)[None]
    gx = np.take_along_axis(across, strongest, 0)[0]
    gy = np.take_along_axis(down, strongest, 0)[0]
    size = np.hypot(gx, gy)
    unit = np.maximum(size, 1e-6)
    rows, columns = np.indices(size.shape, np.float32)
    kept = np.ones(size.shape, bool)
    for step in (-1, 1):
        beside = cv2.remap(
            size,
            columns + step * gx / unit,
            rows + step * gy / unit,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        kept &= size >= beside
    scale = np.quantile(size, 0.99)
    edges = np.clip(size / max(scale, 1e-6), 0, 1) if scale > 0 else 0 * size
    angle = np.arctan2(gy, gx) % np.pi
    angle[angle >= np.pi] = 0  # rounding
    return np.where(kept, edges, 0).astype(np.float32), angle.astype(np.float32)


def structured(image: np.ndarray, model: str) -> tuple[np.ndarray, np.ndarray]:
    """As ``gradients``, by a structured forest.

    Raises:
      UserError: see ``check``.
    """
    check(model, image.shape[2])
    forest = _forest(os.path.expanduser(model))
    colors = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    with _lock:
        edges = forest.detectEdges(colors.astype(np.float32) / 255)
        orientation = forest.computeOrientation(edges)
        return forest.edgesNms(edges, orientation), orientation


def check(model: str, channels: int) -> None:
    """Raises UserError unless a model can be read and takes this many channels."""
    if channels not in (1, 3):
        raise UserError(
            f"--config.data.edge_model={model}: a structured forest takes RGB or gray "
            f"images, these have {channels} channels: leave it empty"
        )
    _forest(os.path.expanduser(model))


@functools.cache
def _forest(path: str):
    if not os.path.isfile(path):
        raise UserError(
            f"--config.data.edge_model: {path} not found; expected the structured "
            "forest model.yml.gz of OpenCV's extra files, or '' for gradients"
        )
    # OpenCV reads such a file unchecked, and crashes where something is missing.
    if not _is_forest(path):
        raise UserError(
            f"--config.data.edge_model: {path} is no structured forest of OpenCV"
        )
    return cv2.ximgproc.createStructuredEdgeDetection(path)


def _is_forest(path: str) -> bool:
    try:
        file = cv2.FileStorage(path, cv2.FILE_STORAGE_READ)
        return all(not file.getNode(name).empty() for name in _PARTS)
    except (cv2.error, SystemError):
        return False


_PARTS = (
    *("options", "childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins"),
)
