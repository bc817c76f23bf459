"""Points of a permutohedral lattice: simplices, packed vertex keys, sorting, search.

Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral
Lattice", 2010. Vertices have d+1 integer coordinates that sum to 0 and are all equal
modulo d+1 (the remainder). A vertex is stored as its quotients by d+1, and vertices
of different remainders are never equal, so all below works on d+1 groups of N keys.

Points are the last axis (long and contiguous), the d+1 coordinates the one before.
Integers are int32 or uint32: 64-bit ones are off in JAX and slow on accelerators.
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


def embed(features: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The simplex around each of `features` [N, d] float32.

    Returns the quotients of its vertex of remainder 0 and the ranks of the
    coordinates, both [d+1, N] int32, and the barycentric weights [d+1, N] float32 by
    remainder (>= 0 up to rounding, sum 1).
    """
    d = features.shape[-1]
    c = [
        features[:, i] * (math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)))
        for i in range(d)
    ]
    tail = jnp.zeros_like(c[0])
    rows: list[jax.Array] = []
    for j in range(d, 0, -1):
        rows.append(tail - j * c[j - 1])
        tail = tail + c[j - 1]
    e = jnp.stack([tail, *rows[::-1]])

    # Sums over all coordinates k for all j at once: XLA would fuse the sums written
    # out one by one into a single loop that repeats them for every use.
    near = jnp.round(e / (d + 1))
    remainder = e - (d + 1) * near
    total = functools.reduce(operator.add, near).astype(jnp.int32)
    index = jnp.arange(d + 1, dtype=jnp.int32)

    # Loops over the rows: written out, XLA repeats all of the below for every use.
    def ranks(j):
        result = total
        for k in range(d + 1):
            above = (remainder[k] > remainder[j]) | (
                (remainder[k] == remainder[j]) & (k < j)
            )
            result = result + above.astype(jnp.int32)
        return result

    rank = lax.map(ranks, index)
    wrap = (rank < 0).astype(jnp.int32) - (rank > d).astype(jnp.int32)
    rank = rank + (d + 1) * wrap
    v = remainder / (d + 1) - wrap.astype(e.dtype)

    def weights(r):
        result = (r == 0).astype(e.dtype)
        for j in range(d + 1):
            sign = (rank[j] == d - r).astype(e.dtype)
            sign -= (rank[j] == (d + 1 - r) % (d + 1)).astype(e.dtype)
            result = result + sign * v[j]
        return result

    return near.astype(jnp.int32) + wrap, rank, lax.map(weights, index)


class Packing(NamedTuple):
    """How the keys of an image become two words of 31 bits (scalars, traced).

    word = coefficient [2, d+1] . quotients + constant [2], in 0..size [2] - 1 for
    every vertex and every neighbor of one, different for different vertices of a
    remainder. `fits` []: false if 62 bits do not suffice, or a feature is NaN or 2^24
    or more.
    """

    coefficient: jax.Array
    constant: jax.Array
    size: jax.Array
    fits: jax.Array


def digits(quotient: Any) -> tuple[list[Any], list[list[int]]]:
    """The d digits of the keys of `quotient` [d+1, N], arrays of JAX or numpy.

    Returns the digits, each [N], and the matrix [d, d+1] by which they follow from the
    quotients.
    """
    d = quotient.shape[0] - 1
    # Differences of successive quotients mix two features each, so their ranges are
    # far smaller than those of the quotients; the last quotient completes them. The
    # first digits order the vertices: the second feature (y) comes before the first
    # (x), since points usually come in scanlines.
    us = [quotient[i] - quotient[i + 1] for i in range(d - 1)]
    matrix = [[(k == i) - (k == i + 1) for k in range(d + 1)] for i in range(d - 1)]
    us.append(quotient[d])
    matrix.append([int(k == d) for k in range(d + 1)])
    if d > 1:
        us[:2], matrix[:2] = us[1::-1], matrix[1::-1]
    return us, matrix


def packing(features: jax.Array, quotient: jax.Array) -> Packing:
    """The packing for `quotient` [d+1, N] of `features`, from the ranges found."""
    us, matrix = digits(quotient)
    # -1 and +1 for the vertices of other remainders, the same again for neighbors.
    low = jnp.stack([u.min() - 2 for u in us])
    span = jnp.stack([u.max() + 3 for u in us]) - low

    # The last digits fill the first word, the others the second.
    def place(state, count):
        size, full, fits = state
        extent = count.astype(jnp.float32)  # int32 products would wrap around
        full |= size[0].astype(jnp.float32) * extent > limit
        at = jnp.stack([~full, full])
        stride = jnp.where(at, size, 0)
        fits &= (stride.sum().astype(jnp.float32) * extent < limit) & (extent < 2.0**30)
        return (jnp.where(at, size * count, size), full, fits), stride

    limit = 2.0**31 * (1 - 1e-6)  # floats are good to 1e-7
    # From 2^24 on float32 has no fractions of a cell left, and quotients would wrap.
    placed = (jnp.abs(features) < 2.0**24).all()  # false for NaN, too
    start = jnp.ones(2, jnp.int32), jnp.bool_(False), placed
    (size, _, fits), stride = lax.scan(place, start, span, reverse=True)
    coefficient = (stride[:, :, None] * jnp.array(matrix)[:, None]).sum(0)
    return Packing(coefficient, -(stride * low[:, None]).sum(0), size, fits)


def words(pack: Packing, quotient: jax.Array, rank: jax.Array) -> list[jax.Array]:
    """The two words [d+1, N] int32 of the d+1 vertices around N points."""
    d = quotient.shape[0] - 1

    def of_remainder(r):
        result = list(pack.constant)
        for j in range(d + 1):
            q = quotient[j] - (rank[j] > d - r).astype(jnp.int32)
            result = [
                u + c * q for u, c in zip(result, pack.coefficient[:, j], strict=True)
            ]
        return result

    # A loop, so that the words are stored and not computed anew for every use.
    return lax.map(of_remainder, jnp.arange(d + 1, dtype=jnp.int32))


def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[index] for indices known to be in 0..len(x) - 1."""
    flat = x.at[index.reshape(-1)].get(mode="promise_in_bounds")
    return flat.reshape(index.shape + x.shape[1:])


def order(pack: Packing, keys: list[jax.Array]) -> jax.Array:
    """The stable sorting permutation [G, N] int32 of each row of `keys` (2 of [G, N]).

    Radix sort with passes that sort one uint32 each, in which a digit of the key and
    the place share the bits: several times faster than sorting keys with a payload,
    on CPU (no comparator) and on GPU (radix sort). Two passes for most images.
    """
    groups, n = keys[0].shape
    base = min(2**32 // n, 2**31 - 1)
    place = jnp.arange(n, dtype=jnp.uint32)
    group = jnp.arange(groups, dtype=jnp.int32)[:, None] * n
    result = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (groups, n))

    def step(_, state):
        result, word = state
        digit = take((word % base).reshape(-1), result + group)
        # Separate sorts run in parallel on CPU.
        packed = jnp.stack([lax.sort(row) for row in digit * n + place])
        move = (packed % n).astype(jnp.int32)
        return take(result.reshape(-1), move + group), word // base

    for word, size in zip(keys, pack.size, strict=True):
        powers = [base**p for p in range(31) if base**p < 2**31]
        passes = sum((size > p).astype(jnp.int32) for p in powers)
        state = result, word.astype(jnp.uint32)
        result, _ = lax.fori_loop(0, passes, step, state)
    return result


def search(
    table: list[jax.Array], query: list[jax.Array], *, low: jax.Array, high: jax.Array
) -> jax.Array:
    """First position in [low, high) at which `table` is not less than `query`.

    `table`: words, least significant first, each [M] and together sorted in each
    [low, high); `query`: as many words, any shape; `low`, `high` int32 of that shape.
    """

    def step(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        less = jnp.zeros(middle.shape, bool)
        for t, q in zip(table, query, strict=True):
            middle_key = take(t, jnp.minimum(middle, t.shape[0] - 1))
            less = (middle_key < q) | ((middle_key == q) & less)
        less &= low < high
        return jnp.where(less, middle + 1, low), jnp.where(less, high, middle)

    powers = 2 ** jnp.arange(31, dtype=jnp.int32)
    steps = (jnp.max(high - low) >= powers).sum()
    return lax.fori_loop(0, steps, step, (low, high))[0]
