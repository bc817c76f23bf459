"""Metrics that look at one image after the other."""

import numpy as np
import pytest
from scored_images import score, scored


def test_the_mean_of_images_is_not_the_iou_of_the_set():
    # Pooled, the mIoU of these two images is 0.6.
    images = (
        scored([[0, 0, 0, 1]], [[0, 0, 0, 0]], 2),
        scored([[1, 1, 1, 1]], [[1, 1, 1, 0]], 2),
    )
    for image in images:
        assert score("image_iou", image) == {"image_miou": pytest.approx(0.375)}
    assert score("image_iou", *images) == {"image_miou": pytest.approx(0.375)}


def test_void_and_absent_classes_do_not_count():
    label = [[0, 0, 1, 1], [0, 0, 1, 255], [2, 2, 1, 1], [2, 2, 2, 0]]
    prediction = [[0, 0, 1, 1], [0, 1, 1, 1], [2, 1, 1, 1], [2, 2, 0, 0]]
    for classes in (3, 4):
        image = scored(label, prediction, classes)
        assert score("image_iou", image)["image_miou"] == pytest.approx(0.6603174603)
    void = scored([[255]], [[0]], 2)
    assert np.isnan(score("image_iou", void)["image_miou"])
    assert score("image_iou", image, void) == score("image_iou", image)


def test_the_score_of_ade20k_is_the_mean_of_accuracy_and_miou():
    # Over the set: pixel accuracy 0.75, mIoU 0.6 (the images of the first test).
    images = (
        scored([[0, 0, 0, 1]], [[0, 0, 0, 0]], 3),
        scored([[1, 1, 1, 1]], [[1, 1, 1, 0]], 3),
        scored([[255]], [[2]], 3),
    )
    assert score("ade20k", *images)["ade20k_score"] == pytest.approx((0.75 + 0.6) / 2)
