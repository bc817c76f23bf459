"""Means of feature maps over the segments of an image, without enlarging the maps.

The mean over a segment of a bilinearly interpolated map is linear in the map: each
location has a weight, the sum of its interpolation weights over the segment's pixels.
The weights of a map of stride 8 take an eighth of an eighth of the image for each
segment, where the interpolated map would take the whole image for each channel.
"""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import geometry, pool, resize


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
    """The weight of each location of a map in the mean over each segment.

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


# --- segments on the locations of a map -----------------------------------------------


def nearest_location(source: geometry.Grid, side: int, length: int) -> np.ndarray:
    """The location nearest to each of `length` pixels along an axis: int32 [length].

    The pixels of a location are the square around its center: those of a stride of 16
    have 16 x 16 pixels, fewer at the border.
    """
    position = (np.arange(length) - float(source.start)) / float(source.step)
    return np.clip(np.floor(position + 0.5), 0, side - 1).astype(np.int32)


def location_shares(
    ids: jax.Array, count: int, *, source: geometry.Grid, size: tuple[int, int]
) -> jax.Array:
    """Shares of each segment in the pixels of each location: float32 [N, count, h, w].

    Args: see :func:`location_weights`.
    """
    rows, columns = (
        nearest_location(source, side, length)
        for side, length in zip(size, ids.shape[1:], strict=True)
    )
    at = rows[:, None] * size[1] + columns
    pixels = np.bincount(at.reshape(-1), minlength=size[0] * size[1])
    share = (1 / np.maximum(pixels, 1)).astype(np.float32)

    def of_one(ids):
        return jnp.zeros((count, share.size)).at[ids, at].add(1.0) * share

    return jax.vmap(of_one)(ids).reshape(len(ids), count, *size)


def project_masks(
    masks: jax.Array, *, source: geometry.Grid, size: tuple[int, int]
) -> jax.Array:
    """Segments as masks of a map's locations (CFM, section 3.1): bool [N, P, h, w].

    A location belongs to a segment that has at least half of its pixels.

    Args:
      masks: [N, P, H, W], bool or 0 and 1.
      source: where the locations lie in the image.
      size: (h, w) of the map.
    """
    matrices = []
    for side, length in zip(size, masks.shape[2:], strict=True):
        of_pixel = nearest_location(source, side, length)
        matrix = (of_pixel == np.arange(side)[:, None]).astype(np.float32)
        matrices.append(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))
    flat = masks.reshape(-1, *masks.shape[2:], 1).astype(jnp.float32)
    shares = resize.separable_product(flat, *matrices)
    # Sums of the shares of a half may be a rounding error below it.
    return shares.reshape(*masks.shape[:2], *size) >= 0.5 - 1e-5


def box_locations(
    boxes: jax.Array,
    *,
    source: geometry.Grid,
    size: tuple[int, int],
    image: tuple[int, int],
) -> jax.Array:
    """The locations nearest to the pixels of boxes: int32 [N, P, 4], at least one.

    Args:
      boxes: first row and column of pixels, and those behind the last, [N, P, 4].
      source: where the locations lie in the image.
      size: (h, w) of the map.
      image: (H, W) of the image.
    """
    ends = []
    for axis in (0, 1):
        of_pixel = jnp.asarray(nearest_location(source, size[axis], image[axis]))
        first = of_pixel[jnp.clip(boxes[..., axis], 0, image[axis] - 1)]
        last = of_pixel[jnp.clip(boxes[..., axis + 2] - 1, 0, image[axis] - 1)]
        ends.append((first, jnp.maximum(last, first) + 1))
    (top, bottom), (left, right) = ends
    return jnp.stack([top, left, bottom, right], axis=-1)


def pyramid_pool(x: jax.Array, boxes: jax.Array, bins: tuple[int, ...]) -> jax.Array:
    """Spatial pyramid pooling of one box (He et al., ECCV 2014): maxima over its parts.

    For b of `bins` the box is cut into b x b parts, of which none is empty: part i of n
    rows begins at floor(i n / b) and ends at ceil((i + 1) n / b).

    Args:
      x: [h, w, C].
      boxes: int32 [4], in locations: first row and column, and those behind the last.
      bins: such as (6, 3, 2, 1).

    Returns:
      [sum of b^2, C].
    """
    parts = []
    for count in bins:
        y = x
        for axis in (0, 1):
            first, length = boxes[axis], boxes[axis + 2] - boxes[axis]
            index = jnp.arange(count)
            low = first + index * length // count
            high = first - ((index + 1) * length // -count)
            at = jnp.arange(x.shape[axis])
            inside = (at >= low[:, None]) & (at < high[:, None])
            # The axis is replaced by that of the parts.
            inside = jnp.moveaxis(inside[:, :, None, None], 1, axis + 1)
            chosen = jnp.where(inside, y[None], -jnp.inf)
            y = jnp.moveaxis(
                pool.max_over_axis(chosen, axis + 1).squeeze(axis + 1), 0, axis
            )
        parts.append(y.reshape(-1, x.shape[-1]))
    return jnp.concatenate(parts)
