"""Which pixels of an image the score of one of its pixels depends on, as a heat map."""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from experiments.visualization import inputs
from segjax import compilation, heatmaps, inference, viz
from segjax.analysis import effective_field, receptive_field
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import predictors
from segjax.models.network import abstract_variables

_BRIGHTEST = 0.995  # of the pixels that count; single ones would darken all others


class Network(NamedTuple):
    """The first model of a segmenter, compiled for the question."""

    segmenter: inference.Segmenter
    scores: Callable[[Any, np.ndarray], jax.Array]
    """(variables, image [H, W, C]) -> scores [H, W, K]."""
    influence: Callable[..., jax.Array]
    """(variables, image, row, column, class) -> [H, W]."""
    pixel: tuple[int, int] | None
    """(row, column) of every image; None: its center."""
    class_name: str
    """Whose score; "": the class that is predicted there."""
    side: float
    """Of the theoretical field of the logits, in pixels of the input; inf: global."""


def load(
    segmenter: inference.Segmenter, pixel: tuple[int, int] | None, class_name: str
) -> Network:
    """Makes the functions, which are compiled at the first image of each size.

    Raises:
      UserError: no such class.
    """
    model, channels = segmenter.models[0], segmenter.info.channels
    if class_name:
        inputs.class_index(segmenter.info.classes, class_name)

    def scores(variables: Any, images: jax.Array) -> jax.Array:
        return predictors.whole_scores(model, variables, images)

    def influence(variables, image, row, column, channel):
        return effective_field.influence(
            lambda images: scores(variables, images),
            image,
            row=row,
            column=column,
            channel=channel,
        )

    def of_one(variables: Any, image: jax.Array) -> jax.Array:
        return scores(variables, image[None])[0]

    precise = compilation.precision(segmenter.precision)
    try:
        views = receptive_field.views(
            model, abstract_variables(model, channels), paths=(), channels=channels
        )
        side = views[1][receptive_field.LOGITS].field[1]
    except UserError:  # an operation that cannot be followed: no frame
        side = np.inf
    return Network(
        segmenter,
        jax.jit(precise(of_one)),
        jax.jit(precise(influence)),
        pixel,
        class_name,
        side,
    )


def draw(network: Network, image: np.ndarray) -> np.ndarray:
    """The image with the pixel, and what moves its score, uint8 [h, w, 3].

    Args:
      network: of :func:`load`.
      image: uint8 [H, W, C].

    Raises:
      UserError: the image does not have that pixel.
    """
    segmenter = network.segmenter
    size = image.shape[0], image.shape[1]
    row, column = network.pixel or (size[0] // 2, size[1] // 2)
    if not (0 <= row < size[0] and 0 <= column < size[1]):
        raise UserError(
            f"--pixel={row},{column}: the image has {size[0]} rows and {size[1]} "
            "columns; expected a row and a column in it, from 0"
        )
    scaled = segmenter.input_size(size)
    given = image if scaled == size else image_files.resize_image(image, scaled)
    place = [
        int((index + 0.5) * inner / outer)
        for index, inner, outer in zip((row, column), scaled, size)
    ]
    variables = segmenter.variables[0]
    info = segmenter.info
    if network.class_name:
        channel = inputs.class_index(info.classes, network.class_name)
    else:
        channel = int(np.argmax(network.scores(variables, given)[place[0], place[1]]))
    influence = np.asarray(network.influence(variables, given, *place, channel))
    side = receptive_field.effective_side(influence)
    high = (
        max(float(np.quantile(influence[influence > 0], _BRIGHTEST)), 1e-30)
        if (influence.any())
        else 1.0
    )
    # Square roots: the influence falls over orders of magnitude.
    shown = np.sqrt(np.minimum(influence / high, 1))
    shown = cv2.resize(shown, size[::-1], interpolation=cv2.INTER_NEAREST)
    heat = heatmaps.heat_overlay(image, shown, low=0, high=1)
    pictures = [viz.rgb(image), heat]
    zoom = size[0] / scaled[0], size[1] / scaled[1]
    field = "global" if network.side == np.inf else f"{network.side:.0f} px"
    for i, picture in enumerate(pictures):
        picture = pictures[i] = picture.copy()
        cv2.drawMarker(picture, (column, row), (255, 0, 0), cv2.MARKER_CROSS, 9)
        if network.side < np.inf:
            reach = [network.side / 2 * z for z in zoom]
            corners = [
                (round(column + sign * reach[1]), round(row + sign * reach[0]))
                for sign in (-1, 1)
            ]
            cv2.rectangle(picture, *corners, (255, 255, 255))
    captions = [
        [f"pixel {row},{column}", f"theoretical field {field}"],
        [f"score of {info.classes[channel]}", f"effective field {side:.0f} px"],
    ]
    bar = heatmaps.heat_bar("no influence", "strong")
    return heatmaps.tiles(pictures, captions, columns=2, below=bar)
