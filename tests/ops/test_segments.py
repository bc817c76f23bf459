"""Segments on the locations of a map, their pyramids, and the hierarchy of segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.cluster.hierarchy

from segjax.ops import geometry, hierarchy, segment_pool, superpixels

measure = pytest.importorskip("skimage.measure")

GRID = geometry.Grid(16, 7.5)  # of VGG16's conv5_3


def test_masks_cover_locations_by_halves():
    """Means over the 16 x 16 pixels of each location, those inside the image."""
    rng = np.random.default_rng(0)
    masks = rng.random((2, 3, 37, 50)) < 0.5
    found = np.asarray(segment_pool.project_masks(masks, source=GRID, size=(3, 4)))
    for n, p, i, j in np.ndindex(found.shape):
        part = masks[n, p, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
        assert found[n, p, i, j] == (part.mean() >= 0.5)
    assert 0 < found.mean() < 1
    half = np.zeros((1, 1, 16, 16), bool)
    half[..., :8] = True
    assert segment_pool.project_masks(half, source=GRID, size=(1, 1)).all()
    half[..., 0, 0] = False
    assert not segment_pool.project_masks(half, source=GRID, size=(1, 1)).any()


def test_shares_of_superpixels_are_those_of_their_masks():
    ids = np.random.default_rng(0).integers(0, 6, (2, 37, 50)).astype(np.int32)
    found = segment_pool.location_shares(ids, 6, source=GRID, size=(3, 4))
    for n, s, i, j in np.ndindex(found.shape):
        part = ids[n, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16] == s
        np.testing.assert_allclose(found[n, s, i, j], part.mean(), rtol=1e-5)


def test_boxes_on_locations():
    boxes = np.array([[[0, 0, 37, 50], [15, 16, 17, 17], [36, 49, 37, 50]]])
    found = segment_pool.box_locations(boxes, source=GRID, size=(3, 4), image=(37, 50))
    assert np.asarray(found)[0].tolist() == [[0, 0, 3, 4], [0, 1, 2, 2], [2, 3, 3, 4]]


def pyramid(x, box, bins):
    top, left, bottom, right = box
    window = x[top:bottom, left:right]
    parts = []
    for b in bins:
        for i in range(b):
            for j in range(b):
                (y0, y1), (x0, x1) = (
                    (k * n // b, -(-(k + 1) * n // b))
                    for k, n in zip((i, j), window.shape)
                )
                parts.append(window[y0:y1, x0:x1].max(axis=(0, 1)))
    return np.stack(parts)


@pytest.mark.parametrize(
    "box", [(0, 0, 9, 7), (2, 3, 4, 6), (8, 0, 9, 1), (1, 1, 9, 7), (0, 2, 6, 5)]
)
def test_pyramid_of_a_box(box):
    x = np.random.default_rng(0).normal(size=(9, 7, 3)).astype(np.float32)
    pool = jax.jit(segment_pool.pyramid_pool, static_argnums=2)
    found = pool(x, jnp.array(box), (6, 3, 2, 1))
    assert found.shape == (50, 3)
    np.testing.assert_array_equal(found, pyramid(x, box, (6, 3, 2, 1)))


def test_gradient_of_the_pyramid_goes_to_the_maxima():
    x = np.random.default_rng(0).normal(size=(5, 4, 2)).astype(np.float32)
    box = jnp.array([1, 0, 5, 3])

    def total(x):
        return segment_pool.pyramid_pool(x, box, (2, 1)).sum()

    found = np.asarray(jax.jit(jax.grad(total))(x))
    # Of 5 parts and 2 channels one location each, and none outside of the box.
    assert found.sum() == pytest.approx(10) and np.isfinite(found).all()
    assert (found[0] == 0).all() and (found[:, 3] == 0).all()
    at = np.unravel_index(x[1:5, :3, 0].argmax(), (4, 3))
    assert found[1 + at[0], at[1], 0] >= 2


def test_hierarchy_is_that_of_ward():
    """With all segments touching each other: SciPy's linkage of the same points."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(9, 3)).astype(np.float32)
    near = np.ones((9, 9), bool)
    found = np.asarray(
        hierarchy.merge(means[None], np.ones((1, 9), np.float32), near[None])
    )[0]
    assert found.shape == (17, 9)
    np.testing.assert_array_equal(found[:9], np.eye(9, dtype=bool))
    groups = [frozenset([i]) for i in range(9)]
    for i, j, *_ in scipy.cluster.hierarchy.ward(means):
        groups.append(groups[int(i)] | groups[int(j)])
    assert [frozenset(np.flatnonzero(row).tolist()) for row in found] == groups


def test_hierarchy_of_a_chain_merges_neighbors_only():
    """Sizes count, empty segments are left out, parts that do not touch stay apart."""
    means = np.array([[0.0], [5.0], [0.1], [9.0], [0.0]], np.float32)[None]
    sizes = np.array([[10.0, 1.0, 10.0, 30.0, 0.0]], np.float32)
    near = np.eye(5, dtype=bool)
    for i, j in ((0, 1), (1, 2)):
        near[i, j] = near[j, i] = True
    found = np.asarray(hierarchy.merge(means, sizes, near[None]))[0]
    # 0 and 2 are alike but do not touch. 3 touches nothing, 4 is empty.
    unions = [np.flatnonzero(row).tolist() for row in found]
    assert unions == [[0], [1], [2], [3], [], [1, 2], [0, 1, 2], [], []]


def test_unions_are_connected():
    ids = np.random.default_rng(0).integers(0, 40, (12, 12))
    ids = measure.label(ids // 8, connectivity=1, background=-1) - 1
    count = ids.max() + 1
    rng = np.random.default_rng(1)
    members = np.asarray(
        hierarchy.merge(
            rng.normal(size=(1, count, 3)).astype(np.float32),
            np.bincount(ids.ravel(), minlength=count)[None].astype(np.float32),
            superpixels.adjacency(ids[None].astype(np.int32), count),
        )
    )[0]
    for row in members:
        assert measure.label(row[ids], connectivity=1).max() == 1
    assert len(members) == 2 * count - 1 and members[-1].all()
