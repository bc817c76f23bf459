"""Resizing of [N, H, W, C] maps; the weights are numpy constants at trace time.

Bilinear resizing is separable, so it is two small matrix products: exact for any
pair of sizes, differentiable, and fast on CPU and on matrix units alike.
"""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import geometry


def separable_product(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Applies `rows` [h, H] and `columns` [w, W] to `x` [N, H, W, C] -> [N, h, w, C].

    Computed in float32 at full precision whatever the type of `x` (matrix units would
    otherwise round interpolation weights to bfloat16); returned in the type of `x`.
    """
    rows, columns = rows.astype(np.float32), columns.astype(np.float32)
    y = x.astype(jnp.float32)
    y = jnp.einsum("oh,nhwc->nowc", rows, y, precision=jax.lax.Precision.HIGHEST)
    y = jnp.einsum("pw,nowc->nopc", columns, y, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def bilinear_matrix(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Weights [target, source] of 1-D linear interpolation; every row sums to 1.

    `align_corners` puts the first and last samples of both on each other (Caffe
    ``Interp``); otherwise pixels are areas and samples beyond the outermost pixel
    centers repeat the border (half-pixel centers, as in OpenCV). No antialiasing.
    """
    index = np.arange(target)
    if align_corners:
        position = index * ((source - 1) / max(target - 1, 1))
    else:
        position = np.clip((index + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.minimum(position.astype(int), max(source - 2, 0))
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (index, low), 1 - (position - low))
    np.add.at(weights, (index, high), position - low)
    return weights


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], align_corners: bool
) -> jax.Array:
    """Bilinear resize of `x` [N, H, W, C] to `size` (h, w); keeps the type."""
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (
        bilinear_matrix(source, target, align_corners)
        for source, target in zip(x.shape[1:3], size, strict=True)
    )
    return separable_product(x, rows, columns)


def interpolation_matrix(
    source: geometry.Grid, side: int, *, target: geometry.Grid, count: int
) -> np.ndarray:
    """Weights [count, side] of 1-D linear interpolation between grids.

    From `side` locations of `source` to the first `count` of `target`. Beyond the
    border the outermost location is repeated; every row sums to 1.
    """
    start = float((target.start - source.start) / source.step)
    position = start + np.arange(count) * float(target.step / source.step)
    distance = np.clip(position, 0, side - 1)[:, None] - np.arange(side)
    return np.maximum(1 - np.abs(distance), 0)


def interpolate(
    x: jax.Array, source: geometry.Grid, *, target: geometry.Grid, size: tuple[int, int]
) -> jax.Array:
    """Bilinear interpolation of `x` [N, H, W, C], whose locations are `source`.

    The result holds the first `size` (h, w) locations of `target`. Beyond the border
    of `x` its outermost values are repeated. Returns [N, h, w, C] in the type of `x`.
    """
    rows, columns = (
        interpolation_matrix(source, side, target=target, count=count)
        for side, count in zip(x.shape[1:3], size, strict=True)
    )
    return separable_product(x, rows, columns)


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Nearest resize of `x` [N, H, W, C] to `size`: output i reads floor(i * n / m).

    OpenCV's and torch's "nearest" rule. Any type, values copied unchanged.
    """
    for axis, target in zip((1, 2), size, strict=True):
        source = x.shape[axis]
        if target % source == 0:
            # A whole factor is a broadcast, much cheaper than a gather.
            x = jnp.repeat(x, target // source, axis=axis)
        else:
            x = jnp.take(x, np.arange(target) * source // target, axis=axis)
    return x


def crop_and_resize(images: jax.Array, boxes: jax.Array, side: int) -> jax.Array:
    """Cuts boxes out of `images` [N, H, W, C] and resizes each to a square, bilinearly.

    As OpenCV resizes an image that is cut out: half-pixel centers, the border of the
    box repeated, no antialiasing.

    Args:
      boxes: integers [N, B, 4]: first row, first column, and the row and column behind
        the last; a box without pixels gives those nearest to it.
      side: of the result.

    Returns:
      float32 [N, B, side, side, C].
    """
    height, width = images.shape[1:3]
    index = jnp.arange(side, dtype=jnp.float32)

    def near(first, last, limit):
        """The two nearest pixels of each output, and the weight of the second."""
        first = jnp.clip(first, 0, limit - 1)
        length = jnp.maximum(last - first, 1)
        position = (index + 0.5) * (length / side) - 0.5
        position = jnp.clip(position, 0, length - 1)
        low = position.astype(jnp.int32)
        high = jnp.minimum(low + 1, length - 1)
        return first + low, first + high, (position - low)[:, None, None]

    def cut(image, box):
        low, high, upper = near(box[0], box[2], height)
        rows = image[low] * (1 - upper) + image[high] * upper
        low, high, upper = near(box[1], box[3], width)
        upper = upper.reshape(1, side, 1)
        return rows[:, low] * (1 - upper) + rows[:, high] * upper

    of_image = jax.vmap(cut, in_axes=(None, 0))
    return jax.vmap(of_image)(images.astype(jnp.float32), boxes)
