"""Instance-wise prediction (DeconvNet, ICCV 2015, sections 3.3 and 4.4).

The network sees crops around object proposals, each resized to the side that it was
trained at. The scores of a crop go back to the pixels of its box, and those of all
crops are joined pixel by pixel before the softmax.

The host proposes boxes (:func:`regions`), and the rest is one program of static shapes:
an array of so many boxes, cropped and put back by products with matrices of bilinear
weights. Boxes are int32: left, top, right and bottom pixel, inclusive; they may exceed
the image, which is black there. Arrays called *regions*, [1 + P, 4], hold the image
itself first, because a batch may have it padded, then the boxes; what is missing to P
has no pixels (``boxes.NONE``).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from segjax.data import object_crops
from segjax.data.source import Example, Size, Source
from segjax.inference.predictors import whole_scores
from segjax.ops import geometry
from segjax.proposals import Settings, boxes, stored

RULES = ("max", "sum", "released")
"""How the scores of the crops of a pixel are joined: see :func:`instance_wise`."""
AT_ONCE = 5
"""Crops of each image in one run of the network; scores of all are never held."""


class Search(NamedTuple):
    """Where the boxes of an image come from."""

    settings: Settings
    folder: Path
    """Of ``proposals.stored``."""
    number: int
    """P, how many of them the network sees."""
    least: int
    """Least side, in pixels of the image, of an enlarged box."""


def crop_of(config: ConfigDict) -> Size:
    """(h, w) of the crops that a run was trained on; (0, 0) if of whole images."""
    if config.data.objects == "none":
        return 0, 0
    crop = tuple(config.augment.crop)
    return crop if any(crop) else (config.data.object_side,) * 2


def regions(image: np.ndarray, search: Search) -> np.ndarray:
    """The regions of an image: itself, and the boxes that the network sees.

    Args:
      image: uint8 [H, W, C].
      search: of the boxes.

    Returns:
      int32 [1 + P, 4].
    """
    found = stored.boxes(image, search.settings, search.folder)
    height, width = image.shape[:2]
    return select(found, (height, width), count=search.number, least=search.least)


def select(found: np.ndarray, size: Size, *, count: int, least: int) -> np.ndarray:
    """The first proposals that are not too small, enlarged as in training.

    Where all are too small, the whole image is the only box.

    Args:
      found: int32 [N, 4], the most promising first.
      size: (height, width) of the image.
      count: P.
      least: enlarged boxes with a shorter side are left out.

    Returns:
      int32 [1 + P, 4].
    """
    frame = np.array([0, 0, size[1] - 1, size[0] - 1], np.int32)
    enlarged = boxes.enlarge(found, object_crops.FACTOR)
    sides = enlarged[:, 2:] - enlarged[:, :2] + 1
    chosen = enlarged[sides.min(1, initial=2**30) >= least][:count]
    if not len(chosen):
        chosen = frame[None]
    rows = np.tile(np.array(boxes.NONE, np.int32), (1 + count, 1))
    rows[0], rows[1 : 1 + len(chosen)] = frame, chosen
    return rows


def stack_regions(found: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """The regions of a batch, int32 [batch_size, 1 + P, 4]; NONE of missing images."""
    rows = np.zeros((batch_size, *found[0].shape), np.int32)
    rows[:] = boxes.NONE
    rows[: len(found)] = found
    return rows


class WithRegions:
    """A source of whole images whose examples have ``regions``, too."""

    def __init__(self, source: Source, search: Search):
        self._source, self._search = source, search

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return {**example, "regions": regions(example["image"], self._search)}

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example."""
        return self._source.sizes

    @property
    def identities(self) -> list[str]:
        """See ``Source``."""
        return self._source.identities


def instance_wise(
    model: nn.Module, crop: Size, rule: str
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """Predicts crops around boxes and joins their scores.

    Args:
      model: trained on such crops.
      crop: (h, w) that the model sees.
      rule: "max", equation 1 of the paper, over the boxes that hold the pixel; "sum",
        equation 2; "released", the authors' code, whose maximum begins at 0, so that no
        score is negative. Pixels in no box score 0 for every class: class 0 comes
        first there.

    Returns:
      A function of variables, images [N, H, W, C] (0..255) and regions int32
      [N, 1 + P, 4]; probabilities [N, H, W, K], float32.
    """

    def predict(variables: Any, images: jax.Array, regions: jax.Array) -> jax.Array:
        size = geometry.sides(images)
        frame, rest = regions[:, :1], regions[:, 1:]
        missing = -rest.shape[1] % min(AT_ONCE, rest.shape[1])
        none = jnp.broadcast_to(
            jnp.array(boxes.NONE, rest.dtype), (len(rest), missing, 4)
        )
        rest = jnp.concatenate([rest, none], axis=1)
        together = min(AT_ONCE, rest.shape[1])
        parts = rest.reshape(len(rest), -1, together, 4).swapaxes(0, 1)
        pixels = images.astype(jnp.float32)

        def add(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
            crops = crop_bilinear(pixels, frame, part, crop)
            flat = crops.reshape(-1, *crops.shape[2:])
            scores = whole_scores(model, variables, flat)
            scores = scores.reshape(*crops.shape[:2], *scores.shape[1:])
            maps, inside = back_project(scores, part, size)
            if rule == "sum":
                return total + maps.sum(1), None
            outside = -jnp.inf if rule == "max" else 0.0
            maps = jnp.where(inside[..., None], maps, outside)
            return jnp.maximum(total, maps.max(1)), None

        start = -jnp.inf if rule == "max" else 0.0
        total = jnp.full((len(rest), *size, model.num_classes), start, jnp.float32)
        total, _ = jax.lax.scan(add, total, parts)
        total = jnp.where(jnp.isneginf(total), 0.0, total)  # in no box
        return jax.nn.softmax(total, axis=-1)

    return predict


def crop_bilinear(
    images: jax.Array, frame: jax.Array, boxes: jax.Array, crop: Size
) -> jax.Array:
    """Cuts boxes out of images and resizes them, bilinearly between half-pixel centers.

    As ``cv2.resize`` of ``boxes.cut``, black beyond the image, but for rounding.

    Args:
      images: float32 [N, H, W, C].
      frame: [N, 1, 4], the part of each that is not padding.
      boxes: [N, P, 4].
      crop: (h, w).

    Returns:
      float32 [N, P, h, w, C]; 0 for boxes without pixels.
    """
    height, width = geometry.sides(images)
    rows = _crop_weights(boxes[..., 1], boxes[..., 3], crop[0], height, frame[..., 3])
    columns = _crop_weights(boxes[..., 0], boxes[..., 2], crop[1], width, frame[..., 2])
    tall = _einsum("npsh,nhwc->npswc", rows, images)
    return _einsum("nptw,npswc->npstc", columns, tall)


def _einsum(formula: str, *arrays: jax.Array) -> jax.Array:
    # Gray levels and places need more digits than the products of TPUs have.
    return jnp.einsum(formula, *arrays, precision=jax.lax.Precision.HIGHEST)


def _crop_weights(
    first: jax.Array, last: jax.Array, side: int, length: int, end: jax.Array
) -> jax.Array:
    """Weights [..., side, length] of the pixels 0..end of an axis in a resized box."""
    first, last = (x[..., None].astype(jnp.float32) for x in (first, last))
    step = (last - first + 1) / side
    place = first + (jnp.arange(side) + 0.5) * step - 0.5
    place = jnp.clip(place, first, last)[..., None]
    pixel = jnp.arange(length)
    weights = jnp.maximum(1 - jnp.abs(place - pixel), 0)
    exists = (pixel <= end[..., None, None]) & (last >= first)[..., None]
    return jnp.where(exists, weights, 0)


def back_project(
    scores: jax.Array, boxes: jax.Array, size: Size
) -> tuple[jax.Array, jax.Array]:
    """Resizes the scores of crops to their boxes, in a map of the image.

    Args:
      scores: float32 [N, P, h, w, K].
      boxes: [N, P, 4].
      size: (H, W).

    Returns:
      Scores [N, P, H, W, K], 0 outside the box; whether a pixel is in the box,
      [N, P, H, W].
    """
    h, w = scores.shape[2:4]
    rows, tall = _back_weights(boxes[..., 1], boxes[..., 3], h, size[0])
    columns, wide = _back_weights(boxes[..., 0], boxes[..., 2], w, size[1])
    maps = _einsum("nphs,npstk->nphtk", rows, scores)
    maps = _einsum("npwt,nphtk->nphwk", columns, maps)
    return maps, tall[..., :, None] & wide[..., None, :]


def _back_weights(
    first: jax.Array, last: jax.Array, side: int, length: int
) -> tuple[jax.Array, jax.Array]:
    """Weights [..., length, side] of a resized box in an axis; which pixels it has."""
    first, last = first[..., None], last[..., None]
    pixel = jnp.arange(length)
    inside = (first <= pixel) & (pixel <= last)
    step = side / jnp.maximum(last - first + 1, 1).astype(jnp.float32)
    place = jnp.clip((pixel - first + 0.5) * step - 0.5, 0, side - 1)[..., None]
    weights = jnp.maximum(1 - jnp.abs(place - jnp.arange(side)), 0)
    return jnp.where(inside[..., None], weights, 0), inside
