"""Flags of the programs that predict: which checkpoints, and how."""

import json
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from segjax import inference
from segjax.errors import UserError
from segjax.ops import mean_field

CRF_HELP = (
    "Refine by a fully connected CRF: 'config' (the fields config.crf), a FILE.json of "
    f"experiments.tune_crf, or one of {', '.join(mean_field.SETTINGS)}; '': none."
)


def define() -> None:
    """Defines --checkpoint, --ensemble and the fields of ``inference.Method``."""
    flags.DEFINE_string("checkpoint", "best", "'best', 'latest' or a step.")
    flags.DEFINE_list(
        "ensemble",
        [],
        "More workdirs, or checkpoints such as RUN/checkpoints/1000, of the same "
        "classes; probabilities are averaged.",
    )
    flags.DEFINE_integer(
        "tile",
        -1,
        "Overlap-tiles of this input side, for models with a margin (U-Net): no seams; "
        "0: none; -1: config.tile.",
    )
    flags.DEFINE_list(
        "window",
        [],
        "Sliding windows of this side, or height,width, for models without a margin "
        "(PSPNet: its training crop).",
    )
    flags.DEFINE_float(
        "stride", inference.Method().stride, "Windows advance by this fraction of one."
    )
    flags.DEFINE_list(
        "scales", ["1"], "Image scales to average over, such as 0.5,0.75,1,1.25,1.5."
    )
    flags.DEFINE_bool("flip", False, "Average with the mirrored image.")


def method(config: ConfigDict) -> inference.Method:
    """The method that the flags, parsed, choose.

    Raises:
      UserError: values that are no numbers.
    """
    values = flags.FLAGS
    tile = config.tile if values.tile < 0 else values.tile
    if values.window and values.tile < 0:
        tile = 0  # windows were asked for
    return inference.Method(
        tile=tile,
        window=_numbers("window", int),
        stride=values.stride,
        scales=_numbers("scales", float),
        flip=values.flip,
    )


def _numbers(name: str, kind: type) -> tuple:
    found = flags.FLAGS[name].value
    try:
        return tuple(kind(value) for value in found)
    except ValueError as error:
        raise UserError(
            f"--{name}={','.join(found)}: expected {kind.__name__} values, joined by "
            "commas without spaces"
        ) from error


def crf_settings(config: ConfigDict, choice: str) -> mean_field.Settings | None:
    """The CRF that ``--crf`` chooses; None for none.

    Raises:
      UserError: an unknown name, an unreadable file or a bad field.
    """
    if choice in ("", "none"):
        return None
    if choice == "config":
        return inference.crf_settings(config.crf, "config.crf")
    if choice in mean_field.SETTINGS:
        return mean_field.SETTINGS[choice]
    path = Path(choice).expanduser()
    if not path.is_file():
        raise UserError(
            f"--crf={choice}: expected 'config' (the fields config.crf), a file of "
            f"experiments.tune_crf, or one of {', '.join(mean_field.SETTINGS)}"
        )
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--crf={path} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"--crf={path}: expected an object of fields such as sigmas")
    return inference.crf_settings(values, f"--crf={path}")
