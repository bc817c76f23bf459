"""SLIC superpixels (Achanta et al., PAMI 2012) with static shapes, and their neighbors.

The number of superpixels is fixed by the size of the image: those of a regular grid,
from which they start. A pixel is compared with the superpixels of its grid part and of
the eight parts around it, as in gSLICr (Ren, Prisacariu, Reid 2015); the paper compares
with all whose center lies within a window of twice the spacing, which is about the
same.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import UserError
from segjax.ops import geometry

# sRGB (IEC 61966-2-1) to XYZ, and the white point D65.
_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ],
    np.float32,
)
_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)
# Grid parts that a pixel is compared with; its own first, so that it wins ties.
_AROUND = sorted(
    ((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)), key=lambda at: at != (0, 0)
)


def lab(images: jax.Array) -> jax.Array:
    """CIE L*a*b* (D65) of sRGB `images` [.., 3], 0..255: L 0..100, a and b about +-100.

    float32, as ``skimage.color.rgb2lab``.
    """
    x = images.astype(jnp.float32) / 255
    linear = jnp.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = jnp.einsum("...c,dc->...d", linear, _XYZ / _WHITE[:, None])
    # The power of a positive number only: that of 0 has no gradient.
    root = jnp.maximum(xyz, 0.008856) ** (1 / 3)
    f = jnp.where(xyz > 0.008856, root, 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def grid_size(height: int, width: int, superpixels: int) -> tuple[int, int]:
    """Rows and columns of a grid of about this many superpixels; at least 1 x 1.

    With as many superpixels as pixels, or more, each pixel is one.
    """
    step = max(math.sqrt(height * width / superpixels), 1.0)
    return max(round(height / step), 1), max(round(width / step), 1)


def slic(
    images: jax.Array,
    *,
    superpixels: int,
    compactness: float = 10.0,
    iterations: int = 10,
) -> jax.Array:
    """SLIC superpixels of `images` [N, H, W, 1 or 3], gray or RGB, 0..255.

    Args:
      superpixels: how many about; there are S = rows * columns of :func:`grid_size`.
      compactness: what the spacing of the grid counts as, in units of L*a*b*: large
        ones make superpixels square, small ones follow colors.
      iterations: of assigning pixels and moving centers.

    Returns:
      int32 [N, H, W], from 0 to S - 1. Each superpixel is 4-connected: all of its parts
      but the largest go to their neighbors. A superpixel may be empty, as those of a
      regular grid that no pixel is nearest to. No gradient flows back.

    Raises:
      UserError: images of another number of channels.
    """
    channels = images.shape[-1]
    if channels not in (1, 3):
        raise UserError(
            f"superpixels: the images have {channels} channels, expected 1 or 3"
        )
    images = jax.lax.stop_gradient(images)
    images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    grid = grid_size(*geometry.sides(images), superpixels)
    one = functools.partial(
        _slic_of_one, grid=grid, compactness=compactness, iterations=iterations
    )
    return jax.vmap(lambda image: connect(one(image), math.prod(grid)))(lab(images))


def _slic_of_one(
    colors: jax.Array, *, grid: tuple[int, int], compactness: float, iterations: int
) -> jax.Array:
    """Superpixels of L*a*b* `colors` [H, W, 3], int32 [H, W], not always connected."""
    height, width, _ = colors.shape
    rows, columns = grid
    weight = compactness / math.sqrt(height * width / (rows * columns))
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    place = np.stack([y, x], axis=-1).astype(np.float32) * np.float32(weight)
    points = jnp.concatenate([colors, place, jnp.ones((height, width, 1))], axis=-1)
    points = points.reshape(height * width, 6)
    own_row = np.arange(height) * rows // height
    own_column = np.arange(width) * columns // width
    start = own_row[:, None] * columns + own_column

    def move(_, state):
        ids, centers = state
        sums = jax.ops.segment_sum(points, ids.reshape(-1), rows * columns)
        count = sums[:, 5:]
        centers = jnp.where(count > 0, sums[:, :5] / jnp.maximum(count, 1), centers)
        at = centers.reshape(rows, columns, 5)
        best = jnp.full((height, width), jnp.inf)
        for i, j in _AROUND:
            row, column = own_row + i, own_column + j
            inside = ((row >= 0) & (row < rows))[:, None] & (
                (column >= 0) & (column < columns)
            )
            row, column = row.clip(0, rows - 1), column.clip(0, columns - 1)
            center = at[row[:, None], column[None, :]]
            distance = ((points[:, :5].reshape(center.shape) - center) ** 2).sum(-1)
            nearer = inside & (distance < best)
            best = jnp.where(nearer, distance, best)
            ids = jnp.where(nearer, row[:, None] * columns + column[None, :], ids)
        return ids, centers

    state = jnp.asarray(start, jnp.int32), jnp.zeros((rows * columns, 5))
    ids, _ = jax.lax.fori_loop(0, iterations, move, state)
    return ids


def _neighbors(x: jax.Array, fill: int) -> list[jax.Array]:
    """What lies above, below, left and right of each pixel of `x` [H, W]."""
    height, width = x.shape
    padded = jnp.pad(x, 1, constant_values=fill)
    return [
        padded[1 + i : 1 + i + height, 1 + j : 1 + j + width]
        for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))
    ]


def connected_components(ids: jax.Array) -> jax.Array:
    """4-connected parts of equal `ids` [H, W]: the smallest pixel index of each part.

    int32 [H, W]; a loop that ends when no label changes any more.
    """
    height, width = ids.shape
    same = [ids == other for other in _neighbors(ids, -1)]

    def spread(state):
        labels, _ = state
        new = labels
        for equal, other in zip(same, _neighbors(labels, height * width), strict=True):
            new = jnp.where(equal, jnp.minimum(new, other), new)
        # A label is a pixel, whose own label may be smaller already.
        new = jnp.minimum(new, new.reshape(-1)[new])
        return new, jnp.any(new != labels)

    labels = jnp.arange(height * width, dtype=jnp.int32).reshape(height, width)
    labels, _ = jax.lax.while_loop(
        lambda state: state[1], spread, (labels, jnp.bool_(True))
    )
    return labels


def connect(ids: jax.Array, count: int) -> jax.Array:
    """Makes each of `count` superpixels 4-connected: int32 [H, W] from `ids` [H, W].

    Of each superpixel the largest part stays (of equal ones the first), and its other
    pixels go, from the border inwards, to the superpixel above, below, left or right,
    in this order of preference.
    """
    labels = connected_components(ids)
    flat, of_pixel = labels.reshape(-1), ids.reshape(-1)
    sizes = jax.ops.segment_sum(jnp.ones_like(flat), flat, flat.size)[flat]
    largest = jax.ops.segment_max(sizes, of_pixel, count)[of_pixel]
    first = jnp.where(sizes == largest, flat, flat.size)
    kept = flat == jax.ops.segment_min(first, of_pixel, count)[of_pixel]

    def grow(ids):
        new = ids
        for other in reversed(_neighbors(ids, -1)):
            new = jnp.where((ids < 0) & (other >= 0), other, new)
        return new

    ids = jnp.where(kept.reshape(ids.shape), ids, -1).astype(jnp.int32)
    return jax.lax.while_loop(lambda ids: jnp.any(ids < 0), grow, ids)


# --- superpixels among each other -----------------------------------------------------


def adjacency(ids: jax.Array, count: int) -> jax.Array:
    """Which superpixels of `ids` [N, H, W] touch: bool [N, S, S], true with itself."""

    def of_one(ids):
        near = jnp.eye(count, dtype=bool)
        for one, other in ((ids[1:], ids[:-1]), (ids[:, 1:], ids[:, :-1])):
            near = near.at[one, other].set(True)
        return near | near.T

    return jax.vmap(of_one)(ids)


def within(near: jax.Array, distance: int) -> jax.Array:
    """Which superpixels are at most `distance` steps apart: bool [N, S, S].

    Args:
      near: from :func:`adjacency`.
    """
    step = near.astype(jnp.float32)
    reached = jnp.broadcast_to(jnp.eye(near.shape[-1]), near.shape)
    for _ in range(distance):
        reached = (reached @ step > 0).astype(jnp.float32)
    return reached > 0


def boxes(ids: jax.Array, count: int) -> jax.Array:
    """Bounding boxes of the superpixels of `ids` [N, H, W]: int32 [N, S, 4].

    First row, first column, and the row and column behind the last. That of an empty
    superpixel is (H, W, 0, 0), which changes no union of boxes.
    """
    height, width = ids.shape[1:]
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")

    def of_one(ids):
        sides = [
            jnp.full(count, last, jnp.int32).at[ids].min(jnp.asarray(at, jnp.int32))
            for at, last in ((y, height), (x, width))
        ]
        ends = [
            jnp.zeros(count, jnp.int32).at[ids].max(jnp.asarray(at + 1, jnp.int32))
            for at in (y, x)
        ]
        return jnp.stack([*sides, *ends], axis=-1)

    return jax.vmap(of_one)(ids)


def union_boxes(parts: jax.Array, members: jax.Array) -> jax.Array:
    """Bounding boxes of sets of superpixels: int32 [N, P, 4].

    Args:
      parts: boxes [N, S, 4] of the superpixels.
      members: which of them belong to each set, bool [N, P, S].
    """
    chosen, parts = members[..., None], parts[:, None]
    largest = jnp.iinfo(jnp.int32).max
    low = jnp.where(chosen, parts[..., :2], largest).min(axis=2)
    high = jnp.where(chosen, parts[..., 2:], 0).max(axis=2)
    return jnp.concatenate([low, high], axis=-1)
