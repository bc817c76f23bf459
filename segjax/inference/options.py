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
from segjax.inference import predictors, proposals, windows
from segjax.inference.predictors import Predictor
from segjax.proposals import METHODS
from segjax.proposals import Settings as ProposalSettings


class PredictOptions(NamedTuple):
    """What ``compose`` builds; the defaults predict the image in one piece."""

    tile: int = 0
    window: tuple[int, ...] = ()
    stride: float = 2 / 3
    scales: tuple[float, ...] = (1.0,)
    scale_rule: str = "mean"
    flip: bool = False
    rotations: int = 1
    ensemble_rule: str = "mean"
    proposals: int = 0
    proposal_rule: str = "max"
    proposal_method: str = "edge_boxes"
    proposal_side: float = 0.5


RULES = {
    "scale_rule": ("mean", "max"),
    "ensemble_rule": ("mean", "product"),
    "proposal_rule": proposals.RULES,
    "proposal_method": tuple(METHODS),
}
"""The values of the fields that choose one of several rules."""


HELP = {
    "tile": "Overlap-tiles of this input side, for models with a margin (U-Net): no "
    "seams; 0: none.",
    "window": "Sliding windows of this side, or height,width, for models without a "
    "margin (PSPNet: its training crop).",
    "stride": "Windows advance by this fraction of a window.",
    "scales": "Factors of the image size whose probabilities are averaged, such as "
    "0.5,0.75,1,1.25,1.5.",
    "scale_rule": "How scales are fused: the mean of the probabilities, or the maximum "
    "of the scores before the softmax (DeepLab v2).",
    "flip": "Average with the prediction of the left-right mirror image.",
    "rotations": "Average over the first N of these versions of the image (U-Net: 7): "
    "as it is, turned counterclockwise by 90, 180 and 270 degrees, then its left-right "
    "mirror image turned by 0, 90, 180 and 270 degrees.",
    "ensemble_rule": "How the models of an ensemble are fused: the mean of their "
    "probabilities, or their product, as a geometric mean that is normalized.",
    "proposals": "Models that are trained on crops of objects (config.data.objects) "
    "see crops around this many object proposals instead of the whole image "
    "(DeconvNet: 50); 0: the whole image.",
    "proposal_rule": "How the scores of the crops of a pixel are joined: their maximum "
    "or sum (DeconvNet's equations 1 and 2), or the maximum of these and 0 (its "
    "released code).",
    "proposal_method": "How boxes are proposed.",
    "proposal_side": "Boxes count whose sides, once enlarged, have at least this "
    "fraction of the side of the network's input in pixels (DeconvNet's released code: "
    "112 of 224).",
}
"""What each field means: the help of the flag of that name."""


def from_config(config: ConfigDict) -> PredictOptions:
    """The options that a config has: its tiles."""
    return PredictOptions(tile=config.tile)


def compose(
    models: Sequence[nn.Module],
    options: PredictOptions,
    crops: Sequence[tuple[int, int]] = (),
) -> Predictor:
    """The predictor of these options.

    From the inside out: models, ensemble, windows, mirror image, rotations, scales.

    Args:
      models: of the same classes.
      options: how to predict.
      crops: (h, w) of the crops of objects that each model was trained on, (0, 0) for
        those of whole images; (): all of them. Only proposals need it.

    Returns:
      A predictor whose variables are a tuple, one per model. With proposals its third
      argument are regions (proposals.py).

    Raises:
      UserError: options that cannot be combined, or a wrong value.
    """
    check(models, options, crops)
    if options.proposals:
        parts = [
            proposals.instance_wise(model, crop, options.proposal_rule)
            if any(crop)
            else _without_regions(predictors.whole(model))
            for model, crop in zip(models, crops, strict=True)
        ]
        return predictors.ensemble(parts, options.ensemble_rule)
    if options.scale_rule == "max":
        return predictors.max_scale(models[0], options.scales)
    if options.tile:
        parts = [predictors.overlap_tile(model, options.tile) for model in models]
    else:
        parts = [predictors.whole(model) for model in models]
    predictor = predictors.ensemble(parts, options.ensemble_rule)
    if options.window:
        predictor = predictors.sliding(predictor, options.window, stride=options.stride)
    return averaged(predictor, options)


def _without_regions(predictor: Predictor) -> Predictor:
    return lambda variables, images, regions: predictor(variables, images)


def averaged(predictor: Predictor, options: PredictOptions) -> Predictor:
    """Averages over the transformed images that the options ask for.

    The one place where these are applied, to whole images and, where an image is
    predicted in parts (large.py), to each part.
    """
    if options.flip:
        predictor = predictors.flip(predictor)
    if options.rotations > 1:
        predictor = predictors.rotate(predictor, options.rotations)
    if tuple(options.scales) != (1.0,):
        predictor = predictors.multi_scale(predictor, options.scales)
    return predictor


def check(
    models: Sequence[nn.Module],
    options: PredictOptions,
    crops: Sequence[tuple[int, int]] = (),
) -> None:
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
    for name, known in RULES.items():
        if (rule := getattr(options, name)) not in known:
            raise UserError(f"--{name}: found {rule!r}, expected {' or '.join(known)}")
    if not 1 <= options.rotations <= predictors.ROTATIONS:
        raise UserError(
            f"--rotations: found {options.rotations}, expected 1 (none) to "
            f"{predictors.ROTATIONS}"
        )
    if options.flip and options.rotations > 4:
        raise UserError(
            f"--rotations={options.rotations} has mirror images already: leave --flip "
            "out"
        )
    if options.scale_rule == "max":
        _check_max(models, options)
    _check_proposals(options, crops)
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


def _check_max(models: Sequence[nn.Module], options: PredictOptions) -> None:
    """Raises UserError where probabilities are averaged, but scores are fused."""
    others = [f for f in ("tile", "window", "flip") if getattr(options, f)]
    others += ["rotations"] if options.rotations > 1 else []
    others += ["ensemble"] if len(models) > 1 else []
    if others:
        raise UserError(
            f"--scale_rule=max cannot be combined with --{others[0]}, which averages "
            "probabilities: the maximum is of the scores of one model"
        )


def _check_proposals(options: PredictOptions, crops: Sequence[tuple[int, int]]) -> None:
    """Raises UserError where object proposals cannot be what is asked for."""
    most, count = ProposalSettings().number, options.proposals
    if not 0 <= count <= most:
        raise UserError(f"--proposals: found {count}, expected 0 (none) to {most}")
    if not 0 <= options.proposal_side < math.inf:
        raise UserError(
            f"--proposal_side: found {options.proposal_side}, expected 0 or more"
        )
    defaults = PredictOptions()
    if not count:
        for name in ("proposal_rule", "proposal_method", "proposal_side"):
            if (value := getattr(options, name)) != getattr(defaults, name):
                raise UserError(
                    f"--{name}={value} says how proposals are used, but there are "
                    "none: give --proposals=50, or leave it out"
                )
        return
    for name in ("tile", "window", "flip", "rotations", "scales", "scale_rule"):
        if getattr(options, name) != getattr(defaults, name):
            raise UserError(
                f"--proposals={count} cannot be combined with --{name}: give one of "
                "them"
            )
    if not any(map(any, crops)):
        raise UserError(
            f"--proposals={count}: no model was trained on crops of objects; leave it "
            "out, or give --config.data.objects=stage2 and --config.augment.crop, the "
            "input of the network, if it was so elsewhere"
        )


def _joined(values: Sequence[float]) -> str:
    return ",".join(map(str, values))
