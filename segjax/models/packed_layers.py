"""Layers on pairs of pixels: the parameters and numbers of those of layers.py.

See ops/packed.py. A network computes its layers of 64 channels with these where its
field `packed` is set.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import layers, moments
from segjax.ops import packed
from segjax.ops.packed import Packed

# What a convolution to pairs reads: a plain map, a packed one, or several of these.
Maps = jax.Array | Packed | list[Packed]


def _with_bias(x: Packed, bias: jax.Array) -> Packed:
    """Added to all pixels of the map, and not to the one outside of it."""
    pairs = x.pairs + jnp.tile(bias.astype(x.pairs.dtype), 2)
    return packed.cleared(Packed(pairs, x.width))


class Conv(nn.Module):
    """``layers.Conv`` to pairs: of a plain map, or of the concatenation of packed ones.

    Packed maps are padded by 0 or 1; the kernel is 3x3, or 1x1 for one map.

    Attributes: see layers.Conv.
    """

    features: int
    size: int = 3
    padding: int = 0
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = layers.he_normal
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Maps) -> Packed:
        maps = [x] if isinstance(x, Packed) else x
        if isinstance(maps, list):
            channels = sum(part.pairs.shape[-1] // 2 for part in maps)
        else:
            channels = maps.shape[-1]
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        maps = jax.tree.map(lambda y: y.astype(self.dtype), maps)
        if not isinstance(maps, list):
            y = packed.conv_to_pairs(maps, kernel, padding=self.padding)
        elif self.size == 1:
            (only,) = maps
            y = packed.conv1x1(only, kernel)
        else:
            y = packed.conv3x3(maps, kernel, padding=self.padding)
        if not self.use_bias:
            return y
        return _with_bias(
            y, self.param("bias", nn.initializers.zeros, (self.features,))
        )


class Doubled(nn.Module):
    """``layers.ConvTranspose`` 2x2 of stride 2 from a plain map to pairs.

    Attributes: see layers.ConvTranspose.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> Packed:
        shape = (2, 2, x.shape[-1], self.features)
        kernel = self.param("kernel", layers.he_normal_transposed, shape)
        y = packed.doubled(x.astype(self.dtype), kernel)
        return _with_bias(
            y, self.param("bias", nn.initializers.zeros, (self.features,))
        )


class BatchNorm(nn.Module):
    """Flax's BatchNorm of pairs [N, H, P, 2 C]; those of a map of `width` columns.

    A pixel outside of the map is zero when it comes in, and counts for nothing.

    Attributes:
      width: columns of the map.
      train, momentum, unbiased, dtype: see layers.batch_norm.
    """

    width: int
    train: bool
    momentum: float
    unbiased: bool
    dtype: str
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, pairs: jax.Array) -> jax.Array:
        wide = pairs.astype(jnp.float32)
        count = pairs.shape[0] * pairs.shape[1] * self.width

        def average(x: jax.Array) -> jax.Array:
            return x.sum((0, 1, 2)).reshape(2, -1).sum(0) / count

        def of_map() -> moments.Moments:
            mean = average(wide)
            variance = average(jnp.square(wide)) - jnp.square(mean)
            return mean, jnp.maximum(variance, 0), count

        channels = pairs.shape[-1] // 2
        mean, factor, bias = moments.normalization(self, channels, of_map)
        y = (wide - jnp.tile(mean, 2)) * jnp.tile(factor, 2) + jnp.tile(bias, 2)
        return y.astype(self.dtype)


def batch_norm(
    x: Packed, name: str, *, train: bool, momentum: float, dtype: str, unbiased: bool
) -> Packed:
    """``layers.batch_norm`` of a packed map."""
    layer = BatchNorm(
        width=x.width,
        train=train,
        momentum=momentum,
        unbiased=unbiased,
        dtype=dtype,
        name=name,
    )
    return packed.cleared(
        Packed(layers.by_groups(layer, x.pairs, train=train), x.width)
    )


# What layers.conv_bn_relu is told for packed maps.
FORM = {"layer": Conv, "normalize": batch_norm}
