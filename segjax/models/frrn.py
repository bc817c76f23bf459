"""FRRN A and B (Pohlen, Hermans, Mathias, Leibe, CVPR 2017).

Two streams: the *pooling stream* is an ordinary encoder-decoder, the *residual stream*
stays at full resolution and is only ever added to. Every FRRU reads both and feeds
both.

Where the authors' code is more specific than the paper, the code is followed: residual
units and the split have no ReLU at their end, the residual stream is written by a
nearest unpooling and the pooling stream unpooled bilinearly. That bilinear rule puts
cell i on pixel 2i, half a cell off the pooled windows; ``unpooling="bilinear"`` is the
aligned one. The code divides images by 255 and no more: behind the normalisation of
conv1 that equals ``image_stats="unit"`` but for the value of the zero padding. It
normalises with an eps of 1e-4 (1e-5 here).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import layers
from segjax.ops import geometry, image, pool, resize


class Stages(NamedTuple):
    """One value per stage of FRRUs: their number, their channels, their scale."""

    units: tuple[int, ...]
    channels: tuple[int, ...]
    scales: tuple[int, ...]


# Table 1.
VARIANTS = {
    "a": Stages(
        units=(3, 4, 2, 2, 2, 2, 2),
        channels=(96, 192, 384, 384, 192, 192, 96),
        scales=(2, 4, 8, 16, 8, 4, 2),
    ),
    "b": Stages(
        units=(3, 4, 2, 2, 2, 2, 2, 2, 2),
        channels=(96, 192, 384, 384, 384, 192, 192, 192, 96),
        scales=(2, 4, 8, 16, 32, 16, 8, 4, 2),
    ),
}

UNPOOLING = ("bilinear_origin", "bilinear", "nearest")

# He et al. 2015 with a uniform distribution, before a ReLU and elsewhere (the code's).
_he_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
_linear_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def unpool(x: jax.Array, ratio: int, rule: str) -> jax.Array:
    """Enlarges `x` [N, H, W, C] by the whole factor `ratio`.

    Args:
      rule: "bilinear_origin": cell i lies on output ratio * i, and what lies beyond the
        last cell repeats it (Theano's bilinear upsampling, as in the authors' code);
        "bilinear": half-pixel centres; "nearest".
    """
    size = x.shape[1] * ratio, x.shape[2] * ratio
    if rule == "nearest":
        return resize.resize_nearest(x, size)
    if rule == "bilinear":
        return resize.resize_bilinear(x, size, align_corners=False)
    for axis in (1, 2):
        side = x.shape[axis]
        last = jax.lax.slice_in_dim(x, side - 1, side, axis=axis)
        after = jax.lax.slice_in_dim(x, 1, side, axis=axis)
        after = jnp.concatenate([after, last], axis)
        parts = [x + (after - x) * (k / ratio) for k in range(ratio)]
        shape = list(x.shape)
        shape[axis] *= ratio
        x = jnp.stack(parts, axis + 1).reshape(shape)
    return x


class _Unit(nn.Module):
    """What RU and FRRU share: their fields, and a convolution with its norm."""

    channels: int
    bn_momentum: float = 0.9
    dtype: str = "float32"

    def conv_bn(
        self, x: jax.Array, train: bool, number: int, size: int = 3, relu: bool = True
    ) -> jax.Array:
        x = layers.Conv(
            self.channels,
            size,
            padding=size // 2,
            use_bias=False,
            kernel_init=_he_uniform if relu else _linear_uniform,
            dtype=self.dtype,
            name=f"conv{number}",
        )(x)
        x = layers.batch_norm(
            x, train, self.bn_momentum, self.dtype, name=f"bn{number}"
        )
        return nn.relu(x) if relu else x
