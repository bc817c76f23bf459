"""Flags of the programs that predict: which checkpoints, how, and which CRF."""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from segjax import files, inference
from segjax.data import batching
from segjax.errors import UserError
from segjax.inference import collection
from segjax.inference.options import HELP, RULES, from_config
from segjax.ops import mean_field

CRF_HELP = (
    "Refine by a fully connected CRF: 'config' (the fields config.crf), a FILE.json of "
    f"experiments.tune_crf, or one of {', '.join(mean_field.SETTINGS)}; '': none."
)
CHECKPOINT_HELP = "'best', 'latest' or a step."


def define(*, crf: bool = True) -> None:
    """Defines --checkpoint, --ensemble, the fields of PredictOptions, and --crf."""
    flags.DEFINE_string("checkpoint", "best", CHECKPOINT_HELP)
    flags.DEFINE_list(
        "ensemble",
        [],
        "More workdirs, or checkpoints such as RUN/checkpoints/1000, of the same "
        "classes; --ensemble_rule says how they are fused.",
    )
    for name, default in inference.PredictOptions()._asdict().items():
        if name == "tile":
            flags.DEFINE_integer(name, -1, f"{HELP[name]} -1: config.tile.")
        elif isinstance(default, bool):
            flags.DEFINE_bool(name, default, HELP[name])
        elif isinstance(default, tuple):
            flags.DEFINE_list(name, [f"{value:g}" for value in default], HELP[name])
        elif isinstance(default, str):
            flags.DEFINE_enum(name, default, RULES[name], HELP[name])
        elif isinstance(default, int):
            flags.DEFINE_integer(name, default, HELP[name])
        else:
            flags.DEFINE_float(name, default, HELP[name])
    if crf:
        flags.DEFINE_string("crf", "", CRF_HELP)


NAMES = (
    "checkpoint",
    "ensemble",
    *inference.PredictOptions._fields,
    *("crf", "padding", "max_pixels"),
)
"""The flags of :func:`define` and :func:`define_limits`."""


def define_limits() -> None:
    """Defines --padding and --max_pixels."""
    flags.DEFINE_float(
        "padding",
        batching.PADDING,
        "Fraction of padding pixels that may be computed to compile fewer shapes; 0: "
        "every image at its own size.",
    )
    flags.DEFINE_integer(
        "max_pixels",
        collection.MAX_PIXELS,
        "Maximum pixels per image, and per device and batch; larger images are "
        "predicted in windows or tiles.",
    )


def options(config: ConfigDict) -> inference.PredictOptions:
    """The options that the flags, parsed, choose.

    Raises:
      UserError: values that are no numbers.
    """
    values = flags.FLAGS
    chosen = {}
    for name, default in inference.PredictOptions()._asdict().items():
        value = getattr(values, name)
        if isinstance(default, tuple):
            # Lists of pixels are empty by default, lists of factors are not.
            value = _numbers(name, value, float if default else int)
        chosen[name] = value
    if chosen["tile"] < 0:  # windows replace the tiles of the config
        chosen["tile"] = 0 if chosen["window"] else from_config(config).tile
    return inference.PredictOptions(**chosen)


def ensemble(arguments: Sequence[str] = ()) -> list[str]:
    """The further models of --ensemble, and of arguments that are no flags.

    Raises:
      UserError: one of them is neither a workdir nor a checkpoint in one.
    """
    members = [*flags.FLAGS.ensemble, *arguments]
    for member in members:
        path = files.path(member)
        folders = (path, path.parent.parent) if path.name.isdigit() else (path,)
        if not any((folder / "config.json").is_file() for folder in folders):
            name = f"argument {member!r}" if member in arguments else "--ensemble"
            raise UserError(
                f"unexpected {name}: {path / 'config.json'} not found; expected "
                "another workdir of experiments.train, or a checkpoint in one"
            )
    return members


def _numbers(name: str, texts: Sequence[str], kind: type) -> tuple:
    try:
        return tuple(kind(text) for text in texts)
    except ValueError as error:
        raise UserError(
            f"--{name}={','.join(texts)}: expected {kind.__name__} values, joined by "
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
        return inference.crf_settings(config.crf, "--config.crf")
    if choice in mean_field.SETTINGS:
        return mean_field.SETTINGS[choice]
    path = files.path(choice)
    if not path.is_file():
        raise UserError(
            f"--crf={choice}: expected 'config' (the fields config.crf), a file of "
            f"experiments.tune_crf, or one of {', '.join(mean_field.SETTINGS)}"
        )
    values = files.read_json(path, "an object of fields of a CRF, such as sigmas")
    return inference.crf_settings(values, f"--crf={path}")
