"""Losses, metrics and optimizers against hand-computed and numpy numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from ml_collections import ConfigDict

from segjax import compilation, config, losses, metrics, optim
from segjax.errors import UserError


def test_cross_entropy_counts_valid_pixels_only():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 3, 5)).astype(np.uint8)
    labels[0, :2] = 255
    valid = labels != 255
    log_p = scipy.special.log_softmax(logits.astype(np.float64), -1)
    truth = np.take_along_axis(log_p, np.where(valid, labels, 0)[..., None], -1)
    total, count = losses.cross_entropy(logits, labels)
    assert count == valid.sum()
    np.testing.assert_allclose(total, -truth[valid].sum(), rtol=1e-6)

    weights = (1.0, 2.0, 0.0, 0.5)
    total, count = losses.cross_entropy(logits, labels, losses.Options(weights))
    w = np.array(weights)[labels[valid]]
    np.testing.assert_allclose(count, w.sum(), rtol=1e-6)
    np.testing.assert_allclose(total, -(w * truth[valid, 0]).sum(), rtol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize(
    "fields",
    [{}, {"class_weights": (1.0, 0.0, 2.5)}, {"hard_pixels": 4}, {"per_image": False}],
    ids=str,
)
def test_count_of_the_labels_is_what_the_loss_returns(name, fields):
    """Whatever the scores are: so it can be had before there are any."""
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, 2, 255], (2, 3, 5)).astype(np.uint8)
    options = losses.Options(**fields)
    expected = losses.count(losses.LOSSES[name], labels, 3, options)
    for scale in (0.1, 30.0):
        logits = scale * rng.normal(size=(2, 3, 5, 3)).astype(np.float32)
        assert losses.LOSSES[name](logits, labels, options)[1] == expected


def test_count_of_hard_pixels():
    labels = np.full((2, 3, 5), 255, np.uint8)
    for pixels, expected in ((4, 8), (100, 30)):
        options = losses.Options(hard_pixels=pixels)
        assert losses.count(losses.hard_pixels, labels, 3, options) == expected


def test_all_void_is_zero_with_finite_gradient():
    labels = np.full((1, 2, 2), 255, np.uint8)
    logits = jnp.full((1, 2, 2, 3), jnp.inf).at[..., 0].set(0.0)
    total, count = losses.cross_entropy(logits, labels)
    assert total == 0 and count == 0


def test_labels_are_center_cropped_to_valid_logits():
    labels = jnp.arange(64).reshape(1, 8, 8)
    assert losses.center_crop(labels, (4, 6)).tolist() == labels[:, 2:6, 1:7].tolist()
    with pytest.raises(ValueError, match="even"):
        losses.center_crop(labels, (5, 8))


def test_metrics_oracle():
    truth = np.array([[[0, 0, 1, 1], [0, 0, 1, 255], [2, 2, 1, 1], [2, 2, 2, 0]]])
    guess = np.array([[[0, 0, 1, 1], [0, 1, 1, 1], [2, 1, 1, 1], [2, 2, 0, 0]]])
    h = metrics.confusion(truth, guess, 3)
    assert h.tolist() == [[4, 1, 0], [0, 5, 0], [1, 1, 3]]
    scores = metrics.scores(h)
    assert scores["pixel_accuracy"] == pytest.approx(0.8)
    assert scores["mean_accuracy"] == pytest.approx(0.8)
    assert scores["miou"] == pytest.approx(0.6603174603)
    assert scores["fwiou"] == pytest.approx(0.6603174603)
    wider = metrics.scores(metrics.confusion(truth, guess, 4))
    assert np.isnan(wider["iou"][3])
    assert wider["miou"] == pytest.approx(0.6603174603)


def test_predicted_but_absent_class_counts_as_zero():
    h = metrics.confusion(np.array([[[0, 0], [1, 1]]]), np.array([[[0, 2], [1, 1]]]), 3)
    scores = metrics.scores(h)
    assert scores["iou"].tolist() == [0.5, 1.0, 0.0]
    assert scores["miou"] == 0.5
    assert (scores["mean_accuracy"], scores["fwiou"]) == (0.75, 0.75)


def test_set_statistics_are_not_image_means():
    h = metrics.confusion(
        np.array([[[0, 0, 0, 1]], [[1, 1, 1, 1]]]),
        np.array([[[0, 0, 0, 0]], [[1, 1, 1, 0]]]),
        2,
    )
    assert h.tolist() == [[3, 0], [2, 3]]
    assert metrics.scores(h)["miou"] == pytest.approx(0.6)
    assert metrics.scores(h)["mean_accuracy"] == pytest.approx(0.8)


def test_fcn_metric_oracle_and_baseline():
    h = np.array([[50, 3, 2], [4, 20, 1], [0, 5, 15]])
    scores = metrics.scores(h)
    assert scores["pixel_accuracy"] == pytest.approx(0.85)
    assert scores["mean_accuracy"] == pytest.approx(0.819697, abs=1e-6)
    assert scores["miou"] == pytest.approx(0.701897, abs=1e-6)
    assert scores["fwiou"] == pytest.approx(0.748052, abs=1e-6)
    baseline = metrics.majority_baseline(h)
    assert baseline["pixel_accuracy"] == pytest.approx(0.55)
    assert baseline["miou"] == pytest.approx(0.55 / 3)


def _options(**changes) -> ConfigDict:
    options = config.make(optim={"weight_decay": 0.0} | changes).optim
    return options


def test_schedules():
    poly = optim.schedule(_options(lr=0.01, power=0.9), 1000)
    assert poly(0) == pytest.approx(0.01)
    assert poly(1) == pytest.approx(0.00999099955)
    assert poly(500) == pytest.approx(0.00535886731)
    assert poly(1000) == 0
    step = optim.schedule(_options(lr=1.0, schedule="step", step_every=10), 100)
    assert [float(step(i)) for i in (0, 9, 10, 29)] == pytest.approx([1, 1, 0.1, 0.01])
    warm = optim.schedule(_options(lr=1.0, schedule="constant", warmup_steps=4), 100)
    assert [float(warm(i)) for i in (0, 1, 3, 4)] == [0.25, 0.5, 1.0, 1.0]


PARAMS = {
    "conv1_1": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])},
    "score": {"kernel": jnp.array([3.0]), "bias": jnp.array([-1.0])},
}


def _run(options, gradients):
    """Parameters after one step for each of ``gradients`` (floats for all leaves)."""
    optimizer = optim.create(options, PARAMS, 10)
    params, state = PARAMS, optimizer.init(PARAMS)
    for g in gradients:
        grads = jax.tree.map(lambda p, g=g: jnp.full_like(p, g), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", ["sgd", "caffe_sgd"])
def test_sgd_is_the_papers_formula(name):
    """Decay joins the gradient; Caffe keeps lr (and its changes) in the momentum."""
    options = _options(
        name=name,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
        schedule="step",
        step_every=1,
        step_factor=0.5,
        lr_mult=("score=10", "bias=2"),
    )
    found = _run(options, [1.0, -2.0, 0.5])
    for module, leaf, mult, decay in (
        ("conv1_1", "kernel", 1, 0.01),
        ("conv1_1", "bias", 2, 0.0),
        ("score", "kernel", 10, 0.01),
        ("score", "bias", 20, 0.0),
    ):
        w, h = np.array(PARAMS[module][leaf], np.float64), 0.0
        for t, g in enumerate([1.0, -2.0, 0.5]):
            lr = 0.1 * 0.5**t * mult
            g = g + decay * w
            if name == "caffe_sgd":
                h = 0.9 * h + lr * g
                w = w - h
            else:
                h = 0.9 * h + g
                w = w - lr * h
        np.testing.assert_allclose(found[module][leaf], w, rtol=1e-5)


def test_adam_and_clipping():
    options = _options(name="adam", lr=0.1, schedule="constant", momentum=0.9)
    params = _run(options, [3.0])  # the first Adam step is lr * sign
    np.testing.assert_allclose(params["conv1_1"]["kernel"], [0.9, -2.1], rtol=1e-5)
    options = _options(lr=1.0, schedule="constant", momentum=0.0, clip_norm=1.0)
    params = _run(options, [4.0])
    moved = jax.tree.map(lambda a, b: a - b, PARAMS, params)
    assert optax.tree.norm(moved) == pytest.approx(1.0, rel=1e-5)


def test_multiplier_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="socre"):
        optim.create(_options(lr_mult=("socre=10",)), PARAMS, 10)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"threads": -1}, "config.threads is -1; expected 0 or more"),
        ({"workers": -2}, "config.workers is -2; expected 0 or more"),
        ({"loss": {"aux_weight": -0.4}}, "loss.aux_weight is -0.4; expected 0"),
        ({"loss": {"aux_factor": 2.0}}, "loss.aux_factor is 2.0; expected above 0"),
        ({"loss": {"aux_every": 0}}, "loss.aux_every is 0; expected a positive"),
        ({"loss": {"aux_floor": 0.5}}, "from 0 to config.loss.aux_weight = 0.4"),
        ({"loss": {"hard_pixels": 0}}, "loss.hard_pixels is 0; expected a positive"),
        ({"loss": {"resolution": "half"}}, "expected one of full, output_stride"),
        (
            {"loss": {"name": "hard_pixels", "class_weights": (1.0, 2.0)}},
            r"loss.class_weights is \(1.0, 2.0\); expected \(\) with",
        ),
        ({"init_from": "nowhere"}, "a workdir of experiments.train or a file"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        config.check(config.make(**fields))


def test_another_model_name_alone_is_explained():
    changed = config.make()
    config.check(changed)
    changed.model_name = "fcn"
    with pytest.raises(UserError, match="'fcn', but config.model has the fields of an"):
        config.check(changed)


def test_earlier_names_of_fields_still_work(caplog):
    """In config files, in saved configs and on the command line; each says so."""
    old = config.make(accumulate=2, loss={"bootstrap": 9, "resolution": "cells"})
    assert old == config.make(
        grad_accum_steps=2,
        loss={"name": "hard_pixels", "hard_pixels": 9, "resolution": "output_stride"},
    )
    assert config.make(loss={"bootstrap": 0}) == config.make()
    assert "config.accumulate=2 is --config.grad_accum_steps=2 now" in caplog.text
    flags = ["train", "--config.accumulate=2", "-config.loss.bootstrap", "9", "--x=1"]
    assert config.rename_flags(flags) == [
        "train",
        "--config.grad_accum_steps=2",
        "--config.loss.name=hard_pixels",
        "--config.loss.hard_pixels=9",
        "--x=1",
    ]
    new = ["--config.loss.resolution=full", "--config.loss.name=cross_entropy"]
    assert config.rename_flags(new) == new


def test_precision_of_what_is_traced():
    x = jnp.ones((2, 2))
    for name in compilation.PRECISIONS:
        product = compilation.precision(name)(lambda x: x @ x)
        (dot,) = jax.make_jaxpr(product)(x).eqns
        found = dot.params["precision"]
        if name == "default":
            assert found is None
        else:
            wanted = {"tensorfloat32": "HIGH", "float32": "HIGHEST"}[name]
            assert found == (jax.lax.Precision[wanted],) * 2
    assert jax.make_jaxpr(lambda x: x @ x)(x).eqns[0].params["precision"] is None
