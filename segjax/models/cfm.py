"""Convolutional feature masking (Dai, He, Sun, CVPR 2015) on VGG16.

The segments of an image share its convolutions: each segment is projected to the
locations of conv5_3, what lies outside of it is set to zero, and a pyramid of maxima
over its bounding box goes through fully-connected layers to class scores. Segments are
then pasted in the order of their scores.

The paper takes about 2,000 segments of another program for each image. Here they come
from the image itself, a hierarchy of SLIC superpixels, or as masks from outside.
docs/systems/cfm.md has the differences.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import backbones, layers, vgg, zoomout
from segjax.models.dropout import Dropout
from segjax.ops import geometry, hierarchy, image, segment_pool, superpixels

_FEATURES = "conv5_3"
_GRID = vgg.grids(1)[_FEATURES]


class Segments(NamedTuple):
    """P segments of each of N images."""

    masks: jax.Array  # bool [N, P, h, w]: locations of the features
    boxes: jax.Array  # int32 [N, P, 4]: locations, see segment_pool.pyramid_pool


class CFM(nn.Module):
    """Images [N, H, W, C] of any size -> logits [N, H, W, K].

    The logits of a pixel are the scores of one segment: of those that cover it the one
    that is surest of its class, by the largest probability. In training an auxiliary
    classifier, aux_logits_segments, gives each pixel the mean scores of all segments
    that cover it, so that segments that lose are trained, too, on the labels inside.

    Attributes:
      num_classes: K.
      design: "a": the masked box and the whole box each go through a pyramid and fully-
        connected layers of their own; "b": one pyramid, of which only the finest level
        is masked.
      superpixels: about how many an image has, S; the segments are these and the
        S - 1 unions of the hierarchy (ops/hierarchy.py).
      compactness, iterations: of SLIC, see superpixels.slic.
      bins: parts along each side of a box in the levels of the pyramid, finest first.
      fc_channels: channels of fc6 and fc7.
      dropout: rate after each of them.
      segment_batch: segments of each image that are pooled at a time: no effect on the
        result but on memory.
      widths: channels of the five stages; () takes the published ones.
      norm: "none" (the paper) or "batch", in the backbone.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py.
      dtype: of the backbone, fc6 and fc7; scores are computed in float32.

    Endpoints: conv5_3; segment_scores [N, 1, P, K]; members [N, 1, P, S], which
    superpixels a segment has, and superpixels [N, H, W, 1] int32, unless `masks` are
    given; in training aux_logits_segments [N, H, W, K].

    Raises:
      UserError: a bad field value.
    """

    num_classes: int
    design: str = "a"
    superpixels: int = 200
    compactness: float = 10.0
    iterations: int = 10
    bins: tuple[int, ...] = (6, 3, 2, 1)
    fc_channels: int = 4096
    dropout: float = 0.5
    segment_batch: int = 16
    widths: tuple[int, ...] = ()
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "caffe"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_choice(self, "design", ("a", "b"))
        integers = "superpixels", "iterations", "fc_channels", "segment_batch"
        layers.check_integers(self, *integers)
        zoomout.check_compactness(self)
        layers.check_positive(self, "bins", minimum=1)
        backbones.check(self, ("vgg16",))
        layers.check_common(self)
        super().__post_init__()

    backbone = "vgg16"
    coarse_scores = None

    @property
    def tiling(self) -> geometry.Tiling:
        """Any size in, the same size out."""
        return geometry.ANY_SIZE

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, masks: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """`masks`: bool [N, P, H, W], segments from outside.

        A pixel that none of them covers has logits of zero.
        """
        trunk = backbones.build(self, convolutions=True)
        x = image.normalize(images, self.image_stats, self.dtype)
        x = trunk(x, train, fc=False)[_FEATURES]
        where: dict[str, Any] = {"source": _GRID, "size": geometry.sides(x)}
        sides = geometry.sides(images)
        if masks is not None:
            boxes = mask_boxes(masks)
            segments = Segments(
                segment_pool.project_masks(masks, **where),
                segment_pool.box_locations(boxes, image=sides, **where),
            )
            scores = self._scores(x, segments, train)
            logits = paste(scores, masks.reshape(*masks.shape[:2], -1))
            return logits.reshape(*images.shape[:3], -1), {
                _FEATURES: x,
                "segment_scores": scores[:, None],
            }
        count = math.prod(superpixels.grid_size(*sides, self.superpixels))
        ids = superpixels.slic(
            images,
            superpixels=self.superpixels,
            compactness=self.compactness,
            iterations=self.iterations,
        )
        members = superpixel_hierarchy(images, ids, count)
        shares = segment_pool.location_shares(ids, count, **where)
        shares = jnp.einsum("nps,nshw->nphw", members.astype(jnp.float32), shares)
        boxes = superpixels.union_boxes(superpixels.boxes(ids, count), members)
        segments = Segments(
            shares >= 0.5 - 1e-5,
            segment_pool.box_locations(boxes, image=sides, **where),
        )
        scores = self._scores(x, segments, train)
        endpoints = {
            _FEATURES: x,
            "superpixels": ids[..., None],
            "members": members[:, None],
            "segment_scores": scores[:, None],
        }
        if train:
            share = members / jnp.maximum(members.sum(axis=1, keepdims=True), 1)
            mean = jnp.einsum("nps,npk->nsk", share, scores)
            endpoints["aux_logits_segments"] = segment_pool.paint(mean, ids)
        return segment_pool.paint(paste(scores, members), ids), endpoints

    def _scores(self, x: jax.Array, segments: Segments, train: bool) -> jax.Array:
        """Class scores [N, P, K] of segments of the features `x`."""

        # Not called fc6 and fc7: they read other features than VGG16's of these names.
        def fully_connected(y, path):
            y = y.reshape(y.shape[0], 1, y.shape[1], -1)
            for name in ("fc6", "fc7"):
                y = layers.Conv(
                    self.fc_channels, 1, dtype=self.dtype, name=f"{path}_{name}"
                )(y)
                y = Dropout(self.dropout, deterministic=not train)(nn.relu(y))
            return y

        whole, masked = pyramids(
            x, segments, self.bins, design=self.design, batch=self.segment_batch
        )
        y = fully_connected(masked, "segment")
        if self.design == "a":
            y = jnp.concatenate([y, fully_connected(whole, "box")], axis=-1)
        score = layers.Conv(
            self.num_classes, 1, kernel_init=layers.score_normal, name="score"
        )
        return score(y)[:, 0]


def pyramids(
    x: jax.Array,
    segments: Segments,
    bins: tuple[int, ...],
    *,
    design: str,
    batch: int,
) -> tuple[jax.Array, jax.Array]:
    """Pyramids of the boxes and of the segments, each [N, P, sum of b^2, C].

    Masked features are zero outside of the segment. With design "b" that holds for the
    finest level of the second pyramid alone.

    Args:
      x: features [N, h, w, C].
      segments: of the N images.
      bins: see segment_pool.pyramid_pool, finest first.
      design: "a" or "b".
      batch: how many segments of an image are pooled at a time.
    """
    finest = bins[0] ** 2

    @jax.checkpoint  # else the backward pass keeps the masked maps of all segments
    def of_segment(x, mask, box):
        whole = segment_pool.pyramid_pool(x, box, bins)
        inside = jnp.where(mask[..., None], x, 0)
        if design == "a":
            return whole, segment_pool.pyramid_pool(inside, box, bins)
        masked = segment_pool.pyramid_pool(inside, box, bins[:1])
        return whole, jnp.concatenate([masked, whole[finest:]])

    def of_image(x, masks, boxes):
        return jax.lax.map(
            lambda segment: of_segment(x, *segment), (masks, boxes), batch_size=batch
        )

    return jax.vmap(of_image)(x, segments.masks, segments.boxes)


def superpixel_hierarchy(images: jax.Array, ids: jax.Array, count: int) -> jax.Array:
    """Superpixels and their unions, merged by color: bool [N, 2 count - 1, count]."""
    images = jax.lax.stop_gradient(images)
    images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    colors = segment_pool.segment_mean(superpixels.lab(images), ids, count)
    near = superpixels.adjacency(ids, count)
    return hierarchy.merge(colors, segment_pool.pixel_counts(ids, count), near)


def paste(scores: jax.Array, members: jax.Array) -> jax.Array:
    """Pastes segments in the order of their scores, the best one last, on top.

    Args:
      scores: [N, P, K].
      members: bool [N, P, S]: the parts (pixels or superpixels) that a segment covers.

    Returns:
      [N, S, K]: for each part the scores of that segment over it whose largest
      probability is the highest, of equal ones the first; zeros where there is none.
    """
    # Log-odds of the largest probability, which itself is rounded to 1 too soon.
    best = scores.max(axis=-1, keepdims=True)
    top = jnp.arange(scores.shape[-1]) == scores.argmax(axis=-1)[..., None]
    others = jax.nn.logsumexp(jnp.where(top, -jnp.inf, scores), axis=-1)
    sure = best[..., 0] - others
    covers = members.astype(bool)
    rank = jnp.where(covers, sure[..., None], -jnp.inf)
    best = jax.vmap(lambda scores, best: scores[best])(scores, rank.argmax(axis=1))
    covered = rank.max(axis=1) > -jnp.inf
    return jnp.where(covered[..., None], best, 0)


def mask_boxes(masks: jax.Array) -> jax.Array:
    """Bounding boxes of `masks` [N, P, H, W]: int32 [N, P, 4].

    First row and column, and those behind the last. An empty mask has that of the first
    pixel.
    """
    ends = []
    for axis in (3, 2):  # reduced, which leaves rows, then columns
        used = masks.astype(bool).any(axis=axis)
        side = used.shape[-1]
        first = used.argmax(axis=-1)
        last = jnp.where(used.any(axis=-1), side - used[..., ::-1].argmax(axis=-1), 1)
        ends.append((first, last))
    (top, bottom), (left, right) = ends
    return jnp.stack([top, left, bottom, right], axis=-1).astype(jnp.int32)
