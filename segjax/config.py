"""The configuration of an experiment: every field, its default and its meaning.

A file in ``configs/`` is ``get_config(arg="")`` returning ``make(**what_differs)``.
Fields of ``config.model`` are the dataclass fields of the model (its ablation axes);
``make`` fills in their defaults, so all of them can be overridden on the command
line: ``--config.model.bins=1,2``.  Defaults are never None, because an
ml_collections field whose default is None cannot be overridden.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from segjax import buckets, config_fields, config_ranges, errors, files, losses, models
from segjax.errors import UserError
from segjax.weak import supervision

_log = logging.getLogger(__name__)

DEFAULTS = config_fields.defaults()

# Earlier field -> the fields that say the same now, from its value (from the text of a
# flag, too). Saved configs, config files and command lines may hold them.
RENAMED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "accumulate": lambda value: {"grad_accum_steps": value},
    "loss.bootstrap": lambda value: (
        {"loss.name": "hard_pixels", "loss.hard_pixels": value}
        if str(value) != "0"
        else {"loss.name": "cross_entropy"}
    ),
    "loss.resolution": lambda value: {
        "loss.resolution": "output_stride" if value == "cells" else value
    },
}


def rename(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields with the earlier names of RENAMED replaced, saying so."""
    renamed = {}
    for path, value in flatten_dict(json_like(values), keep_empty_nodes=True).items():
        field = ".".join(map(str, path))
        if field not in RENAMED:
            renamed[path] = value
            continue
        new = rename_field(field, value)
        renamed |= {tuple(name.split(".")): item for name, item in new.items()}
    return unflatten_dict(renamed)


def rename_field(name: str, value: Any) -> dict[str, Any]:
    """The fields, by name, that a field means, which may have an earlier name."""
    if name not in RENAMED:
        return {name: value}
    new = RENAMED[name](value)
    if new != {name: value}:
        _note(f"config.{name}={value!r}", new)
    return new


def normalize_flags(arguments: Sequence[str]) -> list[str]:
    """A command line whose ``--config.FIELD=VALUE`` mean what they say.

    Earlier names are replaced (:data:`RENAMED`), also in ``--config.FIELD VALUE``. An
    empty value of a tuple is the empty tuple: ``--config.optim.decay_exclude=`` would
    otherwise hold one empty string. Names of classes joined by commas are a tuple of
    them. A number of steps alone replaces the epochs that a config file may have, which
    would otherwise take precedence.
    """
    fields = config_fields.flatten()
    normalized, rest = [], list(arguments)
    epochs_given = any(re.match("--?config[.]total_epochs(=|$)", x) for x in rest)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        name = re.sub("^--?config[.]", "", flag)
        if name == flag or name not in RENAMED:
            field = fields.get(name) if name != flag else None
            if field and equals and not value and isinstance(field.default, tuple):
                argument = f"{flag}=()"
            elif field and field.range is config_ranges.NAMES:
                value = value if equals or not rest else rest.pop(0)
                argument = f"{flag}={_names(value)}"
            if name != flag and name == "total_steps" and not epochs_given:
                normalized.append("--config.total_epochs=0")
                epochs_given = True
            normalized.append(argument)
            continue
        if not equals and rest:
            value = rest.pop(0)
        new = RENAMED[name](value)
        if new != {name: value}:
            _note(f"--config.{name}={value}", new)
        normalized += [f"--config.{key}={item}" for key, item in new.items()]
    return normalized


def _names(value: str) -> str:
    """``cat,cow`` as ``('cat', 'cow')``; tuples stay."""
    if value.lstrip().startswith(("(", "[")):
        return value
    return repr(tuple(name.strip() for name in value.split(",")))


def flag(name: str, value: Any) -> str:
    """The override as ml_collections reads it: --config.model.rates=6,12."""
    if isinstance(value, tuple):
        numbers = all(isinstance(x, int | float) for x in value) and len(value) > 1
        value = ",".join(map(str, value)) if numbers else repr(value)
    return f"--config.{name}={value}"


def _note(old: str, new: Mapping[str, Any]) -> None:
    fields = " ".join(f"--config.{name}={value}" for name, value in new.items())
    _log.warning("note: %s is %s now", old, fields)


def make(**overrides) -> ConfigDict:
    """The defaults with ``overrides`` (nested dicts) put in, names and types checked.

    Earlier names of fields are replaced (:data:`RENAMED`).

    Raises:
      UserError: an unknown field or model name (names the nearest), or a wrong type.
    """
    values, overrides = json_like(DEFAULTS), rename(overrides)
    model = overrides.pop("model", {})
    _merge(values, overrides, "--config")
    fields = models.model_fields(values["model_name"])
    _merge(fields, model, "--config.model")
    values["model"] = fields
    return ConfigDict(values)


def set_model(config: ConfigDict, name: str) -> None:
    """Puts another network into a config, in place; its fields get their defaults.

    All else stays as it is, and so do the fields of a network that is there already.

    Raises:
      UserError: no model of that name.
    """
    fields = models.model_fields(name)
    if name != config.model_name:
        with config.unlocked():
            config.model_name = name
            config.model = ConfigDict(fields)


def _merge(values: dict, overrides: Any, address: str) -> None:
    """Puts overrides into nested values, checking names and types."""
    if not isinstance(overrides, Mapping):
        raise UserError(f"{address} is {overrides!r}; expected a group of fields")
    for key, value in overrides.items():
        if key not in values:
            raise errors.unknown(address, key, values)
        if isinstance(values[key], dict):
            _merge(values[key], value, f"{address}.{key}")
            continue
        default = values[key]
        if isinstance(default, float) and type(value) is int:
            # 10^400 is an integer in JSON.
            value = float(value) if abs(value) < 2**1023 else math.inf
        if type(value) is not type(default):
            raise UserError(
                f"{address}.{key} is {value!r}; expected {type(default).__name__}, "
                f"such as {default!r}"
            )
        values[key] = value


def variant(arg: str, variants: Mapping[str, dict]) -> dict:
    """The variant that ``--config FILE:ARG`` chooses; the first one for "".

    Raises:
      UserError: no such variant; names them.
    """
    return variants[variant_name(arg, variants)]


def variant_name(arg: str, variants: Mapping[str, dict]) -> str:
    """The key of `variants` that `arg` means; "_" may stand for "-".

    Raises:
      UserError: no such variant; names them.
    """
    if not arg:
        return next(iter(variants))
    for name in (arg, arg.replace("_", "-")):
        if name in variants:
            return name
    raise errors.unknown("the variant behind the colon", arg, variants)


def check(config: ConfigDict) -> None:
    """Checks what can be checked without data or devices.

    Raises:
      UserError: names the field, what it holds and what it may hold.
    """
    if set(config.model) != set(models.model_fields(config.model_name)):
        raise UserError(
            f"--config.model_name is {config.model_name!r}, but config.model has the "
            "fields of another network: expected --config.model_name together with "
            "--config FILE; a run keeps the network that it was trained with"
        )
    values = flatten(config)
    for name, field in config_fields.flatten().items():
        config_fields.check(f"--config.{name}", field, values[name])

    def require(ok: bool, field: str, expected: str) -> None:
        if not ok:
            value = values[field]
            raise UserError(f"--config.{field} is {value!r}; expected {expected}")

    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        integers = [x for x in numbers if isinstance(x, int)]
        sizes = name.startswith("model.") and integers
        require(not sizes or max(map(abs, sizes)) < 2**31, name, "less than 2^31")
    require(
        config.data.resize_labels == "nearest" or any(config.data.resize),
        "data.resize_labels",
        "'nearest' with --config.data.resize=(0, 0), which keeps the labels",
    )
    loss = config.loss
    require(
        loss.aux_floor <= loss.aux_weight,
        "loss.aux_floor",
        f"from 0 to --config.loss.aux_weight={loss.aux_weight}",
    )
    require(
        not (loss.name == "hard_pixels" and loss.class_weights),
        "loss.class_weights",
        "() with --config.loss.name=hard_pixels, which counts all pixels alike",
    )
    require(
        loss.normalize == "pixels" or loss.name in losses.PIXEL_LOSSES,
        "loss.normalize",
        f"'pixels' with --config.loss.name={loss.name}, which is no sum over pixels",
    )
    require(
        config.batch_size % config.grad_accum_steps == 0,
        "grad_accum_steps",
        f"a divisor of --config.batch_size={config.batch_size}",
    )
    micro_batch = config.batch_size // config.grad_accum_steps
    require(
        not config.bn_batch_size or micro_batch % config.bn_batch_size == 0,
        "bn_batch_size",
        f"0 or a divisor of {micro_batch}, the images of a (micro-)batch",
    )
    supervision.check(values)
    optim = config.optim
    require(
        not optim.nesterov or (optim.name.endswith("sgd") and optim.momentum > 0),
        "optim.nesterov",
        f"False with --config.optim.name={optim.name} and "
        f"--config.optim.momentum={optim.momentum}: it is a form of the momentum of "
        "sgd and caffe_sgd",
    )
    require(
        config.optim.lr_floor <= config.optim.lr,
        "optim.lr_floor",
        f"at most --config.optim.lr={config.optim.lr}",
    )


def count_steps(config: ConfigDict, num_images: int) -> int:
    """The number of training steps: ``total_epochs`` in steps, or ``total_steps``.

    Args:
      config: checked.
      num_images: of the training split, over all processes.

    Raises:
      UserError: more steps than an int32 counts.
    """
    if not config.total_epochs:
        return config.total_steps
    steps = config.total_epochs * num_images / config.batch_size
    # Rounded first: 1.1 epochs of 100 images are 110.00000000000001 images.
    steps = max(1, math.ceil(round(steps, 6)))
    if steps > config_ranges.LARGEST:
        raise UserError(
            f"--config.total_epochs is {config.total_epochs}, which are {steps} steps "
            f"of {num_images} images; expected fewer than 2^31 steps"
        )
    return steps


def json_like(value):
    """A deep copy of nested mappings as dicts, and of sequences as tuples."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: json_like(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(json_like(item) for item in value)
    return value


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their name with dots: {"model": {"rates": (1,)}} -> "model.rates"."""
    return flatten_dict(json_like(config), sep=".")


def save(config: ConfigDict, path: Path) -> None:
    """Writes the resolved configuration as JSON."""
    files.write_json(path, json_like(config))


def check_start(config: ConfigDict) -> None:
    """Checks that ``init_from`` is there, as a run that begins needs it.

    Raises:
      UserError: it is not.
    """
    if config.init_from and not _is_start(config.init_from):
        raise UserError(
            f"--config.init_from is {config.init_from!r}; expected a workdir of "
            "experiments.train or a file written by experiments.import_weights"
        )


def _is_start(start: str) -> bool:
    """Whether there is a file or the folder of a run."""
    if buckets.is_bucket(start):
        with buckets.errors(start):
            path = files.path(start)
            return path.is_file() or (path / "config.json").is_file()
    # Not Path.is_file, which raises an error for names that are too long.
    start = os.path.expanduser(start)
    return any(map(os.path.isfile, (start, os.path.join(start, "config.json"))))


def load(path: Path) -> ConfigDict:
    """Reads what ``save`` wrote; fields added since then get their defaults.

    Raises:
      UserError: no such file, not JSON, or unknown keys.
    """
    if not path.is_file():
        raise UserError(
            f"{path} not found: give a workdir written by experiments.train"
        )
    values = files.read_json(path, "the config of a training run")
    try:
        return make(**json_like(values))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
