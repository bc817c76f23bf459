"""Locally connected layers; transposed convolutions with output padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import conv


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scattered(x, kernel, *, stride, padding, output_padding):
    """Every location adds its kernel to a map that is large enough; then the cut."""
    n, h, w, _ = x.shape
    size = len(kernel)
    sides = [stride * (s - 1) + size + output_padding for s in (h, w)]
    full = np.zeros((n, *sides, kernel.shape[3]))
    for i, j in itertools.product(range(h), range(w)):
        at = np.s_[:, stride * i : stride * i + size, stride * j : stride * j + size]
        full[at] += np.einsum("ni,abio->nabo", x[:, i, j], kernel)
    bottom, right = (side - padding for side in sides)
    return full[:, padding:bottom, padding:right]


@pytest.mark.parametrize(
    "sides, size, stride, padding, output_padding",
    [
        ((2, 2), 3, 2, 1, 1),
        ((2, 3), 3, 2, 0, 1),
        ((3, 2), 4, 3, 1, 2),
        ((1, 1), 1, 2, 0, 1),
        ((1, 1), 3, 2, 1, 1),
        ((2, 2), 1, 3, 0, 2),
        ((2, 2), 3, 2, 1, 0),
    ],
)
def test_output_padding(sides, size, stride, padding, output_padding):
    x, kernel = random(2, *sides, 3), random(size, size, 3, 2, seed=1)
    how = dict(stride=stride, padding=padding, output_padding=output_padding)
    y = conv.conv_transpose(jnp.array(x), jnp.array(kernel), **how)
    expected = scattered(x, kernel, **how)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_two_by_two_becomes_four_by_four():
    """Of ones, with a kernel of ones: how many windows overlap in each cell."""
    ones = jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1))
    y = conv.conv_transpose(*ones, stride=2, padding=1, output_padding=1)
    rows = [[1, 2, 1, 1], [2, 4, 2, 2], [1, 2, 1, 1], [1, 2, 1, 1]]
    np.testing.assert_array_equal(y[0, :, :, 0], rows)


def test_output_padding_is_the_gradient_of_a_convolution_of_that_side():
    """Sides 3 and 4 both become 2 by a stride of 2; the padding tells them apart."""
    kernel = jnp.array(random(3, 3, 2, 2))
    for side, output_padding in ((3, 0), (4, 1)):
        x, y = jnp.zeros((1, side, side, 2)), jnp.array(random(1, 2, 2, 2))

        def down(x):
            return conv.conv2d(x, kernel, stride=2, padding=1)

        (expected,) = jax.vjp(down, x)[1](y)
        swapped = kernel.swapaxes(2, 3)
        how = dict(stride=2, padding=1, output_padding=output_padding)
        actual = conv.conv_transpose(y, swapped, **how)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("output_padding", [-1, 2])
def test_output_padding_is_below_the_stride(output_padding):
    ones = jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        conv.conv_transpose(*ones, stride=2, output_padding=output_padding)


def test_a_locally_connected_layer_has_a_kernel_per_location():
    x, kernels = random(2, 4, 5, 2), random(2, 4, 3, 2, 2, 3, seed=1)
    y = conv.locally_connected(jnp.array(x), jnp.array(kernels))
    assert y.shape == (2, 2, 4, 3)
    for i, j in itertools.product(range(2), range(4)):
        window = x[:, i : i + 3, j : j + 2]
        expected = np.einsum("nabi,abio->no", window, kernels[i, j])
        np.testing.assert_allclose(y[:, i, j], expected, atol=1e-5)


def test_equal_kernels_are_a_convolution():
    x, kernel = random(1, 5, 4, 2), random(3, 3, 2, 2, seed=1)
    shared = jnp.broadcast_to(kernel, (3, 2, *kernel.shape))
    np.testing.assert_allclose(
        conv.locally_connected(x, shared), conv.conv2d(x, kernel), atol=1e-5
    )


def test_kernels_fit_the_map():
    with pytest.raises(ValueError, match="read a map of 4 x 4, found 5 x 4"):
        conv.locally_connected(jnp.ones((1, 5, 4, 1)), jnp.ones((2, 2, 3, 3, 1, 1)))
