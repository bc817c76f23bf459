"""Joint augmentation of an image and its label map, as one warp (NumPy and OpenCV).

Scale, rotation, mirrors, translation, crop and elastic deformation are composed into
one map from output pixels to input pixels, so every example is resampled once, however
many of them are on: the image bilinearly, the label map by nearest neighbor. Pixel
``i`` covers ``[i, i + 1)`` and its center is ``i + 0.5``: identity, mirrors and quarter
turns are exact copies, and a scale of 2 agrees with ``cv2.resize``.

Sources: PSPNet (CVPR 2017, section 5.1, and the training code its author released) for
scale, rotation, blur, mirror and crop; U-Net (MICCAI 2015, section 3.1) for the elastic
deformation.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from segjax.errors import UserError
from segjax.labels import VOID

_BORDERS = {"mean": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}
_LUMA = np.array([0.299, 0.587, 0.114])


class Options(NamedTuple):
    """What ``augment`` may do; the defaults change nothing."""

    crop: tuple[int, int] = (0, 0)
    """Output height and width in pixels; (0, 0) keeps the size of the image."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the scale factor, drawn uniformly as in PSPNet (not log-uniformly)."""
    rotate: float = 0.0
    """Largest angle in degrees; the angle is uniform in [-rotate, rotate]."""
    rotate_prob: float = 0.5
    """Probability of rotating at all."""
    flip: float = 0.0
    """Probability of a left-right mirror."""
    vflip: float = 0.0
    """Probability of an upside-down mirror."""
    rot90: bool = False
    """A random number of quarter turns (microscopy: images without an upright)."""
    translate: float = 0.0
    """Largest shift as a fraction of the output size, on top of the random crop."""
    elastic_sigma: float = 0.0
    """Standard deviation, in output pixels, of the elastic displacements; 0 is off."""
    elastic_grid: int = 3
    """Side of the coarse grid on which the displacements are drawn."""
    border: str = "mean"
    """Outside the image: "mean" shows ``fill``, "reflect" mirrors; labels are void."""
    margin: int = 0
    """Pixels at each side of the crop that are context only (U-Net's valid
    convolutions predict the center): the crop may reach that far out of the image, so
    that the predicted center covers all of it evenly."""
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Color outside the image, 0..255 per channel."""
    brightness: float = 0.0
    """Values are multiplied by a factor in [1 - brightness, 1 + brightness]."""
    contrast: float = 0.0
    """Distances to the mean value are multiplied by a factor in 1 +- contrast."""
    saturation: float = 0.0
    """Distances to gray are multiplied by a factor in 1 +- saturation (RGB only)."""
    gamma: float = 0.0
    """Exponent on value / 255, log-uniform in [1 / (1 + gamma), 1 + gamma]."""
    blur_prob: float = 0.0
    """Probability of OpenCV's 5x5 Gaussian blur: weights (1, 4, 6, 4, 1) / 16."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, uniform in [0, noise], in gray levels."""


def _number(value: Any, low: float = 0, high: float = math.inf) -> bool:
    """Whether a value is a number, finite, and between the two."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high


def _pair(value: Any) -> bool:
    """Whether a value is a sequence of two numbers >= 0."""
    return isinstance(value, Sequence) and len(value) == 2 and all(map(_number, value))


def _integers(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


_FRACTION = ("a number from 0 to 1", lambda value: _number(value, 0, 1))
_AMOUNT = ("a number >= 0", _number)
# Field of Options -> what to expect of it, in words and as a test.
_RULES = {
    "crop": (
        "two positive integers (height, width), or (0, 0) for those of the image",
        lambda value: (
            _pair(value) and _integers(*value) and (min(value) > 0 or max(value) == 0)
        ),
    ),
    "scale": (
        "two positive factors (low, high) with low <= high",
        lambda value: _pair(value) and 0 < value[0] <= value[1],
    ),
    "rotate": ("degrees from 0 to 180", lambda value: _number(value, 0, 180)),
    "rotate_prob": _FRACTION,
    "flip": _FRACTION,
    "vflip": _FRACTION,
    "rot90": ("True or False", lambda value: isinstance(value, bool)),
    "translate": _FRACTION,
    "elastic_sigma": _AMOUNT,
    "elastic_grid": (
        "an integer >= 2",
        lambda value: _number(value, 2) and _integers(value),
    ),
    "border": (" or ".join(map(repr, _BORDERS)), list(_BORDERS).__contains__),
    "brightness": _FRACTION,
    "contrast": _FRACTION,
    "saturation": _FRACTION,
    "gamma": _AMOUNT,
    "blur_prob": _FRACTION,
    "noise": _AMOUNT,
}


def options(config: Mapping[str, Any], mean: Sequence[float]) -> Options:
    """Makes ``Options`` of the ``augment`` section of a config, and checks them.

    Args:
      config: fields of ``Options`` except ``fill``; those left out keep their default.
      mean: color of the padding, 0..255 per channel (the mean of the data set).

    Raises:
      UserError: unknown field, or a value of the wrong kind or out of its range.
    """
    given = {}
    for name, value in dict(config).items():
        if name not in _RULES:
            near = difflib.get_close_matches(name, _RULES, n=1, cutoff=0.0)[0]
            raise UserError(f"augment.{name}: no such option; did you mean {near}?")
        expected, good = _RULES[name]
        if not good(value):
            raise UserError(f"augment.{name}: found {value!r}, expected {expected}")
        given[name] = tuple(value) if name in ("crop", "scale") else value
    return Options(**given, fill=tuple(float(value) for value in mean))


def augment(
    example: Mapping[str, Any], rng: np.random.Generator, options: Options
) -> dict[str, Any]:
    """Augments one example; a pure function of its arguments and the state of ``rng``.

    A scaled image larger than the crop is cropped at a uniformly random place, a
    smaller one is centered in its padding. Rotation is about the center of the scaled
    image. Changes of color come last and also touch the padding.

    Args:
      example: "image" uint8 [H, W, C] with C <= 4, "label" uint8 [H, W]; other entries
        are passed on.
      rng: one generator per example.
      options: see ``Options``.

    Returns:
      The example with "image" uint8 [h, w, C] and "label" uint8 [h, w].

    Raises:
      UserError: the label map is not of the size of the image.
    """
    image, label = example["image"], example["label"]
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{example.get('id', 'example')}: the image is {image.shape[:2]} and its "
            f"label map {label.shape}; both must have the same height and width"
        )
    # All sixteen are drawn whatever is on: switching one option off leaves the others'
    # draws, and so the rest of the augmentation in an ablation, as they were.
    draws = rng.random(16)
    top, left, down, right, scale, angle, rotated, turns = draws[:8]
    flipped, upset, *tone = draws[8:]

    size = options.crop if any(options.crop) else label.shape
    low, high = options.scale
    shift = options.translate * np.multiply((2 * down - 1, 2 * right - 1), size)
    matrix = input_from_output(
        label.shape,
        size,
        scale=low + (high - low) * scale,
        degrees=options.rotate * (2 * angle - 1) * (rotated < options.rotate_prob),
        turns=int(4 * turns) if options.rot90 else 0,
        mirror=(upset < options.vflip, flipped < options.flip),
        place=(top, left),
        shift=np.rint(shift),
        margin=options.margin,
    )
    nodes = None
    if options.elastic_sigma > 0:
        side = options.elastic_grid
        nodes = rng.normal(0, options.elastic_sigma, (side, side, 2))
    image, label = warp(image, label, matrix, size, nodes, options.border, options.fill)
    return {**example, "image": _appearance(image, tone, rng, options), "label": label}


def input_from_output(
    image_size: Sequence[int],
    size: Sequence[int],
    *,
    scale: float = 1.0,
    degrees: float = 0.0,
    turns: int = 0,
    mirror: tuple[bool, bool] = (False, False),
    place: Sequence[float] = (0.5, 0.5),
    shift: Sequence[float] = (0, 0),
    margin: int = 0,
) -> np.ndarray:
    """The map from output to input pixel indices of a scaled, turned and cropped image.

    The image is scaled (its new sides rounded to pixels, as ``cv2.resize`` does),
    given quarter turns, rotated, mirrored and shifted, and then cropped.

    Args:
      image_size: height and width of the input.
      size: height and width of the output.
      scale: factor on both sides.
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
    room = turned - size + 2 * margin
    start = np.where(room < 0, -(-room // 2), np.floor(np.multiply(place, room + 1)))
    start = start - margin

    # From here on in (x, y). Everything linear happens about the centers.
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    linear = (
        np.diag((sides / scaled)[::-1])
        @ np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns % 4)
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
    matrix: np.ndarray,
    size: Sequence[int],
    nodes: np.ndarray | None = None,
    border: str = "mean",
    fill: Sequence[float] = (0, 0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Resamples an image (bilinear) and its label map (nearest) once.

    Args:
      image: uint8 [H, W, C], C <= 4.
      label: uint8 [H, W].
      matrix: [2, 3], see ``input_from_output``.
      size: height and width of the output.
      nodes: displacements of the output pixels on a coarse grid, see ``displacement``;
        none if None.
      border: "mean" (outside is ``fill``) or "reflect" (the image is mirrored).
      fill: color, 0..255 per channel.

    Returns:
      image uint8 [h, w, C] and label uint8 [h, w], which is void outside the image.
    """
    height, width = size
    if nodes is None:

        def resample(source, interpolation, border, outside):
            flags = interpolation | cv2.WARP_INVERSE_MAP
            return cv2.warpAffine(
                source, matrix, (width, height), None, flags, border, outside
            )

    else:
        # Interpolation is linear in the nodes: turning them turns the whole field.
        field = displacement(nodes @ matrix[:, :2].T, size)
        field += np.arange(width)[:, None] * matrix[:, 0] + matrix[:, 2]
        field += (np.arange(height)[:, None] * matrix[:, 1])[:, None]

        def resample(source, interpolation, border, outside):
            return cv2.remap(source, field, None, interpolation, None, border, outside)

    warped = resample(image, cv2.INTER_LINEAR, _BORDERS[border], tuple(fill))
    label = resample(label, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, VOID)
    return warped.reshape(height, width, -1), label  # OpenCV drops an axis of one


def _appearance(
    image: np.ndarray,
    draws: Sequence[float],
    rng: np.random.Generator,
    options: Options,
) -> np.ndarray:
    """Saturation, then one curve of gray values, blur and noise; [h, w, C] uint8."""
    shape = image.shape
    bright, contrast, saturation, gamma, blurred, noise = draws
    if options.saturation > 0 and shape[2] == 3:
        keep = 1 + options.saturation * (2 * saturation - 1)
        image = cv2.transform(image, keep * np.eye(3) + (1 - keep) * _LUMA)
    if options.brightness > 0 or options.contrast > 0 or options.gamma > 0:
        mean = float(np.mean(cv2.mean(image)[: shape[2]])) / 255
        curve = np.arange(256) / 255
        curve = mean + (curve - mean) * (1 + options.contrast * (2 * contrast - 1))
        curve *= 1 + options.brightness * (2 * bright - 1)
        exponent = (1 + options.gamma) ** (2 * gamma - 1)
        curve = np.clip(curve, 0, 1) ** exponent
        image = cv2.LUT(image, np.rint(255 * curve).astype(np.uint8))
    if blurred < options.blur_prob:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    if options.noise > 0:
        grain = rng.standard_normal(shape, np.float32) * (options.noise * noise)
        image = cv2.add(image.reshape(shape), grain, dtype=cv2.CV_8U)
    return image.reshape(shape)
