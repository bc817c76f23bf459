"""Gaussian filters of point sets: (K v)_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j.

Features f [B, N, d] are already divided by their standard deviations; the sum includes
j = i. Three implementations: :func:`lattice_filter` (any features; a few percent off),
:func:`exact_filter` (any features; N^2 work) and :func:`separable_filter` (positions of
pixels; a convolution). Each returns a function v -> K v of float32 [B, N, C], channel
by channel. Features are constants: gradients flow in v only.

:func:`normalize` divides a filter by its response n to ones, in one of four ways:

    "none"       K
    "before"     K diag(1 / n)
    "after"      diag(1 / n) K, a weighted mean: Krähenbühl and Koltun's code of 2011,
                 hence the published parameters of DeepLab and DeconvNet; CRF-RNN
    "symmetric"  diag(n^-1/2) K diag(n^-1/2): their code of 2013, and the default of
                 pydensecrf, the usual Python wrapper
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import errors
from segjax.errors import UserError
from segjax.ops import image, lattice

# A linear map of float32 [B, N, C] -> [B, N, C], channel by channel.
Filter = Callable[[jax.Array], jax.Array]

NORMALIZATIONS = ("none", "before", "after", "symmetric")

COLOR_ORDERS = ("rgb", "bgr", "caffe")
"""Order of the colors in a lattice, which is not invariant to it.

"rgb" as in pydensecrf; "bgr"; "caffe" as in the released CRF-RNN: B, G, R less
VGG's mean. The Gaussian that a lattice approximates is the same for all of them.
"""

_TINY = 1e-20  # added to n, as in the reference implementations


# --- features -------------------------------------------------------------------------


def smoothness_features(
    height: int, width: int, sigma: float | jax.Array
) -> np.ndarray | jax.Array:
    """(x, y) / sigma of all pixels, row by row: float32 [1, H*W, 2]; sigma in pixels.

    Numpy unless sigma is traced, because they are known before any image is.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x, y], axis=-1).reshape(1, -1, 2) / sigma


def check_colors(channels: int) -> None:
    """Raises UserError unless images are gray or RGB, as the sigmas of CRFs expect."""
    if channels not in (1, 3):
        raise UserError(
            f"a CRF compares colors, which images of {channels} channels do not have; "
            "expected gray or RGB images, or a network and a prediction without CRF"
        )


def ordered_colors(images: Any, color_order: str) -> Any:
    """The colors [.., C] of ``images``, arrays of JAX or numpy, as lattices take them.

    Raises:
      UserError: as :func:`appearance_features`.
    """
    check_colors(images.shape[-1])
    if color_order not in COLOR_ORDERS:
        raise errors.unknown("color_order", color_order, COLOR_ORDERS)
    if color_order == "caffe":
        if images.shape[-1] != 3:
            raise UserError(
                f"color_order is 'caffe', which is for RGB images; these have "
                f"{images.shape[-1]} channels: use 'rgb'"
            )
        images = image.normalize(images, "vgg")
    if color_order != "rgb":
        images = images[..., ::-1]
    return images


def appearance_features(
    images: jax.Array,
    sigma_xy: float | jax.Array,
    sigma_rgb: float | jax.Array,
    *,
    color_order: str = "rgb",
) -> jax.Array:
    """(x, y) / sigma_xy and colors / sigma_rgb of all pixels.

    Args:
      images: [B, H, W, 1 or 3], 0..255, gray or RGB.
      sigma_xy: in pixels.
      sigma_rgb: in gray levels.
      color_order: one of COLOR_ORDERS; of gray images without effect, but for "caffe",
        which they cannot have.

    Returns:
      float32 [B, H*W, 2 + C]: positions, then colors, as in pydensecrf.

    Raises:
      UserError: unknown color order, "caffe" for images that are not RGB, or images
        that are neither gray nor RGB.
    """
    images = ordered_colors(images, color_order)
    batch, height, width, channels = images.shape
    positions = smoothness_features(height, width, sigma_xy)
    positions = jnp.broadcast_to(positions, (batch, *positions.shape[1:]))
    colors = images.astype(jnp.float32).reshape(batch, -1, channels)
    return jnp.concatenate([positions, colors / sigma_rgb], axis=-1)


# --- filters --------------------------------------------------------------------------


def lattice_filter(
    features: np.ndarray | jax.Array | lattice.Sorted, capacity: int = 0
) -> Filter:
    """The permutohedral lattice (ops/lattice.py), built here once.

    Args:
      features: [B, N, d], or [1, N, d] for all B images; or ``lattice.sort`` of them.
      capacity: of vertices; 0 for the bound N * (d + 1). Where it is too small, the
        filter returns NaN.
    """
    if isinstance(features, lattice.Sorted):
        shared, sides, points = features.weight.shape
    else:
        shared, points, dims = features.shape
        sides = dims + 1
        # XLA would build a lattice of constants (smoothness) while it compiles.
        features = jax.lax.optimization_barrier(jnp.asarray(features))
    table = lattice.build(features, capacity or points * sides)

    def apply(values: jax.Array) -> jax.Array:
        batch = values.shape[0]
        if shared == batch:
            return lattice.filter(table, values)
        # One lattice for all: the images become channels.
        values = jnp.moveaxis(values, 0, 1).reshape(1, points, -1)
        out = lattice.filter(table, values).reshape(points, batch, -1)
        return jnp.moveaxis(out, 1, 0)

    return apply


def exact_filter(features: np.ndarray | jax.Array, tile: int = 512) -> Filter:
    """All N^2 pairs, in rows of `tile` points, so that memory is tile * N.

    Args:
      features: [B, N, d], or [1, N, d] for all B images.
    """
    features = jax.lax.stop_gradient(jnp.asarray(features, jnp.float32))

    def apply(values: jax.Array) -> jax.Array:
        shape = (values.shape[0], *features.shape[1:])
        return _exact(jnp.broadcast_to(features, shape), values, tile)

    return apply


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _exact(features: jax.Array, values: jax.Array, tile: int) -> jax.Array:
    """[B, N, d], [B, N, C] -> K v [B, N, C]."""
    points, dims = features.shape[1:]
    tile = min(tile, points)

    def one(features: jax.Array, values: jax.Array) -> jax.Array:
        def rows(some: jax.Array) -> jax.Array:
            # Differences, not products: |f|^2 - 2 f g + |g|^2 loses digits in float32.
            distance = sum(
                jnp.square(some[:, None, i] - features[None, :, i]) for i in range(dims)
            )
            return jnp.matmul(
                jnp.exp(-0.5 * distance), values, precision=jax.lax.Precision.HIGHEST
            )

        padded = jnp.pad(features, ((0, -points % tile), (0, 0)))
        out = jax.lax.map(rows, padded.reshape(-1, tile, dims))
        return out.reshape(-1, values.shape[-1])[:points]

    return jax.vmap(one)(features, values)


def _exact_forward(features, values, tile):
    return _exact(features, values, tile), features


def _exact_backward(tile, features, gradient):
    return jnp.zeros_like(features), _exact(features, gradient, tile)


_exact.defvjp(_exact_forward, _exact_backward)


def gaussian_taps(sigma: float, truncate: float = 4.0) -> np.ndarray:
    """A Gaussian of `sigma` pixels at 0, 1, .. pixels, up to `truncate` sigmas."""
    radius = int(truncate * sigma + 0.5)
    return np.exp(-0.5 * (np.arange(radius + 1) / float(sigma)) ** 2)


def separable_filter(
    height: int, width: int, sigma: float, *, truncate: float = 4.0
) -> Filter:
    """The exact smoothness kernel: Gaussian convolutions along y and x, zeros outside.

    Args:
      sigma: in pixels.
      truncate: taps beyond this many sigmas are left out (4: 6e-5 of the sum).

    Returns:
      A filter of [B, H*W, C].
    """
    taps = [float(tap) for tap in gaussian_taps(sigma, truncate)]
    radius = len(taps) - 1

    def along(x: jax.Array, axis: int) -> jax.Array:
        # Shifted sums: XLA makes one pass of them, several times faster on CPU than a
        # convolution of single channels.
        size = x.shape[axis]
        pad = [(radius, radius) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = jnp.pad(x, pad)
        cut = functools.partial(jax.lax.slice_in_dim, padded, axis=axis)
        for shift, tap in enumerate(taps[1:], start=1):
            below, above = radius - shift, radius + shift
            x = x + tap * (cut(below, below + size) + cut(above, above + size))
        return x

    @jax.custom_vjp
    def convolve(x: jax.Array) -> jax.Array:
        # The barriers keep XLA from computing what comes before once for each tap.
        x = along(jax.lax.optimization_barrier(x), 1)
        return along(jax.lax.optimization_barrier(x), 2)

    # Symmetric, hence its own adjoint.
    convolve.defvjp(lambda x: (convolve(x), None), lambda _, g: (convolve(g),))

    def apply(values: jax.Array) -> jax.Array:
        maps = values.reshape(values.shape[0], height, width, -1)
        return convolve(maps).reshape(values.shape)

    return apply


def normalize(filter: Filter, normalization: str, *, batch: int, points: int) -> Filter:
    """Divides `filter` by its response to ones; see the top of this file.

    Args:
      normalization: one of NORMALIZATIONS.
      batch: B of the ones; 1 if the filter is the same for all images.
      points: N.

    Raises:
      UserError: unknown normalization.
    """
    check_normalization(normalization)
    if normalization == "none":
        return filter
    norm = jax.lax.stop_gradient(filter(jnp.ones((batch, points, 1))))
    if normalization == "symmetric":
        scale = jax.lax.rsqrt(norm + _TINY)
        return lambda values: scale * filter(scale * values)
    scale = 1 / (norm + _TINY)
    if normalization == "before":
        return lambda values: filter(scale * values)
    return lambda values: scale * filter(values)


def scales(norm: np.ndarray, normalization: str) -> tuple[np.ndarray, np.ndarray]:
    """The diagonals before and after K by which a response `norm` to ones normalizes.

    Raises:
      UserError: unknown normalization.
    """
    check_normalization(normalization)
    one = np.ones_like(norm)
    whole, root = 1 / (norm + _TINY), 1 / np.sqrt(norm + _TINY)
    return {
        "none": (one, one),
        "before": (whole, one),
        "after": (one, whole),
        "symmetric": (root, root),
    }[normalization]


def check_normalization(normalization: str) -> None:
    """Raises UserError unless it is one of NORMALIZATIONS."""
    if normalization not in NORMALIZATIONS:
        raise errors.unknown("normalization", normalization, NORMALIZATIONS)
