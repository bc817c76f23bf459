"""SLIC superpixels, neighbors and means, against scikit-image, SciPy and loops."""

import functools

import cv2
import jax
import numpy as np
import pytest
from scipy import ndimage

from segjax.data import scenes
from segjax.errors import UserError
from segjax.models import vgg
from segjax.ops import geometry, resize, segment_pool, superpixels

color = pytest.importorskip("skimage.color")
segmentation = pytest.importorskip("skimage.segmentation")
measure = pytest.importorskip("skimage.measure")

slic = jax.jit(
    superpixels.slic, static_argnames=("superpixels", "compactness", "iterations")
)


def random_ids(shape, count, seed=0):
    return np.random.default_rng(seed).integers(0, count, shape).astype(np.int32)


def test_lab():
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3)).astype(np.uint8)
    images[0, 0, :2] = [[0, 0, 0], [255, 255, 255]]
    np.testing.assert_allclose(
        superpixels.lab(images), color.rgb2lab(images), atol=2e-3
    )


@pytest.mark.parametrize(
    "size, count, expected",
    [
        ((360, 480), 500, (19, 26)),
        ((100, 100), 100, (10, 10)),
        ((7, 5), 35, (7, 5)),
        ((7, 5), 500, (7, 5)),
        ((1, 1), 500, (1, 1)),
        ((5, 100), 1, (1, 4)),
    ],
)
def test_grid_size(size, count, expected):
    assert superpixels.grid_size(*size, count) == expected


@functools.cache
def scene_superpixels():
    images = np.stack([scenes.scene(0, i, size=(64, 96))["image"] for i in range(3)])
    return images, np.asarray(slic(images, superpixels=60))


def test_every_pixel_has_an_id_and_every_superpixel_is_connected():
    images, ids = scene_superpixels()
    rows, columns = superpixels.grid_size(64, 96, 60)
    assert ids.shape == images.shape[:3] and ids.dtype == np.int32
    assert ids.min() >= 0 and ids.max() < rows * columns
    for one in ids:
        present = np.unique(one)
        assert len(present) > 0.9 * rows * columns
        for index in present:
            assert measure.label(one == index, connectivity=1).max() == 1
    # Images of a batch do not see each other.
    np.testing.assert_array_equal(slic(images[1:2], superpixels=60)[0], ids[1])


def quality(ids, labels):
    """Pixels that the majority label of their superpixel has, and boundaries found."""
    counts = np.zeros((ids.max() + 1, 256))
    np.add.at(counts, (ids, labels), 1)
    borders = segmentation.find_boundaries(labels)
    near = ndimage.binary_dilation(segmentation.find_boundaries(ids), iterations=2)
    return counts.max(axis=1).sum() / labels.size, (
        near & borders
    ).sum() / borders.sum()


def test_as_good_as_scikit_image_on_scenes():
    """Achievable accuracy and boundary recall, with no more superpixels than there."""
    images, ids = scene_superpixels()
    ours, theirs, counts = [], [], []
    for i, image in enumerate(images):
        labels = scenes.scene(0, i, size=(64, 96))["label"]
        other = segmentation.slic(
            image, n_segments=75, compactness=10, start_label=0, sigma=0
        )
        counts.append((len(np.unique(ids[i])), len(np.unique(other))))
        ours.append(quality(ids[i], labels))
        theirs.append(quality(other, labels))
    ours, theirs = np.mean(ours, axis=0), np.mean(theirs, axis=0)
    assert np.mean(counts, axis=0)[0] <= 1.1 * np.mean(counts, axis=0)[1], counts
    assert (ours >= theirs - 0.03).all(), (ours, theirs)


def test_two_colors_are_two_superpixels():
    """A slanted border between two flat colors is followed exactly."""
    image = np.full((1, 16, 32, 3), 60, np.uint8)
    y, x = np.mgrid[:16, :32]
    right = x + y // 2 > 19
    image[0, right] = 200
    ids = np.asarray(slic(image, superpixels=2, compactness=5.0))[0]
    assert superpixels.grid_size(16, 32, 2) == (1, 2)
    np.testing.assert_array_equal(ids, right.astype(int))
    gray = np.asarray(slic(image[..., :1], superpixels=2, compactness=5.0))[0]
    np.testing.assert_array_equal(gray, ids)


def test_compactness_and_iterations_matter():
    images, ids = scene_superpixels()
    grid = np.asarray(slic(images, superpixels=60, compactness=1e4))
    rows, columns = superpixels.grid_size(64, 96, 60)
    y, x = np.mgrid[:64, :96]
    # A huge compactness leaves the places alone: squares, but for ties.
    squares = (y * rows // 64) * columns + x * columns // 96
    assert (grid == squares).mean() > 0.95 > (ids == squares).mean()
    once = np.asarray(slic(images, superpixels=60, iterations=1))
    assert (once != ids).any()


def test_superpixels_of_one_pixel():
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    ids = np.asarray(slic(image, superpixels=35))
    np.testing.assert_array_equal(
        ids, np.broadcast_to(np.arange(35).reshape(5, 7), ids.shape)
    )
    x = np.random.default_rng(1).normal(size=(2, 5, 7, 4)).astype(np.float32)
    mean = segment_pool.segment_mean(x, ids, 35)
    np.testing.assert_array_equal(mean, x.reshape(2, 35, 4))
    np.testing.assert_array_equal(segment_pool.paint(mean, ids), x)


def test_other_channels_are_refused():
    with pytest.raises(UserError, match="the images have 4 channels, expected 1 or 3"):
        superpixels.slic(np.zeros((1, 4, 4, 4), np.uint8), superpixels=2)


@pytest.mark.parametrize("shape, count", [((13, 17), 3), ((1, 9), 2), ((8, 1), 2)])
def test_connect(shape, count):
    for seed in range(5):
        ids = random_ids(shape, count, seed)
        parts = np.asarray(superpixels.connected_components(ids))
        expected = measure.label(ids, connectivity=1, background=-1)
        pairs = set(zip(parts.ravel(), expected.ravel()))
        assert len(pairs) == len(np.unique(parts)) == expected.max()
        assert all(parts.flat[p] == p for p in np.unique(parts))
        found = np.asarray(superpixels.connect(ids, count))
        for index in np.unique(ids):
            own = measure.label(ids == index, connectivity=1)
            largest = own == 1 + np.argmax(np.bincount(own.ravel())[1:])
            assert (found[largest] == index).all()
            assert measure.label(found == index, connectivity=1).max() == 1


def test_neighbors_within_a_distance():
    """Breadth-first search over the graph of touching superpixels."""
    count = 12
    ids = np.asarray(
        ndimage.zoom(random_ids((1, 4, 5), 11), (1, 3, 3), order=0), np.int32
    )
    edges = {(i, i) for i in range(count)}
    for one, other in ((ids[0, 1:], ids[0, :-1]), (ids[0, :, 1:], ids[0, :, :-1])):
        for a, b in zip(one.ravel().tolist(), other.ravel().tolist()):
            edges |= {(a, b), (b, a)}
    near = np.asarray(superpixels.adjacency(ids, count))
    assert {tuple(at) for at in np.argwhere(near[0]).tolist()} == edges
    for distance in range(4):
        found = np.asarray(superpixels.within(near, distance))[0]
        for start in range(count):
            reached = {start}
            for _ in range(distance):
                reached |= {b for a, b in edges if a in reached}
            assert set(np.flatnonzero(found[start]).tolist()) == reached


def test_boxes_and_their_unions():
    ids, count = random_ids((2, 9, 11), 40), 41
    found = np.asarray(superpixels.boxes(ids, count))
    members = np.random.default_rng(1).random((2, 6, count)) < 0.1
    members[:, :, [*ids[:, 0, 0], 40]] = True  # an empty one changes nothing
    unions = np.asarray(superpixels.union_boxes(found, members))
    for n in range(2):
        for index in range(count):
            y, x = np.nonzero(ids[n] == index)
            box = (
                [y.min(), x.min(), y.max() + 1, x.max() + 1]
                if len(y)
                else [9, 11, 0, 0]
            )
            assert found[n, index].tolist() == box
        for index in range(6):
            y, x = np.nonzero(np.isin(ids[n], np.flatnonzero(members[n, index])))
            expected = [y.min(), x.min(), y.max() + 1, x.max() + 1]
            assert unions[n, index].tolist() == expected


def test_means_of_maps_are_means_of_the_enlarged_maps():
    """At all grids of VGG16: interpolate to the image, then average with SciPy."""
    height, width, count = 33, 26, 9
    ids = random_ids((2, height, width), count - 1)  # the last one is empty
    rng = np.random.default_rng(0)
    sizes = {1: (33, 26), 4: (9, 7), 16: (3, 2), 32: (1, 1)}
    for name in ("conv1_2", "conv3_3", "conv5_2", "pool5"):
        grid = vgg.grids(1)[name]
        size = sizes[int(grid.step)]
        x = rng.normal(size=(2, *size, 3)).astype(np.float32)
        weights = segment_pool.location_weights(ids, count, source=grid, size=size)
        found = np.asarray(segment_pool.weighted_mean(x, weights))
        full = np.asarray(
            resize.interpolate(x, grid, target=geometry.Grid(), size=(height, width))
        )
        for n in range(2):
            for channel in range(3):
                expected = ndimage.mean(full[n, ..., channel], ids[n], range(count - 1))
                np.testing.assert_allclose(
                    found[n, :-1, channel], expected, rtol=1e-4, atol=1e-5
                )
        direct = segment_pool.segment_mean(full, ids, count)
        np.testing.assert_allclose(direct, found, rtol=1e-4, atol=1e-5)
        assert (found[:, -1] == 0).all()
        total = np.asarray(weights).sum(axis=(2, 3))
        np.testing.assert_allclose(total[:, :-1], 1, rtol=1e-5)


@pytest.mark.parametrize("side", [1, 5, 16])
def test_crops_are_those_of_opencv(side):
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 17, 3)).astype(np.uint8)
    boxes = np.array([[0, 0, 12, 17], [3, 4, 8, 6], [11, 16, 12, 17], [2, 0, 3, 17]])
    found = np.asarray(
        resize.crop_and_resize(images, np.stack([boxes, boxes[::-1]]), side)
    )
    for n, rows in enumerate((boxes, boxes[::-1])):
        for i, (top, left, bottom, right) in enumerate(rows):
            part = images[n, top:bottom, left:right].astype(np.float32)
            expected = cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR)
            np.testing.assert_allclose(found[n, i], expected, atol=1e-2)
    empty = resize.crop_and_resize(images, np.array([[[12, 17, 0, 0]]] * 2), side)
    np.testing.assert_array_equal(empty[0, 0, 0, 0], images[0, -1, -1])
