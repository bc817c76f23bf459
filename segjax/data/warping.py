"""One warp of an image and its label map: its matrix, its displacements, resampling.

Pixel ``i`` covers ``[i, i + 1)`` and its center is ``i + 0.5``: identity, mirrors and
quarter turns are exact copies, and a scale of 2 agrees with ``cv2.resize``.
"""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from segjax.data.channel_groups import groups
from segjax.labels import VOID

_BORDERS = {"mean": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}
_MAX_SIDE = 2**15 - 2
"""OpenCV warps no longer sides: its coordinates of pixels are 16-bit integers."""
_BLOCK_SIDE = 2**13
"""Larger images are warped in blocks of this side."""


def input_from_output(
    image_size: Sequence[int],
    size: Sequence[int],
    *,
    scale: float | tuple[float, float] = 1.0,
    lean: float = 0.0,
    degrees: float = 0.0,
    turns: int = 0,
    mirror: tuple[bool, bool] = (False, False),
    place: Sequence[float] | np.ndarray = (0.5, 0.5),
    shift: Sequence[float] | np.ndarray = (0, 0),
    margin: int = 0,
) -> np.ndarray:
    """The map from output to input pixel indices of a scaled, turned and cropped image.

    The image is scaled (its new sides rounded to pixels, as ``cv2.resize`` does),
    given quarter turns, sheared, rotated, mirrored and shifted, and then cropped.

    Args:
      image_size: height and width of the input.
      size: height and width of the output.
      scale: factor on both sides, or (on the height, on the width).
      lean: clockwise angle in degrees, -90 to 90 without these, by which columns lean;
        rows keep their direction and the center of the image its place.
      degrees: counter-clockwise angle about the center of the scaled image.
      turns: counter-clockwise quarter turns (``np.rot90``).
      mirror: (upside down, left-right).
      place: where a crop smaller than the scaled image lies, 0 (top, left) to
        1 (bottom, right, exclusive), rounded down to pixels; a larger one is centered.
      shift: (down, right) in pixels.
      margin: rows and columns at each side of the output that need not fit.

    Returns:
      float64 [2, 3]: input (x, y) = matrix @ (output x, output y, 1).
    """
    sides = np.array(image_size)
    scaled = np.maximum(np.rint(sides * scale), 1).astype(int)
    turned = scaled[::-1] if turns % 2 else scaled
    slack = turned - size + 2 * margin
    start = np.where(slack < 0, -(-slack // 2), np.floor(np.multiply(place, slack + 1)))
    start = start - margin

    # From here on in (x, y). Everything linear happens about the centers.
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    linear = (
        np.diag((sides / scaled)[::-1])
        @ np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns % 4)
        @ np.array([[1, math.tan(math.radians(lean))], [0, 1]])
        @ np.array([[cosine, -sine], [sine, cosine]])
        @ np.diag(np.where(mirror, -1, 1)[::-1])
    )
    first = (start - shift + 0.5 - turned / 2)[::-1]
    return np.column_stack([linear, linear @ first + sides[::-1] / 2 - 0.5])


def displacement(nodes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Per-pixel field of displacements given on a coarse grid (U-Net, section 3.1).

    The nodes are the centers of equal cells that tile the output. The field between
    them is bicubic (cubic convolution, a = -0.75, the outermost nodes repeated beyond).

    Args:
      nodes: [g, g, 2] (x, y) in pixels.
      size: height and width of the field.

    Returns:
      float32 [h, w, 2].
    """
    height, width = size
    return cv2.resize(
        nodes.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )


def warp(
    image: np.ndarray,
    label: np.ndarray,
    *,
    matrix: np.ndarray,
    size: Sequence[int],
    nodes: np.ndarray | None = None,
    border: str = "mean",
    fill: Sequence[float] = (0, 0, 0),
    instance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Resamples an image (bilinear) and its label and instance maps (nearest) once.

    Args:
      image: uint8 [H, W, C].
      label: uint8 [H, W].
      matrix: [2, 3], see ``input_from_output``.
      size: height and width of the output.
      nodes: displacements of the output pixels on a coarse grid, see ``displacement``;
        none if None.
      border: "mean" (outside is ``fill``) or "reflect" (the image is mirrored).
      fill: color, 0..255 per channel.
      instance: uint16 [H, W], or None.

    Returns:
      image uint8 [h, w, C]; label uint8 [h, w], which is void outside the image; and
      instance uint16 [h, w], which is 0 there, or None.
    """
    field = None
    if nodes is not None:
        # Interpolation is linear in the nodes: turning them turns the whole field.
        field = displacement(nodes @ matrix[:, :2].T, size)
    layers: list[tuple] = [
        (image, cv2.INTER_LINEAR, _BORDERS[border], tuple(fill)),
        (label, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, (VOID,)),
    ]
    if instance is not None:
        layers.append((instance, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, (0,)))
    if max(*label.shape, *size) <= _MAX_SIDE:
        warped = [
            _resample(
                pixels,
                matrix,
                size=size,
                field=field,
                interpolation=interpolation,
                border=mode,
                outside=outside,
            )
            for pixels, interpolation, mode, outside in layers
        ]
        return _triple(*warped)
    warped = [
        np.empty((*size, *pixels.shape[2:]), pixels.dtype) for pixels, *_ in layers
    ]
    for rows, columns, box in _blocks(matrix, size, field):
        # The same map, from pixels of the block to pixels of its box.
        moved = matrix.copy()
        moved[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
        moved[:, 2] -= (box[1].start, box[0].start)
        part = None if field is None else field[rows, columns]
        for target, (pixels, interpolation, mode, outside) in zip(warped, layers):
            block = target[rows, columns]
            block[:] = _resample(
                _cut(pixels, box, reflect=mode != cv2.BORDER_CONSTANT, outside=outside),
                moved,
                size=block.shape[:2],
                field=part,
                interpolation=interpolation,
                border=cv2.BORDER_REPLICATE,
                outside=outside,
            )
    return _triple(*warped)


def _triple(
    image: np.ndarray, label: np.ndarray, instance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    return image, label, instance


def _resample(
    pixels: np.ndarray,
    matrix: np.ndarray,
    *,
    size: Sequence[int],
    field: np.ndarray | None,
    interpolation: int,
    border: int,
    outside: tuple[float, ...],
) -> np.ndarray:
    """Calls OpenCV, affine or with displacements (x, y) of the output pixels."""
    height, width = size
    at = None
    if field is not None:
        line = np.arange(width)[:, None] * matrix[:, 0] + matrix[:, 2]
        at = field + line.astype("f4")
        at += (np.arange(height)[:, None] * matrix[:, 1])[:, None]

    def run(part: np.ndarray, outside: tuple[float, ...]) -> np.ndarray:
        if at is None:
            flags = interpolation | cv2.WARP_INVERSE_MAP
            return cv2.warpAffine(
                part, matrix, (width, height), None, flags, border, outside
            )
        return cv2.remap(
            part,
            at,
            None,  # type: ignore[call-overload]  # the stubs of OpenCV forget it
            interpolation,
            borderMode=border,
            borderValue=outside,
        )

    if pixels.ndim == 2:
        return run(pixels, outside)
    linear = interpolation == cv2.INTER_LINEAR
    if pixels.shape[2] == 3 and pixels.dtype == np.uint8 and linear:
        # OpenCV warps four channels faster than three, to the same bits.
        four = run(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA), (*outside, 0))
        return cv2.cvtColor(four, cv2.COLOR_RGBA2RGB)
    warped = np.empty((height, width, pixels.shape[2]), pixels.dtype)
    for part in groups(pixels.shape[2]):
        warped[:, :, part] = run(
            np.ascontiguousarray(pixels[:, :, part]), outside[part]
        ).reshape(height, width, -1)
    return warped


def _blocks(
    matrix: np.ndarray, size: Sequence[int], field: np.ndarray | None
) -> Iterator[tuple[slice, slice, tuple[slice, slice]]]:
    """Blocks of the output and the box of input pixels that each of them shows.

    Yields:
      Rows and columns of a block, and (rows, columns) of its box, which may lie outside
      the image; no side is longer than ``_BLOCK_SIDE`` where that is possible.
    """
    waiting = [(slice(0, size[0]), slice(0, size[1]))]
    while waiting:
        rows, columns = waiting.pop()
        x, y = (columns.start, columns.stop - 1), (rows.start, rows.stop - 1)
        corners = matrix @ [np.repeat(x, 2), np.tile(y, 2), np.ones(4)]
        low, high = np.floor(corners.min(1)) - 2, np.ceil(corners.max(1)) + 3
        if field is not None:
            part = field[rows, columns]
            low += np.floor(part.min((0, 1)))
            high += np.ceil(part.max((0, 1)))
        sides = (rows.stop - rows.start, columns.stop - columns.start)
        if max(sides) > 1 and max(*sides, *(high - low)) > _BLOCK_SIDE:
            if sides[0] >= sides[1]:
                middle = rows.start + sides[0] // 2
                waiting.append((slice(rows.start, middle), columns))
                waiting.append((slice(middle, rows.stop), columns))
            else:
                middle = columns.start + sides[1] // 2
                waiting.append((rows, slice(columns.start, middle)))
                waiting.append((rows, slice(middle, columns.stop)))
            continue
        (left, top), (right, bottom) = low.astype(int), high.astype(int)
        yield rows, columns, (slice(top, bottom), slice(left, right))


def _cut(
    pixels: np.ndarray,
    box: tuple[slice, slice],
    *,
    reflect: bool,
    outside: tuple[float, ...],
) -> np.ndarray:
    """The pixels of a box that may lie outside the image, as ``border`` says."""
    at, inside = [], []
    for side, along in zip(pixels.shape, box):
        index = np.arange(along.start, along.stop)
        inside.append((index >= 0) & (index < side))
        if reflect and side > 1:
            index = np.abs((index + side - 1) % (2 * side - 2) - (side - 1))
        at.append(index.clip(0, side - 1))
    cut = pixels[np.ix_(*at)]
    if not reflect:
        cut[~(inside[0][:, None] & inside[1])] = np.rint(
            outside[: pixels.shape[2]] if pixels.ndim == 3 else outside[0]
        )
    return cut
