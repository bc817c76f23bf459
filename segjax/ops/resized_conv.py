"""A convolution behind bilinear resizing and concatenation, computed on the small maps.

Both the resizing and the convolution are linear, so they can change places. Every tap
of the kernel is a matrix product over the channels of the small map; then the products
are interpolated to where their tap reads, and summed. The zeros around the large map
are rows of zeros in the matrices of the interpolation. For a map of h x w locations
that is resized to H x W, the products over the channels are h w / (H W) times as many.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import conv, geometry, resize


def conv_of_resized(
    maps: Sequence[jax.Array],
    kernel: jax.Array,
    *,
    size: tuple[int, int],
    padding: int = 0,
    dilation: int = 1,
    align_corners: bool = True,
) -> jax.Array:
    """``conv.conv2d`` of `maps`, resized to `size` and concatenated along the channels.

    The same sums in another order. The interpolation is computed in float32, whatever
    the type of the maps. Maps that are not smaller than the result are resized first.

    Args:
      maps: [N, h, w, C] each, of any sides and channels and of one type.
      kernel: [kh, kw, I, O], I the channels of all maps in their order.
      size: (H, W) that all maps are resized to, see ``resize.resize_bilinear``.
      padding, dilation: of the convolution, whose stride is 1.
      align_corners: of the resizing.

    Returns:
      [N, H + 2 padding - dilation (kh - 1), .., O] in the type of the maps.

    Raises:
      ValueError: the kernel has not as many input channels as the maps.
    """
    channels = [x.shape[-1] for x in maps]
    if sum(channels) != kernel.shape[2]:
        raise ValueError(
            f"maps of {channels} channels, expected {kernel.shape[2]} in all"
        )
    stops = np.cumsum(channels)[:-1].tolist()
    parts = list(zip(maps, jnp.split(kernel, stops, axis=2), strict=True))
    outputs = [
        geometry.conv_size(side, taps, padding=padding, dilation=dilation)
        for side, taps in zip(size, kernel.shape)
    ]

    def is_small(x: jax.Array) -> bool:
        return x.shape[1] * x.shape[2] < outputs[0] * outputs[1]

    how: dict[str, Any] = dict(padding=padding, dilation=dilation)
    sums = []
    if large := [part for part in parts if not is_small(part[0])]:
        x = [resize.resize_bilinear(x, size, align_corners) for x, _ in large]
        joined = jnp.concatenate([taps for _, taps in large], axis=2)
        sums.append(conv.conv2d(jnp.concatenate(x, axis=-1), joined, **how))
    if small := [part for part in parts if is_small(part[0])]:
        sums.append(_folded(small, size=size, align_corners=align_corners, **how))
    return functools.reduce(jnp.add, sums).astype(maps[0].dtype)


def _folded(
    parts: Sequence[tuple[jax.Array, jax.Array]],
    *,
    size: tuple[int, int],
    padding: int,
    dilation: int,
    align_corners: bool,
) -> jax.Array:
    """The sum of the convolutions of the resized maps of `parts`, float32."""
    narrow, matrices = [], []
    for x, kernel in parts:
        rows, columns = (
            _shifted(
                resize.bilinear_matrix(source, side, align_corners),
                taps,
                padding=padding,
                dilation=dilation,
            )
            for source, side, taps in zip(x.shape[1:3], size, kernel.shape)
        )
        products = conv.with_kernel(_products_of_taps, x, kernel)
        y = jnp.einsum(
            "oh,nhwc->nowc", rows, products, precision=jax.lax.Precision.HIGHEST
        )
        narrow.append(y)
        matrices.append(columns)
    # One product for the columns of all maps: their sum is never read and written.
    return jnp.einsum(
        "pw,nowc->nopc",
        np.concatenate(matrices, axis=1),
        jnp.concatenate(narrow, axis=2),
        precision=jax.lax.Precision.HIGHEST,
    )


def _products_of_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x` [N, h, w, I] times every tap of `kernel`, float32 [N, kh * h, kw * w, O]."""
    n, height, width, _ = x.shape
    rows, columns, channels, features = kernel.shape
    taps = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    y = jnp.einsum("nhwi,io->nhwo", x, taps, preferred_element_type=jnp.float32)
    y = y.reshape(n, height, width, rows, columns, features)
    y = y.transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(n, rows * height, columns * width, features)


def _shifted(
    matrix: np.ndarray, taps: int, *, padding: int, dilation: int
) -> np.ndarray:
    """Interpolation weights [side, taps * source] of what each tap reads.

    From those of the resizing [side, source]: rows of zeros for the padding, and for
    every tap a copy that is shifted to where it reads.
    """
    padded = np.pad(matrix, ((padding, padding), (0, 0)))
    side = len(padded) - dilation * (taps - 1)
    starts = [dilation * tap for tap in range(taps)]
    shifted = [padded[start : start + side] for start in starts]
    return np.concatenate(shifted, axis=1).astype(np.float32)
