"""The pixels of an object in its box, told by colors: GrabCut and the dense CRF."""

import functools
import math

import cv2
import jax
import numpy as np

from segjax.errors import UserError
from segjax.ops import mean_field
from segjax.weak.objects import Box

_SIDE = 64
"""Images are extended to multiples of it, so that few shapes are compiled."""


def grabcut(image: np.ndarray, box: Box, iterations: int = 5) -> np.ndarray:
    """GrabCut of OpenCV, started from a box (Rother, Kolmogorov and Blake, 2004).

    A baseline of BoxSup (Dai, He and Sun, ICCV 2015, section 4.2). Where it cannot
    start, because the box is the whole image, or finds nothing, the mask is the box.

    Args:
      image: uint8 [H, W, 3], or gray [H, W, 1].
      box: of the object.
      iterations: of the color models and the cut.

    Returns:
      bool [H, W], True only in the box.

    Raises:
      UserError: an image of other channels.
    """
    size = image.shape[:2]
    filled = np.zeros(size, bool)
    filled[box.pixels] = True
    if filled.all():
        return filled
    state = np.where(filled, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    cv2.setRNGSeed(0)  # its k-means draws from a global generator
    cv2.grabCut(
        _in_color(image),
        state,
        (0, 0, 0, 0),  # not looked at where there is a mask
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        iterations,
        cv2.GC_INIT_WITH_MASK,
    )
    mask = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    return mask if mask.any() else filled


def dense_crf(
    image: np.ndarray,
    box: Box,
    *,
    settings: mean_field.Settings,
    center: float = 0.2,
) -> np.ndarray:
    """Bbox-Seg of WSSL (Papandreou et al., ICCV 2015, section 3.2).

    A CRF of object and background, in which the pixels around the center of the box are
    those of the object, the pixels outside are background, and colors decide between
    the two.

    Args:
      image: uint8 [H, W, C], gray or RGB.
      box: of the object.
      settings: of the CRF.
      center: share of the area of the box that is known to be of the object.

    Returns:
      bool [H, W], True only in the box.

    Raises:
      UserError: an image of other channels.
    """
    image = _in_color(image)
    height, width = image.shape[:2]
    object_probability = np.zeros((height, width), np.float32)
    object_probability[box.pixels] = 0.5
    inner = _center(box, center)
    object_probability[inner.pixels] = 1.0
    below, right = -height % _SIDE, -width % _SIDE
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REFLECT_101)
    probability = np.pad(object_probability, ((0, below), (0, right)))
    both = np.stack([1 - probability, probability], axis=-1)
    marginals = _marginals(both[None], padded[None], settings)
    mask = np.asarray(marginals)[0, :height, :width].argmax(-1) == 1
    # The clipped energies of what is known are large, not infinite.
    known = object_probability != 0.5
    return np.where(known, object_probability == 1.0, mask)


@functools.partial(jax.jit, static_argnums=2)
def _marginals(
    probabilities: jax.Array, images: jax.Array, settings: mean_field.Settings
) -> jax.Array:
    return mean_field.dense_crf(probabilities, images, settings=settings)


def _center(box: Box, share: float) -> Box:
    """The box of the same center and shape with that share of the area."""
    margin = (1 - math.sqrt(share)) / 2
    down, right = (
        round(margin * (high - low))
        for low, high in ((box.top, box.bottom), (box.left, box.right))
    )
    return Box(box.top + down, box.left + right, box.bottom - down, box.right - right)


def _in_color(image: np.ndarray) -> np.ndarray:
    if image.shape[2] not in (1, 3):
        raise UserError(
            f"boxes are segmented by colors, but the images have {image.shape[2]} "
            "channels; expected gray or RGB images"
        )
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
