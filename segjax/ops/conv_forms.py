"""The forms of a convolution and of its gradients: the same sums in another order.

Arrays are [N, H, W, C], kernels [kh, kw, I, O]. :func:`cpu_form`,
:func:`cpu_map_gradient` and :func:`cpu_kernel_gradient` are the table of what is faster
on CPUs than the operations of XLA, and from which shapes on; docs/benchmark.md has the
measurements. Elsewhere a convolution is always :func:`native`, a transposed one
:func:`transposed_native`.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import strided
from segjax.ops import winograd as winograd_tiles

# From this many channels on, of both the input and the output:
_CHANNELS_OF_TAPS = 16  # the kernel's gradient as a product per tap
_CHANNELS_OF_COLUMN = 32  # the column of padding
_CHANNELS_OF_ROWS = 128  # products per row, for kernels larger than 3x3
# The kernel's gradient by bands, channels of the wider and of the narrower side, and
# bytes of a band: it has to stay in the cache of a core.
_CHANNELS_OF_BANDS = 48, 128
_BAND_BYTES = 3 * 2**19
# In tiles: at least so many channels, fewer in maps of at most so many bytes, and so
# many tiles, or the transforms cost more than they save; and at most this share of the
# products of the plain sums.
_CHANNELS_OF_TILES = 96
_FEWER_CHANNELS_OF_TILES = 48
_BYTES_OF_FEWER = 8 * 2**20
_FEWEST_TILES = 64
_SHARE_OF_TILES = 0.6
# Patches: at most so many outputs, and at least so many channels.
_OUTPUTS_OF_PATCHES = 200
_CHANNELS_OF_PATCHES = 256
# Blocks of pixels, for stride 2: at most so many channels, and so many outputs.
_CHANNELS_OF_BLOCKS = 4, 16


_native_only = contextvars.ContextVar("native_only", default=False)


@contextlib.contextmanager
def native_only() -> Iterator[None]:
    """What is traced inside has XLA's convolutions, 1x1 ones and gradients too.

    To compare with: a network that is written with ``flax.linen.Conv`` has these.
    """
    token = _native_only.set(True)
    try:
        yield
    finally:
        _native_only.reset(token)


def is_native_only() -> bool:
    """Whether what is being traced is inside :func:`native_only`."""
    return _native_only.get()


class Window(NamedTuple):
    """Stride, zeros on every side, and dilation, the same in both directions."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1


def _output_sides(
    sides: tuple[int, ...], kernel: tuple[int, ...], window: Window
) -> list[int]:
    stride, padding, dilation = window
    return [
        (side + 2 * padding - dilation * (size - 1) - 1) // stride + 1
        for side, size in zip(sides, kernel)
    ]


# (x, kernel, window) -> y
Form = Callable[[jax.Array, jax.Array, Window], jax.Array]


def native(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """XLA's convolution."""
    return _native(x, kernel, window, more=0)


def _native(x: jax.Array, kernel: jax.Array, window: Window, more: int) -> jax.Array:
    stride, padding, dilation = window
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding + more)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=strided.LAYOUT,
    )


def with_column(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """XLA's convolution with a column of zeros at the right, whose output is cut off.

    Without any padding, XLA writes all patches of the map to memory on CPUs. For stride
    1.
    """
    return _native(x, kernel, window, more=1)[:, :, :-1]


def by_patches(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """One matrix product of the patches; its gradients are products as well.

    For few pixels of many channels, where most of the time is that of the kernel: it is
    read once, and never copied to turn it around.
    """
    stride, padding, dilation = window
    rows, columns, _, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    window = window._replace(padding=0)
    height, width = _output_sides(x.shape[1:3], kernel.shape, window)
    patches = [
        x[:, dilation * a :: stride, dilation * b :: stride][:, :height, :width]
        for a, b in itertools.product(range(rows), range(columns))
    ]
    y = jnp.concatenate(patches, axis=-1).reshape(-1, kernel[..., 0].size)
    y = y @ kernel.reshape(-1, features)
    return y.reshape(x.shape[0], height, width, features)


def by_rows(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """One matrix product per row of the kernel.

    The columns of a kernel row are concatenated along the channels.
    """
    stride, padding, dilation = window
    rows, columns, _, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    window = window._replace(padding=0)
    height, width = (
        stride * (side - 1) + 1
        for side in _output_sides(x.shape[1:3], kernel.shape, window)
    )
    x = jnp.concatenate(
        [x[:, :, dilation * b : dilation * b + width : stride] for b in range(columns)],
        axis=-1,
    )
    products = (
        jnp.einsum(
            "nhwi,io->nhwo",
            x[:, dilation * a : dilation * a + height : stride],
            kernel[a].reshape(-1, features),
        )
        for a in range(rows)
    )
    return functools.reduce(jnp.add, products)


def products_first(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """One matrix product of the map with all taps, then a sum of shifted small maps.

    For stride 1, and few outputs: the map is read once and not once per tap. Taps that
    never see the map are left out. The sums are float32.
    """
    _, padding, dilation = window
    rows, columns, channels, features = kernel.shape
    n, height, width, _ = x.shape
    sides = [
        side + 2 * padding - dilation * (size - 1)
        for side, size in ((height, rows), (width, columns))
    ]

    def shifts(size, side, out):
        """(tap, zeros before and behind the map), negative where it is cut."""
        for tap in range(size):
            before = padding - dilation * tap
            if -side < before < out:
                yield tap, (before, out - side - before, 0)

    taps = list(
        itertools.product(
            shifts(rows, height, sides[0]), shifts(columns, width, sides[1])
        )
    )
    if not taps:
        return jnp.zeros((n, *sides, features), x.dtype)
    kept = jnp.stack([kernel[a, b] for (a, _), (b, _) in taps], axis=1)
    products = jnp.dot(
        x.reshape(-1, channels),
        kept.reshape(channels, -1),
        preferred_element_type=jnp.float32,
    ).reshape(n, height, width, len(taps), features)
    zero = np.zeros((), products.dtype)
    parts = (
        jax.lax.pad(products[:, :, :, index], zero, ((0, 0, 0), down, right, (0, 0, 0)))
        for index, ((_, down), (_, right)) in enumerate(taps)
    )
    return functools.reduce(jnp.add, parts).astype(x.dtype)


def winograd(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """In tiles of 2x2 outputs, for 3x3 kernels of stride 1: see winograd.py."""
    _, padding, dilation = window
    return winograd_tiles.convolution(x, kernel, padding=padding, dilation=dilation)


def by_blocks(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """On blocks of 2x2 pixels, for stride 2: see strided.py."""
    return strided.on_blocks(x, kernel, padding=window.padding)


def _images(x: jax.Array) -> int:
    """Images of a batch; 1 in a program that is exported for batches of any size."""
    batch = x.shape[0]
    return batch if isinstance(batch, int) else 1


def _in_tiles(x: jax.Array, kernel: tuple[int, ...], window: Window) -> bool:
    """Whether tiles are faster than the plain sums on a CPU, for the gradients too."""
    stride, padding, dilation = window
    if x.dtype != jnp.float32 or kernel[:2] != (3, 3) or stride != 1:
        return False
    sides = _output_sides(x.shape[1:3], kernel, window)
    batch = _images(x)
    products = winograd_tiles.products(batch, sides, dilation)
    pixels = batch * max(math.prod(sides), math.prod(x.shape[1:3]))
    small = pixels * max(kernel[2:]) * x.dtype.itemsize <= _BYTES_OF_FEWER
    channels = _FEWER_CHANNELS_OF_TILES if small else _CHANNELS_OF_TILES
    return (
        0 <= padding <= 2 * dilation
        and min(kernel[2:]) >= channels
        and products >= 16 * _FEWEST_TILES
        and products <= _SHARE_OF_TILES * 9 * batch * sides[0] * sides[1]
    )


def cpu_form(x: jax.Array, kernel: tuple[int, ...], window: Window) -> Form:
    """The fastest form of a convolution with a kernel of this shape on a CPU."""
    rows, columns, channels, features = kernel
    fewest = min(channels, features)
    sides = _output_sides(x.shape[1:3], kernel, window)
    few = min(sides) > 0 and _images(x) * math.prod(sides) <= _OUTPUTS_OF_PATCHES
    if few and fewest >= _CHANNELS_OF_PATCHES:
        return by_patches
    if _in_tiles(x, kernel, window):
        return winograd
    if window.stride == 1 and rows * columns * features <= channels:
        return products_first
    most = _CHANNELS_OF_BLOCKS
    strided_by_2 = window.stride == 2 and window.dilation == 1 and rows == columns > 1
    if strided_by_2 and channels <= most[0] and features <= most[1] and min(sides) > 0:
        return by_blocks
    if max(rows, columns) > 3 and fewest >= _CHANNELS_OF_ROWS:
        return by_rows
    if window[:2] == (1, 0) and fewest >= _CHANNELS_OF_COLUMN:
        return with_column
    return native


# Their gradients are those of their operations; the others have forms of their own.
DIFFERENTIATED = by_patches, by_rows, products_first


# --- gradients ------------------------------------------------------------------------


def cpu_map_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, window: Window
) -> jax.Array:
    """Gradient of the map `x`, from that of the output, on a CPU.

    Of the same kernels as :func:`cpu_kernel_gradient`.
    """
    stride, padding, dilation = window
    back = Window(stride, 2 * dilation - padding, dilation)
    if _in_tiles(gradient, kernel.shape, back):
        return winograd_tiles.convolution(
            gradient, kernel, padding=back.padding, dilation=dilation, transposed=True
        )
    return jax.vjp(lambda x: native(x, kernel, window), x)[1](gradient)[0]


def cpu_kernel_gradient(
    x: jax.Array, gradient: jax.Array, *, shape: tuple[int, ...], window: Window
) -> jax.Array:
    """Gradient of a kernel of `shape`, from that of the output, on a CPU.

    Of the kernels whose form is not in DIFFERENTIATED.
    """
    if _in_tiles(x, shape, window):
        _, padding, dilation = window
        return winograd_tiles.kernel_gradient(
            x, gradient, padding=padding, dilation=dilation
        )
    narrow, wide = sorted(shape[2:])
    if narrow < _CHANNELS_OF_TAPS:
        pull = jax.vjp(
            lambda kernel: native(x, kernel, window), jnp.zeros(shape, x.dtype)
        )[1]
        return pull(gradient)[0]
    least, most = _CHANNELS_OF_BANDS
    by_bands = window.stride == 1 and least <= narrow and wide <= most
    form = _gradient_by_bands if by_bands else _gradient_by_taps
    return form(x, gradient, shape, window)


def _gradient_by_taps(
    x: jax.Array, gradient: jax.Array, shape: tuple[int, ...], window: Window
) -> jax.Array:
    """A matrix product per tap."""
    stride, padding, dilation = window
    rows, columns, channels, features = shape
    height, width = (stride * (side - 1) + 1 for side in gradient.shape[1:3])
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    gradient = gradient.reshape(-1, features)
    # One factor must be transposed: the gradient once, or the (smaller) map per tap.
    once = len(gradient) > 4 * channels
    transposed = gradient.T

    def tap(start):
        size = (len(x), height, width, channels)
        seen = jax.lax.dynamic_slice(x, (0, *start, 0), size)
        seen = seen[:, ::stride, ::stride].reshape(-1, channels)
        return transposed @ seen if once else seen.T @ gradient

    starts = np.array(list(itertools.product(range(rows), range(columns)))) * dilation
    taps = jax.lax.map(tap, tuple(starts.astype(np.int32).T))
    taps = taps.reshape(rows, columns, *taps.shape[1:])
    return taps.swapaxes(2, 3) if once else taps


def _gradient_by_bands(
    x: jax.Array, gradient: jax.Array, shape: tuple[int, ...], window: Window
) -> jax.Array:
    """A matrix product per band of rows, which gives all taps; for stride 1.

    The columns of the kernel are shifts of the map, its rows are shifts of the
    gradient: [columns * I, pixels] x [pixels, rows * O], with less to copy than the
    patches of all taps. The sums of bands are float32.
    """
    _, padding, dilation = window
    rows, columns, channels, features = shape
    n, height, _, _ = x.shape
    out_height, width, _ = gradient.shape[1:]
    row_bytes = n * width * (columns * channels + rows * features) * x.dtype.itemsize
    band = min(max(_BAND_BYTES // row_bytes, 1), height)
    bands = -(-height // band)
    x = jnp.pad(x, ((0, 0), (0, bands * band - height), (padding, padding), (0, 0)))
    reach = dilation * (rows - 1)
    zero = np.zeros((), gradient.dtype)
    before = reach - padding
    behind = bands * band + reach - out_height - before
    gradient = jax.lax.pad(
        gradient, zero, ((0, 0, 0), (before, behind, 0), (0, 0, 0), (0, 0, 0))
    )

    def add_band(index, total):
        seen, pulled = (
            jax.lax.dynamic_slice_in_dim(values, index * band, count, axis=1)
            for values, count in ((x, band), (gradient, band + reach))
        )
        shifted = [seen[:, :, dilation * b :][:, :, :width] for b in range(columns)]
        left = jnp.concatenate(shifted, axis=-1).reshape(-1, columns * channels).T
        starts = [reach - dilation * a for a in range(rows)]
        shifted = [pulled[:, start : start + band] for start in starts]
        right = jnp.concatenate(shifted, axis=-1).reshape(-1, rows * features)
        # Transposed on its own: a product that transposes is slower.
        left = jax.lax.optimization_barrier(left)
        return total + jnp.dot(left, right, preferred_element_type=jnp.float32)

    total = jnp.zeros((columns * channels, rows * features), jnp.float32)
    total = jax.lax.fori_loop(0, bands, add_band, total)
    total = total.reshape(columns, channels, rows, features)
    return total.transpose(2, 0, 1, 3).astype(x.dtype)


# --- transposed convolution -----------------------------------------------------------


def transposed_native(
    x: jax.Array, kernel: jax.Array, how: tuple[int, int, int]
) -> jax.Array:
    """conv.conv_transpose as XLA's convolution of the map with zeros in between.

    `how`: stride, padding, output padding.
    """
    stride, padding, more = how
    edge = len(kernel) - 1 - padding
    cut = max(-edge, 0)  # beyond the kernel: XLA pads, it does not cut any number
    y = jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=[(edge + cut, edge + cut + more)] * 2,
        lhs_dilation=(stride, stride),
        dimension_numbers=strided.LAYOUT,
    )
    return y[:, cut : y.shape[1] - cut, cut : y.shape[2] - cut]


def transposed_product(
    x: jax.Array, kernel: jax.Array, how: tuple[int, int, int]
) -> jax.Array:
    """The same as matrix products: faster on CPUs.

    A block of stride x stride taps gives each input location its own outputs: a matrix
    product. Overlapping outputs belong to the next block, one location further.
    """
    stride, padding, more = how
    n, h, w, channels = x.shape
    size, features = kernel.shape[0], kernel.shape[3]
    blocks = -(-size // stride)
    parts = []
    for a, b in itertools.product(range(blocks), repeat=2):
        taps = kernel[a * stride : (a + 1) * stride, b * stride : (b + 1) * stride]
        rows, columns = taps.shape[:2]
        taps = taps.transpose(2, 0, 1, 3).reshape(channels, -1)
        part = (x.reshape(-1, channels) @ taps).reshape(n, h, w, rows, columns, -1)
        shifts = ((a, blocks - 1 - a), (b, blocks - 1 - b))
        missing = ((0, stride - rows), (0, stride - columns))
        parts.append(jnp.pad(part, ((0, 0), *shifts, *missing, (0, 0))))
    sides = [stride * (side + blocks - 1) for side in (h, w)]
    y = functools.reduce(jnp.add, parts)
    y = y.swapaxes(2, 3).reshape(n, *sides, features)
    y = jnp.pad(y, ((0, 0), (0, more), (0, more), (0, 0))) if more else y
    height, width = (stride * (side - 1) + size - padding + more for side in (h, w))
    return y[:, padding:height, padding:width]
