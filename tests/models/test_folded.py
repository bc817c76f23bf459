"""PSPNet with conv5_4 folded: the numbers of the form that its paper writes down."""

import jax
import numpy as np
import pytest

from segjax.models.pspnet import PSPNet

TINY = dict(
    stage_sizes=(1, 1, 1, 1),
    width=4,
    pyramid_channels=5,
    head_channels=8,
    stem="plain",
    dropout=0.0,
    bins=(1, 2, 6),
)
SHAPE = (2, 60, 41, 3)
"""Maps of 8 x 6 locations, so that 6 bins are as wide as the map."""


def variables_of(model):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = np.zeros(SHAPE, np.uint8)
    return jax.jit(lambda: model.init(keys, images, train=True))()


def trained(model, variables):
    """Logits, the loss of both heads, gradients and statistics of one step."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, SHAPE, np.uint8)
    weights = rng.standard_normal((2, *SHAPE[:3], 3)).astype(np.float32)

    def loss(params):
        (logits, ends), updated = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(2)},
            mutable=["batch_stats"],
        )
        total = (logits * weights[0]).sum() + (ends["aux_logits"] * weights[1]).sum()
        return total, (logits, ends["pyramid"], updated["batch_stats"])

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


@pytest.mark.parametrize("fields", [{}, {"pool": "max", "reduce": False}])
def test_same_logits_gradients_and_statistics(fields):
    plain = PSPNet(3, **TINY, **fields, folded=False)
    folded = PSPNet(3, **TINY, **fields)
    variables = variables_of(plain)
    shapes = jax.eval_shape(lambda: variables_of(folded))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    expected, found = (trained(model, variables) for model in (plain, folded))
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        # The level of one bin is normalized over two values, which amplifies rounding.
        np.testing.assert_allclose(y, x, rtol=2e-4, atol=2e-4 * np.abs(x).max())


def test_bfloat16_is_as_close_to_float32_as_the_plain_form():
    variables = variables_of(PSPNet(3, **TINY))
    images = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)

    def logits(**fields):
        model = PSPNet(3, **TINY, **fields)
        return jax.jit(lambda v, x: model.apply(v, x, train=False)[0])(
            variables, images
        )

    exact = logits()
    plain, folded = (
        np.abs(logits(dtype="bfloat16", folded=form) - exact).max() / np.ptp(exact)
        for form in (False, True)
    )
    assert folded < 2 * plain + 0.005 < 0.05


def test_the_field_reaches_the_program():
    def flops(**fields):
        model = PSPNet(3, **TINY | {"pyramid_channels": 64}, **fields)
        run = jax.jit(lambda v, x: model.apply(v, x, train=False)[0])
        variables = jax.eval_shape(lambda: variables_of(model))
        images = jax.ShapeDtypeStruct(SHAPE, np.uint8)
        return run.lower(variables, images).cost_analysis()["flops"]

    assert flops() == flops(folded=True) < 0.95 * flops(folded=False)
