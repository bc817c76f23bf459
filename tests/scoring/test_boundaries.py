"""Boundary scores: hand-made cases, loops over all pairs of pixels, other libraries."""

import numpy as np
import pytest
from scored_images import grid, score, scored
from skimage import segmentation

from segjax.scoring import IMAGE_METRICS, boundaries

NOWHERE = np.zeros((10, 10), bool)


def square(left, size=6, top=2):
    mask = np.zeros((10, 10), bool)
    mask[top : top + size, left : left + size] = True
    return mask


@pytest.mark.parametrize(("width", "expected"), [(1, 10 / 30), (2, 0.6), (3, 30 / 42)])
def test_boundary_iou(width, expected):
    truth, shifted = (boundaries.band(square(x), width, NOWHERE) for x in (2, 3))
    assert (truth & shifted).sum() / (truth | shifted).sum() == pytest.approx(expected)


def test_boundary_iou_of_a_set():
    # The diagonal of 10 x 10 is 14, 2 % of it less than a pixel: the band is one wide.
    image = scored(square(2), square(3), 2)
    perfect = scored(square(2), square(2), 2)
    shifted = [band_counts(flip(2), flip(3), 1) for flip in (square, outside)]
    same = [band_counts(flip(2), flip(2), 1) for flip in (square, outside)]
    assert score("boundary_iou", perfect)["boundary_iou"] == 1
    expected = np.mean([both / either for both, either in shifted])
    assert score("boundary_iou", image)["boundary_iou"] == pytest.approx(expected)
    # Pixels of all images are added, then divided.
    both, either = (np.array(shifted) + same).T
    found = score("boundary_iou", image, perfect)["boundary_iou"]
    assert found == pytest.approx((both / either).mean())


def test_the_band_is_two_percent_of_the_diagonal_wide():
    # 10 pixels of 300 x 400: 10 on all four sides of both halves.
    label = (np.arange(400) >= 200) * np.ones((300, 1), int)
    inside = 280 * 180
    counts = IMAGE_METRICS["boundary_iou"].measure(scored(label, label, 2))
    assert (counts == 300 * 200 - inside).all()


def outside(left):
    return ~square(left)


def band_counts(truth, predicted, width):
    a, b = (erosion_by_loop(mask, width) for mask in (truth, predicted))
    a, b = truth & ~a, predicted & ~b
    return (a & b).sum(), (a | b).sum()


def erosion_by_loop(mask, width):
    padded = np.pad(mask, width)
    found = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        found[y, x] = padded[y : y + 2 * width + 1, x : x + 2 * width + 1].all()
    return found


def test_boundary_pixels_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    for density in (0.2, 0.5, 0.9):
        mask = rng.random((20, 30)) < density
        expected = segmentation.find_boundaries(mask, connectivity=1, mode="inner")
        found = boundaries.boundary(mask, np.zeros_like(mask))
        assert (found == (expected & mask)).all()


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2.83, 5])
def test_f1_is_that_of_a_loop_over_all_pairs(tolerance):
    rng = np.random.default_rng(1)
    truth, predicted = (rng.random((12, 17)) < 0.06 for _ in range(2))
    t, p = np.argwhere(truth), np.argwhere(predicted)
    near = np.sqrt(((t[:, None] - p) ** 2).sum(-1)) <= tolerance
    precision, recall = near.any(0).mean(), near.any(1).mean()
    expected = 2 * precision * recall / max(precision + recall, 1e-9)
    assert boundaries.f1(truth, predicted, tolerance) == pytest.approx(expected)
    assert boundaries.f1(predicted, truth, tolerance) == pytest.approx(expected)


def test_f1_of_a_shift():
    # 0.75 % of the diagonal of 300 x 400 are 3.75 pixels.
    label = np.zeros((300, 400), np.uint8)
    label[:, 200:] = 1
    for shift, expected in ((0, 1), (3, 1), (4, 0)):
        image = scored(label, np.roll(label, shift, 1) | (np.arange(400) > 390), 2)
        image = image._replace(
            prediction=np.arange(400) // (200 + shift) * np.ones_like(label)
        )
        assert score("boundary_f1", image)["boundary_f1"] == expected


def test_f1_of_absent_classes():
    half = grid("0011", "0011")
    # Class 2 is predicted and not there: 0. Class 3 is in neither: it does not count.
    image = scored(half, grid("0012", "0012"), 4)
    both, none = score("boundary_f1", image), scored(half * 0, half * 0, 2)
    assert both["boundary_f1"] == pytest.approx(2 / 3)
    # An image without boundaries does not count.
    assert np.isnan(score("boundary_f1", none)["boundary_f1"])
    assert score("boundary_f1", image, none) == both
    # The mean of the images, not of the classes: one with 2 / 3, one with 1.
    perfect = scored(half, half, 4)
    found = score("boundary_f1", image, perfect)["boundary_f1"]
    assert found == pytest.approx((2 / 3 + 1) / 2)


def test_void_has_no_boundary():
    label = np.array([[0, 0, 0, 255, 1, 1, 1, 1, 1]] * 3)
    void = label == 255
    assert not boundaries.boundary(label == 1, void).any()
    assert not boundaries.boundary(label == 0, void).any()
    # Whatever is predicted on void pixels, nothing changes.
    for guess in (0, 1, 2):
        prediction = np.where(void, guess, label)
        image = scored(label, prediction, 3)
        assert np.isnan(score("boundary_f1", image)["boundary_f1"])
        assert score("boundary_iou", image)["boundary_iou"] == 1
    band = boundaries.band(label == 1, 1, void)
    assert band[1].tolist() == [False] * 8 + [True]  # the border of the image only
