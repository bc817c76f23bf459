"""Lovász-Softmax and soft Dice against their definitions, in NumPy."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from segjax import config, losses, training
from segjax.ops import geometry

VOID = 255


def jaccard(wrong, truth):
    """1 - IoU of a class: mispredicted pixels `wrong` and its pixels `truth`, sets."""
    union = truth | wrong
    return len(wrong) / len(union) if union else 0.0


def lovasz_extension(errors, truth):
    """The convex closure of the Jaccard loss at errors [P] in [0, 1], by brute force.

    The Jaccard loss is submodular in the set of mispredicted pixels, so its Lovász
    extension is its convex closure, the support function of the base polytope: the
    largest value that a greedy vertex has, over all orders of the pixels.
    """
    best = -np.inf
    for order in itertools.permutations(range(len(errors))):
        value, wrong, before = 0.0, set(), 0.0
        for pixel in order:
            wrong = wrong | {pixel}
            after = jaccard(wrong, truth)
            value += errors[pixel] * (after - before)
            before = after
        best = max(best, value)
    return best


def dice(p, truth):
    """One minus V-Net's soft Dice of a class: p [P] and truth [P] in {0, 1}."""
    return 1 - 2 * (p * truth).sum() / ((p**2).sum() + (truth**2).sum())


def region_loss(name, p, labels, weights):
    """Mean over the classes that occur; p [P, K], labels [P]. None without any."""
    p, labels = p[labels != VOID], labels[labels != VOID]
    total, values = 0.0, 0.0
    for k in np.unique(labels):
        truth = labels == k
        if name == "soft_dice":
            value = dice(p[:, k], truth.astype(float))
        else:
            errors = np.abs(truth - p[:, k])
            value = lovasz_extension(errors, set(np.flatnonzero(truth).tolist()))
        total += weights[k]
        values += weights[k] * value
    return values / total if total else None


def batch_of(rng, n=3, height=2, width=3, classes=3):
    labels = rng.choice([*range(classes), VOID], (n, height, width)).astype(np.uint8)
    labels[0] = VOID  # an image without labels
    labels[1, 0] = 1  # one without class 0
    labels[1, 1] = [1, 2, VOID]
    logits = rng.normal(0, 2, (n, height, width, classes)).astype(np.float32)
    return logits, labels


WEIGHTS = [(), (1.0, 0.5, 3.0), (2.0, 0.0, 0.0)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("name", ["lovasz_softmax", "soft_dice"])
def test_losses_on_regions_are_their_definitions(name, weights):
    """Over images: a mean over those with labels.  Over the batch: one region."""
    logits, labels = batch_of(np.random.default_rng(0))
    # The brute force has 6! orders; the batch as a whole gets two images of 3 pixels.
    p = scipy.special.softmax(logits.astype(np.float64), -1).reshape(3, 6, 3)
    flat = labels.reshape(3, 6)
    w = np.array(weights or (1.0, 1.0, 1.0))

    images = [region_loss(name, a, b, w) for a, b in zip(p, flat)]
    images = [value for value in images if value is not None]
    total, count = losses.LOSSES[name](logits, labels, losses.Options(weights))
    assert count == len(images) and (weights or len(images) == 2)
    np.testing.assert_allclose(total, sum(images), rtol=1e-5)

    few = np.s_[1:, :1]
    whole = region_loss(
        name, p.reshape(3, 2, 3, 3)[few].reshape(6, 3), labels[few].ravel(), w
    )
    options = losses.Options(weights, per_image=False)
    total, count = losses.LOSSES[name](logits[few], labels[few], options)
    if whole is None:
        assert total == count == 0
    else:
        assert count == (labels[few] != VOID).sum()
        np.testing.assert_allclose(total / count, whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["lovasz_softmax", "soft_dice"])
def test_limits(name):
    """0 for a certain and right prediction, 1 for a certain and wrong one."""
    labels = np.array([[[0, 1, 1, VOID]]], np.uint8)
    right = 200.0 * np.eye(2)[[[[0, 1, 1, 0]]]]
    for logits, expected in ((right, 0), (-right, 1)):
        total, count = losses.LOSSES[name](jnp.float32(logits), labels)
        assert count == 1 and total == pytest.approx(expected, abs=1e-6)


def test_lovasz_of_a_hard_prediction_is_one_minus_iou():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (1, 9, 9)).astype(np.uint8)
    guess = np.where(rng.random((1, 9, 9)) < 0.6, labels, rng.integers(0, 4, (1, 9, 9)))
    iou = [
        ((labels == k) & (guess == k)).sum() / ((labels == k) | (guess == k)).sum()
        for k in range(4)
    ]
    total, _ = losses.lovasz_softmax(jnp.float32(200 * np.eye(4)[guess]), labels)
    assert total == pytest.approx(1 - np.mean(iou), rel=1e-5)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("name", ["lovasz_softmax", "soft_dice"])
def test_gradients_on_regions_against_differences(name, per_image):
    """And none in void pixels, and finite ones where everything is void."""
    logits, labels = batch_of(np.random.default_rng(2))
    options = losses.Options((1.0, 0.5, 3.0), per_image=per_image)

    def loss(logits):
        return losses.LOSSES[name](logits, labels, options)[0]

    slopes = jax.jit(jax.grad(loss))(jnp.asarray(logits))
    assert (np.asarray(slopes)[labels == VOID] == 0).all()
    assert np.isfinite(slopes).all() and np.abs(slopes).max() > 1e-3
    direction = np.random.default_rng(3).normal(size=logits.shape).astype(np.float32)
    step = 1e-2
    found = (
        (loss(logits + step * direction) - loss(logits - step * direction)) / 2 / step
    )
    np.testing.assert_allclose(found, np.sum(slopes * direction), rtol=2e-2)


class Linear(nn.Module):
    """Scores of a pixel that are linear in its three channels."""

    num_classes = 3
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        del train
        weights = self.param("weights", jax.nn.initializers.normal(2.0), (3, 3))
        return images.astype(jnp.float32) / 255 @ weights, {}


@pytest.mark.parametrize("name", ["lovasz_softmax", "soft_dice"])
def test_training_steps_on_regions_whatever_the_micro_batches(name):
    """config.loss reaches the loss; a mean over all images with labels."""
    rng = np.random.default_rng(4)
    _, labels = batch_of(rng, n=4)
    batch = {
        "image": rng.integers(0, 256, (4, 2, 3, 3)).astype(np.uint8),
        "label": labels,
    }
    state = training.create_state(
        Linear(), lambda _: optax.identity(), image_shape=(2, 3, 3), seed=0
    )
    scores = batch["image"] / 255 @ np.asarray(state.params["weights"], np.float64)
    p = scipy.special.softmax(scores, -1).reshape(4, 6, 3)
    weights = (1.0, 0.5, 3.0)
    images = [
        region_loss(name, a, b, np.array(weights))
        for a, b in zip(p, labels.reshape(4, 6))
    ]
    expected = np.mean([value for value in images if value is not None])
    options = config.make(loss={"name": name, "class_weights": weights}).loss
    moves = []
    for parts in (1, 2):
        step = training.make_step(
            Linear(), optax.scale(-1.0), options=options, seed=0, grad_accum_steps=parts
        )
        after, values = jax.jit(step)(state, batch)
        assert values["loss"] == pytest.approx(expected, rel=1e-5)
        moves.append(after.params["weights"])
    np.testing.assert_allclose(*moves, rtol=1e-4, atol=1e-6)

    options.per_image = False
    step = training.make_step(Linear(), optax.scale(-1.0), options=options, seed=0)
    whole = losses.Options(weights, per_image=False)
    total, count = losses.LOSSES[name](jnp.float32(scores), labels, whole)
    assert jax.jit(step)(state, batch)[1]["loss"] == pytest.approx(
        float(total / count), rel=1e-5
    )


def test_small_class_weights_are_divided_out():
    """Weights matter in proportion to each other only, however small they are."""
    logits, labels = batch_of(np.random.default_rng(5), n=4)
    batch = {"image": np.full((4, 2, 3, 3), 100, np.uint8), "label": labels}
    state = training.create_state(
        Linear(), lambda _: optax.identity(), image_shape=(2, 3, 3), seed=0
    )
    found = []
    for scale in (1.0, 1e-6):
        weights = tuple(scale * w for w in (1.0, 0.5, 3.0))
        options = config.make(loss={"class_weights": weights}).loss
        step = training.make_step(Linear(), optax.identity(), options=options, seed=0)
        found.append(float(step(state, batch)[1]["loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] > 0.1
