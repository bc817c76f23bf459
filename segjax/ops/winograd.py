"""3x3 convolutions with 16 instead of 36 products for four outputs: F(2x2, 3x3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016),
section 4.1: a tile of 4x4 pixels and the kernel are transformed by additions,
multiplied element by element, which over the channels are 16 matrix products, and
transformed back into 2x2 outputs: Y = A^T [(G k G^T) * (B^T d B)] A. The gradient of
the kernel is a sum over the same products. The factors are 0, 1, -1 and 1/2, so the
results are as exact as those of the plain sums.

Maps are float32 [N, H, W, C], kernels [3, 3, I, O]. conv_forms.py decides where these
forms are used.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# B^T of the tile, G of the kernel, A^T of the outputs.
_TILE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_STEP = 2  # outputs of a tile, in each direction


class _Grid(NamedTuple):
    """Tiles of the output: of each phase of the dilation, so many by so many."""

    dilation: int
    rows: int
    columns: int

    def padded(self) -> tuple[int, int]:
        """Sides of the map that all tiles read."""
        height, width = (_STEP * count + 2 for count in self[1:])
        return self.dilation * height, self.dilation * width


def _grid(sides: Sequence[int], dilation: int) -> _Grid:
    """The tiles of an output of these sides."""
    return _Grid(dilation, *(-(-side // (dilation * _STEP)) for side in sides))


def products(batch: int, sides: Sequence[int], dilation: int) -> int:
    """Multiply-adds per input and output channel, with those of incomplete tiles.

    `sides`: height and width of the output. The plain form has 9 per output.
    """
    _, rows, columns = _grid(sides, dilation)
    return 16 * batch * dilation**2 * rows * columns


def _stacked(factors: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """The matrix `factors` times the arrays: [rows of factors, ...].

    As one operation, which compiles faster than one per row, although it multiplies by
    zeros; kept, so that what reads it does not compute it again.
    """
    columns = factors.T.astype(np.float32).reshape(
        len(arrays), -1, *(1 for _ in arrays[0].shape)
    )
    terms = (c * array for c, array in zip(columns, arrays, strict=True))
    return jax.lax.optimization_barrier(functools.reduce(jnp.add, terms))


def _sums(factors: np.ndarray, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The same as an operation per row."""
    return [
        functools.reduce(
            jnp.add, [float(f) * a for f, a in zip(row, arrays, strict=True) if f]
        )
        for row in factors
    ]


def _phases(x: jax.Array, dilation: int) -> jax.Array:
    """[N, H, W, C] -> [N d d, H / d, W / d, C]: every d-th pixel, from each start."""
    if dilation == 1:
        return x
    n, height, width, channels = x.shape
    height, width = height // dilation, width // dilation
    x = x.reshape(n, height, dilation, width, dilation, channels)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, height, width, channels)


def _merge(x: jax.Array, dilation: int) -> jax.Array:
    """The inverse of :func:`_phases`."""
    if dilation == 1:
        return x
    _, height, width, channels = x.shape
    x = x.reshape(-1, dilation, dilation, height, width, channels)
    return x.transpose(0, 3, 1, 4, 2, 5).reshape(
        -1, height * dilation, width * dilation, channels
    )


def _transformed(x: jax.Array, factors: np.ndarray, grid: _Grid) -> list[jax.Array]:
    """Tiles of `x` [N, H, W, C], transformed in both directions.

    Per column of the transformed tiles, [rows, tiles, C]: four at a time, so that they
    are still in the cache when they are multiplied. A tile starts every second pixel
    and has as many as `factors` has columns.
    """
    reach = factors.shape[1]
    lines = _stacked(factors, [x[:, a::_STEP][:, : grid.rows] for a in range(reach)])
    starts = [lines[:, :, :, b::_STEP][:, :, :, : grid.columns] for b in range(reach)]
    columns = _sums(factors, starts)
    return [column.reshape(len(column), -1, x.shape[-1]) for column in columns]


def _tiles(x: jax.Array, grid: _Grid, padding: int) -> list[jax.Array]:
    """B^T d B of all tiles of the map."""
    sides = zip(grid.padded(), x.shape[1:3], strict=True)
    # Pixels behind the last tile, which the output does not need, are cut off.
    edges = [(padding, whole - padding - side, 0) for whole, side in sides]
    x = jax.lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return _transformed(_phases(x, grid.dilation), _TILE, grid)


def _products(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """A matrix product per row of the tiles, over these axes."""
    contracted = (axes[0],), (axes[1],)
    return jax.lax.dot_general(left, right, (contracted, ((0,), (0,))))


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    padding: int,
    dilation: int,
    transposed: bool = False,
) -> jax.Array:
    """The convolution of stride 1 of `x` [N, H, W, I] with `kernel` [3, 3, I, O].

    With `transposed`, with the kernel turned around, [3, 3, O, I]: for a padding of
    2 `dilation` less that of a convolution, the gradient of its map.
    """
    if transposed:
        kernel = kernel[::-1, ::-1]
    height, width = (side + 2 * (padding - dilation) for side in x.shape[1:3])
    grid = _grid((height, width), dilation)
    lines = _stacked(_KERNEL, list(kernel))
    kernels = _sums(_KERNEL, [lines[:, b] for b in range(3)])
    columns = []
    for tile, factor in zip(_tiles(x, grid, padding), kernels, strict=True):
        column = _products(tile, factor, (2, 2 if transposed else 1))
        # Half as large; without the barrier all columns would be kept until the end.
        columns.append(jax.lax.optimization_barrier(_sums(_OUTPUT, list(column))))
    # [output row][output column], and then both beside their tiles.
    outputs = [_sums(_OUTPUT, row) for row in zip(*columns, strict=True)]
    shape = -1, grid.rows, grid.columns, outputs[0][0].shape[-1]
    y = jnp.stack(
        [jnp.stack([a.reshape(shape) for a in row], axis=3) for row in outputs], axis=2
    )
    y = y.reshape(-1, _STEP * grid.rows, _STEP * grid.columns, y.shape[-1])
    return _merge(y, dilation)[:, :height, :width]


def kernel_gradient(
    x: jax.Array, gradient: jax.Array, *, padding: int, dilation: int
) -> jax.Array:
    """The gradient [3, 3, I, O] of the kernel of :func:`convolution`."""
    sides = gradient.shape[1:3]
    grid = _grid(sides, dilation)
    multiple = [_STEP * dilation * count for count in grid[1:]]
    edges = [(0, more - side) for more, side in zip(multiple, sides, strict=True)]
    gradient = _phases(jnp.pad(gradient, ((0, 0), *edges, (0, 0))), dilation)
    pulled = _transformed(gradient, _OUTPUT.T, grid)
    columns = []
    for pair in zip(_tiles(x, grid, padding), pulled, strict=True):
        columns.append(_stacked(_KERNEL.T, list(_products(*pair, (1, 1)))))
    return jnp.stack(_sums(_KERNEL.T, columns), axis=1)
