"""GoogLeNet (Szegedy et al., CVPR 2015) as a trunk, in the form of BVLC's release.

That is Inception v1 with local response normalization and without batch
normalization, 5x5 convolutions, ceil-mode poolings. (torchvision's network of this
name is another one: batch-normalized and 3x3 in place of 5x5.) Layer names are
Caffe's with "_" for "/": inception_3a_3x3_reduce, ...
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import layers
from segjax.models.backbone import Backbone
from segjax.ops import geometry, norm, pool

WIDTH = 64
# Channels of an inception block: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool proj.
BLOCKS: dict[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# The poolings between blocks, by the block before.
POOLS = {"3b": "pool3", "4e": "pool4"}


def scaled(channels: int, width: int) -> int:
    """The channels of a layer published with `channels`, in a network of `width`."""
    return max(1, channels * width // WIDTH)


def grids(pad_first: int = 3) -> dict[str, geometry.Grid]:
    """Where the locations of conv1, pool1, ..., and of the inception blocks lie."""
    grid = geometry.conv(geometry.Grid(), kernel=7, stride=2, padding=pad_first)
    named = {"conv1": grid}
    for name in ("pool1", "pool2"):
        grid = named[name] = geometry.conv(grid, kernel=3, stride=2)
    for block in BLOCKS:
        named[f"inception_{block}"] = grid
        if block in POOLS:
            grid = named[POOLS[block]] = geometry.conv(grid, kernel=3, stride=2)
    return named


class GoogLeNet(nn.Module):
    """The trunk up to inception_5b: normalized images [N, H, W, C] -> endpoints.

    Endpoints: conv1, pool1, norm1, conv2, norm2, pool2, inception_3a, inception_3b,
    pool3, ..., inception_4e, pool4, inception_5a, inception_5b. Kernels start
    He-normal and biases zero (Caffe: Xavier and 0.2).

    Attributes:
      pad_first: padding of conv1: 3 in the classifier, 100 in FCN.
      width: channels of conv1 (64); those of all other layers scale with it.
      norm: "none" (as published) or "batch": a batch normalization after every
        convolution, in place of the biases and of the LRN.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      dtype: compute type.

    Raises:
      UserError: an image too small for a pooling.
    """

    pad_first: int = 3
    width: int = WIDTH
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)

        def unit(x, name, features, size, stride=1, padding=None):
            padding = size // 2 if padding is None else padding
            features = scaled(features, self.width)
            return conv_bn_relu(x, name, features, size, stride=stride, padding=padding)

        def inception(x, name, channels):
            one, reduce3, three, reduce5, five, proj = channels
            pooled = pool.max_pool(x, 3, stride=1, padding=1)
            reduced3 = unit(x, f"{name}_3x3_reduce", reduce3, 1)
            reduced5 = unit(x, f"{name}_5x5_reduce", reduce5, 1)
            branches = (
                unit(x, f"{name}_1x1", one, 1),
                unit(reduced3, f"{name}_3x3", three, 3),
                unit(reduced5, f"{name}_5x5", five, 5),
                unit(pooled, f"{name}_pool_proj", proj, 1),
            )
            return jnp.concatenate(branches, axis=-1)

        endpoints = {}
        x = unit(x, "conv1_7x7_s2", 64, 7, stride=2, padding=self.pad_first)
        endpoints["conv1"] = x
        x = endpoints["pool1"] = layers.overlapping_pool(x, "pool1")
        if self.norm == "none":
            x = endpoints["norm1"] = norm.local_response_norm(x)
        x = unit(x, "conv2_3x3_reduce", 64, 1)
        x = endpoints["conv2"] = unit(x, "conv2_3x3", 192, 3)
        if self.norm == "none":
            x = endpoints["norm2"] = norm.local_response_norm(x)
        x = endpoints["pool2"] = layers.overlapping_pool(x, "pool2")
        for block, channels in BLOCKS.items():
            name = f"inception_{block}"
            x = endpoints[name] = inception(x, name, channels)
            if block in POOLS:
                x = endpoints[POOLS[block]] = layers.overlapping_pool(x, POOLS[block])
        return endpoints


BACKBONE = Backbone(
    module=GoogLeNet,
    crop=224,
    widths=(WIDTH,),
    top="inception_5b",
    score="loss3_classifier",
    grids=grids,
    dropout=True,
    average=7,
)
