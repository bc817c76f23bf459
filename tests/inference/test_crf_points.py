"""The CRF of single images on a CPU: against ops, whatever their sizes; programs."""

import jax
import numpy as np
import pytest

from segjax import compilation, inference, sharding
from segjax.errors import UserError
from segjax.inference import crf_points, point_lattice
from segjax.ops import filters, lattice, mean_field


def image_of(height, width, channels=3, seed=0):
    """Flat areas beside noise: vertices of many points and of one."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    image[:, : width // 2] = 90
    return image


def probabilities_of(height, width, classes, seed=1):
    p = np.random.default_rng(seed).dirichlet(np.ones(classes), (height, width))
    return p.astype(np.float32)


def expected(probabilities, image, settings):
    return mean_field.dense_crf(probabilities[None], image[None], settings=settings)[0]


def filtered(kernel, values):
    """A ``PointFilter`` in numpy, as its documentation says."""
    table = np.zeros((kernel.neighbor.shape[-1], values.shape[-1]))
    for point, share in zip(kernel.point, kernel.share, strict=True):
        np.add.at(table, kernel.vertex, share[:, None] * values[point])
    assert not table[0].any()
    for down, up in kernel.neighbor:
        table = table + 0.5 * (table[down] + table[up])
    return sum(
        weight[:, None] * table[offset]
        for offset, weight in zip(kernel.offset, kernel.weight, strict=True)
    )


@pytest.mark.parametrize("normalization", filters.NORMALIZATIONS)
def test_filter_is_that_of_ops(normalization):
    rng = np.random.default_rng(0)
    features = np.float32(rng.normal(size=(300, 3)))
    features[100:150] = features[0]
    values = np.float32(rng.random((300, 2)))
    apply = filters.lattice_filter(features[None])
    apply = filters.normalize(apply, normalization, batch=1, points=300)
    kernel = point_lattice.build(features, normalization=normalization, weight=2.5)
    found = filtered(kernel, values)
    np.testing.assert_allclose(
        found, 2.5 * apply(jax.device_put(values[None]))[0], rtol=1e-4
    )
    count = lattice.count_vertices(features[None])
    assert kernel.neighbor.shape[-1] == int(count[0]) + 1


def test_vertices_that_are_sorted_instead_of_in_pages(monkeypatch):
    features = np.float32(np.random.default_rng(0).normal(size=(200, 5)))
    pages = point_lattice.build(features)
    monkeypatch.setattr(point_lattice, "_MAX_KEYS", 0)
    for one, other in zip(pages, point_lattice.build(features), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scale", [1e9, np.nan, 1e6])
def test_features_that_have_no_keys(scale):
    features = np.float32(scale * np.random.default_rng(0).normal(size=(50, 5)))
    with pytest.raises(UserError, match="too small for a lattice"):
        point_lattice.build(features)


@pytest.mark.parametrize("chunk", [2**6, 2**13])
@pytest.mark.parametrize(
    ("classes", "settings"),
    [
        (2, mean_field.Settings(3, appearance_sigma_xy=9.0)),
        (2, mean_field.Settings(0)),
        (3, mean_field.Settings(4, 2, 2, 4, 9, 20, "after", "separable", 0.6)),
        (9, mean_field.Settings(3, 0, 2, 4, 9, 20, "before", color_order="caffe")),
        (1, mean_field.Settings(2, 2, 2, 0, 9, 20, "none", "separable")),
        (4, mean_field.Settings(2, 0, 2, 0)),
    ],
)
def test_marginals_are_those_of_ops(monkeypatch, chunk, classes, settings):
    """Also of several chunks, the last of which is not full."""
    for module in ("point_lattice", "crf_points", "point_mean_field"):
        monkeypatch.setattr(f"segjax.inference.{module}.CHUNK", chunk)
    monkeypatch.setattr(crf_points, "LEAST", 2**15)  # a quarter is a chunk
    for cached in (point_lattice._embedding, crf_points._program):
        cached.cache_clear()
    crf_points._smoothness.cache_clear()
    image, p = image_of(19, 23), probabilities_of(19, 23, classes)
    found = crf_points.dense_crf(p, image, settings)
    np.testing.assert_allclose(found, expected(p, image, settings), atol=3e-6)
    for cached in (point_lattice._embedding, crf_points._program):
        cached.cache_clear()
    crf_points._smoothness.cache_clear()


def test_any_sizes_contents_and_settings_share_programs():
    """Ten sizes, gray areas and noise, other weights, sigmas and normalizations."""
    rng = np.random.default_rng(2)
    crf_points.dense_crf(
        probabilities_of(9, 9, 3), image_of(9, 9), mean_field.Settings(1)
    )
    before = compilation.count()
    for seed in range(10):
        height, width = rng.integers(1, 40, 2)
        settings = mean_field.Settings(
            int(rng.integers(1, 4)),
            smoothness_sigma=float(rng.uniform(1, 4)),
            appearance_sigma_rgb=float(rng.uniform(3, 30)),
            appearance_weight=float(rng.uniform(1, 9)),
            normalization=filters.NORMALIZATIONS[seed % 4],
        )
        p, image = probabilities_of(height, width, 3), image_of(height, width, 3, seed)
        found = crf_points.dense_crf(p, image, settings)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert compilation.count() == before


def test_capacities():
    assert [crf_points.point_capacity(n) for n in (1, 2**16, 2**16 + 1, 2**22)] == [
        2**16,
        2**16,
        2**18,
        2**22,
    ]
    features = np.float32(4 * np.random.default_rng(0).normal(size=(9000, 5)))
    kernel = point_lattice.build(features)
    assert kernel.neighbor.shape[-1] > 2**14
    filled = crf_points.fill_up(kernel, 2**16)
    assert filled.arrays.neighbor.shape == (6, 2, 2**16)
    assert (filled.rows, filled.vertices) == (
        len(kernel.vertex),
        kernel.neighbor.shape[-1],
    )
    for array, whole in zip(kernel, filled.arrays, strict=True):
        used = array.shape[-1]
        np.testing.assert_array_equal(whole[..., :used], array)
        end = -(-used // point_lattice.CHUNK) * point_lattice.CHUNK
        assert not whole[..., used:end].any()
        assert whole.ctypes.data % 64 == 0


def test_refine_knows_the_sizes_of_padded_images():
    """What was padded keeps its probabilities and counts nowhere."""
    mesh = sharding.make_mesh()
    sizes = [(10, 12), (7, 12), (0, 0), (10, 5)]
    settings = mean_field.Settings(2, appearance_sigma_xy=9.0)
    images = np.stack([image_of(10, 12, 3, seed) for seed in range(4)])
    p = np.stack([probabilities_of(10, 12, 3, seed) for seed in range(4)])
    arrays = jax.device_put((p, images), sharding.split(mesh))
    found = inference.refine(*arrays, settings=settings, mesh=mesh, sizes=sizes)
    assert found.sharding == sharding.split(mesh)
    for i, (h, w) in enumerate(sizes):
        rest = np.array(found[i])
        if h:
            own = crf_points.dense_crf(p[i, :h, :w], images[i, :h, :w], settings)
            np.testing.assert_array_equal(rest[:h, :w], own)
        rest[:h, :w] = p[i, :h, :w]
        np.testing.assert_array_equal(rest, p[i])


def test_unknown_names():
    image, p = image_of(4, 4), probabilities_of(4, 4, 3)
    for field in ("smoothness_filter", "normalization", "color_order"):
        settings = mean_field.Settings()._replace(**{field: "lattices"})
        with pytest.raises(UserError, match=f"{field}: unknown value 'lattices'"):
            crf_points.dense_crf(p, image, settings)
