"""The table of published scores: complete, and equal to its own means."""

import math

import pytest

from segjax import published_scores
from segjax.data import datasets

ALL = [
    pytest.param(name, score, id=f"{name}-{score.method}-{score.split}-{score.miou}")
    for name, scores in published_scores.SCORES.items()
    for score in scores
]


@pytest.mark.parametrize("name, score", ALL)
def test_classes_give_the_printed_mean(name, score):
    assert score.source and score.split and 0 < score.miou < 100
    if not score.classes:
        return
    classes = published_scores.CLASSES[name]
    assert len(score.classes) == len(classes)
    known = [value for value in score.classes if not math.isnan(value)]
    if len(known) == len(classes):
        assert sum(known) / len(known) == pytest.approx(score.miou, abs=0.06)
        return
    # Only VOC's background is left out, and has about 90 % in every method.
    assert name == "voc2012" and math.isnan(score.classes[0])
    background = score.miou * len(classes) - sum(known)
    assert len(known) == len(classes) - 1 and 90 < background < 96


def test_data_sets_have_the_classes_of_the_table():
    known = published_scores.CLASSES.keys() & datasets.DATASETS.keys()
    assert "camvid" in known
    for name in known:
        classes = datasets.describe({"name": name}).classes
        assert classes == published_scores.CLASSES[name]
        assert published_scores.of(name, classes) is published_scores.SCORES[name]


def test_other_forms_of_a_data_set():
    of, scores = published_scores.of, published_scores.SCORES
    original = datasets.describe({"name": "camvid720"}).classes
    assert of("camvid720", original) is scores["camvid"]
    for name in ("folder", "voc2012_aug"):
        assert of(name, published_scores.CLASSES["voc2012"]) is scores["voc2012"]


def test_other_classes_have_no_published_scores():
    classes = published_scores.CLASSES["camvid"]
    assert published_scores.of("folder", classes[:-1]) == ()
    assert published_scores.of("isbi2012", classes) == ()
    assert published_scores.of("camvid", classes[::-1]) == ()
    assert published_scores.of("scenes", ("sky",)) == ()


def test_best_scores_come_first_within_a_split():
    for scores in published_scores.SCORES.values():
        splits = list(dict.fromkeys(score.split for score in scores))
        for split in splits:
            means = [score.miou for score in scores if score.split == split]
            assert means == sorted(means, reverse=True)
