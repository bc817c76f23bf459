"""From a model to class probabilities of images of any size.

A predictor is a pure function ``(variables, images) -> probabilities``: ``images``
[N, H, W, C] are RGB 0..255, uint8 or float; ``probabilities`` [N, H, W, K] are float32
and sum to 1. Every shape is static, so a predictor can be jitted. Predictors are built
on each other: ``multi_scale(flip(sliding(whole(model), 473)), (0.75, 1, 1.25))``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.errors import UserError
from segjax.ops import geometry, resize

Predictor = Callable[[Any, jax.Array], jax.Array]


def whole(model: nn.Module) -> Predictor:
    """Predicts the image in one piece, extended by mirroring to a side the model takes.

    The model's margin is added on all sides, what is then missing to a valid side at
    the bottom and on the right.
    """

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        height, width = images.shape[1:3]
        rows, columns = (_extension(model.tiling, side) for side in (height, width))
        probabilities = _softmax(model, variables, _mirror(images, rows, columns))
        return probabilities[:, :height, :width]

    return predict


def without_margin(model: nn.Module) -> Predictor:
    """Predicts what the model does of the image as it is: less the model's margin."""

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return _softmax(model, variables, images)

    return predict


def tile_stride(model: nn.Module, tile: int) -> int:
    """By how many pixels square tiles of that input side advance.

    The side of what a tile predicts, rounded down to the model's step, which pooling
    windows follow: a 572-px U-Net tile advances by 384 of its 388 px.

    Raises:
      UserError: the model has no margin, does not take this tile, or the tile's output
        is smaller than the model's step.
    """
    name, tiling = type(model).__name__, model.tiling
    if tiling.margin == 0:
        raise UserError(
            f"{name} predicts up to the border of its input, so its tiles cannot be "
            f"stitched without seams; use a sliding window"
        )
    geometry.check_sides(tiling, tile, tile, name)
    side = tile - 2 * tiling.margin
    stride = side - side % tiling.step
    if stride == 0:
        smallest = geometry.nearest_sides(tiling, tiling.step + 2 * tiling.margin)[-1]
        raise UserError(
            f"{name}: a tile of {tile} predicts {side} px, less than the model's step "
            f"of {tiling.step}; expected a tile of at least {smallest}"
        )
    return stride


def overlap_tile(model: nn.Module, tile: int, batch: int = 1) -> Predictor:
    """Predicts in square tiles that overlap by the model's margin (U-Net, section 2).

    Equal to ``whole`` for any model whose cells see no further than its margin, at the
    memory of one batch of tiles.

    Args:
      model: a model with a margin (a valid-convolution model such as U-Net).
      tile: side of the input tile, in pixels.
      batch: tiles of each image in one run of the model.

    Raises:
      UserError: see ``tile_stride``.
    """
    tiling, stride = model.tiling, tile_stride(model, tile)
    side = tile - 2 * tiling.margin

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        size = images.shape[1:3]
        starts = [tile_starts(length, side, stride) for length in size]
        ends = [axis[-1] + side for axis in starts]
        pads = [
            (tiling.margin, end - length + tiling.margin)
            for end, length in zip(ends, size)
        ]
        probabilities = _average_windows(
            lambda windows: _softmax(model, variables, windows),
            _mirror(images, *pads),
            starts,
            (tile, tile),
            batch,
        )
        return probabilities[:, : size[0], : size[1]]

    return predict


def tile_starts(length: int, side: int, stride: int) -> list[int]:
    """Where predictions of ``side`` pixels start to cover an axis of that length."""
    count = max(math.ceil((length - side) / stride), 0) + 1
    return [index * stride for index in range(count)]


def sliding(
    predictor: Predictor,
    crop: int | tuple[int, int],
    stride_fraction: float = 2 / 3,
    fill: Sequence[float] = (),
    batch: int = 1,
) -> Predictor:
    """Averages the predictions of overlapping windows (PSPNet's evaluation code).

    Windows advance by ``ceil(stride_fraction * crop)``; the last one is moved back to
    end at the border. An image smaller than the window is centered in it.

    Args:
      predictor: applied to every window.
      crop: side, or height and width, of the window.
      stride_fraction: of the window, in (0, 1].
      fill: color around an image smaller than the window, 0..255 per channel (PSPNet:
        the mean of the data set); empty mirrors the image instead.
      batch: windows of each image in one run of the predictor.

    Raises:
      UserError: a window or a stride that is not positive, a stride above the window.
    """
    window = (crop, crop) if isinstance(crop, int) else tuple(crop)
    if len(window) != 2 or min(window) < 1:
        raise UserError(
            f"crop: found {crop!r}, expected a positive side or two of them"
        )
    if not 0 < stride_fraction <= 1:
        raise UserError(
            f"stride_fraction: found {stride_fraction!r}, expected above 0, at most 1"
        )

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        size = images.shape[1:3]
        missing = [max(side - length, 0) for side, length in zip(window, size)]
        top, left = (gap // 2 for gap in missing)
        pads = [(gap // 2, gap - gap // 2) for gap in missing]
        if fill and any(missing):
            color = np.float32(fill)
            around = ((0, 0), *pads, (0, 0))
            images = jnp.pad(images.astype(jnp.float32) - color, around) + color
        else:
            images = _mirror(images, *pads)
        probabilities = _average_windows(
            lambda windows: predictor(variables, windows),
            images,
            [
                window_starts(length, side, stride_fraction)
                for length, side in zip(images.shape[1:3], window)
            ],
            window,
            batch,
        )
        return probabilities[:, top : top + size[0], left : left + size[1]]

    return predict


def window_starts(length: int, side: int, stride_fraction: float = 2 / 3) -> list[int]:
    """Where windows of ``side`` pixels start along an axis of at least that length."""
    stride = max(math.ceil(round(stride_fraction * side, 6)), 1)
    count = math.ceil((length - side) / stride) + 1
    return [min(index * stride, length - side) for index in range(count)]


def flip(predictor: Predictor) -> Predictor:
    """Averages the probabilities of the image and of its left-right mirror."""

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        mirrored = predictor(variables, images[:, :, ::-1])[:, :, ::-1]
        return (predictor(variables, images) + mirrored) / 2

    return predict


def multi_scale(predictor: Predictor, scales: Sequence[float]) -> Predictor:
    """Averages the probabilities of the image at several scales.

    Images and probabilities are resized bilinearly between half-pixel centers, without
    antialiasing (``cv2.resize``).

    Raises:
      UserError: no scale, or one that is not positive.
    """
    if not scales or min(scales) <= 0:
        raise UserError(
            f"scales: found {scales!r}, expected one or more positive factors"
        )

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        size, total = images.shape[1:3], 0.0
        for scale in scales:
            scaled = tuple(max(round(length * scale), 1) for length in size)
            resized = images.astype(jnp.float32)
            resized = resize.resize_bilinear(resized, scaled, align_corners=False)
            probabilities = predictor(variables, resized)
            total += resize.resize_bilinear(probabilities, size, align_corners=False)
        return total / len(scales)

    return predict


def ensemble(predictors: Sequence[Predictor]) -> Predictor:
    """Averages the probabilities of several predictors, of a tuple of variables."""

    def predict(variables: Sequence[Any], images: jax.Array) -> jax.Array:
        parts = zip(predictors, variables, strict=True)
        return sum(predictor(own, images) for predictor, own in parts) / len(predictors)

    return predict


def predict_labels(predictor: Predictor) -> Callable[[Any, jax.Array], jax.Array]:
    """The most probable class of every pixel, uint8 [N, H, W].

    uint16 if there are more than 255 classes: 255 means void in uint8.
    """

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return most_probable(predictor(variables, images))

    return predict


def most_probable(probabilities: jax.Array) -> jax.Array:
    """[N, H, W, K] -> the class of every pixel, uint8 or uint16 [N, H, W]."""
    labels = jnp.argmax(probabilities, axis=-1)
    return labels.astype(label_type(probabilities.shape[-1]))


def label_type(classes: int) -> type:
    """Of label maps of so many classes: uint8 up to 255, above it uint16."""
    return np.uint8 if classes <= 255 else np.uint16


def _softmax(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    logits, _ = model.apply(variables, images, train=False)
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def _extension(tiling: geometry.Tiling, side: int) -> tuple[int, int]:
    """Pixels to add before and after an axis for a model to predict all of it."""
    needed = side + 2 * tiling.margin
    valid = geometry.nearest_sides(tiling, needed)[-1]
    return tiling.margin, tiling.margin + valid - needed


def _mirror(
    images: jax.Array, rows: tuple[int, int], columns: tuple[int, int]
) -> jax.Array:
    """Extends images by reflection about their border pixels, as often as it takes."""
    return jnp.pad(images, ((0, 0), rows, columns, (0, 0)), mode="reflect")


def _average_windows(
    predict: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    starts: Sequence[Sequence[int]],
    window: tuple[int, int],
    batch: int,
) -> jax.Array:
    """Runs windows through ``predict`` and averages what they say of each pixel.

    Args:
      predict: [N * b, *window, C] -> [N * b, h, w, K].
      images: [N, H, W, C].
      starts: first rows and first columns of the windows (all pairs are run), and of
        their predictions in the result, which the predictions cover.
      window: height and width.
      batch: windows b of each image in one run.

    Returns:
      float32 [N, last first row + h, last first column + w, K].
    """
    number, channels = images.shape[0], images.shape[-1]
    places = np.array([(row, column) for row in starts[0] for column in starts[1]])
    batch = min(batch, len(places))
    spare = -len(places) % batch  # the last run is filled up with weightless windows
    weights = np.pad(np.ones(len(places), np.float32), (0, spare))
    places = np.pad(places, ((0, spare), (0, 0)), mode="edge").astype(np.int32)

    run = jax.ShapeDtypeStruct((number * batch, *window, channels), images.dtype)
    _, *side, classes = jax.eval_shape(predict, run).shape
    height, width = (int(last) + n for last, n in zip(places.max(0), side))
    count = np.zeros((height, width, 1), np.float32)
    for (row, column), weight in zip(places, weights):
        count[row : row + side[0], column : column + side[1]] += weight

    def step(total: jax.Array, chunk: tuple) -> tuple[jax.Array, None]:
        corners = [(0, row, column, 0) for row, column in chunk[0]]
        cut = (number, *window, channels)
        windows = [jax.lax.dynamic_slice(images, corner, cut) for corner in corners]
        # Images stay the outer axis, so that an array sharded over them stays so.
        windows = jnp.stack(windows, axis=1).reshape(run.shape)
        found = predict(windows).reshape(number, batch, *side, classes)
        for index, corner in enumerate(corners):
            part = found[:, index] * chunk[1][index]
            part += jax.lax.dynamic_slice(total, corner, part.shape)
            total = jax.lax.dynamic_update_slice(total, part, corner)
        return total, None

    chunks = places.reshape(-1, batch, 2), weights.reshape(-1, batch)
    total = jnp.zeros((number, height, width, classes), jnp.float32)
    total, _ = jax.lax.scan(step, total, chunks)
    return total / count
