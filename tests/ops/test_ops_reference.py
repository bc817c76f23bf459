"""Operators and their gradients against numpy and PyTorch in float64.

ops_numpy.py and ops_torch.py are the references, for [N, C, H, W]. Gradients are
compared along random directions with differences of the reference.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import bilinear_blob, each_library, operators

from segjax.ops import conv, norm, pool, resize, unpool


def random(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def maps(height, width, channels, **options):
    """[N, C, H, W] of two images."""
    return random(2, channels, height, width, **options)


def hwc(x):
    return jnp.transpose(x, (0, 2, 3, 1))


def chw(x):
    return jnp.transpose(x, (0, 3, 1, 2))


def value_and_gradients(ours, *args):
    """Of a random weighted sum of `ours`: the value, the weights, the gradients."""

    def run(*args):
        y = ours(*args)
        weight = jnp.asarray(random(*y.shape, seed=9))
        return (y * weight).sum(), y

    argnums = tuple(range(len(args)))
    (_, y), gradients = jax.jit(jax.value_and_grad(run, argnums, has_aux=True))(*args)
    return np.asarray(y), random(*y.shape, seed=9), [np.asarray(g) for g in gradients]


def check(found, reference, *args):
    """`found`: from value_and_gradients with the same arguments."""
    y, weight, gradients = found
    args = [np.asarray(arg, np.float64) for arg in args]
    expected = reference(*args)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max() * 8)
    for index, gradient in enumerate(gradients):
        for seed in range(2):
            direction = random(*args[index].shape, seed=seed).astype(np.float64)

            def moved(step, index=index, direction=direction):
                changed = [*args]
                changed[index] = args[index] + step * direction
                return (reference(*changed) * weight).sum()

            slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
            scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
            assert abs((gradient * direction).sum() - slope) < 1e-5 * scale


# --- convolutions ---

# size, stride, padding, dilation, groups, (in, out) channels, (height, width)
CONVS = [
    (3, 1, 1, 1, 1, (3, 4), (9, 10)),
    (3, 2, 1, 1, 1, (3, 4), (9, 10)),
    (3, 2, 1, 1, 1, (3, 4), (8, 7)),
    (3, 1, 2, 2, 1, (3, 4), (9, 10)),
    (3, 1, 4, 4, 1, (2, 3), (7, 8)),  # the window is larger than the map
    (4, 1, 6, 4, 1, (2, 3), (7, 8)),
    (11, 4, 5, 1, 1, (3, 4), (22, 19)),
    (1, 1, 0, 1, 1, (3, 4), (5, 6)),
    (1, 2, 0, 1, 1, (3, 4), (5, 6)),
    (4, 1, 0, 1, 1, (3, 4), (4, 4)),  # fully connected
    (5, 1, 2, 1, 2, (4, 6), (8, 9)),
    (3, 2, 0, 1, 3, (3, 6), (8, 9)),
    # More channels are computed in other ways.
    (3, 1, 1, 1, 1, (32, 33), (6, 7)),
    (3, 2, 1, 1, 1, (33, 32), (7, 8)),
    (3, 1, 2, 2, 1, (32, 32), (6, 7)),
    (3, 2, 2, 2, 1, (32, 32), (8, 7)),
    (5, 1, 2, 1, 1, (32, 32), (6, 7)),
    (7, 2, 3, 1, 1, (32, 32), (9, 8)),
    (5, 2, 4, 2, 1, (32, 33), (8, 9)),
    (3, 1, 1, 1, 2, (64, 64), (5, 6)),
]


@functools.cache
def conv_case(size, stride, padding, dilation, groups, channels, sides):
    inputs, outputs = channels
    x = maps(*sides, inputs)
    kernel = random(outputs, inputs // groups, size, size, seed=1)

    def ours(x, kernel):
        kernel = kernel.transpose(2, 3, 1, 0)
        return chw(
            conv.conv2d(
                hwc(x),
                kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
            )
        )

    return (x, kernel), value_and_gradients(ours, x, kernel)


@each_library
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolution(case, library):
    ops = operators(library)
    args, found = conv_case(*case)
    _, *how, _, _ = case
    check(found, lambda x, kernel: ops.conv(x, kernel, None, *how), *args)


# size, stride, padding, (height, width)
TRANSPOSED = [
    (2, 2, 0, (3, 4)),
    (4, 2, 0, (3, 4)),
    (4, 2, 1, (4, 3)),
    (3, 2, 1, (3, 5)),
    (3, 1, 1, (4, 5)),
    (5, 3, 2, (3, 4)),
    (16, 8, 4, (2, 3)),
    (2, 3, 0, (3, 4)),  # with gaps
    (7, 1, 0, (1, 1)),  # DeconvNet's fc6-deconv
    (4, 2, 1, (1, 1)),
]


@functools.cache
def transposed_case(size, stride, padding, sides):
    x, kernel = maps(*sides, 3), random(3, 4, size, size, seed=1)

    def ours(x, kernel):
        kernel = kernel.transpose(2, 3, 0, 1)
        return chw(conv.conv_transpose(hwc(x), kernel, stride=stride, padding=padding))

    return (x, kernel), value_and_gradients(ours, x, kernel)


@each_library
@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolution(case, library):
    ops = operators(library)
    args, found = transposed_case(*case)
    _, stride, padding, _ = case
    check(found, lambda x, k: ops.deconv(x, k, None, stride, padding), *args)


@functools.cache
def upsampling_case(size, stride, offset):
    x, crop = maps(3, 4, 2), (17, 22)

    def ours(x):
        return chw(
            conv.bilinear_upsample(
                hwc(x), size, stride=stride, offset=offset, crop=crop
            )
        )

    return x, value_and_gradients(ours, x)


@each_library
@pytest.mark.parametrize("size, stride, offset", [(16, 8, 5), (15, 8, 4), (12, 7, 2)])
def test_fixed_bilinear_upsampling(size, stride, offset, library):
    """FCN's: a dense transposed convolution that is the identity between channels."""
    ops = operators(library)
    x, found = upsampling_case(size, stride, offset)
    kernel = bilinear_blob(2, size).astype(np.float64)

    def reference(x):
        full = ops.deconv(x, kernel, None, stride)
        return full[:, :, offset : offset + 17, offset : offset + 22]

    check(found, reference, x)


# --- pooling ---

POOLS = [
    (2, 2, 0, False),
    (2, 2, 0, True),
    (3, 2, 0, True),
    (3, 2, 1, False),
    (3, 2, 1, True),
    (3, 1, 1, True),
    (2, 2, 1, True),
    (2, 1, 0, True),
    (7, 1, 0, False),
]


@functools.cache
def pool_case(kind, how):
    x = maps(7, 8, 2) - 5  # negative: padding with zero would win
    function = {"max": pool.max_pool, "avg": pool.avg_pool}[kind]
    kernel, stride, padding, ceil = how
    pool_maps = functools.partial(
        function, kernel=kernel, stride=stride, padding=padding, ceil=ceil
    )
    return x, value_and_gradients(lambda x: chw(pool_maps(hwc(x))), x)


@each_library
@pytest.mark.parametrize("how", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling(kind, how, library):
    ops = operators(library)
    x, found = pool_case(kind, how)
    function = {"max": ops.max_pool, "avg": ops.avg_pool}[kind]
    check(found, lambda x: function(x, *how), x)


@functools.cache
def adaptive_case(kind, bins, sides):
    x = maps(*sides, 2)
    function = {"max": pool.adaptive_max_pool, "avg": pool.adaptive_avg_pool}[kind]
    return x, value_and_gradients(lambda x: chw(function(hwc(x), bins)), x)


@each_library
@pytest.mark.parametrize(
    "bins, sides",
    [(1, (5, 8)), (2, (13, 7)), (3, (6, 12)), (6, (13, 7)), (6, (5, 8))],
    ids=str,
)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_adaptive_pooling(kind, bins, sides, library):
    ops = operators(library)
    x, found = adaptive_case(kind, bins, sides)
    check(found, lambda x: ops.adaptive_pool(x, bins, kind), x)


@functools.cache
def unpooling_case(kernel, sides):
    x = maps(*sides, 3)
    cells = tuple(-(-side // kernel) for side in sides)
    values = maps(*cells, 3, seed=4)
    _, switches = unpool.max_pool_switches(hwc(x), kernel)

    def ours(values):
        return chw(unpool.unpool(hwc(values), switches, kernel=kernel, size=sides))

    def pooled(x):
        return chw(unpool.max_pool_switches(hwc(x), kernel)[0])

    return x, values, value_and_gradients(pooled, x), value_and_gradients(ours, values)


@each_library
@pytest.mark.parametrize("kernel, sides", [(2, (5, 6)), (2, (6, 8)), (3, (7, 4))])
def test_pooling_with_switches_and_unpooling(kernel, sides, library):
    ops = operators(library)
    x, values, pooled, unpooled = unpooling_case(kernel, sides)
    _, switches = ops.pool_switches(x.astype(np.float64), kernel)
    check(pooled, lambda x: ops.pool_switches(x, kernel)[0], x)
    check(unpooled, lambda values: ops.unpool(values, switches, sides), values)


# --- normalization and resizing ---


@functools.cache
def lrn_case(channels, size):
    x = maps(4, 5, channels, scale=50)  # of a size that alpha = 1e-4 can see

    def ours(x):
        return chw(norm.local_response_norm(hwc(x), size=size))

    return x, value_and_gradients(ours, x)


@each_library
@pytest.mark.parametrize("channels, size", [(8, 5), (3, 5), (7, 3)])
def test_response_normalization(channels, size, library):
    ops = operators(library)
    x, found = lrn_case(channels, size)
    assert np.abs(found[0] / x - 1).max() > 0.05
    check(found, lambda x: ops.lrn(x, size), x)


@functools.cache
def resize_case(sides, size, align_corners):
    x = maps(*sides, 2)

    def ours(x):
        return chw(resize.resize_bilinear(hwc(x), size, align_corners))

    return x, value_and_gradients(ours, x)


@each_library
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    "sides, size",
    [
        ((5, 7), (13, 15)),
        ((6, 4), (12, 8)),
        ((6, 7), (3, 2)),
        ((1, 3), (5, 7)),
        ((5, 4), (1, 9)),
    ],
    ids=str,
)
def test_bilinear_resizing(sides, size, align_corners, library):
    ops = operators(library)
    x, found = resize_case(sides, size, align_corners)
    check(found, lambda x: ops.resize(x, size, align_corners), x)


def test_nearest_resizing_is_pytorchs():
    torch = pytest.importorskip("torch")
    for sides, size in (((5, 7), (13, 15)), ((6, 4), (12, 8)), ((9, 8), (3, 5))):
        x = maps(*sides, 2)
        expected = torch.nn.functional.interpolate(torch.from_numpy(x), size)
        found = chw(resize.resize_nearest(hwc(x), size))
        np.testing.assert_array_equal(found, expected.numpy())
