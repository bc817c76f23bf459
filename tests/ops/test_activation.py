"""ReLU by its output: the numbers and gradients of ``jax.nn.relu``."""

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
