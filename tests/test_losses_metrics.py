"""Losses, metrics and optimizers against hand-computed and numpy numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from ml_collections import ConfigDict

from segjax import compilation, config, config_fields, losses, metrics, optim
from segjax.data import transforms
from segjax.errors import UserError
from segjax.ops import mean_field

ROOT = Path(__file__).parent.parent


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
    expected = losses.count(losses.LOSSES[name], labels, num_classes=3, options=options)
    for scale in (0.1, 30.0):
        logits = scale * rng.normal(size=(2, 3, 5, 3)).astype(np.float32)
        assert losses.LOSSES[name](logits, labels, options)[1] == expected


def test_absolute_error_is_that_of_a_sigmoid():
    """Of two classes; far from the truth and near it without cancellation."""
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 1, 255], (2, 3, 5)).astype(np.uint8)
    logits = 20 * rng.normal(size=(2, 3, 5, 2)).astype(np.float32)
    p = scipy.special.expit((logits[..., 1] - logits[..., 0]).astype(np.float64))
    valid = labels != 255
    total, count = losses.absolute_error(logits, labels)
    assert count == valid.sum()
    np.testing.assert_allclose(total, np.abs(p - labels)[valid].sum(), rtol=1e-6)


def test_count_of_hard_pixels():
    labels = np.full((2, 3, 5), 255, np.uint8)
    for pixels, expected in ((4, 8), (100, 30)):
        options = losses.Options(hard_pixels=pixels)
        assert (
            losses.count(losses.hard_pixels, labels, num_classes=3, options=options)
            == expected
        )


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


@pytest.mark.parametrize(
    "fields", [{"lr_mult": ("socre=10",)}, {"decay_exclude": ("bias", "socre")}]
)
def test_expression_that_matches_nothing_is_an_error(fields):
    (name,) = fields
    with pytest.raises(UserError, match=f"--config.optim.{name}: 'socre' matches no"):
        optim.create(_options(**fields), PARAMS, 10)


def test_default_expressions_may_match_nothing():
    """A network without batch normalization has no scales."""
    kernels = {"conv": {"kernel": jnp.ones(2)}}
    assert optim.decayed(kernels, optim.DECAY_EXCLUDE) == {"conv": {"kernel": True}}


@pytest.mark.parametrize("lr_floor", [0.0, 0.02])
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_schedules_are_their_formulas(warmup_steps, lr_floor):
    formulas = {
        "poly": lambda s: 0.05 * (1 - min(s, 40) / 40) ** 0.9,
        "step": lambda s: 0.05 * 0.3 ** (s // 7),
        "constant": lambda s: 0.05,
        "cosine": lambda s: 0.05 * (1 + np.cos(np.pi * min(s, 40) / 40)) / 2,
    }
    assert formulas.keys() == optim.SCHEDULES.keys()
    fields = dict(lr=0.05, step_every=7, step_factor=0.3, warmup_steps=warmup_steps)
    for name, formula in formulas.items():
        options = _options(schedule=name, lr_floor=lr_floor, **fields)
        rate = optim.schedule(options, 40)
        for step in (0, 1, 4, 5, 6, 7, 20, 21, 39, 40, 50):
            expected = max(formula(step), lr_floor)
            if warmup_steps:
                expected *= min(1, (step + 1) / warmup_steps)
            assert rate(step) == pytest.approx(expected, rel=1e-6, abs=1e-9), name


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"threads": -1}, "threads is -1; expected an integer from 0 to 1024"),
        ({"workers": -2}, "workers is -2; expected an integer from 0 to 1024"),
        (
            {"seed": 2**32},
            "seed is 4294967296; expected an integer from 0 to 429496",
        ),
        ({"seed": -1}, "seed is -1; expected an integer from 0"),
        ({"total_steps": 0}, "total_steps is 0; expected a positive integer"),
        ({"total_steps": 2**63}, "total_steps is 9223372036854775808; expected a pos"),
        ({"total_epochs": -1.0}, "total_epochs is -1.0; expected 0 to"),
        ({"tile": -4}, "tile is -4; expected"),
        ({"eval_images": -1}, "eval_images is -1; expected"),
        ({"batch_size": 2**63}, "batch_size is 9223372036854775808; expected an int"),
        ({"precision": "bfloat16"}, "precision: unknown value 'bfloat16'; "),
        ({"augment": {"flip": NAN}}, "augment.flip is nan; expected a number from 0"),
        ({"crf": {"relaxation": 0.0}}, "crf.relaxation is 0.0; expected above 0"),
        ({"crf": {"smoothness_sigma": INF}}, "crf.smoothness_sigma is inf; expected"),
        ({"data": {"name": "camvit"}}, "data.name: unknown value 'camvit'; did you"),
        ({"data": {"resize": (0, 5)}}, r"data.resize is \(0, 5\); expected two pos"),
        ({"data": {"void_values": (-1,)}}, r"data.void_values is \(-1,\); expected"),
        ({"data": {"scenes_train": 0}}, "data.scenes_train is 0; expected"),
        ({"loss": {"aux_weight": -0.4}}, "loss.aux_weight is -0.4; expected 0"),
        ({"loss": {"aux_weight": NAN}}, "loss.aux_weight is nan; expected 0 or more"),
        ({"loss": {"aux_factor": 2.0}}, "loss.aux_factor is 2.0; expected above 0"),
        ({"loss": {"aux_every": 0}}, "loss.aux_every is 0; expected a positive"),
        ({"loss": {"aux_floor": 0.5}}, "loss.aux_floor is 0.5; expected from 0 to --"),
        ({"loss": {"hard_pixels": 0}}, "loss.hard_pixels is 0; expected a positive"),
        (
            {"loss": {"name": "lovasz"}},
            "loss.name: unknown value 'lovasz'; did you",
        ),
        ({"loss": {"resolution": "half"}}, "loss.resolution: unknown value 'half'"),
        ({"loss": {"class_weights": (1.0, -2.0)}}, "loss.class_weights is .*not all 0"),
        ({"loss": {"class_weights": (1.0, NAN)}}, "loss.class_weights is .*not all 0"),
        ({"loss": {"class_weights": (0.0, 0.0)}}, "loss.class_weights is .*not all 0"),
        ({"loss": {"class_weights": ("a",)}}, "loss.class_weights is .*not all 0"),
        (
            {"loss": {"name": "hard_pixels", "class_weights": (1.0, 2.0)}},
            r"loss.class_weights is \(1.0, 2.0\); expected \(\) with",
        ),
        (
            {"loss": {"name": "soft_dice", "normalize": "images"}},
            "loss.normalize is 'images'; expected 'pixels' with",
        ),
        ({"optim": {"lr": -0.1}}, "optim.lr is -0.1; expected 0 or more, and finite"),
        ({"optim": {"lr": NAN}}, "optim.lr is nan; expected 0 or more, and finite"),
        ({"optim": {"lr_floor": 0.1}}, "optim.lr_floor is 0.1; expected at most"),
        ({"optim": {"momentum": 2.0}}, "optim.momentum is 2.0; expected from 0 to bel"),
        (
            {"optim": {"name": "adam", "nesterov": True}},
            "optim.nesterov is True; expected False with --config.optim.name=adam",
        ),
        (
            {"optim": {"name": "nadam", "nesterov": True}},
            "optim.nesterov is True; expected False with --config.optim.name=nadam",
        ),
        (
            {"optim": {"momentum": 0.0, "nesterov": True}},
            "optim.nesterov is True; expected False with .*momentum=0.0",
        ),
        ({"optim": {"b2": 1.0}}, "optim.b2 is 1.0; expected from 0 to below 1"),
        ({"optim": {"warmup_steps": -1}}, "optim.warmup_steps is -1; expected 0 or"),
        ({"optim": {"weight_decay": -1.0}}, "optim.weight_decay is -1.0; expected 0"),
        ({"optim": {"clip_norm": -1.0}}, "optim.clip_norm is -1.0; expected 0 or more"),
        ({"optim": {"name": "adma"}}, "optim.name: unknown value 'adma'; did you mean"),
        ({"optim": {"lr_mult": ("(=2",)}}, "optim.lr_mult is .*valid regular"),
        ({"optim": {"lr_mult": ("fc=nan",)}}, "optim.lr_mult is .*valid regular"),
        ({"optim": {"lr_mult": ("=2",)}}, "optim.lr_mult is .*valid regular"),
        (
            {"optim": {"decay_exclude": ("[",)}},
            "optim.decay_exclude is .*valid",
        ),
        ({"optim": {"decay_exclude": ("",)}}, "optim.decay_exclude is .*not empty"),
        (
            {"data": {"resize_labels": "majority"}},
            "data.resize_labels is 'majority'; expected 'nearest' with",
        ),
        (
            {"data": {"resize_labels": "most", "resize": (8, 8)}},
            "data.resize_labels: unknown value 'most'; .*known: majority, nearest",
        ),
    ],
)
def test_bad_fields_are_named(fields, message):
    """By the flag that sets them."""
    with pytest.raises(UserError, match=f"^--config.{message}"):
        config.check(config.make(**fields))


def test_what_a_run_began_with_is_needed_by_runs_that_begin():
    """Not by evaluate, predict or a continued run, which may be on another machine."""
    moved = config.make(init_from="nowhere")
    config.check(moved)
    with pytest.raises(UserError, match="init_from is 'nowhere'; expected a workdir"):
        config.check_start(moved)


def test_every_default_is_in_its_range_and_every_field_has_a_meaning():
    config.check(config.make())
    for name, field in config_fields.flatten().items():
        assert field.meaning, name
        assert field.range.expected and field.range.accepts(field.default), name


def test_ranges_refuse_other_types_than_that_of_the_default():
    """A value may come from a file: a list of texts where numbers are expected."""
    for name, field in config_fields.flatten().items():
        if isinstance(field.default, tuple):
            assert not field.range.accepts((object(),)), name
        elif isinstance(field.default, int | float):
            assert not field.range.accepts("1"), name


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"loss": 5}, "--config.loss is 5; expected a group of fields"),
        ({"model": 5}, "--config.model is 5; expected a group of fields"),
        ({"optim": {"lr": 10**400}}, "--config.optim.lr is inf; expected 0 or more"),
        ({"batch_size": 4.0}, "--config.batch_size is 4.0; expected int, such as 8"),
        ({"optim": {"momentun": 1}}, "--config.optim: unknown value 'momentun'; did"),
    ],
)
def test_values_of_wrong_types_are_named(fields, message):
    with pytest.raises(UserError, match=f"^{message}"):
        config.check(config.make(**fields))


def test_defaults_stand_in_one_place():
    augment = config.DEFAULTS["augment"]
    crf = config.DEFAULTS["crf"]
    made = transforms.options(augment, (1.0, 2.0, 3.0))
    assert made == transforms.Options(fill=(1.0, 2.0, 3.0))
    assert crf == mean_field.Settings()._asdict()


def test_fields_are_documented():
    """docs/config.md is what the table of fields says (`make docs`)."""
    assert (ROOT / "docs/config.md").read_text() == config_fields.table()
    lines = config_fields.help_text().splitlines()[1:]
    names = [line.split("=")[0].removeprefix("  --config.") for line in lines]
    assert names == list(config_fields.flatten())


def test_empty_tuples_of_the_command_line():
    """``--config.optim.decay_exclude=`` means no expression, not the empty one."""
    flags = ["train", "--config.optim.decay_exclude=", "--config.init_from="]
    found = config.normalize_flags(flags)
    assert found == ["train", "--config.optim.decay_exclude=()", "--config.init_from="]


def test_epochs_in_steps():
    for epochs, images, steps in ((0.0, 30, 7), (2.0, 30, 8), (0.1, 30, 1), (3, 24, 9)):
        options = config.make(total_epochs=epochs, total_steps=7, batch_size=8)
        assert config.count_steps(options, images) == steps
    assert config.count_steps(config.make(total_epochs=1.1, batch_size=10), 100) == 11
    with pytest.raises(
        UserError, match="total_epochs is 1000000.0, which are 10000000"
    ):
        config.count_steps(config.make(total_epochs=1e6, batch_size=1), 10**7)


def test_a_number_of_steps_on_the_command_line_replaces_epochs():
    flags = ["train", "--config.total_steps=5"]
    epochs = "--config.total_epochs=2"
    found = config.normalize_flags(flags)
    assert found == ["train", "--config.total_epochs=0", "--config.total_steps=5"]
    assert config.normalize_flags(found) == found
    assert config.normalize_flags([*flags, epochs]) == [*flags, epochs]


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
    assert config.normalize_flags(flags) == [
        "train",
        "--config.grad_accum_steps=2",
        "--config.loss.name=hard_pixels",
        "--config.loss.hard_pixels=9",
        "--x=1",
    ]
    new = ["--config.loss.resolution=full", "--config.loss.name=cross_entropy"]
    assert config.normalize_flags(new) == new


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
