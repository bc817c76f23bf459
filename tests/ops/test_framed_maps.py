"""Framed maps: the full map of a padded image from its window and a blank image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import conv, framed
from segjax.ops.framed import Framed

STAGES = (2, 2, 3, 3, 3)


def kernels(rng, channels=3):
    count = sum(STAGES)
    scale = np.sqrt(2 / (9 * channels))
    return scale * rng.standard_normal((count, 3, 3, channels, channels)), (
        0.5 * rng.standard_normal((count, channels))
    )


def full_maps(images, padding, weights, biases):
    """The map behind every convolution and pooling, with XLA's operations."""
    layers = iter(zip(weights, biases, strict=True))
    x, maps = images, []
    for count in STAGES:
        for _ in range(count):
            kernel, bias = next(layers)
            sides = [(padding, padding)] * 2
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x, padding = jax.nn.relu(x + bias.reshape(1, 1, 1, -1)), 1
            maps.append(x)
        window, ends = (1, 2, 2, 1), [(0, 0), *((0, n % 2) for n in x.shape[1:3])]
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, window, window, [*ends, (0, 0)]
        )
        maps.append(x)
    return maps


def framed_maps(images, padding, weights, biases):
    """The same maps as :func:`full_maps`, framed where they are."""
    layers = iter(zip(weights, biases, strict=True))
    x, maps = framed.frame(images, padding, STAGES), []
    for count in STAGES:
        x = framed.grow(x, count)
        for _ in range(count):
            kernel, bias = next(layers)

            def layer(y, pad=0, kernel=kernel):
                return conv.conv2d(y, kernel, padding=pad)

            if isinstance(x, Framed):
                x = framed.convolve(x, layer)
            else:
                x = layer(x, padding if not maps else 1)
            bias = bias.reshape(1, 1, 1, -1)
            x = jax.tree.map(lambda y, b=bias: jax.nn.relu(y + b), x)
            maps.append(x)
        x = framed.max_pool(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    "size, padding, stages, worth",
    [
        ((1, 1), 69, 3, 0.9),  # at the fourth, the blank map is nearly the full one
        ((34, 51), 100, 4, 0.9),  # at the fifth, the window is as large as the full map
        ((61, 7), 81, 4, 0.9),
        ((40, 40), 170, 4, 0.9),  # the blank image is not large enough for a fifth
        ((30, 9), 60, 3, 9.0),  # what the window of the fourth reads is larger
    ],
)
def test_equals_the_full_map_behind_every_layer(
    size, padding, stages, worth, monkeypatch
):
    monkeypatch.setattr(framed, "_WORTH", worth)
    rng = np.random.default_rng(0)
    weights, biases = (np.float32(x) for x in kernels(rng))
    images = rng.standard_normal((2, *size, 3)).astype(np.float32)

    @jax.jit
    def both(images):
        maps = framed_maps(images, padding, weights, biases)
        whole = [framed.expand(x) for x in maps]
        sums = [
            x.window.sum((0, 1, 2))
            + (2 * framed.frame_counts(x)[None, :, :, None] * x.blank).sum((0, 1, 2))
            if isinstance(x, Framed)
            else x.sum((0, 1, 2))
            for x in maps
        ]
        return full_maps(images, padding, weights, biases), whole, sums

    shapes = jax.eval_shape(lambda x: framed_maps(x, padding, weights, biases), images)
    form = [isinstance(x, Framed) for x in shapes]
    layers = sum(STAGES[:stages]) + stages
    assert form == [True] * layers + [False] * (len(form) - layers)
    for expected, found, total in zip(*both(images), strict=True):
        close = dict(rtol=1e-5, atol=1e-5 * np.ptp(expected))
        np.testing.assert_allclose(found, expected, **close)
        expected = np.asarray(expected, np.float64).sum((0, 1, 2))
        np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("size, padding", [((224, 60), 1), ((300, 300), 20)])
def test_little_padding_is_left_alone(size, padding):
    images = np.zeros((1, *size, 3), np.float32)
    assert framed.frame(images, padding, STAGES) is images


def test_gradients_of_the_frame_are_summed_in_float32():
    """Of half a million equal locations: bfloat16 counts to 256."""
    x = framed.frame(jnp.zeros((8, 8, 8, 1), jnp.bfloat16), 200, STAGES)

    def total(blank):
        full = framed.expand(dataclasses.replace(x, blank=blank))
        return full.astype(jnp.float32).sum()

    counts = 8 * framed.frame_counts(x)
    assert counts.max() > 2**19
    found = jax.jit(jax.grad(total))(x.blank)[0, :, :, 0]
    np.testing.assert_allclose(np.float32(found), counts, rtol=2**-8)
