"""The compiled part of ``crf_points.py``: iterations over points in chunks.

Arrays have the sizes of the program; loops end with the chunk of the last point, row or
vertex of the image. All functions are traced.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.inference.point_lattice import CHUNK, PointFilter
from segjax.ops import lattice_keys

Array = np.ndarray | jax.Array


class Lattice(NamedTuple):
    """A filter by a lattice, filled up behind its rows and vertices."""

    arrays: PointFilter
    rows: int
    vertices: int


class Separable(NamedTuple):
    """diag(after) G diag(before), G a Gaussian convolution along x and y of an image.

    taps [T]: from the middle to the end, ``radius`` of them count; width: of the image;
    before, after [capacity].
    """

    taps: Array
    before: Array
    after: Array
    radius: int
    width: int


def marginals(
    scores: jax.Array,
    kernels: tuple[Lattice | Separable, ...],
    points: jax.Array,
    iterations: jax.Array,
    relaxation: jax.Array,
) -> jax.Array:
    """Q of ``scores`` [capacity, K], -inf for classes that are filled up.

    ``scores`` [capacity] are differences of two classes, and so is the result.
    """
    chunks = _chunks(points)
    activation = jax.nn.softmax if scores.ndim == 2 else lambda x: jnp.tanh(x / 2)

    def first(j, values):
        return _put(values, activation(_part(scores, j)), j)

    def update(values, tables):
        def messages(j):
            x = _part(scores, j)
            for kernel, table in zip(kernels, tables, strict=True):
                x += _sliced(kernel, table, j, points)
            return x

        def chunk(j, values):
            # A branch is where fusion ends. What follows (a softmax) would have XLA
            # write each of the terms to memory before they are added.
            x = lax.cond(points > 0, messages, lambda j: _part(scores, j), j)
            new, old = activation(x), _part(values, j)
            return _put(values, old + relaxation * (new - old), j)

        return lax.fori_loop(0, chunks, chunk, values)

    def step(_, state):
        values, tables = state
        tables = [
            _gathered(kernel, values, pair, points)
            for kernel, pair in zip(kernels, tables, strict=True)
        ]
        return update(values, [last for *_, last in tables]), [
            pair[:2] for pair in tables
        ]

    tables = [_tables(kernel, scores) for kernel in kernels]
    values = lax.fori_loop(0, chunks, first, jnp.zeros_like(scores))
    return lax.fori_loop(0, iterations, step, (values, tables))[0]


def _tables(kernel, scores):
    """Two arrays for what a filter computes on the way."""
    if isinstance(kernel, Separable):
        return jnp.zeros_like(scores), jnp.zeros(())
    room = kernel.arrays.neighbor.shape[-1], *scores.shape[1:]
    return jnp.zeros(room), jnp.zeros(room)


def _gathered(kernel, values, tables, points):
    """The first half of a filter: the two tables, and the one with the result."""
    if isinstance(kernel, Separable):
        row = _along_x(kernel, values, tables[0], points)
        return row, tables[1], row
    return _blurred(kernel, _splat(kernel, values, tables[0]), tables[1])


def _sliced(kernel, table, j, points):
    """The second half, for the points of a chunk."""
    if isinstance(kernel, Separable):
        return _along_y(kernel, table, j, points)
    offset, weight = kernel.arrays.offset, kernel.arrays.weight
    return _weighted(table, _part(offset, j, 1), _part(weight, j, 1))


# --- lattice --------------------------------------------------------------------------


def _splat(kernel, values, table):
    """Sums of the points of each vertex."""
    point, share, vertex, *_ = kernel.arrays

    def clear(j, table):
        return _put(table, jnp.zeros((CHUNK, *table.shape[1:])), j)

    def add(j, table):
        sums = _weighted(values, _part(point, j, 1), _part(share, j, 1))
        # The barrier keeps this loop, vectorized and parallel, out of the scatter.
        sums = lax.optimization_barrier(sums)
        return table.at[_part(vertex, j)].add(sums, mode="promise_in_bounds")

    table = lax.fori_loop(0, _chunks(kernel.vertices), clear, table)
    return lax.fori_loop(0, _chunks(kernel.rows), add, table)


def _blurred(kernel, first, second):
    """Along one axis after the other, from one table to the other and back."""
    source, target = first, second
    for pair in kernel.arrays.neighbor:

        def chunk(j, target, pair=pair, source=source):
            down, up = (lattice_keys.take(source, _part(side, j)) for side in pair)
            return _put(target, _part(source, j) + 0.5 * (down + up), j)

        target = lax.fori_loop(0, _chunks(kernel.vertices), chunk, target)
        source, target = target, source
    # Each in its place, or XLA would copy them.
    if len(kernel.arrays.neighbor) % 2:
        return target, source, source
    return source, target, source


# --- separable ------------------------------------------------------------------------


def _along_x(kernel, values, row, points):
    def chunk(j, row):
        x = _places(j) % kernel.width

        def there(place, shift):
            return kernel.before[place] * (
                (x + shift >= 0) & (x + shift < kernel.width)
            )

        return _put(row, _convolved(kernel, values, j, points, 1, there), j)

    return lax.fori_loop(0, _chunks(points), chunk, row)


def _along_y(kernel, row, j, points):
    def there(place, shift):
        at = _places(j) + shift * kernel.width
        return ((at >= 0) & (at < points)).astype(row.dtype)

    total = _convolved(kernel, row, j, points, kernel.width, there)
    return _over(_part(kernel.after, j), total) * total


def _convolved(kernel, x, j, points, stride, there):
    """Sum of tap * there * x at the shifts of a chunk."""

    def at(shift):
        place = jnp.clip(_places(j) + shift * stride, 0, points - 1)
        return _over(there(place, shift), x) * lattice_keys.take(x, place)

    def add(shift, total):
        return total + kernel.taps[shift] * (at(shift) + at(-shift))

    return lax.fori_loop(1, kernel.radius + 1, add, kernel.taps[0] * at(0))


def _places(j):
    return j * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)


# --- chunks ---------------------------------------------------------------------------


def _chunks(count):
    return (count + CHUNK - 1) // CHUNK


def _part(array, j, axis=0):
    return lax.dynamic_slice_in_dim(array, j * CHUNK, CHUNK, axis)


def _put(array, part, j):
    return lax.dynamic_update_slice_in_dim(array, part, j * CHUNK, 0)


def _over(weight, x):
    """``weight`` [.., N] for the classes of ``x`` [N, K] or [N]."""
    return weight.reshape(*weight.shape, *(1,) * (x.ndim - 1))


def _weighted(x, index, weight):
    """sum_k weight[k, i] * x[index[k, i]]."""
    weight = _over(weight, x)
    return sum(w * lattice_keys.take(x, i) for i, w in zip(index, weight, strict=True))
