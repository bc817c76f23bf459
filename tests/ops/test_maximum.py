"""The gradient of maxima, and the precision of products, whatever compiles them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import frrn
from segjax.models.deeplab import DeepLab
from segjax.models.frrn import FRRN
from segjax.ops import conv, pool, resize

POOLINGS = {
    "windows": lambda x: pool.max_pool(x, 3, stride=2, padding=1),
    "adaptive": lambda x: pool.adaptive_max_pool(x, 5),
    "blocks": lambda x: frrn.max_pool(x, 4),
    "axis": lambda x: pool.max_over_axis(x, 2),
}


@functools.cache
def compiled(name):
    forward = POOLINGS[name]
    return jax.jit(forward), jax.jit(lambda x, g: jax.vjp(forward, x)[1](g))


def vjp(name, x):
    forward, backward = compiled(name)
    return forward(x), lambda g: backward(x, g)


def distinct(*shape):
    values = np.random.default_rng(0).permutation(np.prod(shape))
    return (values.reshape(shape) / 7 - 3).astype(np.float32)


@pytest.mark.parametrize("name", POOLINGS)
def test_gradient_goes_to_the_maximum(name):
    """Without ties: the whole gradient of every output, at the place of its maximum."""
    x = distinct(2, 12, 12, 3)
    y, backward = vjp(name, x)
    weights = np.arange(1, y.size + 1, dtype=np.float32).reshape(y.shape)
    expected = np.zeros_like(x)
    for n, c in np.ndindex(2, 3):
        for i, j in np.ndindex(y.shape[1:3]):
            at = np.argwhere(x[n, :, :, c] == y[n, i, j, c])
            ((row, column),) = at
            expected[n, row, column, c] += weights[n, i, j, c]
    np.testing.assert_array_equal(backward(weights)[0], expected)


@pytest.mark.parametrize("name", POOLINGS)
def test_ties_share_the_gradient(name):
    x = np.ones((2, 12, 12, 3), np.float32)
    y, backward = vjp(name, x)
    (gradient,) = backward(np.ones_like(y))
    assert gradient.sum() == pytest.approx(y.size)
    assert gradient.min() > 0 and np.all(y == 1)


def test_shares_do_not_depend_on_the_result():
    """A result computed with other roundings than the operands changes nothing."""
    x, y = (distinct(4, 5) for _ in range(2))
    y = y[::-1].copy()
    y[0, 0] = x[0, 0]
    _, backward = jax.vjp(pool.maximum, x, y)
    ones = np.ones_like(x)
    dx, dy = backward(ones)
    np.testing.assert_array_equal(dx, (x > y) + 0.5 * (x == y))
    np.testing.assert_array_equal(dx + dy, ones)
    # The trace has no comparison with the maximum, and no division.
    jaxpr = str(
        jax.make_jaxpr(lambda x, y, g: jax.vjp(pool.maximum, x, y)[1](g))(x, y, x)
    )
    assert "div" not in jaxpr


FRRN_FIELDS = dict(
    stage_units=(1, 1, 1),
    stage_channels=(3, 4, 3),
    stage_scales=(2, 4, 2),
    width=4,
    residual_channels=3,
    first_units=1,
    last_units=1,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_frrn_has_finite_gradients(dtype):
    check_gradients(FRRN(2, dtype=dtype, **FRRN_FIELDS))


def test_fused_scales_have_finite_gradients():
    fields = dict(stage_sizes=(1, 1, 0, 0), width=2, output_stride=8)
    check_gradients(DeepLab(2, scales=(1.0, 0.5), dtype="bfloat16", **fields))


def check_gradients(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(lambda: model.init(keys, images, train=True))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: (
            rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32)
            * rng.choice([-1, 1], leaf.shape if len(leaf.shape) == 4 else ())
        ),
        shapes,
    )
    variables = jax.tree.map(
        lambda leaf: np.abs(leaf) if leaf.ndim < 4 else leaf, variables
    )

    @jax.jit
    def gradients(params):
        def loss(params):
            (logits, _), _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                rngs={"dropout": keys["dropout"]},
                mutable=["batch_stats"],
            )
            return jax.nn.log_softmax(logits)[..., 0].mean()

        return jax.grad(loss)(params)

    leaves = jax.tree.leaves(gradients(variables["params"]))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(np.any(leaf) for leaf in leaves)


# --- precision ------------------------------------------------------------------------


def product_precisions(jaxpr):
    """The precisions of all matrix products and convolutions, inner programs too."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.add(tuple(p.name for p in equation.params["precision"]))
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= product_precisions(inner)
    return found


@functools.cache
def products():
    """Operators that multiply, each forward and backward, with arguments."""
    x, wide = jnp.ones((1, 9, 9, 16)), jnp.ones((1, 9, 9, 128))
    return {
        "3x3": (conv.conv2d, x, jnp.ones((3, 3, 16, 16))),
        "few channels": (conv.conv2d, x[..., :3], jnp.ones((3, 3, 3, 4))),
        "1x1": (conv.conv2d, x, jnp.ones((1, 1, 16, 4))),
        "dense": (conv.conv2d, x, jnp.ones((9, 9, 16, 4))),
        "by rows": (conv.conv2d, wide, jnp.ones((5, 5, 128, 128))),
        "transposed": (
            lambda x, k: conv.conv_transpose(x, k, stride=2),
            x,
            jnp.ones((4, 4, 16, 2)),
        ),
    }


@pytest.mark.parametrize("name", list(products()))
@pytest.mark.parametrize("backend", ["cpu", "other"])
def test_products_honor_the_default_precision(name, backend, monkeypatch):
    function, *arguments = products()[name]
    monkeypatch.setattr(conv, "_on_cpu", lambda: backend == "cpu")

    def both(*arguments):
        y, backward = jax.vjp(function, *arguments)
        return backward(y)

    for precision, name in (("float32", "HIGHEST"), ("bfloat16", "DEFAULT")):
        with jax.default_matmul_precision(precision):
            jaxpr = jax.make_jaxpr(lambda *a: both(*a))(*arguments)
        assert product_precisions(jaxpr.jaxpr) == {(name, name)}


def test_interpolation_is_always_exact():
    """Resizing and fixed upsampling never round their weights."""
    x = jnp.ones((1, 5, 5, 2))
    for function in (
        lambda x: resize.resize_bilinear(x, (9, 9), True),
        lambda x: conv.bilinear_upsample(x, 4, stride=2),
        lambda x: pool.adaptive_avg_pool(x, 2),
    ):
        with jax.default_matmul_precision("bfloat16"):
            jaxpr = jax.make_jaxpr(function)(x)
        assert product_precisions(jaxpr.jaxpr) == {("HIGHEST", "HIGHEST")}
