"""Max pooling that remembers where the maxima were, and its inverse.

Windows do not overlap (stride = kernel), so a pixel of the map belongs to one window
and unpooling is a select, with no scatter: static shapes, and a select as gradient.
Caffe stores a switch as the flat index h * W + w in the map; here it is the index
row * kernel + column in the window, one byte per pooled location.
"""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import geometry


def max_pool_switches(x: jax.Array, kernel: int) -> tuple[jax.Array, jax.Array]:
    """Maximum over kernel x kernel windows of `x` [N, H, W, C], float, and its place.

    Incomplete windows at the bottom and right are kept (Caffe's ceil mode). Where
    several values of a window tie, the first in row-major order wins, and alone gets
    the gradient.

    Returns:
      The maxima [N, h, w, C], and their index in the window, uint8 [N, h, w, C].
    """
    sides = [
        geometry.ceil_pool_size(side, kernel, stride=kernel) for side in x.shape[1:3]
    ]
    missing = [out * kernel - side for out, side in zip(sides, x.shape[1:3])]
    if any(missing):
        widths = ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0))
        x = jnp.pad(x, widths, constant_values=-np.inf)
    best = x[:, ::kernel, ::kernel]
    switches = jnp.zeros(best.shape, jnp.uint8)
    for index in range(1, kernel * kernel):
        row, column = divmod(index, kernel)
        value = x[:, row::kernel, column::kernel]
        better = value > best
        best = jnp.where(better, value, best)
        switches = jnp.where(better, jnp.uint8(index), switches)
    return best, switches


def unpool(
    x: jax.Array, switches: jax.Array, *, kernel: int, size: tuple[int, int]
) -> jax.Array:
    """Puts every value of `x` back where its window had its maximum, zeros elsewhere.

    The gradient of a value of `x` is that of the position it went to.

    Args:
      x: [N, h, w, C].
      switches: uint8 [N, h, w, C], from :func:`max_pool_switches` of the same `kernel`.
      size: (H, W) of the result, the side that was pooled.

    Returns:
      [N, H, W, C] in the type of `x`.

    Raises:
      ValueError: `x`, `switches` and `size` do not belong together.
    """
    n, h, w, c = x.shape
    pooled = tuple(
        geometry.ceil_pool_size(side, kernel, stride=kernel) for side in size
    )
    if switches.shape != x.shape or pooled != (h, w):
        raise ValueError(
            f"unpooling {x.shape} with switches {switches.shape} to {tuple(size)}: "
            f"expected equal shapes with {pooled[0]} x {pooled[1]} locations"
        )
    index = np.arange(kernel * kernel, dtype=np.uint8)
    index = index.reshape(1, 1, kernel, 1, kernel, 1)
    windows = (n, h, 1, w, 1, c)
    y = jnp.where(switches.reshape(windows) == index, x.reshape(windows), 0)
    return y.reshape(n, h * kernel, w * kernel, c)[:, : size[0], : size[1]]
