"""Zoom-out features (Mostajabi, Yadollahpour, Shakhnarovich, CVPR 2015) on VGG16.

A superpixel is described by what a trained classifier computes at growing distances
from it: the means of the 13 convolutions over the superpixel, fc7 of the sub-scene
around it and fc7 of the whole image. A small network then classifies superpixels. The
classifier that computes the features stays as it is.

The paper has the features in files; here they are computed with the image, so training
and prediction need nothing else. docs/systems/zoomout.md has the differences.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax import errors
from segjax.errors import UserError
from segjax.models import backbones, layers, vgg
from segjax.models.dropout import Dropout
from segjax.ops import geometry, image, resize, segment_pool, superpixels

LEVELS = (*vgg.CONVOLUTIONS, "subscene", "scene")


class Standardize(nn.Module):
    """Brings each dimension of the features to mean 0 and variance 1.

    The mean and the variance are those of the training superpixels, as moving averages
    over the steps: exponential ones, of which the first step is the beginning. They are
    applied in training as well as they are in prediction, unlike in batch
    normalization: a dimension that all superpixels of an image share (the scene) has no
    variance in a batch of one image.

    Attributes:
      momentum: fraction of the old averages kept at a step.
    """

    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
        """[N, S, D] float32; what is not `valid` (bool [N, S, 1]) becomes 0."""
        size = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
        var = self.variable("batch_stats", "var", jnp.ones, (size,))
        # What all steps so far weigh: 1 - momentum^steps.
        weight = self.variable("batch_stats", "weight", jnp.zeros, (1,))
        if train and not self.is_initializing():
            count = jnp.maximum(valid.sum(), 1)
            batch_mean = jnp.where(valid, x, 0).sum((0, 1)) / count
            square = jnp.where(valid, (x - batch_mean) ** 2, 0).sum((0, 1)) / count
            weight.value = self.momentum * weight.value + 1 - self.momentum
            share = (1 - self.momentum) / weight.value
            step = batch_mean - mean.value
            # The variance of a mixture, which includes that between the means.
            var.value = (1 - share) * (var.value + share * step**2) + share * square
            mean.value = mean.value + share * step
        return jnp.where(valid, (x - mean.value) / jnp.sqrt(var.value + 1e-5), 0)


class Zoomout(nn.Module):
    """Images [N, H, W, C] of any size -> logits [N, H, W, K], equal in a superpixel.

    The backbone is never trained (`frozen`): no gradient flows into it, and training
    does not decay it.

    Attributes:
      num_classes: K.
      superpixels: about how many an image has, see superpixels.grid_size.
      compactness, iterations: of SLIC, see superpixels.slic.
      levels: what describes a superpixel: any of conv1_1 .. conv5_3, "subscene" and
        "scene".
      distance: the sub-scene of a superpixel is the bounding box of all that are at
        most so many steps away in the graph of neighbors.
      scene_side: image and sub-scenes are warped to squares of this side for fc7, whose
        map is averaged. fc6 is padded by 3 where its kernel is larger than the map.
      subscene_batch: sub-scenes of each image that are computed at a time: no effect on
        the result but on memory.
      hidden: channels of the hidden layers; () is the linear classifier.
      dropout: rate after each hidden layer.
      widths: channels of the five stages; () takes the published ones.
      fc_channels: channels of fc6 and fc7.
      norm: "none" (the paper) or "batch", in the backbone, which uses the statistics
        that it comes with and does not change them.
      bn_momentum: fraction of the old statistics of the features kept at a step, see
        :class:`Standardize`.
      bn_unbiased: no effect: the backbone's statistics do not change.
      image_stats: see ops/image.py.
      dtype: of the backbone; features and scores are computed in float32.

    Endpoints: superpixels [N, H, W, 1] int32; features [N, 1, S, D], normalized, of S
    superpixels; superpixel_scores [N, 1, S, K].

    Raises:
      UserError: a bad field value.
    """

    num_classes: int
    superpixels: int = 500
    compactness: float = 10.0
    iterations: int = 10
    levels: tuple[str, ...] = LEVELS
    distance: int = 3
    scene_side: int = 256
    subscene_batch: int = 20
    hidden: tuple[int, ...] = (1024, 1024)
    dropout: float = 0.5
    widths: tuple[int, ...] = ()
    fc_channels: int = 4096
    norm: str = "none"
    bn_momentum: float = 0.99
    bn_unbiased: bool = False
    image_stats: str = "caffe"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        integers = ("superpixels", "iterations", "scene_side", "subscene_batch")
        layers.check_integers(self, *integers, "fc_channels")
        layers.check_integers(self, "distance", minimum=0)
        check_compactness(self)
        layers.check_positive(self, "hidden")
        check_levels(self)
        backbones.check(self, ("vgg16",))
        layers.check_common(self)
        super().__post_init__()

    backbone = "vgg16"
    coarse_scores = None
    frozen = ("backbone",)

    @property
    def tiling(self) -> geometry.Tiling:
        """Any size in, the same size out."""
        return geometry.ANY_SIZE

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        count = math.prod(
            superpixels.grid_size(*geometry.sides(images), self.superpixels)
        )
        ids = superpixels.slic(
            images,
            superpixels=self.superpixels,
            compactness=self.compactness,
            iterations=self.iterations,
        )
        padding = 3 if self.scene_side <= 6 * 32 else 0
        trunk = backbones.build(self, fc6_padding=padding, convolutions=True)
        features = jax.lax.stop_gradient(self._features(trunk, images, ids, count))
        filled = segment_pool.pixel_counts(ids, count)[..., None] > 0
        x = Standardize(self.bn_momentum, name="standardize")(features, filled, train)
        x = x[:, None]
        endpoints = {"superpixels": ids[..., None], "features": x}
        for index, width in enumerate(self.hidden, start=1):
            x = nn.relu(layers.Conv(width, 1, name=f"hidden{index}")(x))
            x = Dropout(self.dropout, deterministic=not train)(x)
        scores = layers.Conv(
            self.num_classes, 1, kernel_init=layers.score_normal, name="score"
        )(x)
        endpoints["superpixel_scores"] = scores
        return segment_pool.paint(scores[:, 0], ids), endpoints

    def _features(
        self, trunk: nn.Module, images: jax.Array, ids: jax.Array, count: int
    ) -> jax.Array:
        """The features of all superpixels, [N, count, D], in the order of `levels`."""

        def normalized(x):
            return image.normalize(x, self.image_stats, self.dtype)

        # The backbone is never in training: no dropout, statistics as they are.
        maps = trunk(normalized(images), False, fc=False)
        found = pool_levels(maps, ids, count, names=self.levels)
        if "scene" in self.levels:
            square = (self.scene_side, self.scene_side)
            warped = resize.resize_bilinear(
                images.astype(jnp.float32), square, align_corners=False
            )
            fc7 = trunk(normalized(warped), False)["fc7"]
            fc7 = fc7.astype(jnp.float32).mean(axis=(1, 2))[:, None]
            found["scene"] = jnp.broadcast_to(fc7, (len(ids), count, fc7.shape[-1]))
        if "subscene" in self.levels:
            boxes = subscene_boxes(ids, count, self.distance)
            parts = _split(boxes, self.subscene_batch)

            def of_part(trunk, _, boxes):
                crops = resize.crop_and_resize(images, boxes, self.scene_side)
                flat = crops.reshape(-1, *crops.shape[2:])
                fc7 = trunk(normalized(flat), False)["fc7"]
                fc7 = fc7.astype(jnp.float32).mean(axis=(1, 2))
                return (), fc7.reshape(*boxes.shape[:2], -1)

            _, fc7 = nn.scan(
                of_part, variable_broadcast=("params", "batch_stats"), split_rngs={}
            )(trunk, (), parts)
            fc7 = jnp.moveaxis(fc7, 0, 1).reshape(len(ids), -1, fc7.shape[-1])
            found["subscene"] = fc7[:, :count]
        return jnp.concatenate([found[name] for name in self.levels], axis=-1)


def pool_levels(
    maps: dict[str, jax.Array],
    ids: jax.Array,
    count: int,
    *,
    names: Sequence[str],
) -> dict[str, jax.Array]:
    """Means of VGG16's convolutions over superpixels, each interpolated to the image.

    Args:
      maps: the convolutions by name, [N, h, w, C].
      ids: superpixels [N, H, W], 0..count - 1.
      count: how many there are.
      names: the convolutions to pool; other names are left out.

    Returns:
      float32 [N, count, C] by name.
    """
    grids, weights, found = vgg.grids(1), {}, {}
    for name in names:
        if name not in vgg.CONVOLUTIONS:
            continue
        x, grid = maps[name], grids[name]
        if grid.step == 1:
            found[name] = segment_pool.segment_mean(x, ids, count)
            continue
        if grid not in weights:  # the convolutions of a stage share them
            weights[grid] = segment_pool.location_weights(
                ids, count, source=grid, size=geometry.sides(x)
            )
        found[name] = segment_pool.weighted_mean(x, weights[grid])
    return found


def subscene_boxes(ids: jax.Array, count: int, distance: int) -> jax.Array:
    """Bounding boxes of the superpixels within `distance` of each: int32 [N, count, 4].

    See superpixels.boxes for the four numbers.
    """
    near = superpixels.within(superpixels.adjacency(ids, count), distance)
    return superpixels.union_boxes(superpixels.boxes(ids, count), near)


def _split(boxes: jax.Array, size: int) -> jax.Array:
    """[N, S, 4] -> [parts, N, size, 4], the last part filled up with zeros.

    Every part holds boxes of all images: split over devices, no image moves.
    """
    batch, count, _ = boxes.shape
    size = min(size, count)
    missing = -count % size
    boxes = jnp.pad(boxes, ((0, 0), (0, missing), (0, 0)))
    return jnp.moveaxis(boxes.reshape(batch, -1, size, 4), 1, 0)


def check_compactness(model: nn.Module) -> None:
    """Raises a UserError if `compactness` is not above 0."""
    if not model.compactness > 0:
        raise UserError(
            f"{layers.flag(model, 'compactness')} is {model.compactness}, expected "
            "more than 0"
        )


def check_levels(model: nn.Module) -> None:
    """Raises a UserError if `levels` is empty, or not different names of LEVELS."""
    chosen, flag = model.levels, layers.flag(model, "levels")
    if isinstance(chosen, str) or not isinstance(chosen, Sequence) or not chosen:
        raise UserError(f"{flag} is {chosen!r}, expected names such as 'conv5_3'")
    for name in chosen:
        if name not in LEVELS:
            raise errors.unknown(flag, name, LEVELS)
    if len({*chosen}) < len(chosen):
        raise UserError(f"{flag} is {chosen!r}, expected different values")
