"""Where the locations of a feature map lie in the image; sizes, crops and tile rules.

A map is a :class:`Grid`: along each axis the center of location ``i`` lies at image
coordinate ``start + i * step``, in pixels, pixel 0 having its center at 0. Layers
move grids; a crop is the distance between two of them. Models derive every crop and
margin from here, so a variant (other padding, other depth) stays aligned or fails
with an error. The algebra is that of Caffe's coordinate maps.
"""

from fractions import Fraction
from typing import NamedTuple

import jax

from segjax.errors import UserError


class Grid(NamedTuple):
    """Positions of the locations of a map along one axis, exact, in image pixels."""

    step: Fraction = Fraction(1)
    start: Fraction = Fraction(0)


def conv(
    grid: Grid, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Grid:
    """The grid behind a convolution or a pooling over `grid`."""
    center = Fraction(dilation * (kernel - 1), 2) - padding
    return Grid(grid.step * stride, grid.start + center * grid.step)


def deconv(grid: Grid, kernel: int, *, stride: int, padding: int = 0) -> Grid:
    """The grid behind a transposed convolution: :func:`conv` solved for its input."""
    step = grid.step / stride
    center = Fraction(kernel - 1, 2) - padding
    return Grid(step, grid.start - center * step)


def crop_offset(
    source: Grid,
    target: Grid,
    *,
    source_name: str = "source",
    target_name: str = "target",
) -> int:
    """Rows (columns) to crop from the top (left) of `source` to align it to `target`.

    Raises:
      UserError: the steps differ, or the offset is not a non-negative whole number.
    """
    if source.step != target.step:
        raise UserError(
            f"cannot crop {source_name} (step {source.step} px) to {target_name} "
            f"(step {target.step} px): the steps must be equal"
        )
    offset = (target.start - source.start) / source.step
    if offset.denominator != 1 or offset < 0:
        raise UserError(
            f"cannot crop {source_name} to {target_name}: the offset is {offset} "
            f"locations, expected a non-negative integer; change the padding or the "
            f"kernel sizes before one of the two"
        )
    return int(offset)


def conv_size(
    side: int, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> int:
    """Output side of a convolution or of a floor-mode pooling; may be below 1."""
    return (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def ceil_pool_size(side: int, kernel: int, *, stride: int, padding: int = 0) -> int:
    """Output side of a Caffe (ceil-mode) pooling.

    With padding the last window is dropped where it would start beyond the padded
    left part of the map, i.e. where it would hold nothing but padding.
    """
    size = -((side + 2 * padding - kernel) // -stride) + 1
    if padding and (size - 1) * stride >= side + padding:
        size -= 1
    return size


def deconv_size(side: int, kernel: int, *, stride: int, padding: int = 0) -> int:
    """Output side of a transposed convolution."""
    return stride * (side - 1) + kernel - 2 * padding


class Tiling(NamedTuple):
    """Which input sides a model accepts, and what it loses at the borders.

    A side n is valid iff ``n % step == offset % step`` and ``n >= minimum``; the
    output side is ``n - 2 * margin``, centered on the input.
    """

    step: int
    offset: int
    margin: int
    minimum: int = 1


# Models that take any image and return a map of the same size.
ANY_SIZE = Tiling(step=1, offset=0, margin=0, minimum=1)


def is_valid_side(tiling: Tiling, side: int) -> bool:
    """Whether a model with this `tiling` accepts an image side of `side` pixels."""
    return side >= tiling.minimum and (side - tiling.offset) % tiling.step == 0


def nearest_sides(tiling: Tiling, side: int) -> tuple[int, ...]:
    """The valid sides just below and above `side`: ``(side,)`` where it is valid.

    Below the smallest valid side the answer is that one alone.
    """
    smallest = tiling.minimum + (tiling.offset - tiling.minimum) % tiling.step
    if side <= smallest:
        return (smallest,)
    below = side - (side - tiling.offset) % tiling.step
    return (side,) if below == side else (below, below + tiling.step)


def sides(maps: jax.Array) -> tuple[int, int]:
    """Height and width of images or maps [N, H, W, ..]."""
    height, width = maps.shape[1:3]
    return height, width


def check_sides(tiling: Tiling, size: tuple[int, int], model: str) -> None:
    """Raises a UserError naming the nearest valid sides if images (h, w) do not fit."""
    for axis, side in zip(("height", "width"), size, strict=True):
        if not is_valid_side(tiling, side):
            nearest = " or ".join(str(n) for n in nearest_sides(tiling, side))
            raise UserError(
                f"{model}: image {axis} is {side}, expected {tiling.offset} plus a "
                f"multiple of {tiling.step}, at least {tiling.minimum}; "
                f"the nearest valid value is {nearest}"
            )
