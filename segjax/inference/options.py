"""How images are predicted: in one piece, in windows or tiles, at scales, mirrored.

A new transformation of the image whose probabilities are averaged is a function in
predictors.py, and here a field, its help and a line in :func:`averaged`. The commands
make their flags from the fields.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from flax import linen as nn
from ml_collections import ConfigDict

from segjax.errors import UserError
from segjax.inference import predictors, windows
from segjax.inference.predictors import Predictor


class PredictOptions(NamedTuple):
    """What ``compose`` builds; the defaults predict the image in one piece."""

    tile: int = 0
    window: tuple[int, ...] = ()
    stride: float = 2 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


HELP = {
    "tile": "Overlap-tiles of this input side, for models with a margin (U-Net): no "
    "seams; 0: none.",
    "window": "Sliding windows of this side, or height,width, for models without a "
    "margin (PSPNet: its training crop).",
    "stride": "Windows advance by this fraction of a window.",
    "scales": "Factors of the image size whose probabilities are averaged, such as "
    "0.5,0.75,1,1.25,1.5.",
    "flip": "Average with the prediction of the left-right mirror image.",
}
"""What each field means: the help of the flag of that name."""


def from_config(config: ConfigDict) -> PredictOptions:
    """The options that a config has: its tiles."""
    return PredictOptions(tile=config.tile)


def compose(models: Sequence[nn.Module], options: PredictOptions) -> Predictor:
    """The predictor of these options: the mean of the probabilities of all models.

    From the inside out: models, ensemble, windows, mirror image, scales.

    Returns:
      A predictor whose variables are a tuple, one per model.

    Raises:
      UserError: options that cannot be combined, or a wrong value.
    """
    check(models, options)
    if options.tile:
        parts = [predictors.overlap_tile(model, options.tile) for model in models]
    else:
        parts = [predictors.whole(model) for model in models]
    predictor = predictors.ensemble(parts)
    if options.window:
        predictor = predictors.sliding(predictor, options.window, stride=options.stride)
    return averaged(predictor, options)


def averaged(predictor: Predictor, options: PredictOptions) -> Predictor:
    """Averages over the transformed images that the options ask for.

    The one place where these are applied, to whole images and, where an image is
    predicted in parts (large.py), to each part.
    """
    if options.flip:
        predictor = predictors.flip(predictor)
    if tuple(options.scales) != (1.0,):
        predictor = predictors.multi_scale(predictor, options.scales)
    return predictor


def check(models: Sequence[nn.Module], options: PredictOptions) -> None:
    """Raises UserError unless the models can be used in this way."""
    if options.tile and options.window:
        raise UserError(
            f"--tile={options.tile} and --window={_joined(options.window)} are both "
            "given: tiles are for models with a margin, windows for the others; give "
            "one"
        )
    if options.tile < 0:
        raise UserError(f"--tile: found {options.tile}, expected a side in pixels or 0")
    windows.sliding((1, 1), options.window or (1,), options.stride)
    scales = options.scales
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise UserError(f"--scales: found {scales}, expected positive factors")
    for model in models:
        name = type(model).__name__
        if options.tile:
            windows.tile_stride(model.tiling, options.tile, name)
        if options.window and model.tiling.margin:
            raise UserError(
                f"--window={_joined(options.window)}: {name} predicts less than its "
                "input, and windows would cut off the surroundings it needs; give "
                "--tile, whose tiles overlap by the margin"
            )


def _joined(values: Sequence[float]) -> str:
    return ",".join(map(str, values))
