"""Mean field on a CPU for images of any size, by few compiled programs.

The arrays of an image (``point_lattice.py``) are filled up to one of few sizes, and
loops over chunks of points and vertices end where those of the image do: what is filled
up costs no time and changes no number. So one program serves all images of up to four
times as many pixels, whatever their shape, content and settings.

Potts compatibility is all that ``mean_field.Settings`` has, so only differences of
classes matter: of two classes a single channel is filtered, Q_0 - Q_1.
"""

import concurrent.futures
import functools
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike

from segjax import errors
from segjax.inference import point_lattice
from segjax.inference.point_lattice import CHUNK, PointFilter
from segjax.inference.point_mean_field import Lattice, Separable, marginals
from segjax.ops import filters, mean_field

LEAST = 2**16
"""Points of the smallest program."""
GROWTH = 4
"""Ratio of the sizes of programs."""
LANES = 8
"""Classes are filled up to a multiple of these, so that vectors are whole."""

_compiling = threading.Lock()


def dense_crf(
    probabilities: np.ndarray, image: np.ndarray, settings: mean_field.Settings
) -> np.ndarray:
    """``mean_field.dense_crf`` of one image.

    Args:
      probabilities: [H, W, K].
      image: [H, W, C], 0..255, gray or RGB.
      settings: of the CRF.

    Returns:
      float32 [H, W, K].

    Raises:
      UserError: a bad field of ``settings``, or sigmas too small for a lattice.
    """
    height, width, classes = probabilities.shape
    kernels = []
    form, sigma = settings.smoothness_filter, settings.smoothness_sigma
    if settings.smoothness_weight:
        if form not in mean_field.SMOOTHNESS_FILTERS:
            known = mean_field.SMOOTHNESS_FILTERS
            raise errors.unknown("smoothness_filter", form, known)
        kind = settings.normalization, settings.smoothness_weight
        build = _separable if form == "separable" else _smoothness
        kernels.append(build(height, width, sigma, *kind))
    if settings.appearance_weight:
        xy, rgb = settings.appearance_sigma_xy, settings.appearance_sigma_rgb
        colors = filters.ordered_colors(image[None], settings.color_order)[0]
        features = np.concatenate(
            [
                np.asarray(filters.smoothness_features(height, width, xy))[0],
                np.float32(colors).reshape(-1, image.shape[-1]) / np.float32(rgb),
            ],
            axis=-1,
        )
        kernels.append(
            _lattice(features, settings.normalization, settings.appearance_weight)
        )
    return mean_field_of(
        probabilities.reshape(-1, classes),
        kernels,
        iterations=settings.iterations,
        relaxation=settings.relaxation,
    ).reshape(probabilities.shape)


def dense_crfs(
    probabilities: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    settings: mean_field.Settings,
) -> list[np.ndarray]:
    """:func:`dense_crf` of images of any sizes, as many at once as there are cores.

    An image uses one core, so a batch takes half the time on two.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        one = functools.partial(dense_crf, settings=settings)
        return list(pool.map(one, probabilities, images))


@functools.lru_cache(4)
def _smoothness(
    height: int, width: int, sigma: float, normalization: str, weight: float
) -> Lattice:
    features = np.asarray(filters.smoothness_features(height, width, sigma))[0]
    return _lattice(features, normalization, weight)


def _separable(
    height: int, width: int, sigma: float, normalization: str, weight: float
) -> Separable:
    """``filters.separable_filter``, normalized."""
    taps = filters.gaussian_taps(sigma)
    radius = len(taps) - 1
    whole = np.concatenate([taps[:0:-1], taps])

    def sums(side: int) -> np.ndarray:
        return np.convolve(np.ones(side), whole)[radius : radius + side]

    norm = np.outer(sums(height), sums(width)).reshape(-1)
    before, after = filters.scales(norm, normalization)
    room = 2 ** max(math.ceil(math.log2(len(taps))), 6)
    capacity = point_capacity(len(norm))
    return Separable(
        np.pad(np.float32(taps), (0, room - len(taps))),
        _filled(before.astype(np.float32), capacity),
        _filled((weight * after).astype(np.float32), capacity),
        radius,
        width,
    )


def _lattice(features: np.ndarray, normalization: str, weight: float) -> Lattice:
    kernel = point_lattice.build(features, normalization=normalization, weight=weight)
    return fill_up(kernel, point_capacity(len(features)))


def point_capacity(points: int) -> int:
    """Points of the program that ``points`` of them take."""
    capacity = LEAST
    while capacity < points:
        capacity *= GROWTH
    return capacity


def fill_up(kernel: PointFilter, capacity: int) -> Lattice:
    """The arrays in the sizes of a program for ``capacity`` points.

    There is room for a quarter as many vertices as points, as many, or for all that
    there can be, and for eight times as many rows of sums, or all that there can be.
    """
    most = capacity * len(kernel.offset) + CHUNK
    rows, vertices = len(kernel.vertex), kernel.neighbor.shape[-1]
    for room in (capacity // 4, capacity, most):
        if vertices <= room and rows <= 8 * room:
            break
    sums = min(8 * room, most)
    lengths = sums, sums, sums, room, capacity, capacity
    arrays = [_filled(*pair) for pair in zip(kernel, lengths, strict=True)]
    return Lattice(PointFilter(*arrays), rows, vertices)


def _filled(array: np.ndarray, length: int) -> np.ndarray:
    """Zeros behind the last axis of ``array``, up to the next chunk and not beyond.

    What follows is memory that nothing reads. It begins where JAX takes it over
    without a copy.
    """
    used = array.shape[-1]
    result = empty((*array.shape[:-1], length), array.dtype)
    result[..., :used] = array
    result[..., used : -(-used // CHUNK) * CHUNK] = 0
    return result


def empty(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """``np.empty``, aligned as JAX needs it to use the memory as it is."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def mean_field_of(
    probabilities: np.ndarray,
    kernels: Sequence[Lattice | Separable],
    *,
    iterations: int,
    relaxation: float,
) -> np.ndarray:
    """``mean_field.mean_field`` with the sum of ``kernels``, which reward equal labels.

    Args:
      probabilities: float32 [N, K].
      kernels: results of ``fill_up`` for the ``point_capacity`` of N.
      iterations: of the mean field.
      relaxation: see ``mean_field.mean_field``.

    Returns:
      float32 [N, K].
    """
    points, classes = probabilities.shape
    scores = np.log(np.clip(probabilities, mean_field.CLIP, 1))
    capacity = point_capacity(points)
    if classes == 2:
        values = scores[:, 0] - scores[:, 1]
        inputs = empty((capacity,), np.float32)
    else:
        values = scores
        inputs = empty((capacity, -(-classes // LANES) * LANES), np.float32)
        inputs[:points, classes:] = -np.inf
    inputs[:points, ...][..., : values.shape[-1]] = values
    inputs[points : -(-points // CHUNK) * CHUNK] = 0
    arrays = inputs, tuple(kernels), points, iterations, np.float32(relaxation)
    # Numbers of Python and NumPy have 64 bits, which programs do not.
    arrays = jax.tree.map(
        lambda x: np.int32(x) if isinstance(x, int | np.int64) else x, arrays
    )
    with _compiling:  # or several threads would compile the same
        run = _program(jax.tree.structure(arrays), _shapes(arrays))
    found = np.asarray(run(*arrays))[:points]
    if classes == 2:
        return np.stack([0.5 + 0.5 * found, 0.5 - 0.5 * found], axis=-1)
    return found[:, :classes]


def _shapes(arrays: Any) -> tuple:
    return tuple((np.shape(x), np.result_type(x).name) for x in jax.tree.leaves(arrays))


@functools.cache
def _program(structure: Any, shapes: tuple) -> Callable:
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    arguments = jax.tree.unflatten(structure, leaves)
    return jax.jit(marginals).lower(*arguments).compile()
