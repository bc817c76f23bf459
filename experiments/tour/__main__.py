"""Draws the figures of docs/tour.md with the parts of the program.

    python -m experiments.tour --output runs/tour
    python -m experiments.tour --output runs/tour --only atrous --rates 2,4,8
    python -m experiments.tour --output runs/tour --only atrous,fields --rates 1,2,3

Every figure is one function of experiments/tour/, and every number in it is a flag.
Figures of trained networks train them in OUTPUT/networks first, and find them there the
next time; an interrupted training goes on where it was.
"""

import inspect
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tqdm
from absl import flags

from experiments.shared import cli
from experiments.tour import FIGURES
from segjax import errors, files
from segjax.errors import UserError


class Parameter(NamedTuple):
    """What a number of a figure means, and which values it may have."""

    meaning: str
    low: float
    high: float


PARAMETERS = {
    "rates": Parameter("dilation rates", 1, 64),
    "kernel": Parameter("side of the kernel", 1, 15),
    "stride": Parameter("of the convolutions", 1, 8),
    "padding": Parameter("zeros around the map", 0, 8),
    "output_padding": Parameter("more rows and columns of the result", 0, 8),
    "side": Parameter("height and width of the image or map", 2, 1024),
    "scene": Parameter("number of the procedural scene", 0, 10**6),
    "seed": Parameter("of what is drawn at random", 0, 2**32 - 1),
    "bins": Parameter("bins per side of the levels of the pyramid", 1, 64),
    "count": Parameter("how many are shown", 1, 50),
    "classes": Parameter("number of classes", 2, 255),
    "widths": Parameter("channels of the levels", 1, 4096),
    "iterations": Parameter("updates of the mean field", 1, 1000),
    "sweeps": Parameter("passes of the sampler over all pixels", 10, 10**5),
    "noise": Parameter("share of the labels that are wrong", 0, 1),
    "gamma": Parameter("the most that a segment costs, per pixel", 0, 1000),
    "share": Parameter("of differing pixels from which a segment costs no more", 0, 1),
    "sigma": Parameter("px", 0.01, 1000),
    "weight": Parameter("w0 of the border weights", 0.01, 10**6),
    "nodes": Parameter("side of the grid of displacements", 2, 100),
    "tile": Parameter("side of the predicted part of a tile", 4, 1024),
    "steps": Parameter("training steps of each network", 1, 10**6),
}


def parameters(function: Callable[..., bytes]) -> dict[str, Any]:
    """The numbers of a figure with their defaults."""
    found = inspect.signature(function).parameters
    return {name: found[name].default for name in found if name != "workdir"}


def value_of(name: str, text: str, default: Any) -> Any:
    """The value of a flag, in the type of its default.

    Raises:
      UserError: no number of that type, or one out of range.
    """
    kind = type(default[0] if isinstance(default, tuple) else default)
    low, high = PARAMETERS[name].low, PARAMETERS[name].high
    several = isinstance(default, tuple)
    parts = text.split(",") if several else [text]
    try:
        values = tuple(kind(part) for part in parts)
        good = all(math.isfinite(v) and low <= v <= high for v in values)
    except ValueError:
        good = False
    if not good:
        what = "integers" if kind is int else "numbers"
        what = f"{what} with commas" if several else f"one of the {what}"
        raise UserError(f"--{name}: found {text!r}, expected {what}, {low} to {high}")
    return values if several else values[0]


def chosen(only: str) -> list[str]:
    """The names of the figures that are wanted; all of them for "".

    Raises:
      UserError: no such figure.
    """
    names = only.split(",") if only else list(FIGURES)
    for name in names:
        if name not in FIGURES:
            raise errors.unknown("--only", name, FIGURES)
    return names


def arguments(names: list[str], given: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the flags say for each of the figures.

    Raises:
      UserError: a number that none of the figures has, or a bad one.
    """
    known = {name: parameters(FIGURES[name]) for name in names}
    for flag in given:
        if not any(flag in defaults for defaults in known.values()):
            users = [name for name in FIGURES if flag in parameters(FIGURES[name])]
            raise UserError(
                f"--{flag}: none of the figures {', '.join(names)} has it; expected "
                f"--only with one of {', '.join(users)}"
            )
    return {
        name: {
            flag: value_of(flag, text, defaults[flag])
            for flag, text in given.items()
            if flag in defaults
        }
        for name, defaults in known.items()
    }


def main(argv) -> int:
    del argv
    names = chosen(_ONLY.value)
    values = flags.FLAGS.flag_values_dict()
    given = {name: values[name] for name in PARAMETERS if values[name] is not None}
    wanted = arguments(names, given)
    output = Path(_OUTPUT.value).expanduser().absolute()
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: a file, expected a folder")
    cli.start()
    output.mkdir(parents=True, exist_ok=True)
    progress = tqdm.tqdm(wanted.items(), "figures", unit="figure")
    for name, arguments_ in progress:
        progress.set_postfix_str(name)
        function, began = FIGURES[name], time.perf_counter()
        if "workdir" in inspect.signature(function).parameters:
            arguments_ = {"workdir": output / "networks", **arguments_}
        picture = function(**arguments_)
        with files.atomic_write(output / f"{name}.png") as path:
            path.write_bytes(picture)
        cli.log(f"{output / name}.png ({time.perf_counter() - began:.1f} s)")
    return 0


def _help(name: str) -> str:
    """The meaning of a number, and the figures that have it with their defaults."""
    users = []
    for figure, function in FIGURES.items():
        defaults = parameters(function)
        if name in defaults:
            default = defaults[name]
            text = (
                ",".join(map(str, default)) if isinstance(default, tuple) else default
            )
            users.append(f"{figure} ({text})")
    return f"{PARAMETERS[name].meaning}: {', '.join(users)}"


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", "runs/tour", "Folder of the figures.")
    _ONLY = flags.DEFINE_string(
        "only", "", f"Figures with commas; all if empty: {', '.join(FIGURES)}."
    )
    for _name in PARAMETERS:
        flags.DEFINE_string(_name, None, _help(_name))
    cli.run(main)
