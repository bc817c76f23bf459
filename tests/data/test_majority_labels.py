"""Label maps that are reduced to the majority of each area, as FRRN reduces them."""

import collections

import numpy as np
import pytest

from segjax.data import datasets, images


def by_counting(label, factor):
    """Cell by cell; the lowest of the most frequent labels."""
    h, w = (side // factor for side in label.shape)
    result = np.zeros((h, w), np.uint8)
    for y, x in np.ndindex(h, w):
        cell = label[y * factor :][:factor, x * factor :][:, :factor]
        counts = collections.Counter(cell.ravel().tolist())
        value, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        result[y, x] = value if count > cell.size / 4 else 255
    return result


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_majority_by_counting(factor):
    rng = np.random.default_rng(0)
    values = np.array([0, 1, 2, 3, 18, 255], np.uint8)
    label = rng.choice(values, (12 * factor, 20 * factor))
    size = 12, 20
    found = images.majority_label(label, size)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, by_counting(label, factor))
    assert (found == 255).any()
    assert not np.array_equal(found, images.resize_label(label, size))


def test_a_quarter_is_void_and_a_little_more_is_not():
    four = np.array([[1, 2], [3, 4]], np.uint8)
    assert images.majority_label(four, (1, 1)) == 255
    assert images.majority_label(np.array([[1, 2], [3, 3]], np.uint8), (1, 1)) == 3
    void = np.array([[255, 255], [255, 1]], np.uint8)
    assert images.majority_label(void, (1, 1)) == 255
    # 4 of 16 are void, 5 of 16 count.
    cell = np.arange(16, dtype=np.uint8).reshape(4, 4) + 10
    cell.ravel()[:4] = 1
    assert images.majority_label(cell, (1, 1)) == 255
    cell.ravel()[4] = 1
    assert images.majority_label(cell, (1, 1)) == 1


def test_the_field_reaches_the_labels_and_the_fingerprint(tmp_path):
    data = {
        "name": "scenes",
        "scenes_size": (48, 64),
        "scenes_train": 2,
        "scenes_validation": 1,
        "scenes_seed": 0,
        "data_dir": str(tmp_path),
    }
    whole, _ = datasets.load(data, "train")
    small = data | {"resize": (12, 16)}
    nearest, _ = datasets.load(small, "train")
    source, _ = datasets.load(small | {"resize_labels": "majority"}, "train")
    for index in range(2):
        label = whole[index]["label"]
        np.testing.assert_array_equal(source[index]["label"], by_counting(label, 4))
        np.testing.assert_array_equal(source[index]["image"], nearest[index]["image"])
    assert datasets.fingerprint(source) != datasets.fingerprint(nearest)
