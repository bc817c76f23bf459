"""Gaussian filters of the pixels of one image, as arrays for few compiled programs.

The permutohedral lattice of ops/lattice.py with the same numbers, built on the host:
vertices are numbered by tables of their keys instead of by sorting, which is what a
CPU is fast at, and which compiles nothing. ``crf_points.py`` applies the filters.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from segjax.errors import UserError
from segjax.ops import filters, lattice_keys

CHUNK = 2**13
"""Points that are computed at once: what they need fits the cache."""
PLACES = 8
"""Points of a row of the sums over the points of a vertex."""


_TOO_SMALL = "the sigmas of the CRF are too small for a lattice"


class PointFilter(NamedTuple):
    """v -> slice(blur(splat(v))) of N points with M vertices; vertex 0 is none.

    point [PLACES, R] int32, share [PLACES, R] float32, vertex [R] int32: row i adds
      share[k, i] * v[point[k, i]] over k to vertex[i].
    neighbor [d+1, 2, M+1] int32: next vertices along each axis.
    offset [d+1, N] int32, weight [d+1, N] float32: point i takes the sum over k of
      weight[k, i] * table[offset[k, i]].
    """

    point: np.ndarray
    share: np.ndarray
    vertex: np.ndarray
    neighbor: np.ndarray
    offset: np.ndarray
    weight: np.ndarray


def build(
    features: np.ndarray, *, normalization: str = "none", weight: float = 1.0
) -> PointFilter:
    """``weight`` times the lattice filter of ``features``, normalized.

    Args:
      features: float32 [N, d], already divided by sigma.
      normalization: one of ``filters.NORMALIZATIONS``.
      weight: of the kernel.

    Raises:
      UserError: unknown normalization, or sigmas so small that the keys of vertices
        exceed 62 bits.
    """
    if not (np.abs(features) < 2**24).all():  # no fractions of a cell beyond
        raise UserError(_TOO_SMALL)
    quotient, order, share = _embed(features)
    offset, neighbor = _number(quotient, order)
    # Going once along all axes leads back: alpha makes that self weight 1.
    alpha = np.float32(1 / (1 + 2.0 ** (1 - len(offset))))
    before, after = share, alpha * share
    ones = np.bincount(offset.ravel(), share.ravel(), neighbor.shape[-1])
    norm = _sliced(_blurred(ones.astype(np.float32), neighbor), offset, after)
    scale = filters.scales(norm, normalization)
    before, after = before * scale[0], after * scale[1]
    rows = _rows(offset, before, neighbor.shape[-1])
    return PointFilter(*rows, neighbor, offset, np.float32(weight) * after)


def _blurred(table: np.ndarray, neighbor: np.ndarray) -> np.ndarray:
    for down, up in neighbor:
        table = table + np.float32(0.5) * (table[down] + table[up])
    return table


def _sliced(table: np.ndarray, offset: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return sum(w * table[o] for o, w in zip(offset, weight, strict=True))


# --- the simplex of every point -------------------------------------------------------


@functools.cache
def _embedding(dims: int) -> Callable:
    """``_embed`` of a chunk, one program for any number of points."""

    def run(features):
        quotient, rank, weight = lattice_keys.embed(features)
        order = sum(axis * (rank == index) for axis, rank in enumerate(rank))
        return quotient, order, weight

    index = np.arange(dims + 1, dtype=np.int32)[:, None]
    shape = jax.ShapeDtypeStruct((CHUNK, dims), np.float32)
    return jax.jit(run).lower(shape).compile()


def _embed(features: np.ndarray) -> list[np.ndarray]:
    """``lattice_keys.embed``, but the coordinate of each rank: three of [d+1, N]."""
    points, dims = features.shape
    run = _embedding(dims)
    parts = []
    for start in range(0, points, CHUNK):
        some = features[start : start + CHUNK]
        padded = np.zeros((CHUNK, dims), np.float32)
        padded[: len(some)] = some
        parts.append([np.asarray(x)[:, : len(some)] for x in run(padded)])
    return [np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)]


# --- vertices -------------------------------------------------------------------------


def _number(quotient: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``PointFilter.offset`` and ``.neighbor``; vertices are in the order of keys."""
    groups, _ = quotient.shape
    key, step, size = _keys(quotient)
    tables, first = [], 1
    for remainder in range(groups):
        table = _table(key, size, first)
        first += len(table.keys)
        tables.append(table)
        # From one remainder to the next, one quotient sinks by one.
        key = key - step.take(order[groups - 1 - remainder])
    neighbor = np.zeros((groups, 2, first), np.int32)
    at = 1
    for remainder, table in enumerate(tables):
        own = np.arange(at, at + len(table.keys), dtype=np.int32)
        at += len(own)
        # Down one axis, the coordinate there grows by d and the others sink by one:
        # so does the remainder, or from remainder 0 all quotients but one.
        wrap = step.sum() if remainder == 0 else 0
        for axis in range(groups):
            down = tables[remainder - 1].find(table.keys + step[axis] - wrap)
            neighbor[axis, 0, own] = down
            neighbor[axis, 1, down] = own
    neighbor[:, :, 0] = 0
    return np.stack([table.number for table in tables]), neighbor


def _keys(quotient: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Keys [N] of the vertices of remainder 0, the change by a quotient, their number.

    The digits of ``lattice_keys.packing``, in one word of 62 bits.
    """
    digits, matrix = lattice_keys.digits(quotient)
    low = [int(digit.min()) - 2 for digit in digits]
    span = [int(digit.max()) + 3 - least for digit, least in zip(digits, low)]
    key, size = np.zeros(quotient.shape[1], np.int64), 1
    stride: list[int] = []
    for digit, least, count in reversed(list(zip(digits, low, span, strict=True))):
        stride.insert(0, size)
        if size * count >= 2**62:
            raise UserError(_TOO_SMALL)
        key = key + size * (digit.astype(np.int64) - least)
        size *= count
    return key, np.array(stride, np.int64) @ np.array(matrix), size


class _Table(NamedTuple):
    """Distinct keys, sorted, numbered from a first number on."""

    keys: np.ndarray
    number: np.ndarray
    """int32 [N]: the numbers of the keys that the table was made of."""
    find: Callable[[np.ndarray], np.ndarray]
    """Numbers of other keys; 0: not in the table."""


_PAGE = 64
_MAX_KEYS = 2**28


def _table(key: np.ndarray, size: int, first: int) -> _Table:
    """A table of ``key`` [N], from 0 to ``size`` - 1: pages of keys that occur.

    Sorts only where the pages would be too many.
    """
    if size > _MAX_KEYS:
        keys, inverse = np.unique(key, return_inverse=True)

        def search(query: np.ndarray) -> np.ndarray:
            at = np.minimum(np.searchsorted(keys, query), len(keys) - 1)
            return np.where(keys[at] == query, at + first, 0).astype(np.int32)

        return _Table(keys, (inverse + first).astype(np.int32), search)
    page, place = np.divmod(key, _PAGE)
    used = np.zeros(size // _PAGE + 1, bool)
    used[page] = True
    number = np.cumsum(used, dtype=np.int32) * used  # page 0 has no keys
    dense = number[page] * _PAGE + place
    seen = np.zeros((number.max() + 1) * _PAGE, bool)
    seen[dense] = True
    found = np.flatnonzero(seen)
    index = np.zeros(len(seen), np.int32)
    index[found] = np.arange(first, first + len(found), dtype=np.int32)
    keys = np.flatnonzero(used)[found // _PAGE - 1] * _PAGE + found % _PAGE

    def find(query: np.ndarray) -> np.ndarray:
        page, place = np.divmod(query, _PAGE)
        return index[number[page] * _PAGE + place]

    return _Table(keys, index[dense], find)


# --- sums over the points of a vertex -------------------------------------------------


def _rows(
    offset: np.ndarray, weight: np.ndarray, vertices: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``PointFilter.point``, ``.share`` and ``.vertex``.

    Rows are of the points of one chunk, so that what they read is in the cache.
    """
    from scipy import sparse  # takes 0.3 s, which no --help should wait for

    groups, points = offset.shape
    points_of, shares, vertex, count = [], [], [], []
    for start in range(0, points, CHUNK):
        some = slice(start, start + CHUNK)
        own = offset[:, some].T
        begin = np.arange(len(own) + 1, dtype=np.int32) * groups
        matrix = sparse.csr_matrix(
            (weight[:, some].T.ravel(), own.ravel(), begin), (len(own), vertices)
        ).tocsc()
        number = np.diff(matrix.indptr)
        present = np.flatnonzero(number)
        vertex.append(present)
        count.append(number[present])
        points_of.append(matrix.indices + start)
        shares.append(matrix.data)
    place = np.concatenate(points_of).astype(np.int32)
    part = np.concatenate(shares)
    counts = np.concatenate(count)
    rows = -(-counts // PLACES)
    of_row = np.repeat(np.arange(len(rows)), rows)
    within = np.arange(len(of_row)) - (np.cumsum(rows) - rows)[of_row]
    end = np.cumsum(counts)[of_row]
    entry = end - counts[of_row] + PLACES * within
    point, share = (np.empty((PLACES, len(end)), x.dtype) for x in (place, part))
    for k in range(PLACES):
        there = entry < end
        own = entry * there
        np.take(place, own, out=point[k], mode="clip")
        np.multiply(part.take(own, mode="clip"), there, out=share[k])
        entry += 1
    return point, share, np.concatenate(vertex).astype(np.int32)[of_row]
