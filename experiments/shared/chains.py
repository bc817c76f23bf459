"""Chains: variants of a config file, each of which starts from the one before.

A config file with several variants may have a table STARTS_FROM, such as
``{"fcn16s": "fcn32s", "fcn8s": "fcn16s"}``: fcn8s starts from the trained fcn16s. The
chain of a variant is all that it starts from, the first one first.
"""

import runpy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from experiments.shared import arguments
from segjax import config as config_lib
from segjax import errors, files
from segjax.errors import UserError

TABLE = "STARTS_FROM"


class Stage(NamedTuple):
    """One training run of a chain."""

    name: str  # the variant, and the folder of the run
    config_file: str  # FILE:VARIANT
    config: ConfigDict
    overrides: dict[str, Any]  # what the command line changes, and init_from
    notes: tuple[str, ...] = ()


def names(variant: str, table: Mapping[str, str]) -> list[str]:
    """The variants of the chain that ends with this one.

    Raises:
      UserError: the table goes round in circles.
    """
    chain = [variant]
    while (before := table.get(chain[-1])) is not None:
        if before in chain:
            circle = " <- ".join([*chain, before])
            raise UserError(f"{TABLE} goes round in circles: {circle}")
        chain.append(before)
    return chain[::-1]


def note(config_file: str, config: ConfigDict) -> str:
    """What is to be said of a stage that is trained without the one before it, or "".

    Args:
      config_file: FILE or FILE:VARIANT, which gives a config.
      config: of it, with the overrides of the command line.
    """
    path, _, arg = config_file.partition(":")
    module = runpy.run_path(path)
    table, variants = module.get(TABLE), module.get("VARIANTS")
    if config.init_from or not table or not variants:
        return ""
    name = config_lib.variant_name(arg, variants)
    if name not in table:
        return ""
    return (
        f"{config_file} is a stage that starts from {table[name]!r}; without "
        "--config.init_from it starts anew: experiments.chain trains both"
    )


def read(
    config_file: str, overrides: Mapping[str, Any], *, workdir: str
) -> list[Stage]:
    """The stages of the chain of ``FILE:VARIANT``, each with its own folder.

    Args:
      config_file: of the command line; the variant is the last stage.
      overrides: fields that the command line sets, by their names with dots. They hold
        for all stages; ``init_from`` for the first one.
      workdir: of the chain; a stage trains in WORKDIR/VARIANT.

    Raises:
      UserError: the file has no table, the variant no predecessor, or a stage not the
        field that is overridden.
    """
    path, _, arg = config_file.partition(":")
    arguments.run_config_file(config_file)  # says what is wrong with the file
    module = runpy.run_path(path)
    table, variants = module.get(TABLE, {}), module.get("VARIANTS", {})
    if not table:
        raise UserError(
            f"--config {path} has no {TABLE}, which says what its variants start from: "
            "train it by experiments.train"
        )
    for name in (*table, *table.values()):
        if name not in variants:
            raise errors.unknown(f"--config {path}: {TABLE}", name, variants)
    last = config_lib.variant_name(arg, variants)
    if last not in table:
        raise UserError(
            f"--config {config_file}: {last!r} starts from no other variant; chains "
            f"end with {' or '.join(f'{path}:{name}' for name in table)}"
        )
    if "model_name" in overrides:
        raise UserError(
            "--config.model_name: the networks of a chain are those of its config file"
        )
    stages: list[Stage] = []
    chain = names(last, table)
    before = {name: arguments.run_config_file(f"{path}:{name}") for name in chain}
    for name in chain:
        fields = dict(overrides)
        if stages:
            fields["init_from"] = str(files.path(workdir) / stages[-1].name)
        elif not fields.get("init_from"):
            fields.pop("init_from", None)
        config = _override(before[name], fields, stage=name)
        stages.append(Stage(name, f"{path}:{name}", config, fields))
    notes = tuple(_notes(before, overrides))
    return [stages[0]._replace(notes=notes), *stages[1:]]


def _override(
    config: ConfigDict, fields: Mapping[str, Any], *, stage: str
) -> ConfigDict:
    """A config with fields set, in the way of the command line."""
    values = config_lib.flatten(config)
    for key, value in fields.items():
        if key not in values:
            raise UserError(
                f"--config.{key}: the stage {stage!r} of the chain has no such field; "
                "train the stages one by one with experiments.train"
            )
        values[key] = value
    # A number of steps alone takes the place of epochs.
    if "total_steps" in fields and "total_epochs" not in fields:
        values["total_epochs"] = 0.0
    return config_lib.make(**unflatten_dict(values, sep="."))


def _notes(
    configs: Mapping[str, ConfigDict], overrides: Mapping[str, Any]
) -> Iterator[str]:
    """Says which fields are set for all stages that have different values otherwise."""
    flat = {name: config_lib.flatten(config) for name, config in configs.items()}
    for key in overrides:
        if key == "init_from":
            continue
        values = {name: fields[key] for name, fields in flat.items()}
        if len(set(map(repr, values.values()))) > 1:
            found = ", ".join(f"{name} {value!r}" for name, value in values.items())
            yield f"--config.{key} holds for all stages, which have {found}"
