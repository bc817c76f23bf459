"""Operations on pairs of pixels: the numbers of the operations on plain maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import conv, packed, pool

RNG = np.random.default_rng(0)


def some(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def assert_same(form, plain, *arrays, tolerance=2e-6):
    """Both functions have the same values and the same gradients of every array."""

    def both(function):
        def run(*arrays):
            y, pull = jax.vjp(function, *arrays)
            weights = np.random.default_rng(1).normal(size=y.shape)
            return y, *pull(jnp.asarray(weights, jnp.float32))

        return jax.jit(run)(*arrays)

    for found, expected in zip(both(form), both(plain), strict=True):
        assert found.shape == expected.shape
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("width", (2, 7, 8))
def test_pack_and_unpack(width):
    x = some(2, 3, width, 5)
    pairs = packed.pack(x)
    assert pairs.pairs.shape == (2, 3, -(-width // 2), 10)
    np.testing.assert_array_equal(packed.unpack(pairs), x)
    np.testing.assert_array_equal(pairs.pairs[:, :, 0, 5:], x[:, :, 1])
    if width % 2:
        assert not pairs.pairs[:, :, -1, 5:].any()


@pytest.mark.parametrize("start", (0, 2, 3))
@pytest.mark.parametrize("width", (4, 5))
def test_crop(start, width):
    x = some(1, 6, 9, 2)
    found = packed.crop(packed.pack(x), (1, start), (4, width))
    assert found.width == width
    np.testing.assert_array_equal(
        packed.unpack(found), x[:, 1:5, start : start + width]
    )
    np.testing.assert_array_equal(packed.cleared(found).pairs, found.pairs)


@pytest.mark.parametrize("width", (5, 8))
@pytest.mark.parametrize("padding", (0, 1))
def test_convolution_of_a_concatenation(width, padding):
    def form(x, y, kernel):
        maps = packed.pack(x), packed.pack(y)
        return packed.unpack(packed.conv3x3(maps, kernel, padding=padding))

    def plain(x, y, kernel):
        return conv.conv2d(jnp.concatenate([x, y], -1), kernel, padding=padding)

    assert_same(
        form, plain, some(2, 6, width, 3), some(2, 6, width, 2), some(3, 3, 5, 4)
    )


def test_other_paddings_are_refused():
    with pytest.raises(ValueError, match="padding 2, expected 0 or 1"):
        packed.conv3x3([packed.pack(some(1, 4, 4, 1))], some(3, 3, 1, 1), padding=2)


@pytest.mark.parametrize("width", (6, 7, 9))
@pytest.mark.parametrize("padding", (0, 1, 3))
def test_convolution_to_pairs(width, padding):
    how = dict(padding=padding)
    x, kernel = some(1, 5, width, 3), some(3, 3, 3, 4)
    assert_same(
        lambda x, kernel: packed.unpack(packed.conv_to_pairs(x, kernel, **how)),
        lambda x, kernel: conv.conv2d(x, kernel, **how),
        x,
        kernel,
    )
    pairs = packed.conv_to_pairs(x, kernel, **how)
    np.testing.assert_array_equal(packed.cleared(pairs).pairs, pairs.pairs)


@pytest.mark.parametrize("size", (1, 2, 5))
def test_kernels_of_other_sizes_to_pairs(size):
    for width in (7, 8):
        assert_same(
            lambda x, kernel: packed.unpack(packed.conv_to_pairs(x, kernel)),
            conv.conv2d,
            some(1, 6, width, 3),
            some(size, size, 3, 4),
        )


def test_1x1_convolution():
    assert_same(
        lambda x, kernel: packed.unpack(packed.conv1x1(packed.pack(x), kernel)),
        conv.conv2d,
        some(2, 3, 5, 4),
        some(1, 1, 4, 3),
    )


def test_transposed_convolution():
    assert_same(
        lambda x, kernel: packed.unpack(packed.doubled(x, kernel)),
        lambda x, kernel: conv.conv_transpose(x, kernel, stride=2),
        some(2, 3, 5, 4),
        some(2, 2, 4, 3),
    )


@pytest.mark.parametrize("height,width", ((4, 6), (5, 6), (4, 7), (5, 3)))
def test_max_pooling_with_ties(height, width):
    # Few different values: ties in most windows. Not 0, the value outside of the map.
    x = jnp.asarray(RNG.integers(1, 4, (2, height, width, 3)), jnp.float32)
    assert_same(
        lambda x: packed.max_pool(packed.pack(x)),
        lambda x: pool.max_pool(x, 2, stride=2, ceil=True),
        x,
    )


@pytest.mark.parametrize(
    "sides, size, padding",
    [((9, 13), 3, 1), ((8, 14), 7, 3), ((11, 15), 3, 0), ((10, 12), 2, 0)]
    + [((9, 14), 5, 1), ((11, 12), 7, 3), ((10, 15), 3, 1)],
)
def test_strided_convolution_to_pairs(sides, size, padding):
    def pairs(x, kernel):
        return packed.strided_to_pairs(x, kernel, padding=padding)

    def plain(x, kernel):
        return conv.conv2d(x, kernel, stride=2, padding=padding)

    x, kernel = some(2, *sides, 3), some(size, size, 3, 4)
    assert_same(lambda *a: packed.unpack(pairs(*a)), plain, x, kernel)
    y = pairs(x, kernel)
    np.testing.assert_array_equal(packed.cleared(y).pairs, y.pairs)


@pytest.mark.parametrize("ceil", (False, True))
@pytest.mark.parametrize("sides", ((9, 13), (8, 14), (11, 15), (10, 12), (2, 3)))
def test_overlapping_max_pooling(sides, ceil):
    """Of maps that are negative somewhere, and of ties."""

    def form(x):
        return packed.overlapping_max_pool(packed.pack(x), ceil=ceil)

    def plain(x):
        return pool.max_pool(x, 3, stride=2, padding=1, ceil=ceil)

    assert_same(form, plain, some(2, *sides, 3))
    assert_same(form, plain, some(2, *sides, 3) - 10)
    assert_same(form, plain, jnp.round(some(2, *sides, 3)))
