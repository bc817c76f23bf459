"""Layers on pairs of pixels: the parameters and numbers of those of layers.py.

See ops/packed.py. A network computes its layers of 64 channels with these where its
field `packed` is set.
"""

from collections.abc import Callable
from typing import Any

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

    Packed maps are padded by 0 or 1; the kernel is 3x3, or 1x1 for one map. A plain
    map may have a stride of 2.

    Attributes: see layers.Conv.
    """

    features: int
    size: int = 3
    stride: int = 1
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
            strided = self.stride == 2
            convolution = packed.strided_to_pairs if strided else packed.conv_to_pairs
            y = convolution(maps, kernel, padding=self.padding)
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

    With `pool`, a maximum over windows, also the normalized pooled map. What is pooled
    is the map itself, negated in channels whose factor is negative: normalization is
    monotonic, also in its roundings, and gives the same numbers behind the pooling, of
    fewer pixels. Its gradient may differ where roundings make ties.

    Attributes:
      width: columns of the map.
      train, momentum, unbiased, dtype: see layers.batch_norm.
      pool: pairs -> plain map.
    """

    width: int
    train: bool
    momentum: float
    unbiased: bool
    dtype: str
    epsilon: float = 1e-5
    pool: Callable[[Packed], jax.Array] | None = None

    @nn.compact
    def __call__(self, pairs: jax.Array) -> Any:
        mean, factor, bias = moments.normalization(
            self, pairs.shape[-1] // 2, lambda: _moments(pairs, self.width)
        )

        def normalize(y: jax.Array, pixels: int) -> jax.Array:
            shift, times, plus = (jnp.tile(v, pixels) for v in (mean, factor, bias))
            return ((y - shift) * times + plus).astype(self.dtype)

        if self.pool is None:
            return normalize(pairs, 2)
        sign = jnp.where(factor < 0, -1, 1).astype(pairs.dtype)
        pooled = self.pool(Packed(pairs * jnp.tile(sign, 2), self.width))
        return normalize(pairs, 2), normalize(pooled * sign, 1)


def _moments(pairs: jax.Array, width: int) -> moments.Moments:
    wide = pairs.astype(jnp.float32)
    count = pairs.shape[0] * pairs.shape[1] * width

    def average(x: jax.Array) -> jax.Array:
        return x.sum((0, 1, 2)).reshape(2, -1).sum(0) / count

    mean = average(wide)
    variance = average(jnp.square(wide)) - jnp.square(mean)
    return mean, jnp.maximum(variance, 0), count


def batch_norm(
    x: Packed,
    name: str,
    *,
    train: bool,
    momentum: float,
    dtype: str,
    unbiased: bool,
    pool: Callable[[Packed], jax.Array] | None = None,
) -> Any:
    """``layers.batch_norm`` of a packed map; with `pool`, also the pooled plain map.

    A ReLU may follow.
    """
    fields: dict[str, Any] = dict(
        width=x.width,
        train=train,
        momentum=momentum,
        unbiased=unbiased,
        dtype=dtype,
        name=name,
    )
    if pool and not layers.in_groups(len(x.pairs)):
        pairs, pooled = BatchNorm(pool=pool, **fields)(x.pairs)
        return packed.cleared(Packed(pairs, x.width)), pooled
    pairs = layers.by_groups(BatchNorm(**fields), x.pairs, train=train)
    y = packed.cleared(Packed(pairs, x.width))
    return (y, pool(y)) if pool else y


# What layers.conv_bn_relu is told for packed maps.
FORM = {"layer": Conv, "normalize": batch_norm}
