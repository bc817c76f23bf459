"""What the benchmarks of networks and of operators share: timing, and result files."""

import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.shared import provenance
from segjax import errors, files
from segjax.errors import UserError

SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": 10**9}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**62}
SCHEMA = {
    "type": "object",
    "required": ["conditions", "results"],
    "properties": {
        "conditions": {"type": "object"},
        "results": {"type": "object", "additionalProperties": {"type": "object"}},
    },
}


def struct(**properties: Any) -> dict[str, Any]:
    """The JSON schema of an object with exactly these fields."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def compile_timed(function: Callable, *inputs) -> tuple[jax.stages.Compiled, float]:
    """A jitted function compiled for these inputs, and the seconds that it took."""
    began = time.perf_counter()
    return function.lower(*inputs).compile(), time.perf_counter() - began


def rounds(functions: Mapping[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of a call of each function in every round, after one that is not counted.

    They are called in turns: what else the machine does then meets all of them. Fast
    functions are called several times per turn, so that launching overlaps with
    computing as in training.
    """
    calls, seconds = {}, {name: [] for name in functions}
    for name, function in functions.items():
        jax.block_until_ready(function())
        began = time.perf_counter()
        jax.block_until_ready(function())
        calls[name] = math.ceil(0.03 / (time.perf_counter() - began))
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                last = function()
            jax.block_until_ready(last)
            seconds[name].append((time.perf_counter() - began) / calls[name])
    return seconds


def in_turns(functions: Mapping[str, Callable], repeats: int) -> dict[str, float]:
    """The medians of :func:`rounds`."""
    times = rounds(functions, repeats)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def conditions(**options) -> dict[str, Any]:
    """What times depend on: they are compared only where this is the same."""
    versions = provenance.versions()
    return {
        "device": jax.devices()[0].device_kind,
        "host_cores": os.cpu_count(),
        **{key: versions[key] for key in ("python", "jax", "jaxlib")},
        **options,
    }


def load(
    path: Path | None,
    where: Mapping[str, Any],
    *,
    schema: Mapping[str, Any],
    names: Collection[str],
) -> dict[str, dict]:
    """The results in the file of --json; {} if there is none.

    Args:
      path: of the file.
      where: ``conditions`` of this run.
      schema: of one result.
      names: of what may have been measured.

    Raises:
      UserError: the file is damaged, or was measured under other conditions.
    """
    if path is None or not path.is_file():
        return {}
    what = "the results of an earlier run with --json"
    values = files.read_json(path, what, SCHEMA)
    then, results = values["conditions"], values["results"]
    for name, result in results.items():
        if name not in names:
            raise errors.unknown(f"--json {path}", name, names)
        files.check_json(result, path=path, what=f"the times of {name}", schema=schema)
    for key, value in where.items():
        if then.get(key) != value:
            raise UserError(
                f"--json {path}: its {key} is {then.get(key)!r}, of this run {value!r};"
                " give another file"
            )
    return results


def save(path: Path, where: Mapping[str, Any], results: dict) -> None:
    """Writes what :func:`load` reads."""
    files.write_json(path, {"conditions": where, "results": results})


def output_files(
    values: flags.FlagValues, names: Sequence[str] = ("json", "markdown")
) -> dict[str, Path]:
    """The files of --json and --markdown, or of other `names`, as far as given.

    Raises:
      UserError: the folder of one does not exist.
    """
    paths = {}
    for flag in names:
        if values[flag].value:
            paths[flag] = path = Path(values[flag].value).expanduser()
            if not path.absolute().parent.is_dir():
                raise UserError(f"--{flag} {path}: {path.parent} is not a folder")
    return paths
