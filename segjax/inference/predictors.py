"""From a model to class probabilities of images of any size.

A predictor is a pure function ``(variables, images) -> probabilities``: ``images``
[N, H, W, C] are RGB or gray 0..255, uint8 or float; ``probabilities`` [N, H, W, K] are
float32 and sum to 1. Every shape is static, so a predictor can be jitted. Predictors
are built on each other::

    multi_scale(flip(sliding(whole(model), 473)), (0.75, 1, 1.25))
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.errors import UserError
from segjax.inference import windows
from segjax.ops import classes, geometry, resize

Predictor = Callable[..., jax.Array]
"""Of variables and images; with object proposals also of regions (proposals.py)."""


def whole(model: nn.Module) -> Predictor:
    """Predicts the image in one piece, extended by mirroring to a side the model takes.

    The model's margin is added on all sides; what is then missing to a valid side is
    added at the bottom and on the right.
    """

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(whole_scores(model, variables, images), axis=-1)

    return predict


def whole_scores(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    """The class scores of ``whole`` before the softmax, float32 [N, H, W, K]."""
    height, width = images.shape[1:3]
    return _scores(model, variables, extend(model, images))[:, :height, :width]


def extend(model: nn.Module, images: jax.Array) -> jax.Array:
    """The input of the model for images [N, H, W, C] of any size, as of ``whole``.

    The first pixel of the image lies in its row and column ``model.tiling.margin``.
    """
    rows, columns = (_extension(model.tiling, s) for s in geometry.sides(images))
    return windows.mirror(images, rows, columns)


def without_margin(model: nn.Module) -> Predictor:
    """Predicts [N, H, W, C] as it is: [N, H - 2 m, W - 2 m, K] for a margin of m."""

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return _softmax(model, variables, images)

    return predict


def overlap_tile(model: nn.Module, tile: int, batch: int = 1) -> Predictor:
    """Predicts in square tiles that overlap by the model's margin (U-Net, section 2).

    Equal to ``whole`` for any model whose outputs depend on no pixel farther away than
    its margin, with the memory of one batch of tiles.

    Args:
      model: a model with a margin (a valid-convolution model such as U-Net).
      tile: side of the input tile, in pixels.
      batch: tiles of each image in one run of the model.

    Raises:
      UserError: see ``windows.tile_stride``.
    """
    tiling, name = model.tiling, type(model).__name__
    windows.tile_stride(tiling, tile, name)

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        layout = windows.tiles(geometry.sides(images), tiling, tile=tile, model=name)
        return windows.predict_windows(
            lambda cut: _softmax(model, variables, cut),
            windows.mirror(images, *layout.padding),
            layout=layout,
            batch=batch,
        )

    return predict


def sliding(
    predictor: Predictor,
    window: int | Sequence[int],
    *,
    stride: float = 2 / 3,
    fill: Sequence[float] = (),
    batch: int = 1,
) -> Predictor:
    """Averages the predictions of overlapping windows (PSPNet's evaluation code).

    Args:
      predictor: applied to every window.
      window: side, or height and width, in pixels.
      stride: by which windows advance, as a fraction of the window, in (0, 1].
      fill: color around an image smaller than the window, 0..255 per channel (PSPNet:
        the mean of the data set); empty mirrors the image instead.
      batch: windows of each image in one run of the predictor.

    Raises:
      UserError: a window or a stride that is not positive, or a stride above 1.
    """
    sides = (window,) if isinstance(window, int) else tuple(window)
    windows.sliding((1, 1), sides, stride)  # checks the arguments

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        layout = windows.sliding(geometry.sides(images), sides, stride)
        if fill and any(map(any, layout.padding)):
            color = np.asarray(fill, np.float32)
            around = ((0, 0), *layout.padding, (0, 0))
            images = jnp.pad(images.astype(jnp.float32) - color, around) + color
        else:
            images = windows.mirror(images, *layout.padding)
        return windows.predict_windows(
            lambda cut: predictor(variables, cut), images, layout=layout, batch=batch
        )

    return predict


def flip(predictor: Predictor) -> Predictor:
    """Averages the probabilities of the image and of its left-right mirror."""

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        mirrored = predictor(variables, images[:, :, ::-1])[:, :, ::-1]
        return (predictor(variables, images) + mirrored) / 2

    return predict


ROTATIONS = 8
"""How many versions ``rotate`` knows: the symmetries of the square."""


def rotate(predictor: Predictor, count: int) -> Predictor:
    """Averages the probabilities of rotated and mirrored versions of the image.

    U-Net's results are means over "7 rotated versions" (section 4), and the paper does
    not say which. These are exact, without resampling, in this order: quarter turns
    counterclockwise by 0, 1, 2 and 3, then the left-right mirror image turned by 0, 1,
    2 and 3. Every result is turned and mirrored back. An odd number of quarter turns
    exchanges height and width.

    Args:
      predictor: applied to each version.
      count: how many, 1 to ``ROTATIONS``: 4 are the quarter turns, 8 are all.

    Raises:
      UserError: the count is out of range.
    """
    if not 1 <= count <= ROTATIONS:
        raise UserError(f"--rotations: found {count}, expected 1 to {ROTATIONS}")

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        parts = []
        for mirrored, turns in [divmod(index, 4) for index in range(count)]:
            version = images[:, :, ::-1] if mirrored else images
            version = jnp.rot90(version, turns, axes=(1, 2))
            part = jnp.rot90(predictor(variables, version), -turns, axes=(1, 2))
            parts.append(part[:, :, ::-1] if mirrored else part)
        return functools.reduce(jnp.add, parts) / count

    return predict


def multi_scale(predictor: Predictor, scales: Sequence[float]) -> Predictor:
    """Averages the probabilities of the image at several scales.

    Images and probabilities are resized bilinearly between half-pixel centers, without
    antialiasing (``cv2.resize``).

    Raises:
      UserError: no scale, or one that is not positive.
    """
    _check_scales(scales)

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        parts = _at_scales(predictor, variables, images, scales)
        return functools.reduce(jnp.add, parts) / len(scales)

    return predict


def max_scale(model: nn.Module, scales: Sequence[float]) -> Predictor:
    """Fuses the scores of the image at several scales by their maximum (DeepLab v2).

    The maximum of every class is taken before the softmax, at the size of the image.
    DeepLab v2 takes it in the network, at the size of its map (``models.deeplab``, the
    field ``scales``), which is not quite the same: interpolation comes after it there.

    Raises:
      UserError: no scale, or one that is not positive.
    """
    _check_scales(scales)
    run = functools.partial(whole_scores, model)

    def predict(variables: Sequence[Any], images: jax.Array) -> jax.Array:
        (own,) = variables
        parts = _at_scales(run, own, images, scales)
        return jax.nn.softmax(functools.reduce(jnp.maximum, parts), axis=-1)

    return predict


def _check_scales(scales: Sequence[float]) -> None:
    if not scales or not min(scales) > 0:
        raise UserError(
            f"--scales: found {scales!r}, expected one or more positive factors"
        )


def _at_scales(
    run: Predictor, variables: Any, images: jax.Array, scales: Sequence[float]
) -> list[jax.Array]:
    """What ``run`` says of the image at each scale, at the size of the image."""
    size, parts = geometry.sides(images), []
    for scale in scales:
        height, width = (max(round(length * scale), 1) for length in size)
        resized = resize.resize_bilinear(
            images.astype(jnp.float32), (height, width), align_corners=False
        )
        part = run(variables, resized)
        parts.append(resize.resize_bilinear(part, size, align_corners=False))
    return parts


def ensemble(predictors: Sequence[Predictor], rule: str = "mean") -> Predictor:
    """Fuses the probabilities of several predictors, given a tuple of variables.

    Args:
      predictors: of the same classes.
      rule: "mean" (the paper of DeconvNet), or "product": the geometric mean, divided
        by its sum over the classes. Its most probable class is that of the product,
        whose idea is that of DeconvNet's released code; that multiplies scores of two
        networks, not probabilities. A probability of 0 counts as the smallest normal
        number of float32.

    Returns:
      A predictor; further arguments than variables and images go to each of them.
    """

    def predict(
        variables: Sequence[Any], images: jax.Array, *inputs: jax.Array
    ) -> jax.Array:
        members = zip(predictors, variables, strict=True)
        parts = [predictor(own, images, *inputs) for predictor, own in members]
        if rule == "product":
            least = jnp.finfo(jnp.float32).tiny
            parts = [jnp.log(jnp.maximum(part, least)) for part in parts]
        mean = functools.reduce(jnp.add, parts) / len(predictors)
        return jax.nn.softmax(mean, axis=-1) if rule == "product" else mean

    return predict


def predict_labels(predictor: Predictor) -> Callable[[Any, jax.Array], jax.Array]:
    """The most probable class of every pixel: see ``most_probable``."""

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return most_probable(predictor(variables, images))

    return predict


def most_probable(probabilities: jax.Array) -> jax.Array:
    """[N, H, W, K] -> the most probable class of every pixel, [N, H, W].

    uint8, or uint16 for more than 255 classes: 255 means void in uint8.
    """
    labels = classes.largest(probabilities)
    return labels.astype(label_type(probabilities.shape[-1]))


def label_type(count: int) -> type:
    """The type of label maps: uint8 for up to 255 classes, otherwise uint16."""
    return np.uint8 if count <= 255 else np.uint16


def _scores(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    logits, _ = model.apply(variables, images, train=False)
    return logits.astype(jnp.float32)


def _softmax(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(_scores(model, variables, images), axis=-1)


def _extension(tiling: geometry.Tiling, side: int) -> tuple[int, int]:
    """Pixels to add before and after an axis for a model to predict all of it."""
    needed = side + 2 * tiling.margin
    valid = geometry.nearest_sides(tiling, needed)[-1]
    return tiling.margin, tiling.margin + valid - needed
