"""Convolutions with explicit symmetric padding, and Caffe's transposed convolution.

Arrays are [N, H, W, C], kernels [kh, kw, in, out] (HWIO). 1x1 convolutions and
non-overlapping transposed ones are written as matrix products, fixed bilinear
upsampling as two: the same sums as the general convolution, several times cheaper
on CPU, above all in the gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import geometry, resize

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation of `x` [N, H, W, I] with `kernel` [kh, kw, I / groups, O].

    `padding` zeros on every side; output side floor((n + 2p - d(k-1) - 1) / s) + 1,
    whatever the parity of n (unlike the string "SAME"). Each of the `groups` equal
    parts of the output channels reads the same part of the input channels (Caffe's
    and PyTorch's order).

    Raises:
      ValueError: `groups` does not divide I or O.
    """
    if groups > 1:
        # For the few groups here far cheaper on CPU than a grouped convolution.
        parts = zip(
            jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True
        )
        return jnp.concatenate(
            [conv2d(u, w, stride, padding, dilation) for u, w in parts], axis=-1
        )
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return conv1x1(x, kernel, stride)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
    )


def conv1x1(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`conv2d` for a kernel [1, 1, I, O], as a matrix product over the channels."""
    return jnp.einsum("nhwi,io->nhwo", x[:, ::stride, ::stride], kernel[0, 0])


def conv_transpose(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int = 0
) -> jax.Array:
    """Transposed convolution as in Caffe and PyTorch, output side s(n-1) + k - 2p.

    Cell i of `x` [N, H, W, I] adds ``x[i] @ kernel[a]`` to output ``s*i + a - p``:
    `kernel` [k, k, I, O] is stored in scatter order (``lax.conv_transpose`` would
    want it flipped).
    """
    size = kernel.shape[0]
    if size == stride and padding == 0:
        # Every output comes from exactly one input: a matrix product, rearranged.
        n, h, w, _ = x.shape
        y = jnp.einsum("nhwi,abio->nhawbo", x, kernel)
        return y.reshape(n, h * stride, w * stride, kernel.shape[3])
    edge = size - 1 - padding
    return jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=((edge, edge), (edge, edge)),
        lhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )


def bilinear_taps(size: int) -> np.ndarray:
    """Weights [size] of the 1-D bilinear interpolation kernel (FCN's filler).

    1 - |i - c| / f with f = (size + 1) // 2 and c the centre the kernel has with a
    stride of f: f - 1 for odd sizes, f - 1/2 for even ones.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    return 1 - np.abs(np.arange(size) - centre) / factor


def bilinear_kernel(size: int) -> np.ndarray:
    """The 2-D bilinear kernel [size, size]: outer product of :func:`bilinear_taps`."""
    taps = bilinear_taps(size)
    return np.outer(taps, taps)


def bilinear_upsample(
    x: jax.Array,
    size: int,
    stride: int,
    offset: int = 0,
    crop: tuple[int, int] | None = None,
) -> jax.Array:
    """Transposed convolution of each channel with the fixed bilinear kernel.

    `x` [N, H, W, C]; kernel side `size`. Only the window of `crop` (h, w) cells that
    starts at `offset` on both axes is computed (all of it where `crop` is None).
    Border cells are not renormalised, as in Caffe.

    Raises:
      ValueError: the window does not fit in the upsampled map.
    """
    taps = bilinear_taps(size)
    matrices = []
    for axis in (0, 1):
        side = x.shape[1 + axis]
        full = np.zeros((geometry.deconv_size(side, size, stride), side))
        for i in range(side):
            full[stride * i : stride * i + size, i] = taps
        stop = len(full) if crop is None else offset + crop[axis]
        if stop > len(full):
            raise ValueError(f"crop up to {stop} of an upsampled side of {len(full)}")
        matrices.append(full[offset:stop])
    return resize.separable_product(x, *matrices)
