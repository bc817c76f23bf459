"""The rows of a sweep: their configs, names and checks.

A row is a dict of overrides such as {"model.rates": (6, 12)}. It may be another
network, {"model_name": "fcn", "model.skips": 8}, or another config file,
{"config": "configs/fcn_camvid.py:fcn8s", "batch_size": 4}.
"""

import hashlib
import inspect
import json
import re
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.shared import arguments, run_description, training_run
from segjax import config as config_lib
from segjax import models, optim, training
from segjax.data import datasets
from segjax.errors import UserError
from segjax.weak import supervision

# Fields that do not make another experiment: a changed one continues the same run.
FREE = (run_description.FREE_FIELDS - {"total_steps"}) | {"seed"}


class Row(NamedTuple):
    """One row of the table."""

    name: str  # "bins=1,2,3,6-1f2e3d4c"
    hash: str  # of the resolved config without what does not make another experiment
    overrides: dict[str, Any]
    config: ConfigDict  # resolved, of the first seed


# Rows


def read(
    config_file: str, config: ConfigDict, given: Iterable[str] = ()
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a config file's sweep(), and the overrides that all of them have.

    Args:
      config_file: FILE or FILE:ARG.
      config: of that file, with overrides for all rows.
      given: names of the fields that the command line sets: they hold for rows of
        other config files, too, even where they change nothing in this one.

    Raises:
      UserError: there is no sweep(), it fails, or it sets a field that is overridden;
        or as ``make_rows``.
    """
    path, _, arg = config_file.partition(":")
    module = runpy.run_path(path)
    if "sweep" not in module:
        raise UserError(f"--config {path} defines no sweep(); configs/sweeps/ has some")
    arguments_of_file = [arg] if arg else []
    file_config = module["get_config"](*arguments_of_file)
    same_network = file_config.model_name == config.model_name
    config_lib.set_model(file_config, config.model_name)
    file_values = config_lib.flatten(file_config)
    overrides = {} if same_network else {"model_name": config.model_name}
    overrides |= {
        key: value
        for key, value in config_lib.flatten(config).items()
        if value != file_values[key] or key in given
    }
    takes_arg = inspect.signature(module["sweep"]).parameters
    try:
        yielded = module["sweep"](*arguments_of_file if takes_arg else ())
        chosen = [_by_name(row) for row in yielded]
    except Exception as error:  # the file is code: anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"--config {path}: sweep() raises {reason}") from error
    for key in overrides:
        if any(key in row for row in chosen):
            raise UserError(f"--config.{key}: the sweep chooses this field in its rows")
    return make_rows(config, chosen, overrides), overrides


def make_rows(
    base: ConfigDict,
    chosen: Iterable[Mapping[str, Any]],
    overrides: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Resolves and names the rows of a sweep.

    Args:
      base: the config that rows differ from, unless they have one of their own.
      chosen: the fields of each row. "model_name" is another network, whose fields get
        their defaults; "config" is the FILE or FILE:ARG that takes the place of `base`.
      overrides: fields of all rows, which `base` has already.

    Raises:
      UserError: names the row, the wrong key with the nearest right one, or the wrong
        value; or two rows that are the same.
    """
    chosen = [_by_name(row) for row in chosen]
    if not chosen:
        raise UserError("sweep() yields no rows")
    resolved = [
        _resolve(base, row, overrides=overrides or {}, number=number)
        for number, row in enumerate(chosen, 1)
    ]
    flats = [
        config_lib.flatten(config)
        | ({"config": row["config"]} if "config" in row else {})
        for row, config in resolved
    ]
    keys = dict.fromkeys(key for row, _ in resolved for key in row)
    varying = [key for key in keys if _varies(key, flats)]
    rows, seen = [], {}
    for number, ((row, config), values) in enumerate(zip(resolved, flats), 1):
        code = hash_of(config)
        if code in seen:
            raise UserError(
                f"rows {seen[code]} and {number} of sweep() give the same config"
            )
        seen[code] = number
        name = ",".join(
            _name_of_value(key, values[key], varying)
            for key in varying
            if key in values
        )
        rows.append(Row(f"{name[:100] or 'row'}-{code}", code, row, config))
    return rows


def _varies(key: str, flats: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows differ in a field; one of a model, rows of the same network."""
    groups: dict[str, set[str]] = {}
    for values in flats:
        group = values["model_name"] if key.startswith("model.") else ""
        groups.setdefault(group, set()).add(repr(values.get(key)))
    return any(len(group) > 1 for group in groups.values())


def _name_of_value(key: str, value: Any, keys: Iterable[str]) -> str:
    """What a name of a row says of a field: "rates=6,12"; of a network its name."""
    if key == "model_name":
        return _file_safe(value)
    if key == "config":
        path, _, arg = value.partition(":")
        return _file_safe("_".join([Path(path).stem, *[arg] * bool(arg)]))
    return f"{_short(key, keys)}={_file_safe(value)}"


def _by_name(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the earlier names of fields replaced."""
    renamed: dict[str, Any] = {}
    for name, value in dict(row).items():
        renamed |= config_lib.rename_field(name, value)
    return renamed


def _resolve(
    base: ConfigDict,
    row: Mapping[str, Any],
    *,
    overrides: Mapping[str, Any],
    number: int,
) -> tuple[dict[str, Any], ConfigDict]:
    """A row as its command line has it, and its config."""
    try:
        config = _config_file(row["config"]) if "config" in row else base
        fields = {**overrides, **row}
        fields.pop("config", None)
        row = dict(row)
        # A number of steps alone takes the place of epochs, as on the command line.
        steps_alone = "total_steps" in fields and "total_epochs" not in fields
        if config.total_epochs and steps_alone:
            row["total_epochs"] = fields["total_epochs"] = 0.0
        values = config_lib.json_like(config)
        if fields.get("model_name", config.model_name) != config.model_name:
            values["model"] = {}  # its defaults
        for path, value in fields.items():
            _set(values, path, value)
        return row, config_lib.make(**values)
    except UserError as error:
        raise UserError(f"row {number} of sweep(), {dict(row)}: {error}") from error


def _config_file(argument: Any) -> ConfigDict:
    if not isinstance(argument, str):
        raise UserError(f"config is {argument!r}; expected 'FILE' or 'FILE:ARG'")
    return arguments.run_config_file(argument)


def _set(values: dict, path: Any, value: Any) -> None:
    """Sets a field of nested values by its name with dots."""
    if not isinstance(path, str):
        raise UserError(
            f"the key {path!r} is no name of a field, such as 'model.rates'"
        )
    *groups, key = path.split(".")
    for name in groups:
        # What is not there, or no group, is told by make.
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    if isinstance(values.get(key), dict):
        raise UserError(f"config.{path} is a group of fields; set one of them")
    values[key] = value


def hash_of(config: Mapping[str, Any]) -> str:
    """The same for configs that differ only in what makes no other experiment."""
    values = config_lib.flatten(config)
    kept = {key: value for key, value in values.items() if key not in FREE}
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
    if config.data.objects != "none" and not any(config.augment.crop):
        size = (config.data.object_side,) * 2
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
    try:
        if data:
            config_lib.check_start(config)
        checked = check_config(config, data)
    except (UserError, ValueError) as error:  # of networks: shapes that do not fit
        raise UserError(f"row {row.name}: {error}") from error
    resolved = row.config.copy_and_resolve_references()
    resolved.total_steps = checked.total_steps
    return row._replace(config=resolved)


def check_config(config: ConfigDict, data: bool) -> ConfigDict:
    """Builds the model of a config and traces its training step; computes nothing.

    Args:
      config: to be checked; with `data`, its ``total_steps`` become those of its
        ``total_epochs``.
      data: also looks for the data, as the run will.

    Returns:
      The config.

    Raises:
      UserError: what is wrong with it.
      ValueError: the network does not fit the shapes.
    """
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
    if config.data.supervision in supervision.WEAK:
        present = (config.batch_size, model.num_classes)
        batch["present"] = jax.ShapeDtypeStruct(present, jnp.uint8)
    jax.eval_shape(step, state, batch)
    return config
