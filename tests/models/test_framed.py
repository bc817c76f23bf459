"""FCN with its padding computed once per batch: the numbers of the plain form."""

import jax
import numpy as np

from segjax import sharding
from segjax.analysis import counts, tracing
from segjax.analysis.summary import summary
from segjax.models import layers
from segjax.models.crfrnn import CRFRNN
from segjax.models.fcn import FCN

TINY = dict(widths=(4, 4, 4, 4, 4), fc_channels=8, dropout=0.0)


def variables_of(model, images):
    """Parameters and statistics as behind some training: no offset is 0."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: model.init(key, images, train=True))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name, x = path[-1].key, rng.standard_normal(leaf.shape)
        if name == "kernel":
            x *= np.sqrt(2 / np.prod(leaf.shape[:3]))
        elif name in ("scale", "var"):
            x = np.exp(0.2 * x)
        return np.float32(x)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images_of(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)


def check_close(expected, found, tolerance):
    leaves = jax.tree_util.tree_leaves_with_path
    for (path, x), (_, y) in zip(leaves(expected), leaves(found), strict=True):
        scale = np.ptp(np.float32(x)) if x.size > 1 else abs(x)
        error = np.abs(np.float32(x) - np.float32(y)).max() / scale
        assert error < tolerance, (jax.tree_util.keystr(path), error)


def outcome(model, variables, images):
    """Logits and endpoints, statistics, gradients of parameters and images."""
    weights = np.random.default_rng(2).standard_normal((*images.shape[:3], 3))

    def loss(params, images):
        outputs, updated = model.apply(
            {**variables, "params": params}, images, True, mutable=["batch_stats"]
        )
        return (outputs[0] * np.float32(weights)).sum(), (outputs, updated)

    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    return jax.tree.map(np.asarray, grad(variables["params"], images))


def test_same_maps_gradients_and_statistics_in_training():
    """With the images on two devices, whose statistics are those of all of them."""
    fields = TINY | dict(norm="batch", bn_momentum=0.7, bn_unbiased=True)
    plain, framed = (FCN(3, **fields, framed=form) for form in (False, True))
    images = images_of(4, 50, 37, 3)
    variables = variables_of(plain, images)
    expected = outcome(plain, variables, images)
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    images = jax.device_put(images, sharding.split(mesh))
    check_close(expected, outcome(framed, variables, images), 2e-5)


def test_same_scores_in_prediction():
    """With biases instead of batch normalization, and the running statistics."""
    images = images_of(1, 21, 64, 3)
    for norm in ("none", "batch"):
        model = FCN(3, **TINY, norm=norm)
        variables = variables_of(model, images)
        plain, framed = (
            jax.jit(model.clone(framed=form).apply, static_argnums=2)(
                variables, images, False
            )
            for form in (False, True)
        )
        check_close(plain, framed, 1e-5)


def test_bfloat16_is_as_close_to_float32_as_the_plain_form():
    fields = TINY | dict(norm="batch")
    images = images_of(2, 30, 64, 3)
    variables = variables_of(FCN(3, **fields), images)

    def run(**form):
        model = FCN(3, **fields, **form)
        apply = jax.jit(
            lambda x: model.apply(variables, x, True, mutable=["batch_stats"])
        )
        return jax.tree.leaves(jax.tree.map(np.float32, apply(images)))

    exact, plain, framed = (
        run(framed=False),
        *(run(framed=form, dtype="bfloat16") for form in (False, True)),
    )
    for x, *rounded in zip(exact, plain, framed, strict=True):
        errors = [np.sqrt(np.square(y - x).mean()) / np.ptp(x) for y in rounded]
        assert errors[1] < 1.3 * errors[0] + 1e-3 < 0.03


def test_where_the_field_has_an_effect():
    images = images_of(2, 50, 50, 3)
    variables = {
        norm: variables_of(FCN(3, **TINY, norm=norm), images)
        for norm in ("batch", "none")
    }

    def macs(train=True, norm="batch", **fields):
        model = FCN(3, **TINY, norm=norm, **fields)

        def run(x):
            return model.apply(variables[norm], x, train, mutable=["batch_stats"])

        return counts.macs(jax.make_jaxpr(run)(images).jaxpr)

    plain = macs(framed=False)
    assert macs() == macs(framed=True) < 0.3 * plain
    # Groups of images have frames of their own.
    with layers.bn_batch_size(1):
        assert macs() == plain
        assert macs(train=False) == macs(norm="none") == macs(framed=True, train=False)
        assert macs(train=False) < 0.3 * plain
    with layers.bn_batch_size(2):
        assert macs() < 0.3 * plain


def test_counts_are_those_of_the_plain_form():
    plain, framed = (
        summary(FCN(2, **TINY, framed=form), (40, 60, 3), activations=False)
        for form in (False, True)
    )
    assert framed.macs == plain.macs
    assert framed.computed_macs < 0.4 * plain.computed_macs
    layer = next(x for x in framed.layers if x.name == "backbone/conv1_2")
    assert layer.macs == 238 * 258 * 9 * 4 * 4
    # The window as the pooling needs it, and a blank image.
    rows = next(n for n in range(238 % 16, 238, 16) if n > 100)
    columns = next(n for n in range(258 % 16, 258, 16) if n > 100)
    assert layer.computed_macs == (46 * 66 + rows * columns) * 9 * 4 * 4
    both = CRFRNN(3, base="fcn", base_options=("skips=16",))
    assert "framed=False" in tracing.plain_form(both).base_options
