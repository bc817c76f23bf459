"""Boxes, EdgeBoxes, selective search and their files, on drawn images."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from skimage import measure

from segjax import proposals
from segjax.errors import UserError
from segjax.proposals import Settings, boxes, edge_boxes, selective_search, stored

SQUARE = (20, 16, 51, 43)
"""Left, top, right, bottom."""


@pytest.fixture(scope="module")
def image():
    """A textured rectangle on a smooth ground."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :80]
    image = np.stack([60 + rows // 4, 90 + columns // 4, 0 * rows + 70], -1)
    left, top, right, bottom = SQUARE
    image[top : bottom + 1, left : right + 1] = (220, 40, 30)
    return (image + rng.integers(0, 6, image.shape)).astype(np.uint8)


def test_intersection_over_union_counts_pixels_inclusively():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (9, 2, 2))
    found = np.concatenate([corners.min(1), corners.max(1)], -1)
    first, second = found[:5], found[5:]

    def pixels(box):
        mask = np.zeros((12, 12), bool)
        mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
        return mask

    expected = [
        [(pixels(a) & pixels(b)).sum() / (pixels(a) | pixels(b)).sum() for b in second]
        for a in first
    ]
    np.testing.assert_allclose(boxes.iou(first, second), expected)
    none = np.array([boxes.NONE])
    assert boxes.iou(first, none).max() == 0 and boxes.iou(none, none) == 0


@pytest.mark.parametrize(
    "box, expected",
    [
        ((10, 20, 19, 39), (9, 18, 20, 41)),  # 10x20 becomes 12x24
        ((0, 0, 4, 4), (-1, -1, 5, 5)),  # 5 + 1: half a pixel on both sides is one
        ((3, 3, 3, 3), (3, 3, 3, 3)),
    ],
)
def test_boxes_become_a_fifth_larger(box, expected):
    assert boxes.enlarge(np.array([box]), 1.2).tolist() == [list(expected)]


def test_tight_boxes_are_those_of_scikit_image():
    labels = np.random.default_rng(1).integers(0, 2, (9, 13)) * np.arange(13)
    expected = {}
    for region in measure.regionprops(labels):
        top, left, bottom, right = region.bbox
        expected[region.label] = (left, top, right - 1, bottom - 1)
    assert boxes.tight(labels) == expected


@pytest.mark.parametrize("box", [(1, 2, 4, 3), (-2, -1, 3, 9), (-5, -5, -2, -2)])
def test_cuts_continue_beyond_the_array(box):
    array = np.arange(7 * 6 * 2).reshape(7, 6, 2) + 1
    padded = np.pad(array, ((9, 9), (9, 9), (0, 0)), constant_values=77)
    left, top, right, bottom = box
    expected = padded[top + 9 : bottom + 10, left + 9 : right + 10]
    np.testing.assert_array_equal(boxes.cut(array, np.array(box), 77), expected)


@pytest.mark.parametrize("method", proposals.METHODS)
def test_an_obvious_object_is_proposed(image, method):
    found = proposals.propose(image, Settings(method))
    assert found.dtype == np.int32 and 1 <= len(found) <= 2000
    assert (found[:, :2] >= 0).all() and (found[:, :2] <= found[:, 2:]).all()
    assert (found[:, 2:] < (80, 64)).all()
    overlaps = boxes.iou(found, np.array([SQUARE]))[:, 0]
    assert overlaps.max() > 0.7
    again = proposals.propose(image.copy(), Settings(method))
    np.testing.assert_array_equal(found, again)
    few = proposals.propose(image, Settings(method, number=3))
    np.testing.assert_array_equal(few, found[:3])


def test_edge_boxes_find_the_object_first(image):
    found = edge_boxes.boxes(image, count=10)
    assert boxes.iou(found[:3], np.array([SQUARE])).max() > 0.7


def test_edges_are_thin_and_point_across_the_contour():
    rows, columns = np.mgrid[:40, :40]
    for slope, angle in ((columns, 0), (rows, 90), (columns + rows, 45)):
        image = np.where(slope > slope.mean(), 200, 50).astype(np.uint8)[..., None]
        edges, orientation = edge_boxes.gradients(image)
        assert edges.shape == orientation.shape == (40, 40)
        assert edges.min() >= 0 and edges.max() == 1
        inner = edges[8:-8, 8:-8] > 0.5
        assert 0 < inner.sum() <= 3 * 24
        degrees = np.degrees(orientation[8:-8, 8:-8][inner])
        np.testing.assert_allclose(degrees, angle, atol=2)


@pytest.mark.parametrize("shape", [(64, 80, 1), (64, 80, 5), (15, 80, 3), (64, 80, 3)])
def test_edge_boxes_take_any_image(shape):
    flat = np.full(shape, 9, np.uint8)
    assert edge_boxes.boxes(flat, count=5).shape == (0, 4)
    noise = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    found = edge_boxes.boxes(noise, count=5)
    assert found.shape == (0 if shape[0] < 16 else 5, 4)


def test_segments_are_the_boxes_pixels(image):
    found = selective_search.segments(image, count=400)
    assert found.regions.shape[1:] == (64, 80)
    for index, box in enumerate(found.boxes):
        mask = found.mask(index)
        assert boxes.tight(mask.astype(int))[1] == tuple(box)
    left, top, right, bottom = SQUARE
    truth = np.zeros((64, 80), bool)
    truth[top : bottom + 1, left : right + 1] = True
    masks = [found.mask(index) for index in range(len(found.boxes))]
    overlaps = [(mask & truth).sum() / (mask | truth).sum() for mask in masks]
    assert max(overlaps) > 0.9


def test_the_most_similar_neighbors_merge_first():
    """Three strips, of which the first two have nearly one color."""
    image = np.zeros((30, 60, 3), np.uint8)
    image[:, :20], image[:, 20:40], image[:, 40:] = 100, 101, 250
    regions = np.repeat(np.arange(3, dtype=np.int32), 20)[None].repeat(30, 0)
    tree = list(selective_search.merge(image, regions, with_color=True))
    found = [(box, sorted(ids.tolist())) for box, ids in tree]
    assert found[:3] == [((20 * k, 0, 20 * k + 19, 29), [k]) for k in range(3)]
    assert found[3:] == [((0, 0, 39, 29), [0, 1]), ((0, 0, 59, 29), [0, 1, 2])]


def test_methods_say_what_they_cannot_search(tmp_path):
    many = np.zeros((20, 20, 4), np.uint8)
    with pytest.raises(UserError, match="takes RGB or gray images, these have 4"):
        proposals.propose(many, Settings("selective_search"))
    with pytest.raises(UserError, match="'edge_box'.*did you mean 'edge_boxes'"):
        proposals.propose(many, Settings("edge_box"))
    model = tmp_path / "model.yml"
    for text, message in (("", "not found"), ("%YAML:1.0\n", "no structured forest")):
        with pytest.raises(UserError, match=message):
            proposals.check(Settings(edge_model=str(model)), 3)
        model.write_text(text or "%YAML:1.0\n")
    with pytest.raises(UserError, match="these have 4 channels"):
        proposals.check(Settings(edge_model=str(model)), 4)


class Images:
    """A source of two images that counts how often they are read."""

    def __init__(self, image):
        self.images = [image, image[::-1].copy()]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"image": self.images[index]}


def test_boxes_are_kept_and_found_again(image, tmp_path, monkeypatch):
    settings, calls = Settings(number=7), []

    def counted(*arguments):
        calls.append(threading.get_ident())
        return proposals.propose(*arguments)

    monkeypatch.setattr(stored, "propose", counted)
    source = Images(image)
    first = stored.collect(source, settings, tmp_path, threads=2)
    assert len(calls) == 2 and [len(found) for found in first] == [7, 7]
    expected = proposals.propose(image[::-1], settings)
    np.testing.assert_array_equal(first[1], expected)
    # As the second of three processes, which finds all of it done.
    again = stored.collect(source, settings, tmp_path, process=(1, 3), threads=1)
    assert len(calls) == 2
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    # A damaged or unfinished file is made again, other settings have their own.
    damaged, _ = sorted(tmp_path.rglob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = stored.collect(source, settings, tmp_path)
    assert len(calls) == 3
    np.testing.assert_array_equal(again[0], first[0])
    assert len(stored.boxes(image, Settings(number=3), tmp_path)) == 3
    assert len(calls) == 4
    # A folder that cannot be written does no harm.
    (tmp_path / "file").write_text("")
    found = stored.boxes(image, settings, tmp_path / "file")
    np.testing.assert_array_equal(found, first[0])
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_files_are_read_by_one_thread_at_a_time(image, tmp_path, monkeypatch):
    settings, load, reading, most = Settings(number=3), np.load, [], []
    stored.boxes(image, settings, tmp_path)

    def counted(*arguments, **options):
        reading.append(1)
        most.append(len(reading))
        time.sleep(0.02)
        try:
            return load(*arguments, **options)
        finally:
            reading.pop()

    monkeypatch.setattr(np, "load", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda _: stored.boxes(image, settings, tmp_path), range(8))
        )
    assert len(most) == 8 and max(most) == 1
    assert all(len(boxes) == 3 for boxes in found)


def test_opencv_has_the_contributed_modules():
    assert hasattr(cv2.ximgproc, "createEdgeBoxes")
