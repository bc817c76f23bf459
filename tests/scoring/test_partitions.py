"""V_rand and V_info: values worked out by hand, scikit-image, loops over all pairs."""

import itertools

import numpy as np
import pytest
from scored_images import grid
from skimage import metrics as skimage_metrics

from segjax.scoring import partitions

TWO = grid(*["11022"] * 4)
# Name -> truth, proposal, V_rand, V_info, Rand split and merge score.
CASES = {
    "same": (TWO, TWO, 1, 1, 1, 1),
    "merge": (TWO, np.ones((4, 5), int), 0.666666667, 0, 1, 0.5),
    "split": (TWO, grid(*["11022"] * 2, *["11033"] * 2), 0.857142857, 0.8, 0.75, 1),
    "thick": (TWO, grid(*["11002"] * 4), 0.792452830, 0.666666667, 0.65625, 1),
    "shift": (
        *(grid(*["111022"] * 3), grid(*["112222"] * 3)),
        *(0.692307692, 0.432538068, 0.692307692, 0.692307692),
    ),
    "mixed": (
        grid("1110222", "1110222", "0000000", "3333333"),
        grid("1111102", "1110002", "0000000", "3330444"),
        *(0.642857143, 0.650790803, 0.520661157, 0.84),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    truth, proposal, v_rand, v_info, split, merge = CASES[name]
    shared = partitions.overlap(truth, proposal)
    assert partitions.rand(shared) == pytest.approx((v_rand, split, merge))
    assert partitions.information(shared).f == pytest.approx(v_info)


def test_entropies_of_the_information_scores():
    truth, proposal, *_ = CASES["mixed"]
    split, merge = partitions.information(partitions.overlap(truth, proposal))[1:]
    assert split == pytest.approx(0.944791669 / 1.807631656)
    assert merge == pytest.approx(0.944791669 / 1.095887154)


def random_maps(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(5, 12, 2)
    return rng.integers(0, 4, shape), rng.integers(0, 5, shape)


@pytest.mark.parametrize("seed", range(20))
def test_scikit_image_agrees(seed):
    truth, proposal = random_maps(seed)
    # A segment of its own for every pixel that lies in none.
    single = np.where(
        proposal == 0, 100 + np.arange(truth.size).reshape(truth.shape), 0
    )
    relabeled = proposal + single
    shared = partitions.overlap(truth, proposal)
    _, true, proposed = partitions.pairs(shared)
    total = shared.truth.sum()
    # adapted_rand_error counts pairs of two different pixels, from both sides half.
    error = skimage_metrics.adapted_rand_error(truth, relabeled)[0]
    half = (true + proposed - 2 * total) / 2
    expected = (2 * (1 - error) * half + 2 * total) / (2 * half + 2 * total)
    assert partitions.rand(shared).f == pytest.approx(expected)
    inside = truth > 0
    extra, missed = skimage_metrics.variation_of_information(
        truth[inside][None], relabeled[inside][None]
    )
    h_true, h_proposed = (
        entropy(ids[inside], total) / np.log(2) for ids in (truth, relabeled)
    )
    assert extra + h_true == pytest.approx(missed + h_proposed)
    expected = 2 * (h_true - missed) / (h_true + h_proposed)
    assert partitions.information(shared).f == pytest.approx(expected)


def entropy(ids, total):
    shares = np.unique(ids, return_counts=True)[1] / total
    return -(shares * np.log(shares)).sum()


@pytest.mark.parametrize("seed", range(5))
def test_the_pairs_are_those_of_a_loop_over_all_pixels(seed):
    truth, proposal = random_maps(seed)
    t, s = truth[truth > 0], proposal[truth > 0]
    pairs = list(itertools.product(range(len(t)), repeat=2))
    same = [(t[a] == t[b], a == b or s[a] == s[b] > 0) for a, b in pairs]
    assert partitions.pairs(partitions.overlap(truth, proposal)) == (
        sum(x and y for x, y in same),
        sum(x for x, _ in same),
        sum(y for _, y in same),
    )


def test_numbers_of_the_segments_do_not_matter():
    truth, proposal, *_ = CASES["mixed"]
    other = np.array([0, 900, 2, 70000])[truth], np.array([0, 4, 9, 1, 2])[proposal]
    one, two = partitions.overlap(truth, proposal), partitions.overlap(*other)
    assert partitions.rand(one) == pytest.approx(partitions.rand(two))
    assert partitions.information(one) == pytest.approx(partitions.information(two))


def test_split_and_merge_change_places_with_truth_and_proposal():
    truth, proposal = np.ones((4, 6), int), grid(*["111222"] * 4)
    there = partitions.rand(partitions.overlap(truth, proposal))
    back = partitions.rand(partitions.overlap(proposal, truth))
    assert there.f == back.f
    assert (there.split, there.merge) == (back.merge, back.split) == (0.5, 1)


def test_one_segment_has_no_information():
    # As the scorer decides: even the same single segment scores 0.
    one, two = np.ones((4, 5), int), grid(*["11122"] * 4)
    assert partitions.information(partitions.overlap(one, one)) == (0, 0, 1)
    assert partitions.information(partitions.overlap(one, two)) == (0, 1, 0)
    assert partitions.information(partitions.overlap(two, one)) == (0, 0, 1)
    nothing = partitions.overlap(np.zeros((4, 5), int), two)
    assert np.isnan(partitions.rand(nothing)).all()
    assert np.isnan(partitions.information(nothing)).all()
