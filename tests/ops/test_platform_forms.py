"""Max pooling and transposed convolution: one form for CPUs, another elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convolutions import (
    assert_close,
    naive_conv,
    naive_conv_transpose,
    random,
    with_gradients,
)

from segjax.ops import conv, conv_forms, platforms, pool


def naive_max_pool(x, kernel, stride, padding, ceil):
    """Window after window; the rules of Caffe for the number of windows."""
    count = np.ceil if ceil else np.floor
    outs = []
    for side in x.shape[1:3]:
        out = int(count((side + 2 * padding - kernel) / stride)) + 1
        if ceil and padding and (out - 1) * stride >= side + padding:
            out -= 1
        outs.append(out)
    y = np.empty((len(x), *outs, x.shape[3]), x.dtype)
    for i in range(outs[0]):
        for j in range(outs[1]):
            a, b = i * stride - padding, j * stride - padding
            window = x[:, max(a, 0) : a + kernel, max(b, 0) : b + kernel]
            y[:, i, j] = window.max((1, 2))
    return y


@pytest.mark.parametrize("form", ["_max_of_slices", "_max_of_windows"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "int32"])
@pytest.mark.parametrize(
    "kernel, stride, padding, ceil",
    [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 0, True), (3, 1, 1, False)]
    + [(2, 2, 0, True), (3, 2, 1, True), (2, 3, 0, False)],
)
def test_both_forms_of_max_pooling(form, kernel, stride, padding, ceil, dtype):
    x = np.random.default_rng(0).integers(0, 200, (2, 8, 7, 3))
    windows = pool._Windows(kernel, stride, padding, ceil)
    found = getattr(pool, form)(jnp.asarray(x, dtype), windows)
    assert found.dtype == dtype
    expected = naive_max_pool(x, kernel, stride, padding, ceil)
    np.testing.assert_array_equal(np.asarray(found, np.int64), expected)


def text(run, platform, *shapes):
    inputs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return jax.export.export(jax.jit(run), platforms=[platform])(*inputs).mlir_module()


@pytest.mark.parametrize("platform, count", [("cpu", 0), ("cuda", 1), ("tpu", 1)])
def test_max_pooling_of_an_exported_program(platform, count):
    run = functools.partial(pool.max_pool, kernel=3, stride=2, padding=1)
    program = text(run, platform, (1, 8, 7, 3))
    assert program.count("stablehlo.reduce_window") == count


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_ties_share_the_gradient_on_every_device(platform):
    def gradient(x):
        return jax.grad(lambda x: pool.max_pool(x, 2, stride=2).sum())(x)

    program = text(gradient, platform, (1, 4, 4, 1))
    assert "select_and_scatter" not in program and "reduce_window" not in program
    np.testing.assert_array_equal(gradient(jnp.ones((1, 4, 4, 1))), 0.25)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("form", ["transposed_native", "transposed_product"])
@pytest.mark.parametrize(
    "shape, size, stride, padding",
    [
        ((2, 3, 4), 2, 2, 0),
        ((1, 4, 3), 4, 2, 1),
        ((2, 4, 3), 3, 2, 0),
        ((1, 3, 4), 8, 3, 2),
        ((1, 4, 3), 2, 3, 0),  # gaps
        ((1, 5, 6), 3, 1, 3),  # cropped beyond the kernel
    ],
)
def test_both_forms_of_transposed_convolution(
    form, shape, size, stride, padding, dtype, tolerance
):
    x, kernel = random(*shape, 5), random(size, size, 5, 3, seed=1)
    if dtype == "bfloat16":
        x, kernel = (np.asarray(jnp.bfloat16(a), np.float32) for a in (x, kernel))
    run = functools.partial(getattr(conv_forms, form), how=(stride, padding, 0))
    actual = with_gradients(run, x, kernel, dtype)
    assert_close(actual, naive_conv_transpose(x, kernel, stride, padding), tolerance)


@pytest.mark.parametrize("more", [1, 2])
def test_output_padding_of_both_forms(more):
    x, kernel = random(1, 3, 4, 5), random(4, 4, 5, 2, seed=1)
    forms = conv_forms.transposed_native, conv_forms.transposed_product
    one, other = (form(x, kernel, (3, 1, more)) for form in forms)
    assert one.shape == other.shape == (1, 3 * 2 + 4 - 2 + more, 11 + more, 2)
    np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize("platform, count", [("cpu", 0), ("cuda", 1), ("tpu", 1)])
def test_transposed_convolution_of_an_exported_program(platform, count):
    run = functools.partial(conv.conv_transpose, stride=2, padding=1)
    program = text(run, platform, (1, 3, 4, 5), (4, 4, 5, 3))
    assert program.count("stablehlo.convolution") == count


@pytest.mark.parametrize("on_cpu", [True, False])
def test_transposed_gradients_are_those_of_the_device(on_cpu, monkeypatch):
    monkeypatch.setattr(conv, "_on_cpu", lambda: on_cpu)

    def loss(x, kernel):
        return jnp.square(conv.conv_transpose(x, kernel, stride=2)).sum()

    shapes = (1, 3, 4, 5), (2, 2, 5, 3)
    program = text(jax.grad(loss, (0, 1)), "cpu" if on_cpu else "tpu", *shapes)
    assert program.count("stablehlo.convolution") == (0 if on_cpu else 3)
    x, kernel = (random(*shape, seed=i) for i, shape in enumerate(shapes))
    run = functools.partial(conv.conv_transpose, stride=2)
    actual = with_gradients(run, x, kernel)
    assert_close(actual, naive_conv_transpose(x, kernel, 2, 0), 2e-6)


# [N, H, W, I] and [1, 1, I, O]: few outputs and many.
PRODUCTS = [((2, 3, 4, 5), (1, 1, 5, 3)), ((2, 3, 4, 5), (1, 1, 5, 64))]


@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_products_over_channels_of_every_device(shapes, platform, monkeypatch):
    """On a TPU convolutions; with few outputs only the gradient of the kernel."""
    monkeypatch.setattr(platforms, "traced_for", lambda: platform)

    def loss(x, kernel):
        return jnp.square(conv.conv2d(x, kernel)).sum()

    forward = text(conv.conv2d, platform, *shapes)
    both = text(jax.grad(loss, (0, 1)), platform, *shapes)
    wide, tpu = shapes[1][3] == 64, platform == "tpu"
    assert forward.count("stablehlo.convolution") == int(wide and tpu)
    assert both.count("stablehlo.convolution") == (0 if not tpu else 3 if wide else 1)
    assert both.count("stablehlo.optimization_barrier") == int(tpu and not wide)
    x, kernel = (random(*shape, seed=i) for i, shape in enumerate(shapes))
    assert_close(
        with_gradients(conv.conv2d, x, kernel), naive_conv(x, kernel, 1, 0, 1), 2e-6
    )
