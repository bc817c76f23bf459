"""Operators against brute force, scipy, OpenCV and published tables."""

from fractions import Fraction

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal

from segjax.errors import UserError
from segjax.ops import conv, geometry, image, pool, resize


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- geometry -------------------------------------------------------------------------


def test_grid_of_strided_and_transposed_layers():
    grid = geometry.conv(geometry.Grid(), kernel=7, stride=2, padding=3)
    assert grid == geometry.Grid(Fraction(2), Fraction(0))
    grid = geometry.conv(grid, kernel=3, dilation=4)
    assert grid == geometry.Grid(Fraction(2), Fraction(8))
    # A transposed convolution undoes the convolution of the same kernel.
    down = geometry.conv(grid, kernel=5, stride=3, padding=1)
    assert geometry.deconv(down, kernel=5, stride=3, padding=1) == grid


def test_crops_of_published_networks():
    # FCN-AlexNet: a 63x63 final upsampling is cropped by 18; 64x64 cannot be aligned.
    grid = geometry.Grid()
    for kernel, stride, padding in (
        (11, 4, 100),
        (3, 2, 0),
        (5, 1, 2),
        (3, 2, 0),
        (3, 1, 1),
        (3, 1, 1),
        (3, 1, 1),
        (3, 2, 0),
        (6, 1, 0),
    ):
        grid = geometry.conv(grid, kernel, stride=stride, padding=padding)
    image_grid = geometry.Grid()
    assert geometry.crop_offset(geometry.deconv(grid, 63, stride=32), image_grid) == 18
    with pytest.raises(UserError, match="crop upscore to data: the offset is 37/2"):
        geometry.crop_offset(
            geometry.deconv(grid, 64, stride=32),
            image_grid,
            source_name="upscore",
            target_name="data",
        )
    # The other way round the offset is negative, and unequal steps never align.
    with pytest.raises(UserError, match="offset is -18"):
        geometry.crop_offset(image_grid, geometry.deconv(grid, 63, stride=32))
    with pytest.raises(UserError, match="step 32 px"):
        geometry.crop_offset(grid, image_grid)


def test_ceil_pool_sizes():
    for kernel, sizes in (
        (3, {55: 27, 27: 13, 13: 6, 112: 56, 56: 28, 28: 14, 14: 7}),
        (2, {375: 188, 333: 167, 7: 4}),
    ):
        for side, expected in sizes.items():
            assert geometry.ceil_pool_size(side, kernel, stride=2) == expected
    # Padding 1: the window that would hold only padding is dropped.
    assert geometry.ceil_pool_size(4, kernel=2, stride=2, padding=1) == 3
    assert geometry.ceil_pool_size(3, kernel=2, stride=2, padding=1) == 2
    assert geometry.ceil_pool_size(237, kernel=3, stride=2, padding=1) == 119


def test_tiling_sides():
    tiling = geometry.Tiling(step=16, offset=12, margin=92, minimum=188)
    valid = [n for n in range(160, 260) if geometry.is_valid_side(tiling, n)]
    assert valid == [188, 204, 220, 236, 252]
    assert geometry.nearest_sides(tiling, 570) == (556, 572)
    assert geometry.nearest_sides(tiling, 572) == (572,)
    assert geometry.nearest_sides(tiling, 20) == (188,)
    # A minimum that is not itself valid.
    assert geometry.nearest_sides(geometry.Tiling(4, 0, 0, 5), 3) == (8,)
    geometry.check_sides(tiling, (572, 188), "net")
    with pytest.raises(UserError, match="net: image width is 570.* 556 or 572"):
        geometry.check_sides(tiling, (572, 570), "net")
    geometry.check_sides(geometry.ANY_SIZE, (1, 7), "net")


# --- convolution ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, stride, padding, dilation",
    [
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (3, 1, 2, 2),
        (5, 2, 0, 1),
        (1, 1, 0, 1),
        (1, 2, 0, 1),
    ],
)
def test_conv2d(size, stride, padding, dilation):
    x, kernel = random(1, 9, 10, 2), random(size, size, 2, 3, seed=1)
    span = dilation * (size - 1) + 1
    wide = np.zeros((span, span, 2, 3), np.float32)
    wide[::dilation, ::dilation] = kernel
    padded = np.pad(x[0], ((padding, padding), (padding, padding), (0, 0)))
    expected = np.zeros((*(np.array(padded.shape[:2]) - span + 1), 3))
    for i in range(2):
        for o in range(3):
            expected[..., o] += signal.correlate2d(
                padded[..., i], wide[:, :, i, o], "valid"
            )
    expected = expected[::stride, ::stride]
    actual = conv.conv2d(x, kernel, stride=stride, padding=padding, dilation=dilation)[
        0
    ]
    assert actual.shape[:2] == tuple(
        geometry.conv_size(n, size, stride=stride, padding=padding, dilation=dilation)
        for n in (9, 10)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    "size, stride, padding", [(2, 2, 0), (4, 2, 0), (4, 2, 1), (5, 3, 2), (3, 1, 0)]
)
def test_conv_transpose(size, stride, padding):
    x, kernel = random(1, 3, 4, 2), random(size, size, 2, 3, seed=1)
    full = np.zeros((stride * 2 + size, stride * 3 + size, 3))
    for i in range(3):
        for j in range(4):
            rows = slice(stride * i, stride * i + size)
            columns = slice(stride * j, stride * j + size)
            full[rows, columns] += np.einsum("i,abio->abo", x[0, i, j], kernel)
    expected = full[padding : len(full) - padding, padding : full.shape[1] - padding]
    actual = conv.conv_transpose(x, kernel, stride=stride, padding=padding)[0]
    assert actual.shape[0] == geometry.deconv_size(
        3, size, stride=stride, padding=padding
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_bilinear_kernels():
    np.testing.assert_array_equal(conv.bilinear_taps(4), [0.25, 0.75, 0.75, 0.25])
    for size, first, total in (
        (16, 0.0625, 8),
        (32, 0.03125, 16),
        (63, 1 / 32, 32),
        (64, 0.015625, 32),
    ):
        taps = conv.bilinear_taps(size)
        assert taps[0] == first and taps.sum() == total
        np.testing.assert_array_equal(taps, taps[::-1])
    assert conv.bilinear_kernel(4)[1, 0] == 0.75 * 0.25


def test_bilinear_upsample():
    x = np.float32([[1, 2], [3, 4]]).reshape(1, 2, 2, 1)
    expected = [
        [0.0625, 0.1875, 0.3125, 0.4375, 0.375, 0.125],
        [0.1875, 0.5625, 0.9375, 1.3125, 1.125, 0.375],
        [0.375, 1.125, 1.75, 2.25, 1.875, 0.625],
    ]
    actual = conv.bilinear_upsample(x, size=4, stride=2)
    assert actual.shape == (1, 6, 6, 1)
    np.testing.assert_allclose(actual[0, :3, :, 0], expected, atol=1e-6)

    # The dense transposed convolution it stands for, cropped.
    x = random(2, 3, 4, 2)
    dense = conv.bilinear_kernel(16)[:, :, None, None] * np.eye(2)
    full = conv.conv_transpose(x, dense.astype(np.float32), stride=8)
    np.testing.assert_allclose(
        conv.bilinear_upsample(x, 16, stride=8, offset=5, crop=(20, 30)),
        full[:, 5:25, 5:35],
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="33 of an upsampled side of 32"):
        conv.bilinear_upsample(x, 16, stride=8, offset=3, crop=(30, 30))


# --- pooling --------------------------------------------------------------------------


def brute_pool(x, kernel, stride, padding, ceil, average):
    """Caffe's loops: windows clipped to the map (max) or to the padded map (count)."""
    sides = x.shape[1:3]
    out = []
    for n in sides:
        size = (n + 2 * padding - kernel) / stride + 1
        size = int(np.ceil(size) if ceil else np.floor(size))
        if ceil and padding and (size - 1) * stride >= n + padding:
            size -= 1
        out.append(size)
    y = np.zeros((x.shape[0], *out, x.shape[3]))
    for i in range(out[0]):
        for j in range(out[1]):
            bounds, count = [], 1
            for index, n in ((i, sides[0]), (j, sides[1])):
                low = index * stride - padding
                high = min(low + kernel, n + padding)
                count *= high - low
                bounds.append(slice(max(low, 0), min(high, n)))
            window = x[:, bounds[0], bounds[1]]
            y[:, i, j] = window.sum((1, 2)) / count if average else window.max((1, 2))
    return y


@pytest.mark.parametrize(
    "kernel, stride, padding, ceil",
    [
        (2, 2, 0, False),
        (2, 2, 0, True),
        (3, 2, 0, True),
        (3, 2, 1, False),
        (3, 2, 1, True),
    ],
)
def test_window_pools(kernel, stride, padding, ceil):
    x = random(1, 7, 8, 2) - 5  # negative: padding with zero would win
    arguments = kernel, stride, padding, ceil
    options = dict(stride=stride, padding=padding, ceil=ceil)
    np.testing.assert_array_equal(
        pool.max_pool(jnp.asarray(x), kernel, **options),
        brute_pool(x, *arguments, average=False).astype(np.float32),
    )
    np.testing.assert_allclose(
        pool.avg_pool(jnp.asarray(x), kernel, **options),
        brute_pool(x, *arguments, average=True),
        rtol=1e-5,
    )


def test_max_pool_gradient_and_integers():
    x = random(1, 5, 6, 1)

    def reference(x):
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        y = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
        return (y**2).sum()

    expected = jax.grad(reference)(x)
    actual = jax.grad(lambda x: (pool.max_pool(x, 3, stride=2, padding=1) ** 2).sum())(
        x
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    labels = jnp.arange(9, dtype=jnp.uint8).reshape(1, 3, 3, 1)
    pooled = pool.max_pool(labels, 2, stride=2, ceil=True)
    assert pooled.dtype == jnp.uint8
    assert pooled[0, :, :, 0].tolist() == [[4, 5], [7, 8]]


def test_adaptive_bins():
    assert pool.adaptive_bins(65, 2) == [(0, 33), (32, 65)]
    assert pool.adaptive_bins(65, 3) == [(0, 22), (21, 44), (43, 65)]
    sixths = [(0, 11), (10, 22), (21, 33), (32, 44), (43, 55), (54, 65)]
    assert pool.adaptive_bins(65, 6) == sixths
    assert pool.adaptive_bins(60, 6) == [(10 * i, 10 * i + 10) for i in range(6)]
    assert pool.adaptive_bins(1, 3) == [(0, 1)] * 3


@pytest.mark.parametrize("bins", [1, 3, 7])
def test_adaptive_pools(bins):
    x = random(2, 5, 8, 2)
    mean, top = np.zeros((2, 2, bins, bins, 2))
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * 5 // bins, int(np.ceil((i + 1) * 5 / bins)))
            columns = slice(j * 8 // bins, int(np.ceil((j + 1) * 8 / bins)))
            mean[:, i, j] = x[:, rows, columns].mean((1, 2))
            top[:, i, j] = x[:, rows, columns].max((1, 2))
    np.testing.assert_allclose(pool.adaptive_avg_pool(x, bins), mean, atol=1e-6)
    np.testing.assert_array_equal(
        pool.adaptive_max_pool(jnp.asarray(x), bins), top.astype(np.float32)
    )


def test_adaptive_averages_of_several_bins():
    x = random(2, 5, 8, 2)
    assert pool.adaptive_avg_pools(x, ()) == []
    found = pool.adaptive_avg_pools(x, (3, 1, 9))
    for bins, y in zip((3, 1, 9), found, strict=True):
        assert y.shape == (2, bins, bins, 2)
        np.testing.assert_allclose(y, pool.adaptive_avg_pool(x, bins), atol=1e-6)
    # The weights of 1 / 7 would be rounded to 8 bits.
    wide = jnp.ones((1, 7, 7, 1), jnp.bfloat16) * 3
    (mean,) = pool.adaptive_avg_pools(wide, (1,))
    assert mean.dtype == jnp.bfloat16 and mean.item() == 3


# --- resizing -------------------------------------------------------------------------

SIZES = [(13, 15), (10, 14), (3, 2), (1, 9)]


@pytest.mark.parametrize("size", SIZES)
def test_resize_half_pixel_and_nearest_like_opencv(size):
    x = random(1, 5, 7, 2)
    expected = cv2.resize(x[0], size[::-1], interpolation=cv2.INTER_LINEAR)
    actual = resize.resize_bilinear(x, size, align_corners=False)[0]
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    expected = cv2.resize(x[0], size[::-1], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(resize.resize_nearest(x, size)[0], expected)


@pytest.mark.parametrize("size", SIZES)
def test_resize_align_corners_like_scipy(size):
    x = random(1, 5, 7, 1)
    # A single output samples the first cell.
    rows, columns = np.linspace(0, 4, size[0]), np.linspace(0, 6, size[1])
    grid = np.meshgrid(rows, columns, indexing="ij")
    expected = ndimage.map_coordinates(x[0, :, :, 0], grid, order=1)
    actual = resize.resize_bilinear(x, size, align_corners=True)[0, :, :, 0]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_resize_properties():
    # 60 -> 473 reproduces cell k at pixel 8k.
    matrix = resize.bilinear_matrix(60, 473, align_corners=True)
    np.testing.assert_array_equal(matrix[::8], np.eye(60))
    np.testing.assert_allclose(matrix.sum(1), 1)
    # Labels shrunk by 8 are labels[::8], and coarser maps are read at these cells.
    np.testing.assert_array_equal(
        resize.bilinear_matrix(321, 41, align_corners=True), np.eye(321)[::8]
    )
    for cells, step in ((31, 0.75), (21, 0.5)):
        matrix = resize.bilinear_matrix(cells, 41, align_corners=True)
        np.testing.assert_allclose(matrix @ np.arange(cells), step * np.arange(41))
    one = random(1, 1, 1, 3)
    for align_corners in (True, False):
        up = resize.resize_bilinear(one, (4, 3), align_corners)
        np.testing.assert_allclose(up, np.broadcast_to(one, (1, 4, 3, 3)))
    # bfloat16 values are interpolated in float32.
    x = jnp.asarray([1.0, 2.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    up = resize.resize_bilinear(x, (257, 1), align_corners=True)
    assert up.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        up[0, :, 0, 0].astype(np.float32), 1 + np.arange(257) / 256, atol=2**-8
    )


# --- images ---------------------------------------------------------------------------


def test_normalize():
    x = np.uint8([[0, 128, 255]]).reshape(1, 1, 1, 3)
    for stats, expected in (
        ("caffe", [-122.67892, 128 - 116.66877, 255 - 104.00699]),
        ("imagenet", [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, 0.594 / 0.225]),
        ("unit", [-1, 128 / 127.5 - 1, 1]),
    ):
        actual = image.normalize(jnp.asarray(x), stats)
        np.testing.assert_allclose(actual[0, 0, 0], expected, rtol=1e-5, atol=1e-6)
    gray = jnp.full((1, 2, 2, 1), 51.0)
    out = image.normalize(gray, "unit", "bfloat16")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), -0.6, rtol=2**-8)
    with pytest.raises(UserError, match="3 channels, the images have 1"):
        image.normalize(gray, "caffe")
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        image.normalize(gray, "imagnet")
