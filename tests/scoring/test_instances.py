"""Scores in which every object weighs the same."""

import numpy as np
import pytest
from scored_images import grid, score, scored

from segjax.errors import UserError
from segjax.scoring import IMAGE_METRICS

NAMES = ("road", "car", "person")


def test_every_instance_weighs_the_same():
    label, instances = grid("1111012"), grid("1111023")
    image = scored(label, grid("1110000"), NAMES, instances=instances)
    # Of the cars 3 / 4 and 0 are right, of the person 0; 4 of 7 pixels are.
    found = score("instance_accuracy", image)
    assert found["instance_accuracy"] == pytest.approx((0.75 + 0 + 0) / 3)
    assert found["instance_accuracy_classes"] == pytest.approx((0.375 + 0) / 2)
    # All instances of the set are averaged, not the images.
    small = scored(grid("2"), grid("2"), NAMES, instances=grid("9"))
    assert score("instance_accuracy", image, small) == {
        "instance_accuracy": pytest.approx((0.75 + 0 + 0 + 1) / 4),
        "instance_accuracy_classes": pytest.approx((0.375 + 0.5) / 2),
    }


def test_void_and_no_instance_do_not_count():
    label = np.array([[1, 1, 255, 255, 1, 0]])
    image = scored(label, grid("101111"), NAMES, instances=grid("112200"))
    assert score("instance_accuracy", image)["instance_accuracy"] == 0.5
    none = scored(label, label * 0, NAMES, instances=label * 0)
    assert np.isnan(score("instance_accuracy", none)["instance_accuracy"])


def test_the_iiou_of_cityscapes():
    # Worked out by hand, with the definitions of the benchmark's evaluation code: a car
    # of 4 pixels, 3 of them right, one of 1 pixel that is missed, one wrong pixel.
    label, instances = grid("11110100"), grid("11110200")
    image = scored(label, grid("11100010"), NAMES, instances=instances)
    size = 12794.0202738185
    right, missed = size / 4 * 3, size / 4 * 1 + size / 1 * 1
    expected = right / (right + missed + 1)
    assert score("cityscapes_iiou", image) == {
        "cityscapes_iiou": pytest.approx(expected)
    }
    # The person, whose pixels are in no instance: a group. It is in neither sum.
    label[0, 7] = 2
    group = scored(label, grid("11100012"), NAMES, instances=instances)
    assert score("cityscapes_iiou", group) == score("cityscapes_iiou", image)
    # Sums of the set; classes are averaged.
    person = scored(grid("22"), grid("20"), NAMES, instances=grid("11"))
    found = score("cityscapes_iiou", image, person)["cityscapes_iiou"]
    assert found == pytest.approx((expected + 0.5) / 2)
    with pytest.raises(UserError, match="found a, b"):
        IMAGE_METRICS["cityscapes_iiou"].check(("a", "b"))
    IMAGE_METRICS["cityscapes_iiou"].check(NAMES)
