"""The permutohedral lattice: known numbers, a slow reference, adjoints.

The oracles are an independent lattice of dictionaries (below, float64, written from
the algorithm of Adams et al. 2010), its printed intermediate values, and the exact
Gaussian sums.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import lattice, lattice_keys

filter = jax.jit(lattice.filter, static_argnames="reverse")


# --- the reference --------------------------------------------------------------------


def vertices(f):
    """Keys of the d+1 vertices around point f, all d+1 coordinates, and weights."""
    d = len(f)
    c = [f[i] * np.sqrt(2 / 3) * (d + 1) / np.sqrt((i + 1) * (i + 2)) for i in range(d)]
    e = np.array([sum(c)] + [sum(c[j:]) - j * c[j - 1] for j in range(1, d + 1)])
    base = (d + 1) * np.round(e / (d + 1))
    excess = int(round(base.sum() / (d + 1)))
    order = np.argsort(-(e - base), kind="stable")
    rank = np.empty(d + 1, int)
    rank[order] = np.arange(d + 1)
    rank += excess
    base += (d + 1) * ((rank < 0).astype(int) - (rank > d))
    rank %= d + 1
    v = np.sort((e - base) / (d + 1))  # ascending: rank d first
    weight = np.append(1 + v[0] - v[-1], np.diff(v))
    keys = [
        tuple(
            int(b) + r - (d + 1) * (k > d - r) for b, k in zip(base, rank, strict=True)
        )
        for r in range(d + 1)
    ]
    return keys, weight


def slow_filter(features, values, reverse=False):
    """K v of points [N, d], values [N, C] -> [N, C], and the number of vertices."""
    points = [vertices(f) for f in features.astype(np.float64)]
    table = {}
    for (keys, weight), value in zip(points, values, strict=True):
        for key, w in zip(keys, weight, strict=True):
            table[key] = table.get(key, 0) + w * value
    d = features.shape[1]
    for axis in reversed(range(d + 1)) if reverse else range(d + 1):
        step = (d + 1) * np.eye(d + 1, dtype=int)[axis] - 1
        table = {
            key: value
            + 0.5 * table.get(tuple(key + step), 0)
            + 0.5 * table.get(tuple(key - step), 0)
            for key, value in table.items()
        }
    out = [
        sum(w * table[key] for key, w in zip(keys, weight, strict=True))
        for keys, weight in points
    ]
    return np.array(out) / (1 + 2.0**-d), len(table)


def cloud(d, n=200, scale=1.0, seed=0):
    """Features [2, n, d] and values [2, n, 3]."""
    rng = np.random.default_rng(seed)
    features = scale * rng.normal(size=(2, n, d))
    return features.astype(np.float32), rng.normal(size=(2, n, 3)).astype(np.float32)


def grid(sigma=3.0, side=41):
    y, x = np.mgrid[:side, :side].astype(np.float32)
    return (np.stack([x, y], axis=-1) / np.float32(sigma)).reshape(1, -1, 2)


@functools.cache
def grid_lattice():
    return lattice.build(grid(), 300)


# --- known numbers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "weights", "keys"),
    [
        (
            (0.3, -0.7),
            (0.126795, 0.346410, 0.526795),
            {0: (0, 0), 1: (1, -2), 2: (-1, -1)},
        ),
        (
            (0.3, -0.7, 1.1, 0.2, -2.5),
            (0.035308, 0.346410, 0.000409, 0.022629, 0.503757, 0.091487),
            {0: (0, 0, 0, -6, -6), 1: (1, -5, 1, -5, -5)},
        ),
        ((0.0, 0.0), (1, 0, 0), {0: (0, 0)}),
    ],
)
def test_embedding(point, weights, keys):
    d = len(point)
    quotient, rank, weight = lattice_keys.embed(jnp.array([point], jnp.float32))
    assert quotient.shape == rank.shape == weight.shape == (d + 1, 1)
    np.testing.assert_allclose(weight[:, 0], weights, atol=2e-6)
    for r, key in keys.items():
        found = (d + 1) * (quotient - (rank > d - r)) + r
        assert tuple(found[:d, 0].tolist()) == key
        assert int(found.sum()) == 0


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_self_response_of_an_isolated_point(d):
    expected = (1 + 2.0 ** -(d + 1)) / (1 + 2.0**-d)
    # Alone, and with a second point far away.
    features = jnp.array([[[0.0] * d] * 2, [[0.0] * d, [100.0] * d]])
    values = jnp.array([[[1.0], [0.0]]] * 2)
    built = lattice.build(features, 2 * (d + 1))
    assert built.vertex_count.tolist() == [d + 1, 2 * (d + 1)]
    out = filter(built, values)
    np.testing.assert_allclose(out[:, 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(out[:, 1, 0], [expected, 0], rtol=1e-6)


def test_grid():
    built = grid_lattice()
    assert built.vertex_count.tolist() == [255]
    assert lattice.count_vertices(grid()).tolist() == [255]
    ones = jnp.ones((1, 41 * 41, 1))
    norm = filter(built, ones).reshape(41, 41)
    np.testing.assert_allclose(norm[20, 20], 49.81776, rtol=1e-5)
    np.testing.assert_allclose(norm[0, 0], 13.93163, rtol=1e-5)
    # An exact Gaussian sums to 18 pi: the lattice loses a tenth.
    assert 0.85 < norm[20, 20] / (18 * np.pi) < 0.9

    impulse = jnp.zeros((1, 41 * 41, 1)).at[0, 20 * 41 + 20].set(1)
    response = filter(built, impulse).reshape(41, 41)
    expected = [
        0.756145, 0.740235, 0.640007, 0.517784, 0.389242,
        0.251629, 0.109481, 0.069182, 0.027040, 0,
    ]  # fmt: skip
    np.testing.assert_allclose(response[20, 20:30], expected, atol=2e-6)
    after = [0.015178, 0.014857, 0.012838, 0.010380, 0.007798, 0.005038]
    np.testing.assert_allclose((response / norm)[20, 20:26], after, atol=1e-6)


def test_normalized_it_is_close_to_the_exact_kernel():
    features, _ = cloud(5, n=400)
    values = np.random.default_rng(1).random((2, 400, 3)).astype(np.float32)
    difference = features[:, :, None] - features[:, None]
    kernel = np.exp(-0.5 * np.square(difference).sum(-1))
    exact = kernel @ values
    exact_norm = kernel.sum(-1, keepdims=True)
    built = lattice.build(features, 400 * 6)
    found, norm = (
        np.asarray(filter(built, values)),
        np.asarray(filter(built, jnp.ones((2, 400, 1)))),
    )
    # Few vertices have all their neighbors: mass is lost, less so after division.
    assert 0.5 < norm.sum() / exact_norm.sum() < 0.66
    error = found / norm - exact / exact_norm
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(exact / exact_norm)


# --- against the reference ------------------------------------------------------------


@pytest.mark.parametrize(
    "d", [2, 5, *(pytest.param(d, marks=pytest.mark.slow) for d in (1, 3, 6))]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_slow_lattice(d, reverse):
    features, values = cloud(d)
    built = lattice.build(features, 200 * (d + 1))
    assert built.vertex_count.tolist() == lattice.count_vertices(features).tolist()
    out = filter(built, values, reverse=reverse)
    for i in range(2):
        expected, count = slow_filter(features[i], values[i], reverse)
        assert int(built.vertex_count[i]) == count
        np.testing.assert_allclose(out[i], expected, atol=1e-5 * np.abs(expected).max())


def test_a_photo_of_noise_and_flat_areas():
    """Many points on a vertex (rows beyond one), and vertices of a single point."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (20, 24, 3)) * (np.arange(24) > 11)[:, None]
    y, x = np.mgrid[:20, :24]
    features = np.concatenate(
        [np.stack([x / 20, y / 20], -1), color / 13.0], axis=-1
    ).reshape(1, -1, 5)
    values = rng.random((1, 480, 4)).astype(np.float32)
    features = features.astype(np.float32)
    expected, count = slow_filter(features[0], values[0])
    capacity = lattice.choose_capacity([count], 480, dims=5)
    built = lattice.build(features, capacity)
    assert built.vertex_count.tolist() == [count]
    out = filter(built, values)[0]
    np.testing.assert_allclose(out, expected, atol=1e-5 * expected.max())


def test_keys_of_two_words():
    """A few points far apart: no 31 bits hold their keys."""
    features, values = cloud(5, n=60)
    features[:, 30:] += 2e3 * np.array([1, -1, 1, 1, -1], np.float32)
    pack = lattice_keys.packing(features[0], lattice_keys.embed(features[0])[0])
    assert bool(pack.fits) and int(pack.size[1]) > 1
    out = filter(lattice.build(features, 360), values)
    expected, _ = slow_filter(features[0], values[0])
    # float32 places the far points to 1e-3 of a cell.
    np.testing.assert_allclose(out[0, :30], expected[:30], atol=1e-5)
    np.testing.assert_allclose(out[0, 30:], expected[30:], atol=1e-2)


# --- linear algebra -------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 5])
def test_reverse_is_the_transpose(d):
    features, a = cloud(d, scale=2.0)
    b = cloud(d, seed=5)[1]
    built = lattice.build(features, 200 * (d + 1))
    forward, reverse = filter(built, b), filter(built, a, reverse=True)
    one = np.sum(np.float64(a) * forward)
    np.testing.assert_allclose(np.sum(np.float64(reverse) * b), one, rtol=1e-6)
    # On a sparse cloud the order of the axes matters.
    assert abs(np.sum(np.float64(filter(built, a)) * b) - one) > 1e-3 * abs(one)


def test_gradient():
    features, values = cloud(3, n=60)
    built = lattice.build(features, 240)
    weights = np.random.default_rng(7).normal(size=values.shape).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(values, reverse):
        def loss(v):
            return jnp.sum(jnp.square(weights * lattice.filter(built, v, reverse)))

        return jax.grad(loss)(values)

    direction = cloud(3, n=60, seed=9)[1]
    for reverse in (False, True):

        def loss(v, reverse=reverse):
            out = filter(built, v, reverse=reverse)
            return np.square(np.float64(weights) * np.float64(out)).sum()

        slope = (loss(values + 0.5 * direction) - loss(values - 0.5 * direction)) / 1.0
        found = np.sum(np.float64(gradient(values, reverse)) * direction)
        np.testing.assert_allclose(found, slope, rtol=1e-4)


def test_no_gradient_to_the_features():
    features, values = cloud(2, n=30)

    def loss(features):
        return lattice.filter(lattice.build(features, 90), values).sum()

    assert not jax.grad(loss)(features).any()


# --- batches, capacities, programs ----------------------------------------------------


def test_a_batch_is_a_loop_over_its_images():
    features, values = cloud(5)
    together = filter(lattice.build(features, 1000), values)
    for i in range(2):
        alone = filter(lattice.build(features[i : i + 1], 1000), values[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-6, atol=1e-6)


def test_one_lattice_for_all_images():
    values = np.random.default_rng(0).random((3, 41 * 41, 2)).astype(np.float32)
    together = filter(grid_lattice(), values)
    for i in range(3):
        alone = filter(grid_lattice(), values[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-6)


def test_too_small_a_capacity_is_reported():
    features, values = cloud(2)
    features[1] *= 0.1
    few, many = sorted(lattice.count_vertices(features).tolist())
    for capacity in (many, many - 1):
        built = lattice.build(features, capacity)
        assert built.vertex_count.tolist() == [many, few]
        out = filter(built, values)
        assert jnp.isnan(out[0]).all() == (capacity < many)
        assert jnp.isfinite(out[1]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_features_that_have_no_keys_are_reported(bad):
    features, values = cloud(2)
    features[0, 3, 1] = bad
    built = lattice.build(features, 600)
    assert int(built.vertex_count[0]) == np.iinfo(np.int32).max
    assert jnp.isnan(filter(built, values)[0]).all()


def test_capacities():
    bound = 1000 * 6
    sizes = {lattice.choose_capacity([c], 1000, dims=5) for c in range(1, bound + 1)}
    assert max(sizes) == bound and min(sizes) >= 256
    assert len(sizes) < 25
    for count in (1, 255, 256, 257, 3000, 5999):
        assert count <= lattice.choose_capacity([7, count], 1000, dims=5)
        assert lattice.choose_capacity([count], 10**6, dims=5) < 1.25 * max(count, 256)
    # Images of similar content share a program.
    before = lattice.build._cache_size()
    for i in range(3):
        features, _ = cloud(2, n=100, seed=20 + i)
        counts = lattice.count_vertices(features)
        lattice.build(features, lattice.choose_capacity(counts, 100, dims=2))
    assert lattice.build._cache_size() == before + 1


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform):
    def run(features, values):
        built = lattice.build(features, 512)
        return jax.grad(lambda v: lattice.filter(built, v).sum())(values)

    shapes = [jax.ShapeDtypeStruct((2, 300, n), np.float32) for n in (5, 3)]
    exported = jax.export.export(jax.jit(run), platforms=[platform])(*shapes)
    text = exported.mlir_module()
    assert "callback" not in text and "f64" not in text
    assert exported.out_avals[0].shape == (2, 300, 3)
