"""A convolution of stride 2 as one of stride 1, on blocks of pixels.

For maps of few channels, such as images: a block of 2 x 2 pixels has four times as many
(space to depth), which fills vectors and matrix units better.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import geometry

LAYOUT = ("NHWC", "HWIO", "NHWC")


def on_blocks(
    x: jax.Array, kernel: jax.Array, *, padding: int = 0, pixels: int = 1
) -> jax.Array:
    """``conv.conv2d`` of stride 2, several neighbours of a row in the channels.

    Args:
      x: [N, H, W, I].
      kernel: [k, k, I, O], in the type of `x`.
      padding: zeros on every side.
      pixels: outputs of a row that are one location. Blocks are as many strides wide.

    Returns:
      [N, h, ceil(w / pixels), pixels O]. If `pixels` does not divide w, what is beyond
      the map comes from its padding.
    """
    size = kernel.shape[0]
    height, width = (
        geometry.conv_size(side, size, stride=2, padding=padding)
        for side in geometry.sides(x)
    )
    steps = 2, 2 * pixels
    # Blocks that a location reads, and those of the map.
    reads = -(-size // 2), -(-(size + 2 * pixels - 2) // steps[1])
    blocks = height - 1 + reads[0], -(-width // pixels) - 1 + reads[1]
    edges = [  # what no output reads is cut off
        (padding, step * count - side - padding, 0)
        for step, count, side in zip(steps, blocks, geometry.sides(x), strict=True)
    ]
    zero = np.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    below, right = (step * count - size for step, count in zip((2, steps[1]), reads))
    shifted = [
        jnp.pad(kernel, ((0, below), (first, right - first), (0, 0), (0, 0)))
        for first in range(0, steps[1], 2)
    ]
    kernel = jnp.concatenate(shifted, axis=3)
    starts = list(itertools.product(*map(range, steps)))
    return jax.lax.conv_general_dilated(
        jnp.concatenate([x[:, a :: steps[0], b :: steps[1]] for a, b in starts], -1),
        jnp.concatenate([kernel[a :: steps[0], b :: steps[1]] for a, b in starts], 2),
        (1, 1),
        "VALID",
        dimension_numbers=LAYOUT,
    )
