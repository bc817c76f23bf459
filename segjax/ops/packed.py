"""Pairs of pixels in the channels: maps of 64 channels that fill the lanes of a TPU.

A map [N, H, W, C] is stored as [N, H, W / 2, 2 C], two neighbours of a row in one
location. The matrix units of a TPU multiply 128 x 128 channels, and its vectors have
128 lanes: of 64 channels they multiply at a quarter of their speed, and every
elementwise operation leaves half of the lanes empty. On pairs both are full. A padded
3x3 convolution reads three pairs where it needs four pixels, so half of its kernel is
zero: twice the multiply-adds for the same sums, in half of the cycles on a TPU
(docs/benchmark.md). Elsewhere it is slower.

With an odd width the last pair has a pixel outside of the map, which is zero, as the
padding is.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import conv, geometry, pool, strided


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("pairs",), meta_fields=("width",)
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """A map of `width` columns in pairs."""

    pairs: jax.Array  # [N, H, (width + 1) // 2, 2 C]
    width: int


def pack(x: jax.Array) -> Packed:
    """The pairs of a map [N, H, W, C]."""
    n, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, width % 2), (0, 0)))
    return Packed(x.reshape(n, height, -1, 2 * channels), width)


def unpack(x: Packed) -> jax.Array:
    """The map [N, H, W, C] of pairs."""
    n, height, count, channels = x.pairs.shape
    return x.pairs.reshape(n, height, 2 * count, channels // 2)[:, :, : x.width]


def cleared(x: Packed, fill: float = 0) -> Packed:
    """Zeros in the pixel of the last pair that is outside of the map, if there is one.

    To be called after whatever does not map zero to zero. Or `fill` instead of zeros.
    """
    count, channels = x.pairs.shape[2:]
    if x.width == 2 * count:
        return x
    outside = np.zeros((count, channels), bool)
    outside[-1, channels // 2 :] = True
    return Packed(jnp.where(outside, fill, x.pairs), x.width)


def crop(x: Packed, start: tuple[int, int], size: tuple[int, int]) -> Packed:
    """The window of `size` rows and columns that begins at `start`."""
    (top, left), (height, width) = start, size
    if left % 2:
        cut = unpack(x)[:, top : top + height, left : left + width]
        return pack(cut)
    count = (width + 1) // 2
    pairs = x.pairs[:, top : top + height, left // 2 : left // 2 + count]
    return cleared(Packed(pairs, width))


def _pairs_kernel(kernel: jax.Array, columns: int, first: int) -> jax.Array:
    """The kernel [k, k, I, O] of both outputs of a pair, [k, columns, I, 2 O].

    It reads `columns` columns, the first output from column `first` on and the second
    from the next one.
    """
    free = columns - kernel.shape[1]
    no = (0, 0)
    both = [
        jnp.pad(kernel, (no, (start, free - start), no, no))
        for start in (first, first + 1)
    ]
    return jnp.concatenate(both, axis=3)


def conv_to_pairs(x: jax.Array, kernel: jax.Array, *, padding: int = 0) -> Packed:
    """``conv.conv2d`` of a plain map `x` [N, H, W, I] with `kernel` [k, k, I, O].

    Of the pairs of `x`: for maps of few channels, such as images.
    """
    size = kernel.shape[0]
    width = geometry.conv_size(x.shape[2], size, padding=padding)
    columns = size + 1 + (size + 1) % 2  # that the pairs hold that both outputs read

    def product(x, kernel):
        edges = (padding, padding), (padding, padding + width % 2)
        x = jnp.pad(x, ((0, 0), *edges, (0, 0)))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0)))
        pairs = jnp.concatenate([x[:, :, ::2], x[:, :, 1::2]], axis=-1)
        kernel = _pairs_kernel(kernel, columns, 0)
        return jax.lax.conv_general_dilated(
            pairs,
            kernel.reshape(size, columns // 2, -1, kernel.shape[3]),
            (1, 1),
            "VALID",
            dimension_numbers=strided.LAYOUT,
        )

    return cleared(Packed(conv.with_kernel(product, x, kernel), width))


def strided_to_pairs(x: jax.Array, kernel: jax.Array, *, padding: int = 0) -> Packed:
    """``conv.conv2d`` of stride 2 of a plain map `x`, as :func:`conv_to_pairs`.

    Of blocks of 2 x 4 pixels of `x`, the strides of a pair of outputs.
    """
    width = geometry.conv_size(x.shape[2], len(kernel), stride=2, padding=padding)
    product = functools.partial(strided.on_blocks, padding=padding, pixels=2)
    return cleared(Packed(conv.with_kernel(product, x, kernel), width))


def conv3x3(maps: Sequence[Packed], kernel: jax.Array, *, padding: int = 1) -> Packed:
    """``conv.conv2d`` of the concatenation of `maps` with `kernel` [3, 3, C, O].

    As a sum of one convolution each: a TPU then neither copies the maps nor splits
    their gradient.

    Raises:
      ValueError: `padding` is not 0 or 1.
    """
    if padding not in (0, 1):
        raise ValueError(f"padding {padding}, expected 0 or 1")
    columns = 4 + 2 * padding  # that the pairs in reach of a pair of outputs hold
    stops = np.cumsum([x.pairs.shape[-1] // 2 for x in maps])[:-1].tolist()

    def product(x, kernel):
        pairs = _pairs_kernel(kernel, columns, padding)
        return jax.lax.conv_general_dilated(
            x,
            pairs.reshape(3, columns // 2, -1, pairs.shape[3]),
            (1, 1),
            ((padding, padding), (padding, padding)),
            dimension_numbers=strided.LAYOUT,
        )

    parts = [
        conv.with_kernel(product, x.pairs, part)
        for x, part in zip(maps, jnp.split(kernel, stops, axis=2), strict=True)
    ]
    pairs = functools.reduce(jnp.add, parts)
    return cleared(Packed(pairs, maps[0].width + 2 * padding - 2))


def conv1x1(x: Packed, kernel: jax.Array) -> Packed:
    """``conv.conv2d`` with `kernel` [1, 1, C, O]."""

    def product(x, kernel):
        both = jnp.kron(jnp.eye(2, dtype=kernel.dtype), kernel[0, 0])
        return conv.channel_product(x, both)

    return Packed(conv.with_kernel(product, x.pairs, kernel), x.width)


def doubled(x: jax.Array, kernel: jax.Array) -> Packed:
    """``conv.conv_transpose`` of stride 2 with `kernel` [2, 2, I, O], of a plain map.

    The two outputs of a row are a pair, so nothing moves between columns.
    """

    def product(x, kernel):
        both = jnp.concatenate([kernel[::-1, 0], kernel[::-1, 1]], axis=-1)
        return jax.lax.conv_general_dilated(
            x,
            both[:, None],
            (1, 1),
            ((1, 1), (0, 0)),
            lhs_dilation=(2, 1),
            dimension_numbers=strided.LAYOUT,
        )

    return Packed(conv.with_kernel(product, x, kernel), 2 * x.shape[2])


def max_pool(x: Packed) -> jax.Array:
    """``pool.max_pool`` 2x2 of stride 2, ceil-mode, of a map that is nowhere negative.

    The plain map; rows first, as pool.py does, so that ties share gradients alike. A
    zero shares its gradient with the pixel outside of the map, which makes no
    difference behind a ReLU.
    """
    pairs = x.pairs
    half = pairs.shape[-1] // 2
    pairs = jnp.pad(pairs, ((0, 0), (0, pairs.shape[1] % 2), (0, 0), (0, 0)))
    rows = pool.maximum(pairs[:, ::2], pairs[:, 1::2])
    return pool.maximum(rows[..., :half], rows[..., half:])


def overlapping_max_pool(x: Packed, *, ceil: bool = False) -> jax.Array:
    """``pool.max_pool`` 3x3 of stride 2, padded by 1. The plain map.

    A window of columns is a pair and the second pixel of the pair in front of it.
    """
    lowest = -np.inf
    height, width = (
        pool.output_side(side, 3, stride=2, padding=1, ceil=ceil)
        for side in (x.pairs.shape[1], x.width)
    )
    pairs = cleared(x, lowest).pairs
    half = pairs.shape[-1] // 2
    below, right = 2 * height - pairs.shape[1], width - pairs.shape[2]
    edges = ((0, 0), (1, below), (0, right), (0, 0))
    pairs = jnp.pad(pairs, edges, constant_values=lowest)
    rows = [pairs[:, start : start + 2 * height - 1 : 2] for start in range(3)]
    y = functools.reduce(pool.maximum, rows)
    first, second = y[..., :half], y[..., half:]
    edges = ((0, 0), (0, 0), (1, 0), (0, 0))
    before = jnp.pad(second[:, :, :-1], edges, constant_values=lowest)
    return functools.reduce(pool.maximum, (before, first, second))
