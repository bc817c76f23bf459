"""Joint augmentation of an image and its label map (NumPy and OpenCV).

Scale, aspect, shear, rotation, mirrors, translation, crop and elastic deformation are
composed into one map from output pixels to input pixels (``warping``), so every example
is resampled once, however many of them are on: the image bilinearly, the label map by
nearest neighbor. Changes of color follow.

Every augmentation draws from a random stream of its own name, see ``streams``. A new
one is an annotated field of ``augment_options.Options`` and a function: of geometry in
``_draw_geometry``, of color in ``COLOR_CHANGES``.

Sources: PSPNet (CVPR 2017, section 5.1, and the training code its author released) for
scale, rotation, blur, mirror and crop; U-Net (MICCAI 2015, section 3.1) for the elastic
deformation.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from segjax.data.augment_options import NO_AUGMENTATION, OPTIONS, Options, options
from segjax.data.border_weights import border_weights, separate
from segjax.data.channel_groups import by_group
from segjax.data.warping import input_from_output, warp
from segjax.errors import UserError

__all__ = ["NO_AUGMENTATION", "OPTIONS", "Options", "augment", "options", "streams"]

_LUMA = np.array([0.299, 0.587, 0.114])

Stream = Callable[[str], np.random.Generator]
"""The random generator of an augmentation, by its name."""


def streams(rng: np.random.Generator) -> Stream:
    """Independent generators by name, all derived from the generator of one example.

    An augmentation draws from the stream of its own name alone.  Adding one, removing
    one or switching one off therefore leaves the draws of all others as they were.
    """
    key = rng.integers(2**32, size=4).tolist()
    return lambda name: np.random.default_rng([*key, zlib.crc32(name.encode())])


def augment(
    example: Mapping[str, Any], rng: np.random.Generator, options: Options
) -> dict[str, Any]:
    """Augments one example; a pure function of its arguments and the state of ``rng``.

    A scaled image larger than the crop is cropped at a uniformly random place, a
    smaller one is centered in its padding. Shear and rotation are about the center of
    the scaled image. Changes of color come last and also touch the padding.

    Args:
      example: "image" uint8 [H, W, C] , "label" uint8 [H, W], perhaps
        "instance" uint16 [H, W]; other entries are passed on.
      rng: one generator per example; see ``streams`` for what is derived from it.
      options: see ``Options``.

    Returns:
      The example with "image" uint8 [h, w, C], "label" uint8 [h, w], and if it has
      one "instance" uint16 [h, w], and "added_weight" float32 [h, w] with
      ``border_weight``.

    Raises:
      UserError: the label map is not of the size of the image.
    """
    image, label = example["image"], example["label"]
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{example.get('id', 'example')}: the image is {image.shape[:2]} and its "
            f"label map {label.shape}; both must have the same height and width"
        )
    stream = streams(rng)
    size = options.crop if any(options.crop) else label.shape
    image, label, instance = warp(
        image,
        label,
        matrix=_draw_geometry(stream, options, image_size=label.shape, size=size),
        size=size,
        nodes=_draw_nodes(stream, options),
        border=options.border,
        fill=options.fill,
        instance=example.get("instance"),
    )
    for change in COLOR_CHANGES:
        image = change(image, stream, options).reshape(image.shape)
    augmented = {**example, "image": image}
    if instance is None:
        return augmented | {"label": label}
    if options.separate:
        label, instance = separate(label, instance, gap=options.separate)
    augmented |= {"label": label, "instance": instance}
    if options.border_weight:
        augmented["added_weight"] = border_weights(
            instance, weight=options.border_weight, sigma=options.border_sigma
        )
    return augmented


def _draw_geometry(
    stream: Stream, options: Options, *, image_size: Sequence[int], size: Sequence[int]
) -> np.ndarray:
    """Draws everything affine; returns the matrix of ``input_from_output``."""

    def draw(name: str, on: bool) -> np.ndarray:
        """Two numbers in [0, 1); making a generator takes longer than drawing."""
        return stream(name).random(2) if on else np.array([0.5, 0.5])

    scale = _scale(options, lambda: stream("scale").random(2)[0])
    narrow, wide = options.aspect
    aspect = narrow * (wide / narrow) ** draw("aspect", wide > narrow)[0]
    lean = options.shear * (2 * draw("shear", options.shear > 0)[0] - 1)
    rotated, angle = draw("rotate", options.rotate > 0)
    shift = options.translate * (2 * draw("translate", options.translate > 0) - 1)
    return input_from_output(
        image_size,
        size,
        scale=(scale / math.sqrt(aspect), scale * math.sqrt(aspect)),
        lean=lean,
        degrees=options.rotate * (2 * angle - 1) * (rotated < options.rotate_prob),
        turns=int(stream("rot90").integers(4)) if options.rot90 else 0,
        mirror=(
            draw("vflip", options.vflip > 0)[0] < options.vflip,
            draw("flip", options.flip > 0)[0] < options.flip,
        ),
        place=draw("crop", True),
        shift=np.rint(shift * size),
        margin=options.margin,
    )


def _scale(options: Options, draw: Callable[[], float]) -> float:
    """A factor of the set or of the range; `draw` is uniform in [0, 1)."""
    if options.scales:
        return options.scales[int(draw() * len(options.scales))]
    low, high = options.scale
    return low + (high - low) * draw() if high > low else low


def _draw_nodes(stream: Stream, options: Options) -> np.ndarray | None:
    """Draws the displacements (x, y) of the coarse grid, [g, g, 2]; None if off."""
    if options.elastic_sigma <= 0:
        return None
    side = options.elastic_grid
    return stream("elastic").normal(0, options.elastic_sigma, (side, side, 2))


def saturate(image: np.ndarray, stream: Stream, options: Options) -> np.ndarray:
    """Multiplies the distances to gray by one factor; gray images stay as they are."""
    if options.saturation <= 0 or image.shape[2] != 3:
        return image
    factor = 1 + options.saturation * (2 * stream("saturation").random() - 1)
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * _LUMA)


def turn_hue(image: np.ndarray, stream: Stream, options: Options) -> np.ndarray:
    """Turns the hue (HSV) by one angle; what is gray stays as it is."""
    if options.hue <= 0 or image.shape[2] != 3:
        return image
    angle = options.hue * (2 * stream("hue").random() - 1)
    # In float32: OpenCV's hues of 8 bits are steps of two degrees.
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + angle) % 360
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).clip(0, 255).astype(np.uint8)


def change_tone(image: np.ndarray, stream: Stream, options: Options) -> np.ndarray:
    """Contrast, brightness and gamma as one curve of gray values, rounded once."""
    if max(options.brightness, options.contrast, options.gamma) <= 0:
        return image
    bright, contrast, gamma = (
        2 * stream(name).random() - 1 for name in ("brightness", "contrast", "gamma")
    )
    mean = cv2.mean(image.reshape(len(image), -1))[0] / 255
    curve = np.arange(256) / 255
    curve = mean + (curve - mean) * (1 + options.contrast * contrast)
    curve *= 1 + options.brightness * bright
    curve = np.clip(curve, 0, 1) ** (1 + options.gamma) ** gamma
    return cv2.LUT(image, np.rint(255 * curve).astype(np.uint8))


def blur(image: np.ndarray, stream: Stream, options: Options) -> np.ndarray:
    """A 5x5 Gaussian blur, sometimes."""
    if options.blur_prob <= 0 or stream("blur").random() >= options.blur_prob:
        return image
    return by_group(lambda part: cv2.GaussianBlur(part, (5, 5), 0), image)


def add_noise(image: np.ndarray, stream: Stream, options: Options) -> np.ndarray:
    """Gaussian noise of one standard deviation, uniform in [0, options.noise]."""
    if options.noise <= 0:
        return image
    rng = stream("noise")
    sigma = options.noise * rng.random()
    grain = rng.standard_normal(image.shape, np.float32) * np.float32(sigma)
    return cv2.add(image, grain, dtype=cv2.CV_8U)


COLOR_CHANGES = (saturate, turn_hue, change_tone, blur, add_noise)
"""In this order.  Each maps uint8 [h, w, C] to the same shape and type (OpenCV may drop
a single channel) and draws from streams of its own names."""
