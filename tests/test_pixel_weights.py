"""Weights of pixels: a pixel of weight w counts as w pixels, in every loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import nll, run

from segjax import losses, sharding

VOID = 255


def example(rng, pixels=9, classes=3):
    """One row of pixels with void ones, and whole weights to be added."""
    logits = rng.normal(0, 2, (2, 1, pixels, classes)).astype(np.float32)
    labels = rng.choice([0, 1, 2, VOID], (2, 1, pixels)).astype(np.uint8)
    labels[:, 0, :4] = [0, 1, 2, VOID]
    added = rng.integers(0, 4, (2, 1, pixels)).astype(np.float32)
    added[:, 0, 3] = 7  # of a void pixel, which counts all the same as nothing
    return logits, labels, added


def repeated(logits, labels, added):
    """Every pixel 1 + added times; void fills the rows up."""
    rows = [np.repeat(np.arange(a.size), 1 + a.ravel().astype(int)) for a in added]
    width = 8 * added.shape[-1]  # the most there can be: one shape for all examples
    wide = np.zeros((len(rows), 1, width, logits.shape[-1]), np.float32)
    ids = np.full((len(rows), 1, width), VOID, np.uint8)
    for i, row in enumerate(rows):
        wide[i, 0, : len(row)], ids[i, 0, : len(row)] = (
            logits[i, 0, row],
            labels[i, 0, row],
        )
    return wide, ids


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("name", ["cross_entropy", "lovasz_softmax", "soft_dice"])
def test_a_pixel_of_weight_w_counts_as_w_pixels(name, per_image):
    options = losses.Options(per_image=per_image)

    @jax.jit
    def loss(logits, labels, added=None):
        return losses.LOSSES[name](logits, labels, options, added)

    for seed in range(5):
        logits, labels, added = example(np.random.default_rng(seed))
        total, count = loss(logits, labels, added)
        wide_total, wide_count = loss(*repeated(logits, labels, added))
        np.testing.assert_allclose(total / count, wide_total / wide_count, rtol=2e-5)
        if name == "cross_entropy":
            np.testing.assert_allclose(count, wide_count)
        plain_total, plain_count = loss(logits, labels)
        assert abs(total / count - plain_total / plain_count) > 1e-4
        # Weights of zero change no bit but those of sums in another order.
        none, _ = loss(logits, labels, np.zeros_like(added))
        np.testing.assert_allclose(none, plain_total, rtol=1e-6)


@pytest.mark.parametrize("name", ["lovasz_softmax", "soft_dice"])
def test_gradients_of_weighted_regions_against_differences(name):
    logits, labels, added = example(np.random.default_rng(1))

    def value(x):
        total, count = losses.LOSSES[name](x, labels, losses.DEFAULT, added)
        return total / count

    gradient = np.asarray(jax.grad(value)(jnp.asarray(logits)))
    rng, step = np.random.default_rng(0), 2e-3
    for _ in range(3):
        along = rng.normal(size=logits.shape).astype(np.float32)
        slope = (value(logits + step * along) - value(logits - step * along)) / 2 / step
        np.testing.assert_allclose(
            (gradient * along).sum(), slope, rtol=0.02, atol=1e-3
        )


def test_class_weights_and_added_weights_are_summed():
    logits, labels, added = example(np.random.default_rng(2))
    classes = np.array([0.5, 2.0, 0.0])
    total, count = losses.cross_entropy(
        logits, labels, losses.Options(tuple(classes)), added
    )
    valid = labels != VOID
    weight = np.where(valid, classes[np.where(valid, labels, 0)] + added, 0)
    np.testing.assert_allclose(count, weight.sum(), rtol=1e-6)
    np.testing.assert_allclose(total, (weight * nll(logits, labels)).sum(), rtol=1e-6)


def test_hardest_pixels_by_their_weighted_loss():
    logits, labels, added = example(np.random.default_rng(3))
    options = losses.Options(hard_pixels=4)
    total, count = losses.hard_pixels(logits, labels, options, added)
    weighted = ((1 + added) * nll(logits, labels)).reshape(2, -1)
    assert count == 8
    np.testing.assert_allclose(total, np.sort(weighted)[:, -4:].sum(), rtol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_weights_are_cropped_with_the_labels_of_valid_networks(name):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, (2, 8, 8)).astype(np.uint8)
    added = rng.random((2, 8, 8)).astype(np.float32)
    logits = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    inner = np.s_[:, 2:6, 1:7]
    loss, options = losses.LOSSES[name], losses.Options(hard_pixels=5)
    given = loss(logits, labels, options, added)
    expected = loss(logits, labels[inner], options, added[inner])
    np.testing.assert_array_equal(given, expected)
    count = losses.count(
        loss, labels[inner], num_classes=3, options=options, added=added[inner]
    )
    np.testing.assert_allclose(count, given[1], rtol=1e-6)


def test_training_steps_with_weights_whatever_the_devices_and_parts(monkeypatch):
    put = sharding.put

    def weighted(batch, mesh):
        # ``run`` makes the batches; the weights are those of its images.
        rng = np.random.default_rng(int(batch["label"].sum()))
        added = rng.gamma(0.3, 4, batch["label"].shape).astype(np.float32)
        sent = put(batch | {"added_weight": added, "id": np.array(["x"])}, mesh)
        assert sent.keys() == {"image", "label", "added_weight"}
        return sent

    plain, _ = run(norm=False)
    monkeypatch.setattr(sharding, "put", weighted)
    whole, _ = run(norm=False)
    assert not np.allclose(whole, plain, rtol=1e-3)
    for more in ({"devices": 1}, {"grad_accum_steps": 2}):
        np.testing.assert_allclose(run(norm=False, **more)[0], whole, rtol=1e-5)
