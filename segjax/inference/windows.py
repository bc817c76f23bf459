"""Where windows lie on an image, and the mean of what they predict of each pixel.

The same layouts serve images that are predicted by a single compiled function
(:func:`predict_windows`) and images whose windows are cut on the host (large.py).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import UserError
from segjax.ops import geometry

Size = tuple[int, int]


class Layout(NamedTuple):
    """Windows that cover an image; where they reach beyond it, it is mirrored."""

    size: Size
    """(height, width) of the image."""
    window: Size
    """(height, width) of the input of the model."""
    output: Size
    """(height, width) of what the model predicts of a window: less its margin."""
    rows: list[int]
    """First rows of the outputs, in pixels of the extended image."""
    columns: list[int]
    """First columns of the outputs, in pixels of the extended image."""
    before: Size
    """Rows above and columns left of the image in the extended image."""
    margin: int
    """Pixels that the model loses on every side of a window."""

    @property
    def starts(self) -> list[tuple[int, int]]:
        """(first row, first column) of every output, row by row."""
        return [(row, column) for row in self.rows for column in self.columns]

    @property
    def extended(self) -> Size:
        """(height, width) of the area that the outputs cover."""
        return self.rows[-1] + self.output[0], self.columns[-1] + self.output[1]

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels that all windows together need (above, below), (left, right)."""
        above, left = (before + self.margin for before in self.before)
        below, right = (
            end - before - length + self.margin
            for end, before, length in zip(self.extended, self.before, self.size)
        )
        return (above, below), (left, right)

    @property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """How many outputs cover each row and each column of the extended image.

        A pixel is covered by their product.
        """
        axes = []
        for starts, side, length in zip(
            (self.rows, self.columns), self.output, self.extended
        ):
            count = np.zeros(length, np.float32)
            for start in starts:
                count[start : start + side] += 1
            axes.append(count)
        return axes[0], axes[1]


def sliding(size: Size, window: Sequence[int], stride: float) -> Layout:
    """Overlapping windows as in PSPNet's evaluation code.

    Windows advance by ``ceil(stride * side)``; the last one is moved back to end at the
    border. An image smaller than the window is centered in it.

    Args:
      size: (height, width) of the image.
      window: side, or height and width.
      stride: as a fraction of the window, in (0, 1].

    Raises:
      UserError: a window or a stride that is not positive, or a stride above 1.
    """
    sides = check_window(window)
    if not 0 < stride <= 1:
        raise UserError(f"--stride: found {stride!r}, expected above 0, at most 1")
    missing = [max(side - length, 0) for side, length in zip(sides, size)]
    rows, columns = (
        window_starts(max(length, side), side, stride)
        for length, side in zip(size, sides)
    )
    before = missing[0] // 2, missing[1] // 2
    return Layout(size, sides, sides, rows, columns, before, 0)


def check_window(window: Sequence[int]) -> Size:
    """(height, width) of a window given as a side or as both.

    Raises:
      UserError: it is neither, or not positive.
    """
    if len(window) not in (1, 2) or min(window) < 1:
        raise UserError(
            f"--window: found {tuple(window)!r}, expected a side or a height and a "
            "width, in pixels"
        )
    return window[0], window[-1]


def window_starts(length: int, side: int, stride: float = 2 / 3) -> list[int]:
    """Where windows of ``side`` pixels start along an axis of at least that length."""
    step = max(math.ceil(round(stride * side, 6)), 1)
    count = math.ceil((length - side) / step) + 1
    return [min(index * step, length - side) for index in range(count)]


def tiles(size: Size, tiling: geometry.Tiling, *, tile: int, model: str) -> Layout:
    """Square tiles that overlap by the model's margin (U-Net, section 2).

    Args:
      size: (height, width) of the image.
      tiling: of the model.
      tile: side of the input, in pixels.
      model: its name, for messages.

    Raises:
      UserError: see :func:`tile_stride`.
    """
    stride = tile_stride(tiling, tile, model)
    side = tile - 2 * tiling.margin
    rows, columns = (
        [i * stride for i in range(max(math.ceil((length - side) / stride), 0) + 1)]
        for length in size
    )
    return Layout(
        size, (tile, tile), (side, side), rows, columns, (0, 0), tiling.margin
    )


def tile_stride(tiling: geometry.Tiling, tile: int, model: str) -> int:
    """By how many pixels square tiles of that input side advance.

    The side of what a tile predicts, rounded down to the model's step, which pooling
    windows follow: a 572-px U-Net tile advances by 384 of its 388 px.

    Raises:
      UserError: the model has no margin, does not take this tile, or predicts less
        than its step of it.
    """
    if tiling.margin == 0:
        raise UserError(
            f"--tile={tile}: {model} predicts up to the border of its input, so its "
            "tiles cannot be stitched without seams; use a sliding window"
        )
    geometry.check_sides(tiling, (tile, tile), model)
    side = tile - 2 * tiling.margin
    stride = side - side % tiling.step
    if stride == 0:
        smallest = geometry.nearest_sides(tiling, tiling.step + 2 * tiling.margin)[-1]
        raise UserError(
            f"--tile={tile}: {model} predicts {side} px of a tile of {tile}, less than "
            f"its step of {tiling.step}; expected a tile of at least {smallest}"
        )
    return stride


def mirror(
    images: jax.Array, rows: tuple[int, int], columns: tuple[int, int]
) -> jax.Array:
    """Extends [N, H, W, C] by reflection about the border pixels, repeatedly if needed.

    Args:
      images: [N, H, W, C].
      rows: pixels to add above and below.
      columns: pixels to add left and right.
    """
    return jnp.pad(images, ((0, 0), rows, columns, (0, 0)), mode="reflect")


def mirrored_indices(start: int, count: int, length: int) -> np.ndarray:
    """``count`` pixels of an axis from ``start`` on, reflected as by :func:`mirror`."""
    period = max(2 * (length - 1), 1)
    index = np.arange(start, start + count) % period
    return np.minimum(index, period - index)


def predict_windows(
    predict: Callable[[jax.Array], jax.Array],
    extended: jax.Array,
    *,
    layout: Layout,
    batch: int,
) -> jax.Array:
    """Runs all windows of a layout and averages what they predict of each pixel.

    Args:
      predict: [N * b, *window, C] -> [N * b, *output, K].
      extended: images [N, H, W, C] with the padding of the layout.
      layout: of the windows.
      batch: windows b of each image in one run.

    Returns:
      float32 [N, *size, K].
    """
    number, channels = extended.shape[0], extended.shape[-1]
    starts = np.array(layout.starts)
    batch = min(batch, len(starts))
    spare = -len(starts) % batch  # the last run is filled up with windows of weight 0
    weights = np.pad(np.ones(len(starts), np.float32), (0, spare))
    starts = np.pad(starts, ((0, spare), (0, 0)), mode="edge").astype(np.int32)
    run = jax.ShapeDtypeStruct(
        (number * batch, *layout.window, channels), extended.dtype
    )
    classes = jax.eval_shape(predict, run).shape[-1]

    def step(total: jax.Array, chunk: tuple) -> tuple[jax.Array, None]:
        corners = [(0, row, column, 0) for row, column in chunk[0]]
        cut = (number, *layout.window, channels)
        parts = [jax.lax.dynamic_slice(extended, corner, cut) for corner in corners]
        # Images stay the outer axis, so that an array sharded over them stays so.
        windows = jnp.stack(parts, axis=1).reshape(run.shape)
        outputs = predict(windows).reshape(number, batch, *layout.output, classes)
        for index, corner in enumerate(corners):
            part = outputs[:, index] * chunk[1][index]
            part += jax.lax.dynamic_slice(total, corner, part.shape)
            total = jax.lax.dynamic_update_slice(total, part, corner)
        return total, None

    chunks = starts.reshape(-1, batch, 2), weights.reshape(-1, batch)
    total = jnp.zeros((number, *layout.extended, classes), jnp.float32)
    total, _ = jax.lax.scan(step, total, chunks)
    rows, columns = layout.coverage
    (top, left), (height, width) = layout.before, layout.size
    mean = total / (rows[:, None] * columns)[..., None]
    return mean[:, top : top + height, left : left + width]
