"""Objects: SEG with the values of hand-made cases, matches by a loop over all pairs."""

import numpy as np
import pytest
from scipy import ndimage
from scored_images import grid, score, scored

from segjax.scoring import objects

TRUTH = grid("110022", "110022", "000000", "333300")
# Name -> predicted objects, SEG.
CASES = {
    "numbered otherwise": (grid("990044", "990044", "000000", "777700"), 1),
    "half and too large": (grid("700888", "700888", "000000", "000000"), 0.2222222),
    "merged": (grid("555555", "555555", "000000", "333000"), 0.4722222),
    "split and extra": (grid("110022", "110020", "009900", "334400"), 0.5833333),
    "nothing": (np.zeros((4, 6), int), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_seg(name):
    predicted, expected = CASES[name]
    count, _, total = objects.compare(TRUTH, predicted)[:3]
    assert count == 3
    assert total / count == pytest.approx(expected)


def test_splits_and_merges():
    counts = {name: objects.compare(TRUTH, p)[3:5] for name, (p, _) in CASES.items()}
    assert {name: tuple(found) for name, found in counts.items()} == {
        "numbered otherwise": (0, 0),
        "half and too large": (0, 0),
        "merged": (0, 1),
        "split and extra": (1, 0),
        "nothing": (0, 0),
    }


def random_objects(rng):
    return ndimage.label(rng.random((12, 15)) < 0.4)[0]


@pytest.mark.parametrize("seed", range(10))
def test_a_loop_over_all_pairs_agrees(seed):
    rng = np.random.default_rng(seed)
    truth = random_objects(rng)
    predicted = truth * (rng.random(truth.shape) < 0.8)
    seg, matches = 0.0, np.zeros(10)
    inside_true, inside_predicted = {}, {}
    for r in range(1, truth.max() + 1):
        for s in set(predicted[predicted > 0]):
            true, found = truth == r, predicted == s
            both = (true & found).sum()
            iou = both / (true | found).sum()
            seg += iou * (both > 0.5 * true.sum())
            matches += iou > np.array(
                [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
            )
            inside_true[r] = inside_true.get(r, 0) + (both > 0.5 * found.sum())
            inside_predicted[s] = inside_predicted.get(s, 0) + (both > 0.5 * true.sum())
    expected = [truth.max(), len(inside_predicted), seg]
    expected += [
        sum(n > 1 for n in d.values()) for d in (inside_true, inside_predicted)
    ]
    assert objects.compare(truth, predicted) == pytest.approx([*expected, *matches])


def image(truth, predicted, classes=("background", "cell"), label=None):
    """An image of one class with these true objects."""
    label = truth > 0 if label is None else label
    return scored(label, predicted > 0, classes, instances=truth)


def test_counts_are_added_over_the_images():
    nothing = image(TRUTH, np.zeros_like(TRUTH))
    found = score("objects", image(TRUTH, TRUTH), nothing)
    assert found["seg"] == 0.5
    assert (found["object_precision"], found["object_recall"]) == (1, 0.5)
    assert found["object_f1"] == pytest.approx(2 / 3)
    assert found["dsb2018_ap"] == 0.5
    assert (found["true_objects"], found["predicted_objects"]) == (6, 3)
    perfect, empty = image(TRUTH, TRUTH), np.zeros_like(TRUTH)
    assert score("objects", perfect, image(empty, empty))["dsb2018_ap"] == 1
    assert score("objects", perfect, image(empty, TRUTH))["dsb2018_ap"] == 0.5
    # Three objects found and one missed: the mean of the images is not that of objects.
    missed = score("objects", perfect, image(TRUTH == 1, empty))
    assert (missed["dsb2018_ap"], missed["object_recall"]) == (0.5, 0.75)
    assert np.isnan(score("objects", image(empty, TRUTH))["seg"])


def test_average_precision_over_thresholds():
    # IoU 2 / 3 is above 0.5, 0.55, 0.6 and 0.65.
    truth, predicted = grid("111000"), grid("011000")
    assert score("objects", image(truth, predicted))["dsb2018_ap"] == pytest.approx(0.4)
    # Exactly one half is no match, and not more than half of the true object.
    half = score("objects", image(truth=grid("1100"), predicted=grid("1000")))
    assert (half["object_f1"], half["seg"]) == (0, 0)


def test_objects_are_compared_within_their_class():
    names = ("background", "cat", "dog")
    truth = scored([[1, 1, 0, 2, 2]], [[2, 2, 0, 2, 2]], names, instances=grid("11022"))
    found = score("objects", truth)
    assert (found["seg"], found["object_recall"], found["object_precision"]) == (
        *(0.5, 0.5, 0.5),
    )
    # Touching objects of two classes are two objects.
    touching = scored([[1, 1, 2, 2]], [[1, 1, 2, 2]], names, instances=grid("1122"))
    assert score("objects", touching)["seg"] == 1
    # A class without true objects, such as the sky, does not count.
    sky = scored([[1, 1, 2, 2]], [[1, 1, 2, 0]], names, instances=grid("1100"))
    assert score("objects", sky)["predicted_objects"] == 1


def test_diagonal_neighbors_are_two_objects():
    predicted = grid("10", "01")
    assert score("objects", image(predicted, predicted))["predicted_objects"] == 2


def test_the_first_class_may_have_objects():
    label = grid("001")
    turned = scored(label, label, ("cell", "background"), instances=grid("110"))
    found = score("objects", turned)
    assert (found["true_objects"], found["predicted_objects"]) == (1, 1)


def test_void_belongs_to_no_object():
    label = np.where(TRUTH == 3, 255, TRUTH > 0)
    found = score("objects", image(TRUTH, np.where(TRUTH == 2, 0, TRUTH), label=label))
    assert (found["true_objects"], found["predicted_objects"], found["seg"]) == (
        2,
        1,
        0.5,
    )


def test_void_divides_no_predicted_object():
    label = np.array([[1, 1, 255, 1, 1]])
    joined = scored(label, grid("11111"), ("a", "b"), instances=grid("11022"))
    found = score("objects", joined)
    assert (found["predicted_objects"], found["merging_objects"]) == (1, 1)
    apart = scored(label, grid("11011"), ("a", "b"), instances=grid("11022"))
    assert score("objects", apart)["object_f1"] == 1
