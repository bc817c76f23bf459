"""The E-step of WSSL: a worked example, NumPy by the published steps, and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.weak import latent

ADAPT = latent.Options(em="adapt", em_foreground_share=0.4)


def infer(scores, present, labels=None, seed=0, **options):
    """Labels [N, h, w] of scores [N, h, w, K]."""
    if labels is None:
        labels = np.zeros(scores.shape[:-1], np.uint8)
    found = latent.infer(
        jnp.asarray(scores, jnp.float32),
        jnp.asarray(labels),
        jnp.asarray(present),
        options=latent.Options(**options),
        key=jax.random.key(seed),
    )
    return np.asarray(found)


def random_scores(n=3, height=4, width=5, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (n, height, width, classes)).astype(np.float32)


PRESENT = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 1]], np.uint8)


def test_adapt_on_an_example_worked_by_hand():
    """3 classes, 5 pixels, classes 0 and 2 present, shares of .2 and .4, one round."""
    rows = [[3, 3, 3, 3, 3], [4, 0, 0, 0, 0], [1, 2, 0, 2.5, 1]]
    scores = np.array(rows, np.float32).T[None]  # [1, 5, 3]
    found = latent.adapt_scores(
        jnp.asarray(scores),
        jnp.ones((1, 5), bool),
        jnp.array([True, False, True]),
        options=ADAPT,
        key=jax.random.key(0),
    )
    expected = [
        [2.5, 2.5, 2.5, 2.5, 2.5],
        [0.49999, -0.5, -0.50001, -0.5, -0.5],
        [2.5, 3.5, 1.5, 4, 2.5],
    ]
    np.testing.assert_allclose(np.asarray(found)[0].T, expected, atol=2e-6)
    shares = {"em_background_share": 0.2, "em_foreground_share": 0.4}
    label = infer(scores[None], [[1, 0, 1]], em="adapt", **shares)
    assert label.tolist() == [[[0, 2, 0, 2, 0]]]


def adapt_numpy(scores, present, order, o):
    """The published steps in float64 on [P, K], in a given order of the classes."""
    scores = scores.astype(np.float64)
    shown = np.flatnonzero(present)
    if o.em_suppress:
        for k in set(range(scores.shape[1])) - set(shown):
            limit = scores[:, shown].min(1) - latent.MARGIN
            scores[:, k] = np.minimum(scores[:, k], limit)
    before = scores[:, shown].max(1).mean()
    for k in order:
        if not present[k]:
            continue
        share = o.em_foreground_share if k else o.em_background_share
        missing = np.sort(scores[:, shown].max(1) - scores[:, k])
        scores[:, k] += missing[min(int(share * len(scores)), len(scores) - 1)]
    return scores + before - scores[:, shown].max(1).mean()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"em_background_share": 0.7},
        {"em_foreground_share": 1.0},
        {"em_suppress": False},
        {"em_iterations": 3},
    ],
)
def test_adapt_against_numpy_with_one_foreground_class(change):
    """With one class besides the background its order is known."""
    o = latent.Options(em="adapt")._replace(**change)
    scores, present = random_scores(1)[0], np.array([True, False, True, False])
    found = latent.adapt_scores(
        jnp.asarray(scores),
        jnp.ones(scores.shape[:2], bool),
        jnp.asarray(present),
        options=o,
        key=jax.random.key(1),
    )
    order = [0, 2] * o.em_iterations
    expected = adapt_numpy(scores.reshape(-1, 4), present, order, o)
    np.testing.assert_allclose(
        np.asarray(found).reshape(-1, 4), expected, rtol=1e-5, atol=1e-5
    )


def test_adapt_visits_the_foreground_in_random_order_of_the_key():
    scores, present = random_scores(1, classes=3)[0], np.array([True] * 3)
    o = latent.Options(em="adapt", em_background_share=0.3, em_foreground_share=0.5)
    expected = [
        adapt_numpy(scores.reshape(-1, 3), present, order, o)
        for order in ([0, 1, 2], [0, 2, 1])
    ]
    seen = set()
    for seed in range(8):
        found = latent.adapt_scores(
            jnp.asarray(scores),
            jnp.ones(scores.shape[:2], bool),
            jnp.asarray(present),
            options=o,
            key=jax.random.key(seed),
        )
        found = np.asarray(found).reshape(-1, 3)
        seen.add(tuple(np.allclose(found, e, atol=1e-4) for e in expected))
    assert seen == {(True, False), (False, True)}


def test_the_class_visited_last_has_its_share_and_void_pixels_do_not_count():
    scores, share = random_scores(1, 6, 7, 2, seed=4)[0], 0.35
    scores[..., 0] += 5  # the foreground would win nowhere
    valid = np.arange(42).reshape(6, 7) % 3 > 0
    found = latent.adapt_scores(
        jnp.asarray(scores),
        jnp.asarray(valid),
        jnp.array([True, True]),
        options=latent.Options(em="adapt", em_foreground_share=share),
        key=jax.random.key(0),
    )
    found = np.asarray(found)
    won = (found[..., 1] >= found[..., 0] - 1e-5)[valid]
    # The order statistic, no more: one pixel above the share, rounded down.
    assert won.sum() == int(share * valid.sum()) + 1
    # Scores of void pixels do not change the bias.
    other = np.where(valid[..., None], scores, 100 * scores)
    again = latent.adapt_scores(
        jnp.asarray(other),
        jnp.asarray(valid),
        jnp.array([True, True]),
        options=latent.Options(em="adapt", em_foreground_share=share),
        key=jax.random.key(0),
    )
    np.testing.assert_allclose(np.asarray(again)[valid], found[valid], atol=1e-6)


def test_fixed_without_bias_is_the_best_of_the_present_classes():
    scores = random_scores()
    zero = {"em_background_bias": 0.0, "em_foreground_bias": 0.0}
    found = infer(scores, PRESENT, em="fixed", **zero)
    allowed = np.where(PRESENT[:, None, None] > 0, scores, -np.inf)
    assert (found == allowed.argmax(-1)).all()
    free = infer(scores, PRESENT, em="fixed", em_suppress=False, **zero)
    assert (free == scores.argmax(-1)).all() and (free != found).any()


def test_fixed_adds_the_biases_to_present_classes_alone():
    scores = random_scores()
    bias = np.array([0.5, 2.5, 2.5, 2.5]) * PRESENT[:, None, None]
    found = infer(
        scores,
        PRESENT,
        em="fixed",
        em_background_bias=0.5,
        em_foreground_bias=2.5,
        em_suppress=False,
    )
    assert (found == (scores + bias).argmax(-1)).all()


def test_fixed_in_boxes_raises_a_class_in_its_boxes_alone():
    scores, labels = random_scores(), np.zeros((3, 4, 5), np.uint8)
    labels[0, 1:3, 1:4] = 2
    labels[2, :2, :3] = 3
    found = infer(scores, PRESENT, labels, em="box_fixed")
    inside = (scores + [1, 2, 2, 2]).copy()
    for k in range(1, 4):
        inside[..., k][labels != k] = -np.inf
    assert (found == inside.argmax(-1)).all()
    assert not found[labels == 0].any() and (found != labels).any()
    free = infer(scores, PRESENT, labels, em="box_fixed", em_suppress=False)
    raised = scores + np.array([1, 0, 0, 0])
    for k in range(1, 4):
        raised[..., k] += 2 * (labels == k)
    assert (free == raised.argmax(-1)).all()


@pytest.mark.parametrize("em", ["fixed", "adapt", "box_fixed"])
def test_full_labels_and_void_stay(em):
    scores, present = random_scores(), PRESENT.copy()
    labels = np.random.default_rng(1).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    labels[:, 0] = 255
    present[1] = 0  # an image with full labels
    found = infer(scores, present, labels, em=em)
    assert found.dtype == np.uint8
    assert (found[1] == labels[1]).all()
    assert ((found == 255) == (labels == 255)).all()
    assert (found[[0, 2]] != labels[[0, 2]]).any()
    absent = {0: {1, 3}, 2: {1, 2}}
    for n, classes in absent.items():
        assert not classes & set(np.unique(found[n]))


def test_no_gradient_flows_through_the_labels():
    scores = jnp.asarray(random_scores())

    def total(scores):
        labels = latent.infer(
            scores,
            jnp.zeros(scores.shape[:-1], jnp.uint8),
            jnp.asarray(PRESENT),
            options=ADAPT,
            key=jax.random.key(0),
        )
        return labels.astype(jnp.float32).sum()

    assert not np.asarray(jax.grad(total)(scores)).any()
