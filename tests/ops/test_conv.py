"""Convolutions written as matrix products, and their gradients, against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convolutions import (
    assert_close,
    cotangent,
    naive_conv,
    naive_conv_transpose,
    random,
    with_gradients,
)

from segjax.ops import conv, conv_forms

CHANNELS, MANY = conv_forms._CHANNELS_OF_TAPS, conv_forms._CHANNELS_OF_ROWS


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding", "dilation"),
    [
        ((2, 6, 7), 3, 1, 1, 1),
        ((1, 7, 6), 3, 1, 0, 1),
        ((2, 7, 8), 3, 2, 1, 1),
        ((1, 9, 6), 3, 1, 2, 2),
        ((1, 5, 6), 3, 1, 12, 12),  # only the middle tap ever sees the map
        ((1, 7, 8), 1, 2, 0, 1),
        ((2, 8, 9), 7, 1, 0, 1),
        ((1, 9, 8), 4, 1, 4, 2),
        ((1, 8, 9), 5, 2, 2, 1),
        ((2, 7, 7), 7, 1, 0, 1),  # a fully connected layer
        ((2, 6, 5), (6, 5), 1, 0, 1),
        ((1, 5, 6), (3, 2), 1, 0, 1),
    ],
)
def test_conv2d_and_its_gradients(shape, size, stride, padding, dilation):
    size = size if isinstance(size, tuple) else (size, size)
    channels = MANY if max(size) > 3 else CHANNELS
    x, kernel = random(*shape, channels), random(*size, channels, channels + 1, seed=1)
    how = stride, padding, dilation
    run = functools.partial(
        conv.conv2d, stride=stride, padding=padding, dilation=dilation
    )
    actual = with_gradients(run, x, kernel)
    assert_close(actual, naive_conv(x, kernel, *how), 2e-6)


@pytest.mark.parametrize(("channels", "size"), [(3, 3), (CHANNELS, 5)])
def test_fewer_channels_have_the_same_gradients(channels, size):
    x, kernel = random(1, 6, 7, channels), random(size, size, channels, 33, seed=1)
    actual = with_gradients(lambda *a: conv.conv2d(*a, padding=1), x, kernel)
    assert_close(actual, naive_conv(x, kernel, 1, 1, 1), 2e-6)


@pytest.mark.parametrize("size", [3, 5])
def test_bfloat16(size):
    channels = MANY if size > 3 else CHANNELS
    x, kernel = random(1, 6, 7, channels), random(size, size, channels, 128, seed=1)
    x, kernel = (np.asarray(jnp.bfloat16(a), np.float32) for a in (x, kernel))

    def run(x, kernel):
        return conv.conv2d(x, kernel, padding=1)

    actual = with_gradients(run, x, kernel, jnp.bfloat16)
    assert {a.dtype for a in actual} == {jnp.dtype(jnp.bfloat16)}
    # Sums of several products are rounded to 8 bits.
    assert_close(actual, naive_conv(x, kernel, 1, 1, 1), 2e-2)


@pytest.mark.parametrize("size", [3, 5])
def test_other_devices_run_the_convolution(size, monkeypatch):
    x, kernel = random(1, 6, 7, MANY), random(size, size, MANY, MANY)

    def text(platform):
        def loss(x, kernel):
            return jnp.square(conv.conv2d(x, kernel, padding=1)).sum()

        gradients = jax.jit(jax.grad(loss, (0, 1)))
        program = jax.export.export(gradients, platforms=[platform])(x, kernel)
        return program.mlir_module()

    on_cpu = text("cpu")
    monkeypatch.setattr(conv.jax, "default_backend", lambda: "tpu")
    elsewhere = text("tpu")
    assert "stablehlo.dot_general" in on_cpu
    assert "stablehlo.dot_general" not in elsewhere
    # Forward, and the gradients of both.
    assert elsewhere.count("stablehlo.convolution") == 3


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((2, 3, 4), 2, 2, 0),
        ((2, 3, 4), 4, 2, 0),
        ((1, 4, 3), 4, 2, 1),
        ((2, 4, 3), 3, 2, 0),
        ((1, 3, 4), 8, 3, 2),
        ((1, 4, 3), 2, 3, 0),  # gaps
        ((1, 4, 3), 3, 1, 1),
        ((1, 5, 6), 3, 1, 3),  # cropped beyond the kernel
        ((2, 1, 1), 7, 1, 0),
        ((1, 1, 1), 4, 2, 1),
    ],
)
def test_conv_transpose_and_its_gradients(shape, size, stride, padding):
    x, kernel = random(*shape, 5), random(size, size, 5, 3, seed=1)
    how = stride, padding
    run = functools.partial(conv.conv_transpose, stride=stride, padding=padding)
    actual = with_gradients(run, x, kernel)
    expected = naive_conv_transpose(x, kernel, *how)
    assert_close(actual, expected, 2e-6)


@pytest.mark.parametrize(
    "platform, convolutions", [("cpu", 0), ("cuda", 1), ("tpu", 1)]
)
def test_large_kernels_of_an_exported_program_take_the_form_of_its_platform(
    platform, convolutions
):
    """Not that of the machine that exports, which has a CPU only."""
    x = jax.ShapeDtypeStruct((1, 9, 9, 128), jnp.float32)
    kernel = jax.ShapeDtypeStruct((7, 7, 128, 128), jnp.float32)
    run = jax.jit(lambda x, kernel: conv.conv2d(x, kernel, padding=3))
    program = jax.export.export(run, platforms=[platform])(x, kernel)
    assert program.mlir_module().count("stablehlo.convolution") == convolutions


def grouped(x, kernel, stride, padding, dilation):
    """:func:`naive_conv` of two groups."""
    halves = zip(np.split(x, 2, -1), np.split(kernel, 2, -1), strict=True)
    parts = [naive_conv(a, b, stride, padding, dilation) for a, b in halves]
    y, dx, dkernel = (np.concatenate(items, -1) for items in zip(*parts, strict=True))
    return y, dx, dkernel


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize(
    "size, channels, options",
    [
        (3, 5, dict(padding=1, stride=2)),
        (3, CHANNELS, dict(padding=2, dilation=2)),
        (1, CHANNELS, dict(stride=2)),
        (6, 4, {}),  # as large as the map
        (3, 4, dict(padding=1, groups=2)),
    ],
    ids=str,
)
def test_float32_gradient_sums_of_bfloat16(
    size, channels, options, on_cpu, monkeypatch
):
    """The kernel's gradient to float32 rounding; without them, rounded to bfloat16."""
    monkeypatch.setattr(conv, "_on_cpu", lambda: on_cpu)
    groups = options.get("groups", 1)
    x = random(2, 6, 6, channels)
    kernel = random(size, size, channels // groups, channels, seed=1)
    window = {"stride": 1, "padding": 0, "dilation": 1} | options
    how = window["stride"], window["padding"], window["dilation"]
    x16 = jnp.asarray(x, jnp.bfloat16)
    rounded = np.asarray(x16, np.float32), np.asarray(jnp.bfloat16(kernel), np.float32)
    naive = grouped if groups == 2 else naive_conv

    def run(x, kernel):
        return conv.conv2d(x, kernel, **options)

    _, dx, expected = naive(*rounded, *how)
    if groups == 2:  # the halves of the input have gradients of their own
        y = run(x16, kernel)
    else:
        y, _, _ = naive(*rounded, *how)
    gradient = jnp.asarray(cotangent(*y.shape), jnp.bfloat16)

    def gradients():
        return jax.vjp(run, x16, jnp.asarray(kernel))[1](gradient)

    with conv.float32_gradient_sums():
        found_x, found = gradients()
    plain_x, plain = gradients()
    assert found.dtype == plain.dtype == jnp.float32
    assert found_x.dtype == jnp.bfloat16 and (found_x == plain_x).all()
    scale = np.abs(expected).max()
    if groups == 1:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)
    assert (plain == plain.astype(jnp.bfloat16)).all()
    assert (found != found.astype(jnp.bfloat16)).mean() > 0.3
    np.testing.assert_allclose(found, plain, rtol=0, atol=2e-2 * scale)


def test_float32_gradient_sums_of_transposed_convolutions():
    x, kernel = random(2, 3, 4, 5), random(4, 4, 5, 3, seed=1)
    x16, k16 = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    y, _, expected = naive_conv_transpose(
        np.asarray(x16, np.float32), np.asarray(k16, np.float32), 2, 1
    )
    gradient = jnp.asarray(cotangent(*y.shape), jnp.bfloat16)
    with conv.float32_gradient_sums():
        run = functools.partial(conv.conv_transpose, stride=2, padding=1)
        _, back = jax.vjp(run, x16, kernel)
        found = back(gradient)[1]
    assert found.dtype == jnp.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)
