"""The layers of ``layers.conv_bn_relu`` for framed maps (ops/framed.py).

They have the parameters and statistics of the layers of the full maps, under the same
names, and give the same numbers but for rounding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.models import layers, moments, packed_layers
from segjax.ops import framed
from segjax.ops.framed import Framed
from segjax.ops.packed import Packed


def conv(features: int, size: int, **fields: Any) -> Callable[[Framed], Framed]:
    """``layers.Conv`` of 3x3 with a padding of 1."""
    layer = layers.Conv(features, size, **fields)
    return lambda x: framed.convolve(x, layer)


def conv_in_pairs(
    features: int, size: int, **fields: Any
) -> Callable[[Framed], Framed]:
    """:func:`conv` to a window in pairs of pixels, from one or from a plain one."""
    layer = packed_layers.Conv(features, size, **fields)

    def run(x: Framed) -> Framed:
        y = framed.convolve(x, layer)
        return dataclasses.replace(y, blank=framed.expand(y.blank))

    return run


class BatchNorm(nn.Module):
    """Flax's BatchNorm of the full map; float32 statistics over all its locations.

    Attributes: those of layers.batch_norm.
    """

    train: bool
    momentum: float
    unbiased: bool
    dtype: str
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Framed) -> Framed:
        mean, factor, bias = moments.normalization(
            self, x.blank.shape[-1], lambda: _moments(x)
        )

        def normalize(y):
            shift, times, plus = (_per_channel(v, y) for v in (mean, factor, bias))
            return ((y - shift) * times + plus).astype(self.dtype)

        return jax.tree.map(normalize, x)


def batch_norm(
    x: Framed, name: str, *, train: bool, momentum: float, dtype: str, unbiased: bool
) -> Framed:
    """``layers.batch_norm`` of a framed map, but for groups of images."""
    layer = BatchNorm(
        train=train, momentum=momentum, unbiased=unbiased, dtype=dtype, name=name
    )
    return layer(x)


# What layers.conv_bn_relu is told for framed maps.
FORM = {"layer": conv, "normalize": batch_norm}
# The same with windows in pairs of pixels (ops/packed.py).
PACKED = {"layer": conv_in_pairs, "normalize": batch_norm}


def _per_channel(values: jax.Array, of: jax.Array) -> jax.Array:
    """[C] -> [1, 1, 1, C] for a plain map, twice as many for pairs."""
    return jnp.tile(values, of.shape[-1] // len(values)).reshape(1, 1, 1, -1)


def _moments(x: Framed) -> tuple[jax.Array, jax.Array, int]:
    """Mean and variance of the channels of the full map, and its locations.

    The variance is Flax's, the mean of squares less the squared mean, but of
    differences from the middle of the blank map, which most of the frame equals:
    its squares, many and alike, would leave little of the variance but rounding.
    """
    window = x.window.pairs if isinstance(x.window, Packed) else x.window
    images, channels = len(window), x.blank.shape[-1]
    count = images * x.rows.side * x.columns.side
    weights = images * framed.frame_counts(x).astype(np.float32)[None, :, :, None]
    window, blank = window.astype(jnp.float32), x.blank.astype(jnp.float32)
    middle = jax.lax.stop_gradient(blank[0, x.rows.near, x.columns.near])

    def mean(of):
        # Products and sums: a matrix product would round more on some devices.
        # Windows have even sides, so that all pixels of pairs belong to the map.
        parts = (of(y - _per_channel(middle, y)) for y in (window, blank))
        return sum(
            (part * weight).sum((0, 1, 2)).reshape(-1, channels).sum(0) / count
            for part, weight in zip(parts, (1, weights), strict=True)
        )

    first, second = mean(lambda y: y), mean(jnp.square)
    return middle + first, jnp.maximum(second - jnp.square(first), 0), count
