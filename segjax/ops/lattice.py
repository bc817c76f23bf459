"""Gaussian filtering on the permutohedral lattice, with static shapes and no hash.

Adams et al. 2010; Krähenbühl and Koltun, NIPS 2011, use it for the dense CRF.
`build` finds the vertices around the points of an image by sorting and is run once;
`filter` then computes K v for values v on the points, K_ij ~ exp(-|f_i - f_j|^2 / 2),
in time linear in points and vertices, as often as needed.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops import lattice_keys as keys


class Lattice(NamedTuple):
    """B lattices for N points each: arrays only. M = capacity; R rows of K points.

    offset [B, d+1, N] int32: the vertices around each point; M stands for none.
    weight [B, d+1, N] float32: their barycentric weights.
    point [B, K, R] int32, share [B, K, R] float32, vertex [B, R] int32: the same,
      sorted by vertex: row i adds share[k, i] * value[point[k, i]] over k to vertex[i].
    neighbor [B, d+1, 2, M+1] int32: next vertices along each axis; M stands for none.
    vertex_count [B] int32: vertices found, also when there are more than M; 2^31 - 1
      if a feature is not finite or the features span too many cells (62 bits) to be
      keys.
    """

    offset: jax.Array
    weight: jax.Array
    point: jax.Array
    share: jax.Array
    vertex: jax.Array
    neighbor: jax.Array
    vertex_count: jax.Array


class Sorted(NamedTuple):
    """The first half of `build`, for those who count the vertices before the second.

    packing: of the keys, see lattice_keys.py.
    weight [B, d+1, N] float32: barycentric weights.
    order [B, d+1, N] int32: permutation that sorts the keys, for each remainder.
    words: two of [B, d+1, N] int32, the sorted keys.
    new [B, d+1, N] int32: 1 where a key differs from the one before.
    vertex_count [B] int32: as `Lattice.vertex_count`.
    """

    packing: keys.Packing
    weight: jax.Array
    order: jax.Array
    words: list[jax.Array]
    new: jax.Array
    vertex_count: jax.Array


@jax.jit
def sort(features: jax.Array) -> Sorted:
    """The vertices around `features` [B, N, d] float32, already divided by sigma.

    No gradient flows to the features.
    """
    features = lax.stop_gradient(features).astype(jnp.float32)
    return _each_image(_sort, features)


@functools.partial(jax.jit, static_argnames="capacity")
def build(features: jax.Array | Sorted, capacity: int) -> Lattice:
    """The lattices for `features` [B, N, d], or for what `sort` made of them.

    `capacity`: vertices there is room for, see `choose_capacity`.
    """
    if not isinstance(features, Sorted):
        features = sort(features)
    return _each_image(functools.partial(_build, capacity), features)


@jax.jit
def count_vertices(features: jax.Array) -> jax.Array:
    """Number of vertices [B] int32 of `features` [B, N, d]; see `Lattice`."""
    return sort(features).vertex_count


def choose_capacity(counts, points: int, *, dims: int, per_octave: int = 4) -> int:
    """Room for the largest of `counts` (of `count_vertices`), rounded up.

    In `per_octave` (1, 2, 4, ..) steps from a power of two to the next, so that most
    images of a set share one compiled program; never more than the bound
    `points` * (`dims` + 1).
    """
    largest = max(*map(int, counts), 256)
    step = 2 ** (math.ceil(math.log2(largest)) - 1) // per_octave
    return min(-(-largest // step) * step, points * (dims + 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def filter(lattice: Lattice, values: jax.Array, reverse: bool = False) -> jax.Array:
    """K v, un-normalized, for `values` v [B, N, C] float32 -> [B, N, C].

    K is symmetric only up to the order of the lattice's axes: `reverse` gives the
    transpose, which is also the gradient. A lattice of batch 1 serves all images.
    Where `lattice.vertex_count` exceeds the capacity the output is NaN.
    """
    batch, n, channels = values.shape
    if lattice.vertex_count.shape[0] == 1 and batch > 1:
        flat = values.swapaxes(0, 1).reshape(1, n, batch * channels)
        out = filter(lattice, flat, reverse)
        return out.reshape(n, batch, channels).swapaxes(0, 1)
    return _each_image(functools.partial(_filter, reverse), lattice, values)


def _filter_forward(lattice, values, reverse):
    return filter(lattice, values, reverse), lattice


def _filter_backward(reverse, lattice, gradient):
    return None, filter(lattice, gradient, not reverse)


filter.defvjp(_filter_forward, _filter_backward)


def _each_image(function, *arrays):
    """`function` of the arrays without their leading axis, for each index of it.

    On CPU one after the other: what one image needs fits the cache, and each
    operation uses all cores anyway.
    """
    if jax.tree.leaves(arrays)[0].shape[0] == 1:
        result = function(*jax.tree.map(lambda x: x[0], arrays))
        return jax.tree.map(lambda x: x[None], result)
    return lax.platform_dependent(
        *arrays,
        cpu=lambda *arrays: lax.map(lambda one: function(*one), arrays),
        default=jax.vmap(function),
    )


def _sort(features):
    """`sort` for one image: [N, d]."""
    quotient, rank, weight = keys.embed(features)
    pack = keys.packing(features, quotient)
    words = keys.words(pack, quotient, rank)
    order = keys.order(pack, words)
    words = [keys.take(word.reshape(-1), _flat(order)) for word in words]
    step = functools.reduce(jnp.logical_or, [w[:, 1:] != w[:, :-1] for w in words])
    new = jnp.pad(step.astype(jnp.int32), ((0, 0), (1, 0)), constant_values=1)
    count = jnp.where(pack.fits, new.sum(), jnp.iinfo(jnp.int32).max)
    return Sorted(pack, weight, order, words, new, count)


def _flat(order):
    """Places in rows [G, N] as places in the array of all rows."""
    groups, n = order.shape
    return order + jnp.arange(groups, dtype=jnp.int32)[:, None] * n


def _build(capacity, points):
    """`build` for one image: `Sorted` without batch axis."""
    pack, weight, order, words, new, count = points
    groups, n = order.shape
    number = lax.associative_scan(jnp.add, new.reshape(-1)) - 1
    offset = jnp.zeros(groups * n, jnp.int32)
    offset = offset.at[_flat(order).reshape(-1)].set(
        jnp.minimum(number, capacity), mode="promise_in_bounds", unique_indices=True
    )

    # Entries [begin, end) of the sorted keys belong to a vertex.
    some = jnp.arange(capacity + 1, dtype=jnp.int32)
    zeros = jnp.zeros_like(some)
    begin = keys.search([number], [some], low=zeros, high=zeros + groups * n)
    begin, end = begin[:-1], begin[1:]
    point, share, vertex = _rows(begin, end, order=order, weight=weight)
    table = [
        keys.take(w.reshape(-1), jnp.minimum(begin, groups * n - 1)) for w in words
    ]
    neighbor = _neighbors(pack, table, begin=begin, end=end, n=n)
    return Lattice(
        offset.reshape(groups, n), weight, point, share, vertex, neighbor, count
    )


def _neighbors(pack, table, *, begin, end, n):
    """[d+1, 2, M+1], from the words and entries of the vertices."""
    groups, capacity = pack.coefficient.shape[1], begin.shape[0]
    remainder = jnp.minimum(begin // n, groups - 1)
    edge = jnp.arange(groups + 1, dtype=jnp.int32) * n
    zeros = jnp.zeros_like(edge)
    edge = keys.search([begin], [edge], low=zeros, high=zeros + capacity)

    # Down one axis: the coordinate there grows by d, the others sink by one. So does
    # the remainder; of the quotients only the one there grows by one, or, from
    # remainder 0, all the others sink by one.
    wrap = (remainder == 0).astype(jnp.int32)
    target = jnp.where(remainder == 0, groups - 1, remainder - 1)
    query = [
        word + pack.coefficient[i][:, None] - wrap * pack.coefficient[i].sum()
        for i, word in enumerate(table)
    ]
    low, high = (
        jnp.broadcast_to(keys.take(edge, t), query[0].shape)
        for t in (target, target + 1)
    )
    at = keys.search(table, query, low=low, high=high)
    there = (at < high) & (begin < end)
    at = jnp.minimum(at, capacity - 1)
    for word, value in zip(table, query, strict=True):
        there &= keys.take(word, at) == value
    down = jnp.where(there, at, capacity)
    # Up is the inverse; what has no neighbor is written to place M and overwritten.
    down = jnp.pad(down, ((0, 0), (0, 1)), constant_values=capacity)
    rows = jnp.arange(capacity + 1, dtype=jnp.int32)
    ups = [jnp.full(capacity + 1, capacity).at[axis].set(rows) for axis in down]
    up = jnp.stack(ups).at[:, capacity].set(capacity)
    return jnp.stack([down, up], axis=1)


def _rows(begin, end, *, order, weight):
    """`Lattice.point`, `.share`, `.vertex`: the entries of each vertex in rows of K."""
    (groups, n), capacity = order.shape, begin.shape[0]
    entries = groups * n
    # Long rows waste places, short ones cost a sum in memory each, about 3 places.
    k = min(8, 2 ** round(math.log2(math.sqrt(3 * entries / capacity))))
    need = (end - begin + k - 1) // k
    last = lax.associative_scan(jnp.add, need)
    row = jnp.arange((entries + (k - 1) * capacity) // k, dtype=jnp.int32)
    zeros = jnp.zeros_like(row)
    vertex = keys.search([last], [row + 1], low=zeros, high=zeros + capacity)
    v = jnp.minimum(vertex, capacity - 1)
    first = keys.take(begin, v) + (row - keys.take(last - need, v)) * k
    stop = jnp.where(vertex < capacity, keys.take(end, v), 0)

    def place(i):
        entry = jnp.where(first + i < stop, first + i, 0)
        point = keys.take(order.reshape(-1), entry)
        share = keys.take(weight.reshape(-1), entry // n * n + point)
        return point, jnp.where(first + i < stop, share, 0.0)

    # A loop, so that `first` and `stop` are stored and not computed for each place.
    point, share = lax.map(place, jnp.arange(k, dtype=jnp.int32))
    return point, share, vertex


def _filter(reverse, lattice, values):
    """`filter` for one image: lattice without batch axis, values [N, C]."""
    axes, capacity = lattice.offset.shape[0], lattice.neighbor.shape[-1] - 1
    # Splat. The barrier keeps this loop, vectorised and parallel, out of the scatter.
    sums = lax.optimization_barrier(_weighted(values, lattice.point, lattice.share))
    table = jnp.zeros((capacity + 1, values.shape[1]), values.dtype)
    table = table.at[lattice.vertex].add(
        sums, mode="promise_in_bounds", indices_are_sorted=True
    )

    # Blur. Row M is zero and its own neighbor. A loop, because XLA makes slower code
    # for all the axes written out, on CPU five times.
    def blur(table, neighbor):
        down, up = neighbor
        return table + 0.5 * (keys.take(table, down) + keys.take(table, up)), None

    table, _ = lax.scan(blur, table, lattice.neighbor, reverse=reverse)
    # Slice. Going once along all axes leads back: alpha makes that self weight 1.
    # A branch is also where fusion ends: what follows (a softmax) would have XLA write
    # each of the d+1 terms to memory before they are added.
    alpha = 1 / (1 + 2.0 ** (1 - axes))
    return lax.cond(
        lattice.vertex_count > capacity,
        lambda table: jnp.full_like(values, jnp.nan),
        lambda table: _weighted(table, lattice.offset, alpha * lattice.weight),
        table,
    )


def _weighted(x, index, weight):
    """sum_k weight[k, i] * x[index[k, i]], one fused loop over [i, channel]."""
    return sum(w[:, None] * keys.take(x, i) for i, w in zip(index, weight, strict=True))
