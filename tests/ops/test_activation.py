"""ReLU by its output: the numbers and gradients of ``jax.nn.relu``."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import activation, platforms


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_values_and_gradients(dtype, platform, monkeypatch):
    monkeypatch.setattr(platforms, "traced_for", lambda: platform)
    x = jnp.asarray([-np.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, np.inf], dtype)
    pulled = jnp.arange(1, 8, dtype=dtype)
    for function in (activation.relu, jax.jit(lambda x: activation.relu(x))):
        y, pull = jax.vjp(function, x)
        expected, pull_expected = jax.vjp(jax.nn.relu, x)
        assert y.dtype == expected.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(pull(pulled)[0], pull_expected(pulled)[0])
        np.testing.assert_array_equal(function(x), expected)


def test_only_the_output_is_kept_on_a_tpu(monkeypatch):
    """The saved array is the output itself, not the input or a mask of it."""
    monkeypatch.setattr(platforms, "traced_for", lambda: "tpu")
    x = jnp.asarray([-1.0, 2.0])
    y, pull = jax.vjp(activation.relu, x)
    kept = jax.tree.leaves(pull)
    assert len(kept) == 1 and kept[0].dtype == jnp.float32
    np.testing.assert_array_equal(kept[0], y)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_relu_of_a_sum(dtype, platform, monkeypatch):
    monkeypatch.setattr(platforms, "traced_for", lambda: platform)
    x = jnp.asarray([-np.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, np.inf, np.nan], dtype)
    y, pull = jax.vjp(activation.relu_of_sum, x)
    expected, pull_expected = jax.vjp(jax.nn.relu, x)
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(np.float32(y), np.float32(expected))
    pulled = jnp.arange(1, 9, dtype=dtype).at[0].set(jnp.inf)
    np.testing.assert_array_equal(pull(pulled)[0], pull_expected(pulled)[0])


def test_sums_along_shortcuts_are_not_computed_again(monkeypatch):
    """As XLA does with maxima: the last sum reads the product of the first block."""

    def operands():
        def run(x, kernels):
            for kernel in kernels:
                x = activation.relu_of_sum(x + x @ kernel)
            return x

        shapes = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 9
        text = jax.jit(run).lower(shapes[0], shapes[1:]).compile().as_text()
        calls = re.findall(r" fusion\((.*?)\), kind", text)
        return max(call.count("%") for call in calls)

    few = operands()
    monkeypatch.setattr(activation, "relu_of_sum", jax.nn.relu)
    assert few < operands()
