"""The options of augmentation: the default, range and meaning of each, in one place.

The ``augment`` section of a config has these fields; its defaults, its checks and the
documents are made from ``OPTIONS``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_type_hints

from segjax import errors
from segjax.errors import UserError

BORDERS = ("mean", "reflect")


class Range(NamedTuple):
    """Which values an option may have."""

    expected: str
    """The range in words, for messages and the documentation."""
    accepts: Callable[[Any], bool]


class Option(NamedTuple):
    """One field of the ``augment`` section of a config."""

    default: Any
    expected: str
    accepts: Callable[[Any], bool]
    meaning: str


def _number(value: Any, low: float = 0, high: float = math.inf) -> bool:
    """Whether a value is a finite number between the two bounds, both included."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high


def _pair(value: Any) -> bool:
    """Whether a value is a sequence of two numbers >= 0."""
    return isinstance(value, Sequence) and len(value) == 2 and all(map(_number, value))


def _integers(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


_FRACTION = Range("a number from 0 to 1", lambda value: _number(value, 0, 1))
_AMOUNT = Range("a number >= 0", _number)
_CROP = Range(
    "two positive integers (height, width) up to 65536, or (0, 0) for those of the "
    "image",
    lambda value: (
        _pair(value)
        and _integers(*value)
        and (0 < min(value) <= max(value) <= 65536 or max(value) == 0)
    ),
)
_FACTORS = Range(
    "two positive factors (low, high) with low <= high",
    lambda value: _pair(value) and 0 < value[0] <= value[1],
)
_SET = Range(
    "positive factors, or ()",
    lambda value: (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(_number(factor) and factor > 0 for factor in value)
    ),
)
_DEGREES = Range("degrees from 0 to 180", lambda value: _number(value, 0, 180))
_LEAN = Range("degrees from 0 to 60", lambda value: _number(value, 0, 60))
_SWITCH = Range("True or False", lambda value: isinstance(value, bool))
_NODES = Range(
    "an integer from 2 to 1000",
    lambda value: _number(value, 2, 1000) and _integers(value),
)
_GAP = Range(
    "an integer from 0 to 100",
    lambda value: _number(value, 0, 100) and _integers(value),
)
_BORDER = Range(
    " or ".join(map(repr, BORDERS)),
    lambda value: isinstance(value, str) and value in BORDERS,
)


class Options(NamedTuple):
    """What ``augment`` may do: every option's default, range and meaning.

    The ``augment`` section of a config has the same fields and defaults, without
    those of :data:`DERIVED`, which follow from the network, the data set and the loss.
    """

    crop: Annotated[
        tuple[int, int], _CROP, "height and width of an example; (0, 0): of the image"
    ] = (0, 0)
    scale: Annotated[
        tuple[float, float], _FACTORS, "range of the scale factor, drawn uniformly"
    ] = (1.0, 1.0)
    scales: Annotated[
        tuple[float, ...],
        _SET,
        "the scale factor is one of these, drawn uniformly (DeepLab v2: "
        "0.5,0.75,1,1.25,1.5), instead of from the range; (): the range",
    ] = ()
    aspect: Annotated[
        tuple[float, float],
        _FACTORS,
        "range of a factor on width / height, drawn log-uniformly; the area stays",
    ] = (1.0, 1.0)
    shear: Annotated[
        float, _LEAN, "largest angle in degrees by which columns are slanted; uniform"
    ] = 0.0
    rotate: Annotated[
        float, _DEGREES, "largest angle in degrees; uniform in [-rotate, rotate]"
    ] = 0.0
    rotate_prob: Annotated[float, _FRACTION, "probability of a rotation"] = 1.0
    flip: Annotated[float, _FRACTION, "probability of a left-right mirror"] = 0.5
    vflip: Annotated[float, _FRACTION, "probability of an upside-down mirror"] = 0.0
    rot90: Annotated[bool, _SWITCH, "random quarter turns (microscopy)"] = False
    translate: Annotated[
        float,
        _FRACTION,
        "largest shift as a fraction of the output, in addition to that of the crop",
    ] = 0.0
    elastic_sigma: Annotated[
        float, _AMOUNT, "px, standard deviation of the elastic displacements; 0: off"
    ] = 0.0
    elastic_grid: Annotated[
        int, _NODES, "side of the coarse grid on which displacements are drawn"
    ] = 3
    border: Annotated[
        str,
        _BORDER,
        "outside of the image, a crop shows the mean color of the data set (mean) or "
        "the mirrored image (reflect); labels are void there",
    ] = "mean"
    separate: Annotated[
        int,
        _GAP,
        "px; pixels of an instance this near to another one become background (U-Net); "
        "0: off; needs instance maps and a class 0 that is the background",
    ] = 0
    brightness: Annotated[
        float, _FRACTION, "values times a factor in 1 +- brightness"
    ] = 0.0
    contrast: Annotated[
        float, _FRACTION, "distances to the mean value times a factor in 1 +- contrast"
    ] = 0.0
    saturation: Annotated[
        float, _FRACTION, "distances to gray times a factor in 1 +- saturation (RGB)"
    ] = 0.0
    hue: Annotated[
        float, _DEGREES, "largest rotation of the hue in degrees; uniform (RGB)"
    ] = 0.0
    gamma: Annotated[
        float,
        _AMOUNT,
        "exponent on value / 255, log-uniform in [1 / (1 + gamma), 1 + gamma]",
    ] = 0.0
    blur_prob: Annotated[
        float, _FRACTION, "probability of a 5x5 Gaussian blur, (1, 4, 6, 4, 1) / 16"
    ] = 0.0
    noise: Annotated[
        float, _AMOUNT, "gray levels, largest standard deviation of Gaussian noise"
    ] = 0.0
    margin: int = 0
    """Pixels at each side of the crop that are context only (the valid convolutions of
    U-Net predict the center): the crop may reach that far out of the image, so that
    the predicted center covers all of it evenly."""
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Color outside the image, 0..255 per channel."""
    border_weight: float = 0.0
    """``weight`` of ``border_weights``; 0: no such weights."""
    border_sigma: float = 5.0
    """``sigma`` of ``border_weights``, px."""


DERIVED = ("margin", "fill", "border_weight", "border_sigma")
"""Options that are no fields of the ``augment`` section."""


def _table() -> dict[str, Option]:
    table = {}
    for name, hint in get_type_hints(Options, include_extras=True).items():
        if name in DERIVED:
            continue
        allowed, meaning = hint.__metadata__
        default = Options._field_defaults[name]
        table[name] = Option(default, allowed.expected, allowed.accepts, meaning)
    return table


OPTIONS: dict[str, Option] = _table()
"""The fields of a config's ``augment`` section, from the annotations of ``Options``."""


def options(config: Mapping[str, Any], mean: Sequence[float]) -> Options:
    """Makes ``Options`` of the ``augment`` section of a config, and checks them.

    Args:
      config: values of fields in ``OPTIONS``; those left out keep their default.
      mean: color of the padding, 0..255 per channel (the mean of the data set).

    Raises:
      UserError: unknown field, a value of the wrong kind or out of its range, or a
        change of colors for images that are neither gray nor RGB.
    """
    values: dict[str, Any] = {"fill": tuple(float(value) for value in mean)}
    for name, value in dict(config).items():
        if name not in OPTIONS:
            raise errors.unknown("--config.augment", name, OPTIONS)
        option = OPTIONS[name]
        if not option.accepts(value):
            raise UserError(
                f"--config.augment.{name}: found {value!r}, expected {option.expected}"
            )
        values[name] = tuple(value) if isinstance(option.default, tuple) else value
    chosen = Options(**values)
    for name in ("saturation", "hue"):
        if getattr(chosen, name) > 0 and len(mean) not in (1, 3):
            raise UserError(
                f"--config.augment.{name}: found {getattr(chosen, name)}, expected 0 "
                f"for images of {len(mean)} channels, of which it is not known that "
                "they are red, green and blue"
            )
    if chosen.scales and chosen.scale != (1.0, 1.0):
        raise UserError(
            f"--config.augment.scale: found {chosen.scale}, expected (1.0, 1.0) with "
            f"--config.augment.scales={chosen.scales}, which takes its place"
        )
    return chosen


NO_AUGMENTATION = Options(flip=0.0)
"""Examples as they are."""
