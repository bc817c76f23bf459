"""Means of feature maps over the segments of an image, without enlarging the maps.

The mean over a segment of a bilinearly interpolated map is linear in the map: each
location has a weight, the sum of its interpolation weights over the segment's pixels.
The weights of a map of stride 8 take an eighth of an eighth of the image for each
segment, where the interpolated map would take the whole image for each channel.
"""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import geometry, resize


def pixel_counts(ids: jax.Array, count: int) -> jax.Array:
    """Pixels of each of `count` segments of `ids` [N, H, W]: float32 [N, count]."""
    return jax.vmap(lambda ids: jnp.zeros(count).at[ids].add(1.0))(ids)


def segment_mean(x: jax.Array, ids: jax.Array, count: int) -> jax.Array:
    """Means of `x` [N, H, W, C] over the segments of `ids` [N, H, W], 0..count - 1.

    Returns float32 [N, count, C]; an empty segment has zeros.
    """

    def of_one(x, ids):
        x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        return jax.ops.segment_sum(x, ids.reshape(-1), count)

    sums = jax.vmap(of_one)(x, ids)
    return sums / jnp.maximum(pixel_counts(ids, count), 1)[..., None]


def location_weights(
    ids: jax.Array, count: int, *, source: geometry.Grid, size: tuple[int, int]
) -> jax.Array:
    """What each location of a map counts in the mean over each segment.

    Args:
      ids: segments [N, H, W], 0..count - 1.
      count: number of segments.
      source: where the locations of the map lie in the image.
      size: (h, w) of the map.

    Returns:
      float32 [N, count, h, w] that sum to 1 for each segment; zeros for an empty one.
    """
    height, width = size
    near = []  # along each axis: the two nearest locations, and their weights
    for side, length in zip(size, ids.shape[1:], strict=True):
        matrix = resize.interpolation_matrix(
            source, side, target=geometry.Grid(), count=length
        )
        low = np.minimum(matrix.argmax(axis=1), max(side - 2, 0))
        # argmax may name the upper one of the two.
        low = np.where(
            (low > 0) & (matrix[np.arange(length), low - 1] > 0), low - 1, low
        )
        high = np.minimum(low + 1, side - 1)
        upper = np.where(high > low, matrix[np.arange(length), high], 0.0)
        near.append(((low, 1 - upper), (high, upper)))

    def of_one(ids):
        weights = jnp.zeros((count, height * width))
        for row, of_row in near[0]:
            for column, of_column in near[1]:
                at = (row[:, None] * width + column).astype(np.int32)
                value = (of_row[:, None] * of_column).astype(np.float32)
                weights = weights.at[ids, at].add(value)
        return weights.reshape(count, height, width)

    counts = jnp.maximum(pixel_counts(ids, count), 1)
    return jax.vmap(of_one)(ids) / counts[..., None, None]


def weighted_mean(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Means of `x` [N, h, w, C] by :func:`location_weights`: float32 [N, count, C]."""
    return jnp.einsum(
        "nshw,nhwc->nsc",
        weights,
        x.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def paint(values: jax.Array, ids: jax.Array) -> jax.Array:
    """Gives each pixel of `ids` [N, H, W] the row of `values` [N, count, C] it names.

    Returns [N, H, W, C].
    """
    return jax.vmap(lambda values, ids: values[ids])(values, ids)
