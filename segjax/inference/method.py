"""How images are predicted: at once, in windows or tiles, at scales, mirrored."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from flax import linen as nn

from segjax.errors import UserError
from segjax.inference import predictor as predictors
from segjax.inference.predictor import Predictor


class Method(NamedTuple):
    """What ``compose`` builds; the defaults predict the image in one piece."""

    tile: int = 0
    """Side of overlap-tiles in pixels, for models with a margin; 0: none."""
    window: tuple[int, ...] = ()
    """Side, or height and width, of sliding windows, for models without; (): none."""
    stride: float = 2 / 3
    """By which fraction of a window windows advance."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the image size whose probabilities are averaged."""
    flip: bool = False
    """Average with the prediction of the left-right mirror image."""


def compose(models: Sequence[nn.Module], method: Method) -> Predictor:
    """The predictor of a method; of several models, the mean of their probabilities.

    From the inside: models, ensemble, windows, mirror image, scales.

    Returns:
      A predictor whose variables are a tuple, one per model.

    Raises:
      UserError: something cannot be combined or has a wrong value.
    """
    check(models, method)
    if method.tile:
        parts = [predictors.overlap_tile(model, method.tile) for model in models]
    else:
        parts = [predictors.whole(model) for model in models]
    predictor = predictors.ensemble(parts)
    if method.window:
        window = (*method.window, method.window[-1])[:2]
        predictor = predictors.sliding(predictor, window, method.stride)
    if method.flip:
        predictor = predictors.flip(predictor)
    if tuple(method.scales) != (1.0,):
        predictor = predictors.multi_scale(predictor, method.scales)
    return predictor


def check(models: Sequence[nn.Module], method: Method) -> None:
    """Raises UserError unless the models can be used in this way."""
    if method.tile and method.window:
        raise UserError(
            f"tile={method.tile} and window={method.window} are both given: tiles are "
            "for models with a margin, windows for the others; give one"
        )
    if method.tile < 0:
        raise UserError(f"tile: found {method.tile}, expected a side in pixels or 0")
    if method.window and (len(method.window) > 2 or min(method.window) < 1):
        raise UserError(
            f"window: found {method.window}, expected a side or a height and a width"
        )
    if not 0 < method.stride <= 1:
        raise UserError(f"stride: found {method.stride}, expected above 0, at most 1")
    if not method.scales or not all(0 < scale < math.inf for scale in method.scales):
        raise UserError(f"scales: found {method.scales}, expected positive factors")
    for model in models:
        if method.tile:
            predictors.tile_stride(model, method.tile)
        if method.window and model.tiling.margin:
            raise UserError(
                f"window={method.window}: {type(model).__name__} predicts less than "
                "its input, and windows would hide from it what lies around them; give "
                "tile, whose overlap is its margin"
            )
