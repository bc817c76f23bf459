"""1x1 convolution and batch normalization in one: the numbers of both in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import expansion


def in_turn(x, kernel, scale, bias, epsilon=1e-5):
    """The definition, in float64, from the rounded kernel."""
    y = np.asarray(x, np.float64) @ np.asarray(kernel.astype(x.dtype), np.float64)
    mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
    y = (y - mean) / np.sqrt(variance + epsilon)
    return y * np.asarray(scale) + np.asarray(bias), mean, variance


def example(dtype, channels=3, features=8, shift=1.0):
    rng = np.random.default_rng(0)

    def some(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x = (some(2, 5, 7, channels) + shift).astype(dtype)
    return x, some(channels, features), some(features), some(features)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_the_definition(dtype, tolerance):
    arrays = example(dtype)
    found = expansion.normalized_expansion(*arrays)
    assert [a.dtype for a in found] == [jnp.dtype(dtype), jnp.float32, jnp.float32]
    for a, b, bound in zip(found, in_turn(*arrays), (tolerance, 1e-5, 1e-5)):
        np.testing.assert_allclose(
            np.asarray(a, np.float64), b, rtol=0, atol=bound * np.abs(b).max()
        )


def test_epsilon():
    x, kernel, scale, bias = example("float32")
    found = expansion.normalized_expansion(1e-3 * x, kernel, scale, bias, 1e-2)[0]
    expected = in_turn(1e-3 * x, kernel, scale, bias, 1e-2)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_variance_does_not_drown_in_the_mean():
    arrays = example("float32", shift=30.0)
    variance = expansion.normalized_expansion(*arrays)[2]
    np.testing.assert_allclose(variance, in_turn(*arrays)[2], rtol=2e-3)


def test_constant_maps_have_no_variance_and_finite_gradients():
    x = jnp.full((1, 2, 2, 3), 0.1)
    kernel, scale, bias = example("float32")[1:]
    y, pull = jax.vjp(
        lambda *a: expansion.normalized_expansion(*a)[0], x, kernel, scale, bias
    )
    np.testing.assert_allclose(y, jnp.broadcast_to(bias, y.shape), atol=1e-4)
    assert all(np.isfinite(g).all() for g in pull(jnp.ones_like(y)))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 3e-5), ("bfloat16", 2e-2)])
def test_gradients_are_those_of_jax(dtype, tolerance):
    """Of the definition, which is differentiated in float32."""
    arrays = example(dtype)

    def plain(x, kernel, scale, bias):
        y = jnp.dot(x, kernel, precision="highest")
        y = (y - y.mean((0, 1, 2))) * jax.lax.rsqrt(y.var((0, 1, 2)) + 1e-5)
        return y * scale + bias

    weights = np.random.default_rng(1).normal(size=(2, 5, 7, 8))
    weights = jnp.asarray(weights, dtype)
    pull = jax.vjp(lambda *a: expansion.normalized_expansion(*a)[0], *arrays)[1]
    found = pull(weights)
    x, kernel, scale, bias = arrays
    rounded = kernel.astype(dtype).astype(jnp.float32)
    pull = jax.vjp(plain, x.astype(jnp.float32), rounded, scale, bias)[1]
    expected = pull(weights.astype(jnp.float32))
    for a, b, given in zip(found, expected, arrays, strict=True):
        assert a.dtype == given.dtype and a.shape == given.shape
        np.testing.assert_allclose(
            a.astype(jnp.float32), b, rtol=0, atol=tolerance * np.abs(b).max()
        )
