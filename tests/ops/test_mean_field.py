"""The dense CRF: pydensecrf's numbers, brute force, enumeration, gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.launch import tpus
from segjax.errors import UserError
from segjax.ops import filters, lattice
from segjax.ops import mean_field as crf

K = 3


def rng(seed=0):
    return np.random.default_rng(seed)


# --- references in float64, written as the formulas are -------------------------------


def gaussian(features):
    """[N, d] -> [N, N]."""
    f = np.asarray(features, np.float64)
    return np.exp(-0.5 * ((f[:, None] - f[None]) ** 2).sum(-1))


def normalized(k, normalization):
    n = k.sum(1)
    return {
        "none": k,
        "before": k / n[None, :],
        "after": k / n[:, None],
        "symmetric": k / np.sqrt(n[None, :] * n[:, None]),
    }[normalization]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mean_field(unary, terms, iterations, relaxation=1.0):
    """[N, K], [(matrix [N, N], mu [K, K])] -> [N, K]."""
    q = softmax(-unary)
    for _ in range(iterations):
        t = -unary - sum(k @ q @ mu.T for k, mu in terms)
        q = (1 - relaxation) * q + relaxation * softmax(t)
    return q


# --- the tiny CRF of 4 x 5 pixels, numbers of the compiled pydensecrf -----------------


def tiny():
    y, x = np.mgrid[:4, :5]
    image = np.stack([50 * x % 256, 60 * y % 256, 30 * (x + y) % 256], -1)
    p = 1 + 3 * ((3 * x[..., None] + 5 * y[..., None] + 7 * np.arange(K)) % 11) / 11
    p = p / p.sum(-1, keepdims=True)
    return p[None].astype(np.float32), image[None].astype(np.uint8)


PYDENSECRF = {
    ("symmetric", 1): (".045868 .778477 .175654", ".263949 .068144 .667907", 5.959411),
    ("symmetric", 5): (".001431 .995378 .003191", ".003873 .003347 .992780", 4.984552),
    ("after", 1): (".045764 .779561 .174674", ".265398 .068135 .666468", 5.969128),
    ("after", 5): (".001404 .995479 .003116", ".004059 .003345 .992596", 4.986451),
    ("before", 1): (".045950 .777519 .176531", ".262210 .068143 .669647", 5.948299),
    ("none", 1): (".020734 .878371 .100895", ".231323 .189632 .579045", 4.350090),
}
TINY = crf.Settings(
    smoothness_weight=3,
    smoothness_sigma=3,
    appearance_weight=5,
    appearance_sigma_xy=50,
    appearance_sigma_rgb=3,
)


def numbers(text):
    return [float(x) for x in text.split()]


@functools.cache
def tiny_lattices():
    """Both lattices as matrices [20, 20], and one filter of three images at once."""
    smoothness = filters.smoothness_features(4, 5, 3.0)
    appearance = filters.appearance_features(tiny()[1], 50.0, 3.0)
    values = rng(3).normal(size=(3, 20, K)).astype(np.float32)

    @jax.jit
    def run():
        both = filters.lattice_filter(smoothness), filters.lattice_filter(appearance)
        return [f(jnp.eye(20)[None])[0] for f in both], both[0](values)

    matrices, shared = run()
    return matrices, values, shared


def product(matrix):
    """The filter that a matrix is."""
    return lambda v: jnp.einsum("ij,bjc->bic", jnp.asarray(matrix, jnp.float32), v)


def tiny_crf(normalization, iterations, weights=(3.0, 5.0)):
    kernels = [
        crf.Kernel(
            filters.normalize(product(matrix), normalization, batch=1, points=20),
            weight,
        )
        for matrix, weight in zip(tiny_lattices()[0], weights)
    ]
    unary = crf.unary_from_probabilities(tiny()[0]).reshape(1, 20, K)
    return np.asarray(crf.mean_field(unary, kernels, iterations=iterations))[0]


@pytest.mark.parametrize("normalization, iterations", PYDENSECRF)
def test_tiny_crf_equals_pydensecrf(normalization, iterations):
    q = tiny_crf(normalization, iterations)
    first, twelfth, total = PYDENSECRF[normalization, iterations]
    np.testing.assert_allclose(q[0], numbers(first), atol=1e-5)
    np.testing.assert_allclose(q[12], numbers(twelfth), atol=1e-5)
    np.testing.assert_allclose(q[:, 0].sum(), total, atol=1e-5)


def test_tiny_crf_of_one_kernel_and_of_none():
    q = tiny_crf("symmetric", 5, weights=(3.0,))
    np.testing.assert_allclose(q[0], numbers(".141636 .572448 .285917"), atol=1e-5)
    np.testing.assert_allclose(q[12], numbers(".306208 .228916 .464876"), atol=1e-5)
    start = numbers(".174603 .507937 .317460")
    np.testing.assert_allclose(tiny_crf("symmetric", 0)[0], start, atol=1e-5)
    np.testing.assert_allclose(tiny_crf("after", 3, weights=())[0], start, atol=1e-5)


# --- filters --------------------------------------------------------------------------


def test_features_are_in_pixels_row_by_row():
    f = filters.smoothness_features(3, 4, 2.0)
    assert f.shape == (1, 12, 2)
    np.testing.assert_allclose(f[0, 7], [1.5, 0.5])  # y 1, x 3
    images = rng().integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    f = filters.appearance_features(images, 4.0, 5.0)
    assert f.shape == (2, 12, 5) and f.dtype == jnp.float32
    np.testing.assert_allclose(f[1, 7, :2], [0.75, 0.25])
    np.testing.assert_allclose(f[1, 7, 2:], images[1, 1, 3] / 5, rtol=1e-6)


@pytest.mark.parametrize("tile", (4, 7, 512))
def test_exact_filter_is_the_double_sum(tile):
    features = rng(1).normal(size=(2, 21, 4)).astype(np.float32)
    values = rng(2).normal(size=(2, 21, K)).astype(np.float32)
    out = filters.exact_filter(features, tile)(values)
    for b in range(2):
        np.testing.assert_allclose(out[b], gaussian(features[b]) @ values[b], 1e-5)


def test_one_set_of_features_for_all_images():
    matrices, values, shared = tiny_lattices()
    np.testing.assert_allclose(shared, matrices[0] @ values, rtol=1e-4, atol=1e-5)
    features = filters.smoothness_features(4, 5, 3.0)
    shared = filters.exact_filter(features)(values)
    np.testing.assert_allclose(shared, gaussian(features[0]) @ values, rtol=1e-4)


def test_separable_filter_is_the_exact_one():
    size, sigma = (20, 31), 3.0
    values = rng(4).uniform(size=(2, 620, K)).astype(np.float32)
    features = filters.smoothness_features(*size, sigma)
    exact = np.stack([gaussian(features[0]) @ v for v in values])
    out = jax.jit(filters.separable_filter(*size, sigma))(values)
    np.testing.assert_allclose(out, exact, rtol=3e-4)
    # Without truncation to float32 precision.
    out = jax.jit(filters.separable_filter(*size, sigma, truncate=11))(values)
    np.testing.assert_allclose(out, exact, rtol=3e-6)


@pytest.mark.parametrize("normalization", filters.NORMALIZATIONS)
def test_normalizations(normalization):
    features = rng(7).normal(size=(2, 15, 3)).astype(np.float32)
    values = rng(8).normal(size=(2, 15, K)).astype(np.float32)
    filter = filters.exact_filter(features)
    out = filters.normalize(filter, normalization, batch=2, points=15)(values)
    for b in range(2):
        matrix = normalized(gaussian(features[b]), normalization)
        np.testing.assert_allclose(out[b], matrix @ values[b], rtol=1e-4, atol=1e-5)


def transposes(filter):
    """For three normalizations: the matrix, values, and the gradient of their sum."""
    g = rng(9).normal(size=(20, K)).astype(np.float32)
    found = []
    for name in ("before", "after", "symmetric"):
        normal = filters.normalize(filter, name, batch=1, points=20)
        back = jax.grad(lambda v, f=normal: jnp.sum(g * f(v)[0]))(jnp.zeros((1, 20, K)))
        found.append((normal(jnp.eye(20)[None])[0], g, back[0]))
    return found


@pytest.mark.parametrize("kind", ("exact", "separable"))
def test_gradient_of_a_filter_is_its_transpose(kind):
    if kind == "exact":
        features = filters.appearance_features(tiny()[1], 5.0, 60.0)
        filter = filters.exact_filter(features)
    else:
        filter = filters.separable_filter(4, 5, 1.5)
    for matrix, g, back in jax.jit(lambda: transposes(filter))():
        np.testing.assert_allclose(back, matrix.T @ g, atol=1e-5)


def test_unknown_normalization():
    with pytest.raises(UserError, match="'sym'; .*known: .*symmetric"):
        filters.normalize(lambda v: v, "sym", batch=1, points=3)


# --- mean field -----------------------------------------------------------------------


def problem(points=24, batch=1, seed=0):
    """Unaries and three kernels: user features, Potts, diagonal and full mu."""
    r = rng(seed)
    unary = r.normal(size=(batch, points, K)).astype(np.float32)
    features = [r.normal(size=(batch, points, d)).astype(np.float32) for d in (1, 3, 6)]
    mus = [0.7, r.normal(size=K), r.normal(size=(K, K))]
    names = ["after", "symmetric", "none"]
    return unary, features, [np.float32(mu) for mu in mus], names


def kernels_of(features, mus, names):
    kernels = []
    for f, mu, name in zip(features, mus, names, strict=True):
        filter = filters.normalize(
            filters.exact_filter(f), name, batch=f.shape[0], points=f.shape[1]
        )
        kernels.append(crf.Kernel(filter, mu))
    return kernels


def full(mu):
    mu = np.asarray(mu, np.float64)
    return {0: -mu * np.eye(K), 1: mu * np.eye(K), 2: mu}[mu.ndim]


@pytest.mark.parametrize("relaxation", (1.0, 0.6))
def test_mean_field_of_several_kernels(relaxation):
    unary, features, mus, names = problem(batch=2)
    q = crf.mean_field(
        unary,
        kernels_of(features, mus, names),
        iterations=4,
        relaxation=relaxation,
    )
    for b in range(2):
        terms = [
            (normalized(gaussian(f[b]), name), full(mu))
            for f, mu, name in zip(features, mus, names, strict=True)
        ]
        expected = mean_field(unary[b], terms, 4, relaxation)
        np.testing.assert_allclose(q[b], expected, atol=2e-5)


def test_trace_against_all_labellings():
    """KL(Q || P) + const, with P enumerated: 3^4 labellings, no self terms."""
    points, r = 4, rng(10)
    unary = r.normal(size=(1, points, K)).astype(np.float32)
    k = r.uniform(size=(points, points))
    k = np.float32((k + k.T) * (1 - np.eye(points)))
    mu = r.normal(size=(K, K))
    mu = np.float32(mu + mu.T)
    kernels = [crf.Kernel(product(k), mu)]
    q, energies, divergences = crf.trace(unary, kernels, iterations=3, relaxation=0.7)
    np.testing.assert_allclose(
        q, crf.mean_field(unary, kernels, iterations=3, relaxation=0.7), atol=1e-6
    )

    labellings = np.array(list(itertools.product(range(K), repeat=points)))

    def gibbs(x):
        pairs = itertools.combinations(range(points), 2)
        return sum(unary[0, i, x[i]] for i in range(points)) + sum(
            mu[x[i], x[j]] * k[i, j] for i, j in pairs
        )

    table = np.array([gibbs(x) for x in labellings], np.float64)
    log_z = np.log(np.exp(-table).sum())
    for t in range(4):
        q = np.asarray(
            crf.mean_field(unary, kernels, iterations=t, relaxation=0.7)[0], np.float64
        )
        joint = q[np.arange(points), labellings].prod(1)
        assert energies.shape == divergences.shape == (4, 1)
        np.testing.assert_allclose(energies[t, 0], joint @ table, rtol=1e-4)
        true = joint @ (np.log(joint) + table + log_z)
        np.testing.assert_allclose(divergences[t, 0] + log_z, true, atol=1e-4)
    hard = jax.nn.one_hot(labellings[[5, 40]], K)
    found = [crf.energy(unary, kernels, x[None])[0] for x in hard]
    np.testing.assert_allclose(found, table[[5, 40]], rtol=1e-5)


def test_gradients_through_iterations():
    """Against those of the same sums over a dense matrix, and finite differences."""
    unary = jnp.asarray(rng(11).normal(size=(1, 20, K)), jnp.float32)
    mu = jnp.asarray(rng(12).normal(size=(K, K)), jnp.float32)
    weight = rng(13).normal(size=(1, 20, K)).astype(np.float32)
    features = filters.appearance_features(tiny()[1], 5.0, 60.0)

    def loss(unary, mu, one, other):
        one = filters.normalize(one, "after", batch=1, points=20)
        other = filters.normalize(other, "symmetric", batch=1, points=20)
        kernels = [crf.Kernel(one, mu), crf.Kernel(other, 2.0)]
        return jnp.sum(weight * crf.mean_field(unary, kernels, iterations=3))

    @jax.jit
    def both(unary, mu):
        fast = filters.lattice_filter(features), filters.separable_filter(4, 5, 2.0)
        slow = [product(f(jnp.eye(20)[None])[0]) for f in fast]
        value, found = jax.value_and_grad(loss, (0, 1))(unary, mu, *fast)
        expected = jax.grad(loss, (0, 1))(unary, mu, *slow)
        return value, found, expected, transposes(fast[0])

    _, found, expected, lattice_gradients = both(unary, mu)
    for matrix, g, back in lattice_gradients:
        np.testing.assert_allclose(back, matrix.T @ g, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    step = 1e-2
    for i, gradient in enumerate(found):
        direction = gradient / jnp.linalg.norm(gradient)
        ends = []
        for sign in (-1, 1):
            arguments = [unary, mu]
            arguments[i] = arguments[i] + sign * step * direction
            ends.append(float(both(*arguments)[0]))
        slope = (ends[1] - ends[0]) / (2 * step)
        np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=1e-2)


def test_labels_may_be_permuted_and_unaries_shifted():
    unary, features, mus, names = problem()
    order = np.array([2, 0, 1])
    q = crf.mean_field(unary, kernels_of(features, mus, names), iterations=3)
    permuted = [mus[0], mus[1][order], mus[2][order][:, order]]
    kernels = kernels_of(features, permuted, names)
    other = crf.mean_field(unary[..., order], kernels, iterations=3)
    np.testing.assert_allclose(other, q[..., order], atol=1e-6)
    shift = rng(15).normal(size=(1, 24, 1)).astype(np.float32)
    shifted = crf.mean_field(
        unary + shift, kernels_of(features, mus, names), iterations=3
    )
    np.testing.assert_allclose(shifted, q, atol=1e-5)
    np.testing.assert_allclose(q.sum(-1), 1, atol=1e-6)


# --- images ---------------------------------------------------------------------------


def two_images():
    """The tiny CRF, and another one of the same size on smooth colors."""
    p, image = tiny()
    y, x = np.mgrid[:4, :5][..., None] / 4
    smooth = 128 + 20 * np.sin(x + [0, 1, 2]) * np.cos(y)
    other = rng(16).dirichlet(np.ones(K), (1, 4, 5)).astype(np.float32)
    return np.concatenate([p, other]), np.concatenate([image, smooth[None]])


dense_crf = jax.jit(crf.dense_crf, static_argnames=("settings", "capacity"))


def test_images():
    """One is pydensecrf's; neither depends on the other; both near brute force."""
    settings = TINY._replace(iterations=5)
    p, images = two_images()
    q = dense_crf(p, images, settings=settings)
    assert q.shape == (2, 4, 5, K) and q.dtype == jnp.float32
    q = np.asarray(q)
    flat = q[0].reshape(-1, K)
    first, twelfth, total = PYDENSECRF["symmetric", 5]
    np.testing.assert_allclose(flat[0], numbers(first), atol=1e-5)
    np.testing.assert_allclose(flat[12], numbers(twelfth), atol=1e-5)
    np.testing.assert_allclose(flat[:, 0].sum(), total, atol=1e-5)
    for order in ([1, 0], [0, 0], [1, 1]):
        other = dense_crf(p[order], images[order], settings=settings)
        np.testing.assert_allclose(other, q[order], atol=1e-5)
    for b in range(2):
        terms = []
        for features, weight in (
            (filters.smoothness_features(4, 5, 3.0), 3.0),
            (filters.appearance_features(images[b : b + 1], 50.0, 3.0), 5.0),
        ):
            kernel = normalized(gaussian(features[0]), "symmetric")
            terms.append((kernel, full(weight)))
        exact = mean_field(-np.log(p[b].reshape(-1, K).astype(float)), terms, 5)
        error = np.abs(q[b].reshape(-1, K) - exact)
        # The lattice is an approximation; a pixel between two labels may fall over.
        assert error.mean() < 0.03 and np.median(error) < 0.003


@pytest.mark.slow
def test_compiles_for_tpus():
    """With their compiler (pip install 'jax[tpu]'), no TPU needed; about a minute."""
    pytest.importorskip("libtpu")
    device, *_ = tpus.compile_only_devices(tpus.parse("v5e:2x2"), 1)
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = ((2, 24, 32, K), np.float32), ((2, 24, 32, 3), np.uint8)
    run = jax.jit(
        lambda p, x: crf.dense_crf(p, x, settings=crf.Settings(), capacity=(512, 1024))
    )
    arrays = [jax.ShapeDtypeStruct(*shape, sharding=place) for shape in shapes]
    compiled = run.lower(*arrays).compile()
    assert compiled.memory_analysis().output_size_in_bytes >= 2 * 24 * 32 * K * 4
    assert "callback" not in compiled.as_text()


def test_color_orders():
    """Other features for the lattice, of the same distances."""
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3), np.uint8)
    colors = images.reshape(1, 20, 3).astype(np.float32)
    mean = np.float32([103.939, 116.779, 123.68])  # VGG: blue, green, red
    expected = {
        "rgb": colors,
        "bgr": colors[..., ::-1],
        "caffe": colors[..., ::-1] - mean,
    }
    assert set(expected) == set(filters.COLOR_ORDERS)
    for order, values in expected.items():
        found = filters.appearance_features(images, 4.0, 5.0, color_order=order)
        np.testing.assert_allclose(found[..., 2:], values / 5, rtol=1e-5, atol=1e-5)
        settings = TINY._replace(color_order=order)
        np.testing.assert_allclose(
            crf.appearance_features(images, settings)[..., 2:],
            values / settings.appearance_sigma_rgb,
            rtol=1e-5,
            atol=1e-5,
        )
    assert crf.SETTINGS["crfrnn"].color_order == "caffe"
    assert crf.Settings().color_order == "rgb"
    with pytest.raises(UserError, match="color_order is 'caffe'.* 1 channels"):
        filters.appearance_features(images[..., :1], 4.0, 5.0, color_order="caffe")


def test_capacity():
    """It changes nothing where it suffices, and shows where it does not."""
    settings = TINY._replace(smoothness_filter="separable", iterations=1)
    p, images = two_images()
    smooth = images[[1, 1]]
    none, chosen = crf.choose_capacity(smooth, settings)
    needed = lattice.count_vertices(filters.appearance_features(smooth, 50.0, 3.0))
    assert none == 0 and chosen >= needed.max()
    q = np.asarray(
        dense_crf(p[[1, 1]], smooth, settings=settings, capacity=(none, chosen))
    )
    tight = 0, int(needed.max())
    short = np.asarray(dense_crf(p, images, settings=settings, capacity=tight))
    np.testing.assert_allclose(short[1], q[0], atol=1e-5)
    assert np.isfinite(q).all() and np.isnan(short[0]).all()


def test_smoothness_capacity():
    count = int(lattice.count_vertices(filters.smoothness_features(4, 5, 3.0))[0])

    @jax.jit
    def traced(x):
        return x * crf.smoothness_capacity(4, 5, 3.0)

    assert count <= traced(1) <= 4 * 5 * 3


def test_unaries():
    p = jnp.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose(
        crf.unary_from_probabilities(p, clip=1e-3), -np.log([0.5, 0.5, 1e-3]), 1e-5
    )
    p = np.exp(-crf.unary_from_labels(np.array([2, 255], np.uint8), 4, confidence=0.7))
    np.testing.assert_allclose(p, [[0.1, 0.1, 0.7, 0.1], [0.25] * 4], rtol=1e-5)


def test_shipped_settings():
    p, images = two_images()
    for settings in crf.SETTINGS.values():
        assert settings.normalization in ("after", "symmetric")
        run = functools.partial(crf.dense_crf, settings=settings, capacity=(50, 50))
        assert jax.eval_shape(run, p, images).shape == p.shape


def test_bad_settings():
    p, images = two_images()
    for field in ("smoothness_filter", "normalization", "color_order"):
        with pytest.raises(UserError, match=f"{field}.*'x'"):
            dense_crf(p, images, settings=TINY._replace(**{field: "x"}))
