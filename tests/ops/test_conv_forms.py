"""The forms of convolutions for CPUs: the numbers of the plain one, and who takes them.

The plain sums are in numpy, in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convolutions import (
    assert_close,
    cotangent,
    naive_conv,
    random,
    with_gradients,
)

from segjax.ops import conv, conv_forms, winograd
from segjax.ops.conv_forms import Window

FORMS = ("native", "with_column", "by_patches", "by_rows", "products_first")


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "shape, size, window",
    [
        ((2, 7, 6), (3, 3), Window()),
        ((1, 6, 9), (3, 3), Window(1, 1, 1)),
        ((2, 7, 8), (3, 3), Window(1, 2, 2)),
        ((1, 5, 6), (3, 3), Window(1, 12, 12)),  # only the middle tap sees the map
        ((1, 9, 8), (4, 2), Window(1, 3, 2)),
        ((1, 8, 7), (1, 3), Window(1, 1, 1)),
    ],
    ids=str,
)
def test_all_forms_are_the_same_convolution(
    name, shape, size, window, dtype, tolerance
):
    x, kernel = random(*shape, 5), random(*size, 5, 3, seed=1)
    if dtype == "bfloat16":
        x, kernel = (np.asarray(jnp.bfloat16(a), np.float32) for a in (x, kernel))
    form = functools.partial(getattr(conv_forms, name), window=window)
    actual = with_gradients(form, x, kernel, dtype)
    assert {a.dtype for a in actual} == {jnp.dtype(dtype)}
    assert_close(actual, naive_conv(x, kernel, *window), tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(
    "sides, size, padding", [((9, 12), 7, 3), ((8, 7), 3, 1), ((6, 9), 2, 0)]
)
def test_blocks_of_pixels(sides, size, padding, dtype, tolerance):
    x, kernel = random(2, *sides, 3), random(size, size, 3, 5, seed=1)
    if dtype == "bfloat16":
        x, kernel = (np.asarray(jnp.bfloat16(a), np.float32) for a in (x, kernel))
    window = Window(2, padding, 1)
    form = functools.partial(conv_forms.by_blocks, window=window)
    actual = with_gradients(form, x, kernel, dtype)
    assert {a.dtype for a in actual} == {jnp.dtype(dtype)}
    assert_close(actual, naive_conv(x, kernel, *window), tolerance)


def test_products_first_where_no_tap_sees_the_map():
    x, kernel = random(1, 1, 1, 4), random(2, 2, 4, 1)
    window = Window(1, 1, 2)
    y = conv_forms.products_first(x, kernel, window)
    expected = naive_conv(x, kernel, *window)[0]
    assert y.shape == expected.shape == (1, 1, 1, 1) and y == expected == 0


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize(
    "shape, window",
    [
        ((2, 7, 6), Window()),
        ((1, 6, 9), Window(1, 1, 1)),
        ((2, 7, 8), Window(1, 2, 2)),
        ((1, 5, 6), Window(1, 12, 12)),
        ((1, 7, 8), Window(1, 3, 2)),  # padding beyond the reach of the kernel
    ],
    ids=str,
)
def test_kernel_gradient_by_bands(shape, window, rows, dtype, tolerance, monkeypatch):
    x, kernel = random(*shape, 5), random(3, 3, 5, 4, seed=1)
    x = np.asarray(jnp.asarray(x, dtype), np.float32)
    y, _, expected = naive_conv(x, kernel, *window)
    pixels = shape[0] * y.shape[2]
    size = rows * pixels * (3 * 5 + 3 * 4) * jnp.dtype(dtype).itemsize
    monkeypatch.setattr(conv_forms, "_BAND_BYTES", size)
    how = dict(shape=kernel.shape, window=window)
    found = jax.jit(functools.partial(conv_forms._gradient_by_bands, **how))(
        jnp.asarray(x, dtype), jnp.asarray(cotangent(*y.shape), dtype)
    )
    assert found.dtype == dtype
    assert_close([found], [expected], tolerance)


# Rows, columns and channels of a map; the form of its convolution.
@pytest.mark.parametrize(
    "sides, kernel, window, form",
    [
        ((30, 30), (3, 3, 512, 512), Window(1, 1, 1), conv_forms.winograd),
        ((30, 30), (3, 3, 512, 512), Window(1, 4, 4), conv_forms.winograd),
        # of 30 / 12 outputs, a phase has 3, and two tiles in each direction
        ((30, 30), (3, 3, 512, 512), Window(1, 12, 12), conv_forms.native),
        ((30, 30), (3, 3, 512, 512), Window(2, 1, 1), conv_forms.native),
        ((30, 30), (5, 3, 96, 96), Window(1, 1, 1), conv_forms.native),
        ((14, 14), (3, 3, 96, 96), Window(1, 1, 1), conv_forms.native),  # 49 tiles
        ((15, 16), (3, 3, 96, 96), Window(1, 1, 1), conv_forms.winograd),
        ((30, 30), (3, 3, 96, 64), Window(1, 1, 1), conv_forms.winograd),
        ((200, 200), (3, 3, 96, 64), Window(1, 1, 1), conv_forms.native),  # 15 MB
        ((200, 200), (3, 3, 64, 96), Window(1, 1, 1), conv_forms.native),
        ((200, 200), (3, 3, 96, 96), Window(1, 1, 1), conv_forms.winograd),
        ((30, 30), (3, 3, 48, 48), Window(1, 1, 1), conv_forms.winograd),
        ((30, 30), (3, 3, 47, 96), Window(1, 1, 1), conv_forms.native),
        ((30, 30), (3, 3, 96, 96), Window(1, 3, 1), conv_forms.native),
        ((14, 14), (3, 3, 512, 256), Window(1, 1, 1), conv_forms.by_patches),
        ((27, 28), (3, 3, 512, 256), Window(2, 1, 1), conv_forms.by_patches),
        ((15, 14), (3, 3, 512, 256), Window(1, 1, 1), conv_forms.native),  # 56 tiles
        ((13, 18), (7, 7, 512, 1024), Window(), conv_forms.by_patches),
        ((14, 14), (3, 3, 512, 255), Window(1, 1, 1), conv_forms.native),
        ((190, 190), (3, 3, 64, 128), Window(), conv_forms.with_column),
        ((190, 190), (3, 3, 64, 128), Window(2, 0, 1), conv_forms.native),
        ((190, 190), (3, 3, 64, 128), Window(1, 0, 2), conv_forms.with_column),
        ((190, 190), (3, 3, 3, 64), Window(), conv_forms.native),
        ((30, 30), (7, 7, 512, 1024), Window(), conv_forms.by_rows),
        ((40, 40), (7, 7, 512, 1024), Window(1, 0, 4), conv_forms.by_rows),
        ((30, 30), (3, 3, 2048, 21), Window(1, 12, 12), conv_forms.products_first),
        ((30, 30), (3, 3, 2048, 21), Window(2, 1, 1), conv_forms.native),
        ((30, 30), (3, 3, 64, 8), Window(1, 1, 1), conv_forms.native),
        ((30, 30), (3, 3, 64, 7), Window(), conv_forms.products_first),
        ((90, 90), (7, 7, 3, 16), Window(2, 3, 1), conv_forms.by_blocks),
        ((90, 90), (3, 3, 4, 16), Window(2, 1, 1), conv_forms.by_blocks),
        ((90, 90), (7, 7, 3, 17), Window(2, 3, 1), conv_forms.native),
        ((90, 90), (7, 7, 5, 16), Window(2, 3, 1), conv_forms.native),
        ((90, 90), (7, 7, 3, 16), Window(1, 3, 1), conv_forms.native),
        ((90, 90), (3, 3, 3, 16), Window(2, 3, 2), conv_forms.native),
        ((90, 90), (3, 5, 3, 16), Window(2, 3, 1), conv_forms.native),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_form_that_a_cpu_takes(sides, kernel, window, form):
    x = jax.ShapeDtypeStruct((1, *sides, kernel[2]), jnp.float32)
    assert conv_forms.cpu_form(x, kernel, window) is form


def test_tiles_are_for_float32_and_count_those_of_all_images():
    shape, window = (3, 3, 96, 96), Window(1, 1, 1)

    def form(n, side, dtype=jnp.float32):
        x = jax.ShapeDtypeStruct((n, side, side, 96), dtype)
        return conv_forms.cpu_form(x, shape, window)

    assert form(1, 30) is form(3, 9) is conv_forms.winograd
    assert form(1, 30, jnp.bfloat16) is form(2, 9) is conv_forms.native


@pytest.mark.parametrize(
    "shape, window",
    [
        ((2, 8, 6), Window(1, 1, 1)),
        ((1, 7, 9), Window()),
        ((1, 9, 6), Window(1, 2, 1)),
        ((2, 8, 7), Window(1, 2, 2)),
        ((1, 15, 13), Window(1, 4, 4)),
        ((1, 9, 11), Window(1, 0, 3)),
        ((1, 7, 7), Window(1, 1, 3)),
        ((1, 3, 3), Window()),
    ],
    ids=str,
)
def test_winograd_is_the_same_convolution_with_its_gradients(shape, window):
    x, kernel = random(*shape, 5), random(3, 3, 5, 4, seed=1)
    y, dx, dkernel = naive_conv(x, kernel, *window)
    pulled = jnp.asarray(cotangent(*y.shape))
    how = dict(padding=window.padding, dilation=window.dilation)
    back = how | dict(padding=2 * window.dilation - window.padding)
    run = jax.jit(
        lambda x, kernel, pulled: (
            conv_forms.winograd(x, kernel, window),
            winograd.convolution(pulled, kernel, **back, transposed=True),
            winograd.kernel_gradient(x, pulled, **how),
        )
    )
    assert_close(run(x, kernel, pulled), (y, dx, dkernel), 2e-6)


def test_winograd_is_as_exact_as_the_plain_sums():
    """The factors of larger tiles are not: F(4x4, 3x3) loses a digit."""
    x, kernel = random(1, 32, 32, 128), random(3, 3, 128, 32, seed=1)
    window = Window(1, 1, 1)
    exact = naive_conv(x, kernel, *window)[0]

    def error(form):
        return np.std(np.asarray(form(x, kernel, window), np.float64) - exact)

    assert error(conv_forms.winograd) < 2 * error(conv_forms.native)


@pytest.mark.parametrize("side", [16, 30], ids=["native", "winograd"])
@pytest.mark.parametrize("padding, dilation", [(1, 1), (0, 1), (2, 2)])
def test_gradients_of_a_convolution_that_a_cpu_takes(side, padding, dilation):
    """Through the operator that the networks call: each gradient has its own form."""
    window = Window(1, padding, dilation)
    x, kernel = random(1, side, side, 64), random(3, 3, 64, 65, seed=1)
    run = functools.partial(conv.conv2d, padding=padding, dilation=dilation)
    actual = with_gradients(run, x, kernel, "float32")
    assert_close(actual, naive_conv(x, kernel, *window), 2e-6)


@pytest.mark.parametrize(
    "features, options, here",
    [
        (128, dict(), ("[0, 0], [0, 1]", 1)),  # padding of the convolution
        (14, dict(padding=2, dilation=2), ("stablehlo.dot_general", 1)),
    ],
)
def test_an_exported_program_takes_the_form_of_its_platform(features, options, here):
    """Not that of the machine that exports, which has a CPU only."""
    x = jax.ShapeDtypeStruct((1, 9, 8, 128), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 128, features), jnp.float32)
    run = jax.jit(functools.partial(conv.conv2d, **options))
    texts = {
        platform: jax.export.export(run, platforms=[platform])(x, kernel).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    text, count = here
    assert texts["cpu"].count(text) == count
    for other in ("cuda", "tpu"):
        assert texts[other].count(text) == 0
        assert texts[other].count("stablehlo.convolution") == 1


@pytest.mark.parametrize(
    "side, channels, options",
    [
        (30, 96, dict(padding=1)),  # winograd
        (30, 96, dict(padding=2, dilation=2)),
        (6, 256, dict(padding=1)),  # by_patches
        (30, 32, dict(padding=1)),  # native
    ],
    ids=str,
)
def test_forms_are_exported_for_any_batch(side, channels, options):
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
    kernel = random(3, 3, channels, channels, seed=1)
    run = jax.jit(functools.partial(conv.conv2d, **options))
    exported = jax.export.export(run, platforms=["cpu", "tpu"])(x, kernel)
    images = random(3, side, side, channels)
    expected = naive_conv(
        images, kernel, 1, options["padding"], options.get("dilation", 1)
    )[0]
    assert_close([exported.call(images, kernel)], [expected], 2e-6)


@pytest.mark.parametrize(
    "channels, features, window, name",
    [
        (64, 64, Window(1, 1, 1), "_gradient_by_bands"),
        (128, 48, Window(), "_gradient_by_bands"),
        (64, 64, Window(2, 1, 1), "_gradient_by_taps"),
        (32, 64, Window(1, 1, 1), "_gradient_by_taps"),
        (256, 64, Window(1, 1, 1), "_gradient_by_taps"),
        (3, 64, Window(1, 1, 1), "native"),
    ],
    ids=str,
)
def test_the_form_of_the_kernel_gradient(channels, features, window, name, monkeypatch):
    called = []
    for form in ("_gradient_by_bands", "_gradient_by_taps", "native"):
        plain = getattr(conv_forms, form)

        def run(*args, form=form, plain=plain):
            called.append(form)
            return plain(*args)

        monkeypatch.setattr(conv_forms, form, run)
    shape = 3, 3, channels, features
    x = random(1, 6, 7, channels)
    y, _, expected = naive_conv(x, np.zeros(shape, np.float32), *window)
    found = conv_forms.cpu_kernel_gradient(
        jnp.asarray(x), jnp.asarray(cotangent(*y.shape)), shape=shape, window=window
    )
    assert called == [name]
    assert_close([found], [expected], 2e-6)


@pytest.mark.parametrize(
    "size, how",
    [
        ((3, 3, 128, 128), dict(padding=1)),
        ((1, 1, 128, 64), {}),
        ((1, 1, 128, 64), dict(stride=2)),
        ((3, 3, 128, 8), dict(padding=2, dilation=2)),
    ],
    ids=str,
)
def test_only_the_convolutions_of_xla(size, how):
    x, kernel = random(1, 20, 18, size[2]), random(*size, seed=1)

    def value(x, kernel):
        return conv.conv2d(x, kernel, **how)

    def names(function):
        text = str(
            jax.make_jaxpr(jax.grad(lambda *a: function(*a).sum(), (0, 1)))(x, kernel)
        )
        return {
            name for name in ("conv_general_dilated", "dot_general") if name in text
        }

    assert "dot_general" in names(value)
    with conv_forms.native_only():
        assert names(value) == {"conv_general_dilated"}
        native = value(x, kernel)
    assert not conv_forms.is_native_only()
    np.testing.assert_allclose(native, value(x, kernel), rtol=1e-4, atol=1e-3)


def test_only_the_transposed_convolutions_of_xla():
    x, kernel = random(1, 5, 4, 3), random(4, 4, 3, 2, seed=1)
    with conv_forms.native_only():
        native = functools.partial(conv.conv_transpose, stride=2, padding=1)
        assert "dot_general" not in str(jax.make_jaxpr(native)(x, kernel))
        found = native(x, kernel)
    expected = conv.conv_transpose(x, kernel, stride=2, padding=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
