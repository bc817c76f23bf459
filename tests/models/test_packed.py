"""Networks whose layers of 64 channels are on pairs of pixels: the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import layers
from segjax.models.deeplab import DeepLab
from segjax.models.fcn import FCN
from segjax.models.pspnet import PSPNet
from segjax.models.unet import UNet

UNET = dict(num_classes=3, widths=(4, 5, 6))
FCN8 = dict(
    num_classes=2,
    widths=(4, 5, 6, 7, 8),
    fc_channels=8,
    dropout=0.0,
    pad=81,
    image_stats="unit",
    framed=False,
)
FRAMED = FCN8 | dict(framed=True, norm="batch", only="pool5", skips=32)
PSP = dict(
    num_classes=3,
    stage_sizes=(1, 1, 0, 0),
    width=4,
    bins=(2,),
    pyramid_channels=3,
    head_channels=5,
    dropout=0.0,
    aux=False,
)
DEEPLAB = dict(
    num_classes=2,
    backbone="resnet50",
    stage_sizes=(1, 1, 0, 0),
    width=4,
    rates=(2,),
    half_pixel=True,
)
RESNET = dict(num_classes=2, backbone="resnet18", widths=(4,), skips=32, dropout=0.0)
CASES = {
    "deeplab, ceil": (DeepLab, DEEPLAB, (2, 32, 44, 3)),
    "fcn, resnet18": (FCN, RESNET, (2, 37, 70, 3)),
    "pspnet": (PSPNet, PSP | dict(bn_unbiased=True), (3, 33, 41, 3)),
    "valid": (UNet, UNET, (2, 44, 60, 1)),
    "same, batch": (UNet, UNET | dict(padding="same", norm="batch"), (2, 16, 20, 3)),
    "released": (UNet, UNET | dict(layout="released"), (1, 44, 44, 1)),
    "nearest": (UNet, UNET | dict(padding="same", upsampling="nearest"), (1, 8, 12, 1)),
    "dropout in level 0": (
        UNet,
        UNET | dict(padding="same", widths=(4, 6)),
        (1, 8, 8, 1),
    ),
    "one level": (UNet, UNET | dict(padding="same", widths=(4,)), (1, 7, 9, 1)),
    "fcn, framed": (FCN, FRAMED, (2, 34, 37, 3)),
    "fcn": (FCN, FCN8 | dict(norm="batch", bn_unbiased=True), (6, 34, 37, 3)),
    "fcn, even": (FCN, FCN8, (1, 33, 34, 3)),
}


def step(model, variables, images):
    """Logits, endpoints, gradients and statistics of a training step."""

    def loss(params):
        (logits, ends), updated = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(2)},
            mutable=["batch_stats"],
        )
        weights = np.random.default_rng(1).standard_normal(logits.shape)
        total = (logits * weights.astype(np.float32)).sum()
        return total, (logits, ends, updated)

    (_, rest), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return gradients, *rest


def variables_of(model, images):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(lambda: model.init(keys, images, train=True))()
    # Biases and score layers start at zero; they should matter.
    keys = iter(jax.random.split(jax.random.key(3), 1000))
    return jax.tree.map(
        lambda x: x + 0.1 * jax.random.uniform(next(keys), x.shape), variables
    )


@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name):
    make, fields, shape = CASES[name]
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    plain, pairs = make(**fields), make(**fields, packed=True)
    variables = variables_of(plain, images)
    # fc6 of this FCN normalizes over six values, which amplifies rounding.
    tolerance = 1e-3 if name == "fcn" else 2e-4
    shapes = [
        jax.eval_shape(lambda model=model: variables_of(model, images))
        for model in (plain, pairs)
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    expected, found = (
        jax.jit(lambda variables, model=model: step(model, variables, images))(
            variables
        )
        for model in (plain, pairs)
    )
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    # Normalized over few values some gradients are nearly nothing but rounding.
    noise = 1e-6 * max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        bound = tolerance * np.abs(x).max() + noise
        np.testing.assert_allclose(y, x, rtol=0, atol=bound)


def test_first_values():
    """Both forms initialize all parameters alike."""
    make, fields, shape = CASES["same, batch"]
    images = jnp.zeros(shape, jnp.uint8)

    def start(form):
        model = make(**fields, packed=form)
        return jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()

    first, second = start(False), start(True)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_running_statistics_and_groups():
    make, fields, shape = CASES["same, batch"]
    images = np.random.default_rng(0).integers(0, 256, (4, *shape[1:]), np.uint8)
    plain, pairs = make(**fields), make(**fields, packed=True)
    variables = variables_of(plain, images)

    def scores(model):
        return jax.jit(lambda v: model.apply(v, images, train=False)[0])(variables)

    expected = scores(plain)
    np.testing.assert_allclose(scores(pairs), expected, atol=1e-5 * np.ptp(expected))
    with layers.bn_batch_size(2):
        expected, found = (
            jax.jit(lambda v, model=model: step(model, v, images)[3])(variables)
            for model in (plain, pairs)
        )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-4), expected, found)


def test_bfloat16_is_as_close_as_the_plain_form():
    make, fields, shape = CASES["same, batch"]
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    variables = variables_of(make(**fields), images)

    def logits(**more):
        model = make(**fields, **more)
        return jax.jit(lambda v: model.apply(v, images, train=False)[0])(variables)

    exact = logits()
    plain, pairs = (
        np.abs(logits(dtype="bfloat16", packed=form) - exact).max() / np.ptp(exact)
        for form in (False, True)
    )
    assert pairs < 2 * plain + 0.005 < 0.05
