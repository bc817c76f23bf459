"""What all metrics of whole images have in common."""

import numpy as np
import pytest
from scored_images import score, scored

from segjax.scoring import IMAGE_METRICS, flooding

CLASSES = ("membrane", "interior", "car")
# Scores that count objects; all others are in 0..1.
COUNTS = ("split_objects", "merging_objects", "true_objects", "predicted_objects")


def image(seed, size=(24, 30), noise=0.3):
    """Cells of two classes between membranes, some pixels void, and a prediction.

    The arrays are read-only, as those that come from a device.
    """
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(1, 3, (4, 5)), np.ones((6, 6), int))
    label[::6] = label[:, ::6] = 0
    label = label[: size[0], : size[1]]
    instances = sum(
        flooding.components(label == k) * (1 if k == 1 else 100) for k in (1, 2)
    )
    probabilities = np.eye(3)[label] + noise * rng.random((*size, 3))
    probabilities /= probabilities.sum(-1, keepdims=True)
    made = scored(
        np.where(rng.random(size) < 0.05, 255, label),
        np.where(rng.random(size) < noise / 3, rng.integers(0, 3, size), label),
        CLASSES,
        probabilities=probabilities.astype(np.float32),
        instances=instances.astype(np.uint16),
    )
    for array in made[:4]:
        array.flags.writeable = False
    return made


@pytest.mark.parametrize("name", IMAGE_METRICS)
def test_vectors_of_any_size_and_order(name):
    metric = IMAGE_METRICS[name]
    images = [image(0), image(1, (12, 18)), image(2, (17, 30))]
    vectors = [metric.measure(one) for one in images]
    assert {vector.shape for vector in vectors} == {(len(vectors[0]),)}
    assert {vector.dtype for vector in vectors} == {np.dtype(np.float64)}
    found = metric.combine(vectors)
    assert metric.combine(vectors[::-1]) == pytest.approx(found, rel=1e-12)
    assert np.isfinite(list(found.values())).all()
    assert all(isinstance(value, float) for value in found.values())
    # Every image counts, and the type of the prediction does not.
    assert metric.combine(vectors[:2]) != found
    wide = [one._replace(prediction=one.prediction.astype(np.uint16)) for one in images]
    assert score(name, *wide) == found


@pytest.mark.parametrize("name", IMAGE_METRICS)
def test_a_perfect_prediction(name):
    one = image(0, noise=0)
    found = score(name, one)
    kept = {k: v for k, v in found.items() if k not in COUNTS and "threshold" not in k}
    expected = 0 if "error" in "".join(kept) else 1
    assert kept == pytest.approx(dict.fromkeys(kept, expected))
    assert all(value < 1 for value in score("image_iou", image(0)).values())


@pytest.mark.parametrize("name", IMAGE_METRICS)
def test_void_images_and_predictions_on_void_change_nothing(name):
    one = image(0)
    void = one._replace(label=np.full_like(one.label, 255))
    assert score(name, one, void) == pytest.approx(score(name, one))
    if name != "objects":  # there, they may join two parts
        other = one._replace(prediction=np.where(one.label == 255, 1, one.prediction))
        assert score(name, other) == pytest.approx(score(name, one))
    empty = {k: v for k, v in score(name, void).items() if k not in COUNTS}
    assert np.isnan(list(empty.values())).all()


def test_titles_differ_and_scores_have_one_name_each():
    titles = [metric.title for metric in IMAGE_METRICS.values()]
    assert len(set(titles)) == len(titles)
    names = [key for name in IMAGE_METRICS for key in score(name, image(0))]
    assert len(set(names)) == len(names)
