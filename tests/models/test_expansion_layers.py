"""A ResNet's bottlenecks on a TPU: the parameters and numbers of the plain layers."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import expansion_layers, layers, resnet
from segjax.ops import conv_forms, platforms

STRIDED = dict(channels=4, stride=2)
CASES = {
    "identity": dict(channels=3),  # of the map of 12 channels
    "shortcut": dict(channels=7),
    "strided": STRIDED,
    "stride in 1x1": STRIDED | dict(stride_in_1x1=True),
    "unbiased": STRIDED | dict(bn_unbiased=True, bn_momentum=0.3),
    "dilated": dict(channels=3, rate=2),
    "bfloat16": STRIDED | dict(dtype="bfloat16"),
}


def run(block, variables, x):
    """Output, gradients and statistics of a training step."""

    def loss(params, x):
        y, updated = block.apply(
            {**variables, "params": params}, x, True, mutable=["batch_stats"]
        )
        weights = np.random.default_rng(1).standard_normal(y.shape)
        return (y * weights.astype(np.float32)).sum(), (y, updated)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, (y, updated)), pulled = jax.jit(gradient)(variables["params"], x)
    return y, pulled, updated


def example(fields):
    x = jax.random.normal(jax.random.key(0), (3, 6, 7, 12))
    block = resnet.Bottleneck(**fields)
    variables = jax.jit(lambda: block.init(jax.random.key(1), x, True))()
    keys = iter(jax.random.split(jax.random.key(3), 100))
    return (
        block,
        jax.tree.map(lambda v: v + jax.random.uniform(next(keys), v.shape), variables),
        x,
    )


@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name, monkeypatch):
    block, variables, x = example(CASES[name])
    expected = run(block, variables, x)
    monkeypatch.setattr(platforms, "traced_for", lambda: "tpu")
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(1), x, True))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    found = run(block, variables, x)
    tolerance = 0.06 if "dtype" in CASES[name] else 2e-5

    def same(a, b):
        assert a.dtype == b.dtype
        a, b = (np.asarray(v, np.float32) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())

    jax.tree.map(same, found, expected)


def uses(x, features, train=True):
    return bool(expansion_layers.form(x, features, train=train))


def test_when_it_is_used(monkeypatch):
    x = jnp.zeros((4, 2, 2, 8))
    assert not uses(x, 32)  # not on a CPU
    monkeypatch.setattr(platforms, "traced_for", lambda: "tpu")
    assert uses(x, 32) and uses(x, 16)
    assert not uses(x, 15)
    assert not uses(x, 32, train=False)
    with layers.bn_batch_size(2):
        assert not uses(x, 32)
    with layers.bn_batch_size(4):
        assert uses(x, 32)
    with conv_forms.native_only():
        assert not uses(x, 32)


@pytest.mark.parametrize("group", [0, 2])
def test_the_block_uses_it(monkeypatch, group):
    """No product of 1x1 and 16 features is stored for its statistics."""
    block, variables, x = example(CASES["strided"])
    monkeypatch.setattr(platforms, "traced_for", lambda: "tpu")
    context = layers.bn_batch_size(group) if group else contextlib.nullcontext()
    x = jnp.concatenate([x, x[:1]])
    with context:
        text = str(
            jax.make_jaxpr(
                lambda: block.apply(variables, x, True, mutable=["batch_stats"])
            )()
        )
    assert ("normalized_expansion" in text) == (not group)
