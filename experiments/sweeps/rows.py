"""The rows of a sweep: their configs, names and checks.

A row is a dict of overrides such as {"model.rates": (6, 12)}.
"""

import hashlib
import inspect
import json
import re
import runpy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.shared import run_description, training_run
from segjax import config as config_lib
from segjax import models, optim, training
from segjax.data import datasets
from segjax.errors import UserError

# Fields that do not make another experiment: a changed one continues the same run.
_FREE = (run_description.FREE_FIELDS - {"total_steps"}) | {"seed"}


class Row(NamedTuple):
    """One row of the table."""

    name: str  # "bins=1,2,3,6-1f2e3d4c"
    hash: str  # of the resolved config without what does not make another experiment
    overrides: dict[str, Any]
    config: ConfigDict  # resolved, of the first seed


# Rows


def read(config_file: str, config: ConfigDict) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a config file's sweep(), and the overrides that all of them have.

    Args:
      config_file: FILE or FILE:ARG.
      config: of that file, with overrides for all rows.

    Raises:
      UserError: there is no sweep(), it fails, or it sets a field that is overridden;
        or as ``make_rows``.
    """
    path, _, arg = config_file.partition(":")
    module = runpy.run_path(path)
    if "sweep" not in module:
        raise UserError(f"--config {path} defines no sweep(); configs/sweeps/ has some")
    given = [arg] if arg else []
    file_values = config_lib.flatten(module["get_config"](*given))
    overrides = {
        key: value
        for key, value in config_lib.flatten(config).items()
        if value != file_values[key]
    }
    takes_arg = inspect.signature(module["sweep"]).parameters
    try:
        chosen = [_by_name(row) for row in module["sweep"](*given if takes_arg else ())]
    except Exception as error:  # the file is code: anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"--config {path}: sweep() raises {reason}") from error
    for key in overrides:
        if any(key in row for row in chosen):
            raise UserError(f"--config.{key}: the sweep chooses this field in its rows")
    return make_rows(config, chosen), overrides


def make_rows(base: ConfigDict, overrides: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Resolves and names the rows of a sweep.

    Raises:
      UserError: names the row, the wrong key with the nearest right one, or the wrong
        value; or two rows that are the same.
    """
    chosen = [_by_name(row) for row in overrides]
    if base.total_epochs:  # a number of steps alone takes their place
        chosen = [
            row | {"total_epochs": 0.0}
            if "total_steps" in row and "total_epochs" not in row
            else row
            for row in chosen
        ]
    if not chosen:
        raise UserError("sweep() yields no rows")
    configs = [_resolve(base, row, number) for number, row in enumerate(chosen, 1)]
    flats = [config_lib.flatten(config) for config in configs]
    keys = dict.fromkeys(key for row in chosen for key in row)
    varying = [key for key in keys if len({repr(f[key]) for f in flats}) > 1]
    rows, seen = [], {}
    for number, (row, config, values) in enumerate(zip(chosen, configs, flats), 1):
        code = _hash(values)
        if code in seen:
            raise UserError(
                f"rows {seen[code]} and {number} of sweep() give the same config"
            )
        seen[code] = number
        name = ",".join(
            f"{_short(key, varying)}={_file_safe(values[key])}" for key in varying
        )
        rows.append(Row(f"{name[:100] or 'row'}-{code}", code, row, config))
    return rows


def _by_name(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the earlier names of fields replaced."""
    renamed: dict[str, Any] = {}
    for name, value in dict(row).items():
        renamed |= config_lib.rename_field(name, value)
    return renamed


def _resolve(base: ConfigDict, overrides: Mapping[str, Any], number: int) -> ConfigDict:
    values = config_lib.json_like(base)
    try:
        for path, value in overrides.items():
            if not isinstance(path, str):
                raise UserError(
                    f"the key {path!r} is no name of a field, such as 'model.rates'"
                )
            *groups, key = path.split(".")
            group = values
            for name in groups:
                # What is not there, or no group, is told by make.
                if not isinstance(group.get(name), dict):
                    group[name] = {}
                group = group[name]
            if isinstance(group.get(key), dict):
                raise UserError(f"config.{path} is a group of fields; set one of them")
            group[key] = value
        return config_lib.make(**values)
    except UserError as error:
        raise UserError(
            f"row {number} of sweep(), {dict(overrides)}: {error}"
        ) from error


def hash_of(config: Mapping[str, Any]) -> str:
    """The same for configs that differ only in what makes no other experiment."""
    return _hash(config_lib.flatten(config))


def _hash(values: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in values.items() if key not in _FREE}
    if values["tile"]:  # trains the same, but is scored otherwise
        kept["tile"] = values["tile"]
    if values["total_epochs"]:  # they determine the steps, once the data are known
        kept["total_epochs"] = values["total_epochs"]
        del kept["total_steps"]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _short(key: str, keys: Iterable[str]) -> str:
    """The last part of a key, or all of it where two keys have the same last part."""
    last = key.rpartition(".")[2]
    return last if sum(k.rpartition(".")[2] == last for k in keys) == 1 else key


def title(row: Row) -> str:
    """The name without the hash."""
    return row.name.removesuffix(f"-{row.hash}")


def value_text(value: Any) -> str:
    """(1, 2) -> "1,2"; () -> "none"."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)


def _file_safe(value: Any) -> str:
    return re.sub(r"[^\w.,=+-]+", "_", value_text(value), flags=re.ASCII)


# Checks


def example(config: ConfigDict) -> tuple[int, tuple[int, int, int]]:
    """Number of classes, and (H, W, C) of a training example; reads no known data set.

    Raises:
      UserError: one's own data are not there, or differ in size and are not cropped.
    """
    info = datasets.describe(config.data)
    size = config.augment.crop if any(config.augment.crop) else info.size
    if not any(size):
        source, _ = datasets.load(config.data, config.data.train_split)
        size = training_run.common_size(source)
    return len(info.classes), (*size, info.channels)


def check_row(row: Row, data: bool) -> Row:
    """Builds the model of a row and traces its training step; computes nothing.

    Args:
      row: to be checked.
      data: also looks for the data and for init_from, as the run will.

    Returns:
      The row; with `data`, its ``total_steps`` are those of its ``total_epochs``.

    Raises:
      UserError: names the row and what is wrong with it.
    """
    config = row.config.copy_and_resolve_references()
    if not data:
        config.init_from = ""
    try:
        config_lib.check(config)
        if data:
            training_run.build_run(config)
        classes, shape = example(config)
        model = models.build(config, classes)
        training.check_loss(model, config.loss)

        def optimizer_of(params: dict):
            return optim.create(config.optim, params, config.total_steps)

        state = jax.eval_shape(
            lambda: training.create_state(
                model, optimizer_of, image_shape=shape, seed=config.seed
            )
        )
        step = training.make_step(
            model,
            optimizer_of(state.params),
            options=config.loss,
            seed=0,
            grad_accum_steps=config.grad_accum_steps,
        )
        images = (config.batch_size, *shape)
        batch = {
            "image": jax.ShapeDtypeStruct(images, jnp.uint8),
            "label": jax.ShapeDtypeStruct(images[:-1], jnp.uint8),
        }
        jax.eval_shape(step, state, batch)
        resolved = row.config.copy_and_resolve_references()
        resolved.total_steps = config.total_steps
        return row._replace(config=resolved)
    except (UserError, ValueError) as error:  # of networks: shapes that do not fit
        raise UserError(f"row {row.name}: {error}") from error
