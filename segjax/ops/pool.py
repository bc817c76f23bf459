"""Pooling of [N, H, W, C] maps: windowed (floor or Caffe ceil) and adaptive bins.

Windows are reduced one axis at a time over strided slices instead of with
``lax.reduce_window``: same values, and a gradient of pads and selects, which is an
order of magnitude faster on CPU than its select-and-scatter. Where several pixels of a
window tie for the maximum they share its gradient. Maxima without a gradient are
``lax.reduce_window`` on other devices than CPUs.

Maxima are taken of two arrays at a time. The gradient of ``x.max(axis)`` divides by the
number of entries that equal the maximum; a compiler that computes `x` again in another
fusion, with other roundings, finds none, and 0 / 0 is NaN.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import geometry


@jax.custom_jvp
def maximum(x: jax.Array, y: jax.Array) -> jax.Array:
    """Element-wise maximum, as ``jnp.maximum``; ties share the gradient equally.

    The gradient compares the two operands with each other and not with the result, so
    that it always goes somewhere: the two shares sum to one.
    """
    return jnp.maximum(x, y)


@maximum.defjvp
def _maximum_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    share = jnp.where(x > y, 1, jnp.where(x == y, 0.5, 0)).astype(x.dtype)
    return jnp.maximum(x, y), dx * share + dy * (1 - share)


def max_over_axis(x: jax.Array, axis: int) -> jax.Array:
    """The maximum along `axis`, which is kept with a side of 1."""
    while (side := x.shape[axis]) > 1:
        half = side // 2
        first, second, last = (
            jax.lax.slice_in_dim(x, start, stop, axis=axis)
            for start, stop in ((0, half), (half, 2 * half), (2 * half, side))
        )
        x = jnp.concatenate([maximum(first, second), last], axis)
    return x


def output_side(
    side: int, kernel: int, *, stride: int, padding: int, ceil: bool
) -> int:
    """Locations along a side of the pooled map: see :func:`max_pool`."""
    if ceil:
        return geometry.ceil_pool_size(side, kernel, stride=stride, padding=padding)
    return geometry.conv_size(side, kernel, stride=stride, padding=padding)


def _reduce_axis(
    x: jax.Array,
    axis: int,
    *,
    kernel: int,
    stride: int,
    padding: int,
    ceil: bool,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    fill: float | int,
) -> jax.Array:
    side = x.shape[axis]
    out = output_side(side, kernel, stride=stride, padding=padding, ceil=ceil)
    span = (out - 1) * stride  # first position of the last window
    widths = [(0, 0)] * x.ndim
    widths[axis] = (padding, max(0, span + kernel - side - padding))
    if widths[axis] != (0, 0):
        x = jnp.pad(x, widths, constant_values=fill)
    parts = (
        jax.lax.slice_in_dim(x, i, i + span + 1, stride, axis) for i in range(kernel)
    )
    return functools.reduce(combine, parts)


class _Windows(NamedTuple):
    kernel: int
    stride: int
    padding: int
    ceil: bool


def max_pool(
    x: jax.Array, kernel: int, *, stride: int, padding: int = 0, ceil: bool = False
) -> jax.Array:
    """Maximum over windows of `x` [N, H, W, C]; padding never wins.

    Floor mode drops an incomplete last window; `ceil` is Caffe's rule, which keeps it
    (clipped to the map).
    """
    return _max_pool(x, _Windows(kernel, stride, padding, ceil))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, windows: _Windows) -> jax.Array:
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: _max_of_slices(x, windows),
        default=lambda x: _max_of_windows(x, windows),
    )


def _max_pool_forward(x, windows):
    # With a gradient it is the slices everywhere: ties share it on every device.
    return jax.vjp(lambda x: _max_of_slices(x, windows), x)


def _max_pool_backward(windows, pull, gradient):
    del windows
    return pull(gradient)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _lowest(dtype: jnp.dtype) -> float | int:
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf
    return int(jnp.iinfo(dtype).min)


def _max_of_slices(x: jax.Array, windows: _Windows) -> jax.Array:
    for axis in (1, 2):
        x = _reduce_axis(
            x, axis, **windows._asdict(), combine=maximum, fill=_lowest(x.dtype)
        )
    return x


def _max_of_windows(x: jax.Array, windows: _Windows) -> jax.Array:
    """One operation, which reads the map once; for devices other than CPUs."""
    kernel, stride, padding, _ = windows
    edges = [(0, 0)]
    for side in x.shape[1:3]:
        last = (output_side(side, **windows._asdict()) - 1) * stride
        edges.append((padding, max(0, last + kernel - side - padding)))
    return jax.lax.reduce_window(
        x,
        np.asarray(_lowest(x.dtype), x.dtype),
        jax.lax.max,
        (1, kernel, kernel, 1),
        (1, stride, stride, 1),
        (*edges, (0, 0)),
    )


def avg_pool(
    x: jax.Array, kernel: int, *, stride: int, padding: int = 0, ceil: bool = False
) -> jax.Array:
    """Mean over windows of `x` [N, H, W, C], float32 sums, type kept.

    The divisor is Caffe's: the pixels of the window inside the padded map (padding
    counts, what a ceil-mode window has beyond the padding does not).
    """
    y = x.astype(jnp.float32)
    for axis in (1, 2):
        side = x.shape[axis]
        y = _reduce_axis(
            y,
            axis,
            kernel=kernel,
            stride=stride,
            padding=padding,
            ceil=ceil,
            combine=jnp.add,
            fill=0,
        )
        first = np.arange(y.shape[axis]) * stride
        count = np.minimum(first + kernel, side + 2 * padding) - first
        shape = [1] * x.ndim
        shape[axis] = -1
        y = y / count.astype(np.float32).reshape(shape)
    return y.astype(x.dtype)


def adaptive_bins(side: int, bins: int) -> list[tuple[int, int]]:
    """Bounds [floor(i n / b), ceil((i+1) n / b)) of `bins` bins over `side` pixels.

    Bins overlap where `bins` does not divide `side`; none is empty, even where there
    are more bins than pixels.
    """
    return [(i * side // bins, -((i + 1) * side // -bins)) for i in range(bins)]


def adaptive_avg_pools(x: jax.Array, bins: Sequence[int]) -> list[jax.Array]:
    """Means of `x` [N, H, W, C] over b x b parts, [N, b, b, C] for each b of `bins`.

    Any H, W. Float32 sums, type kept. The rows of all of them are added in one product,
    which reads `x` once, with weights of 0 and 1, which no type rounds.
    """
    height, width = geometry.sides(x)

    def parts(side: int, number: int) -> np.ndarray:
        """Whether a location lies in a bin: [number, side]."""
        bounds = np.asarray(adaptive_bins(side, number))
        location = np.arange(side)
        return (location >= bounds[:, :1]) & (location < bounds[:, 1:])

    if not bins:
        return []
    exact: dict[str, Any] = dict(
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    down, across = (
        np.concatenate([parts(side, number) for number in bins])
        for side in (height, width)
    )
    y = jnp.einsum("oh,nhwc->nowc", down.astype(x.dtype), x, **exact)
    # Of all pairs of bins; a split into levels first would copy the large map.
    y = jnp.einsum("pw,nowc->nopc", across.astype(np.float32), y, **exact)
    counts = down.sum(1)[:, None] * across.sum(1)
    y = y / counts[None, :, :, None].astype(np.float32)
    stops = itertools.accumulate(bins)
    own = [slice(stop - number, stop) for number, stop in zip(bins, stops, strict=True)]
    return [y[:, part, part].astype(x.dtype) for part in own]


def adaptive_avg_pool(x: jax.Array, bins: int) -> jax.Array:
    """Mean of `x` [N, H, W, C] over bins x bins parts: [N, bins, bins, C], any H, W."""
    (pooled,) = adaptive_avg_pools(x, (bins,))
    return pooled


def adaptive_max_pool(x: jax.Array, bins: int) -> jax.Array:
    """Maximum of `x` [N, H, W, C] over bins x bins parts: [N, bins, bins, C]."""
    for axis in (1, 2):
        parts = [
            max_over_axis(jax.lax.slice_in_dim(x, low, high, axis=axis), axis)
            for low, high in adaptive_bins(x.shape[axis], bins)
        ]
        x = jnp.concatenate(parts, axis)
    return x
