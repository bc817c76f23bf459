"""Maps of a padded image without the padding that is the same for all images.

A network whose first layer pads by far more than its kernel computes, far from the
image, the same numbers for every image: those of an image of zeros. A :class:`Framed`
map [N, H, W, C] is its window that an image can change [N, h, w, C], and the map of a
small blank image of the same padding [1, bh, bw, C]. Both have the same borders,
and what is farther from a border than the layers so far see is one value per channel.
The frame around the window is therefore the blank map, with its middle row and column
repeated until it is as large as H x W.

Layers are applied to both. The window is first grown by what they read of the frame,
so that convolutions need no padding there. :func:`grow` leaves this form where it would
save little; all functions but :func:`frame` and :func:`convolve` let ordinary maps
pass. The blank sides are those of the full map but for a multiple of the strides, so
that poolings end in the same way.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import geometry, packed, pool
from segjax.ops.packed import Packed

# Of the locations of a full map, the largest share worth computing in this form: what
# grows a window is copied.
_WORTH = 0.9
# Strided stages that a blank map is large enough for. The next would need four times
# the locations, for windows that are nearly as large as the map.
_STAGES = 4


class Axis(NamedTuple):
    """Rows or columns of a framed map."""

    side: int  # of the full map
    start: int  # the window is start .. stop - 1
    stop: int
    blank: int  # side of the blank map
    near: int = 0  # locations that the borders have changed, at the start
    far: int = 0  # and at the end

    def frame_index(self, start: int, stop: int) -> np.ndarray:
        """The locations of the blank map that start .. stop - 1 of the full map equal.

        Of the full map, the locations near .. near + side - blank are the one `near`.
        """
        locations = np.arange(start, stop)
        behind = locations - (self.side - self.blank)
        return np.maximum(np.minimum(locations, self.near), behind)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("window", "blank"),
    meta_fields=("rows", "columns"),
)
@dataclasses.dataclass(frozen=True)
class Framed:
    """A map [N, rows.side, columns.side, C] in two parts."""

    window: jax.Array | Packed  # [N, h, w, C]
    blank: jax.Array  # [1, rows.blank, columns.blank, C]
    rows: Axis
    columns: Axis


def frame(
    images: jax.Array, padding: int, convolutions: Sequence[int]
) -> Framed | jax.Array:
    """Images [N, H, W, C] within zeros, or as they are where that saves little.

    Args:
      padding: zeros on every side. They are one less in the framed map, to which
        :func:`convolve` adds that one.
      convolutions: 3x3 convolutions before each pooling of 2x2, of all stages.
    """
    if padding < 1:
        return images
    axes = []
    for side in geometry.sides(images):
        full = side + 2 * (padding - 1)
        blank = _blank_side(full, convolutions[:_STAGES])
        axes.append(Axis(full, padding - 1, padding - 1 + side, blank))
    rows, columns = axes
    if _grown(rows, columns, convolutions[0]) is None:
        return images
    shape = (1, rows.blank, columns.blank, images.shape[3])
    return Framed(images, jnp.zeros(shape, images.dtype), rows, columns)


def grow(x: Framed | jax.Array, convolutions: int) -> Framed | jax.Array:
    """`x` with a window for so many 3x3 convolutions and a 2x2 pooling of stride 2.

    The full map [N, H, W, C] where the window would not fit into it, or be nearly as
    large.
    """
    if not isinstance(x, Framed):
        return x
    axes = _grown(x.rows, x.columns, convolutions)
    if axes is None:
        return expand(x)
    window = _region(x, *((axis.start, axis.stop) for axis in axes))
    return Framed(window, x.blank, *axes)


def convolve(x: Framed, layer: Callable[[Any], Any]) -> Framed:
    """The 3x3 convolution `layer`, which does not pad, of a map that it would pad by 1.

    The window loses a location on every side; the map keeps its size.
    """
    blank = layer(jnp.pad(x.blank, ((0, 0), (1, 1), (1, 1), (0, 0))))
    return Framed(layer(x.window), blank, *map(_convolved, (x.rows, x.columns)))


def max_pool(x: Framed | Packed | jax.Array) -> Framed | jax.Array:
    """Maximum over 2x2 windows of stride 2, an incomplete last one included (Caffe)."""

    def run(x: jax.Array | Packed) -> jax.Array:
        if isinstance(x, Packed):
            return packed.max_pool(x)
        return pool.max_pool(x, 2, stride=2, ceil=True)

    if not isinstance(x, Framed):
        return run(x)
    axes = map(_pooled, (x.rows, x.columns))
    return Framed(run(x.window), run(x.blank), *axes)


def expand(x: Framed | Packed | jax.Array) -> jax.Array:
    """The full map [N, H, W, C], plain."""
    if isinstance(x, Packed):
        return packed.unpack(x)
    if not isinstance(x, Framed):
        return x
    return _region(x, (0, x.rows.side), (0, x.columns.side))


def frame_counts(x: Framed) -> np.ndarray:
    """How often each location of the blank map stands in the frame: [bh, bw].

    They are the weights for sums over the full map, beside 1 for the window.
    """

    def counts(axis, start, stop):
        return np.bincount(axis.frame_index(start, stop), minlength=axis.blank)

    axes = x.rows, x.columns
    full = np.outer(*(counts(axis, 0, axis.side) for axis in axes))
    window = np.outer(*(counts(axis, axis.start, axis.stop) for axis in axes))
    return full - window


# --- rows and columns -----------------------------------------------------------------


def _convolved(axis: Axis) -> Axis:
    return axis._replace(
        start=axis.start + 1,
        stop=axis.stop - 1,
        near=axis.near + 1,
        far=axis.far + 1,
    )


def _pooled(axis: Axis) -> Axis:
    """Behind a pooling; start and stop are even."""
    side, blank = math.ceil(axis.side / 2), math.ceil(axis.blank / 2)
    return Axis(
        side=side,
        start=axis.start // 2,
        stop=axis.stop // 2,
        blank=blank,
        near=math.ceil(axis.near / 2),
        far=blank - (axis.blank - axis.far) // 2,
    )


def _has_middle(axis: Axis) -> bool:
    """Whether all of the full map is known from the blank one."""
    return axis.blank == axis.side or axis.near + axis.far < axis.blank


def _blank_side(side: int, convolutions: Sequence[int]) -> int:
    """The smallest side of a blank map that has a middle behind all these stages.

    It is at most `side`: a small map is its own blank one.
    """
    step = 2 ** len(convolutions)
    for blank in range(side % step or step, side, step):
        axis = Axis(side, 0, side, blank)
        for count in convolutions:
            for _ in range(count):
                axis = _convolved(axis)
            axis = _pooled(axis)
            if not _has_middle(axis):
                break
        else:
            return blank
    return side


def _grown(rows: Axis, columns: Axis, convolutions: int) -> tuple[Axis, Axis] | None:
    """The axes that :func:`grow` leads to; None for the full map."""
    grown, computed, full = [], 1, 1
    for axis in (rows, columns):
        # Behind the convolutions the window has to begin and end at even locations.
        start = (axis.start - convolutions) // 2 * 2
        stop = math.ceil((axis.stop + convolutions) / 2) * 2
        computed *= stop - start
        full *= axis.side
        axis = axis._replace(start=start - convolutions, stop=stop + convolutions)
        behind = axis
        for _ in range(convolutions):
            behind = _convolved(behind)
        fits = axis.start >= 0 and axis.stop <= axis.side
        if not (fits and _has_middle(behind) and _has_middle(_pooled(behind))):
            return None
        grown.append(axis)
    worth = computed + rows.blank * columns.blank <= _WORTH * full
    return (grown[0], grown[1]) if worth else None


# --- arrays ---------------------------------------------------------------------------


def _region(x: Framed, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """The rows and columns from .. to of the full map, the window among them."""
    height, width = (x.rows.start, x.rows.stop), (x.columns.start, x.columns.stop)
    window = packed.unpack(x.window) if isinstance(x.window, Packed) else x.window
    # By way of float32, in which gradients of equal locations are then summed.
    blank = x.blank.astype(jnp.float32)

    def frame(down, right):
        part = _stretched(blank, 1, x.rows, bounds=down)
        part = _stretched(part, 2, x.columns, bounds=right)
        part = jnp.broadcast_to(part, (window.shape[0], *part.shape[1:]))
        return part.astype(window.dtype)

    left = frame(height, (columns[0], width[0]))
    right = frame(height, (width[1], columns[1]))
    top, bottom = (
        frame((rows[0], height[0]), columns),
        frame((height[1], rows[1]), columns),
    )
    middle = jnp.concatenate([left, window, right], axis=2)
    return jnp.concatenate([top, middle, bottom], axis=1)


def _stretched(
    blank: jax.Array, dimension: int, axis: Axis, *, bounds: tuple[int, int]
) -> jax.Array:
    """``take(blank, axis.frame_index(*bounds), dimension)``, without a gather."""
    index = axis.frame_index(*bounds)
    before, middle, behind = (
        index[found]
        for found in (index < axis.near, index == axis.near, index > axis.near)
    )

    def part(locations):
        low = locations[0] if len(locations) else 0
        return jax.lax.slice_in_dim(blank, low, low + len(locations), axis=dimension)

    one = jax.lax.slice_in_dim(blank, axis.near, axis.near + 1, axis=dimension)
    shape = list(blank.shape)
    shape[dimension] = len(middle)
    return jnp.concatenate(
        [part(before), jnp.broadcast_to(one, shape), part(behind)], axis=dimension
    )
