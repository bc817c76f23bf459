"""What the full-size runs of a claim cost, counted without running them.

``experiments.results --costs`` counts and keeps them in results/costs.json.
"""

import runpy
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.shared import arguments
from experiments.sweeps import rows as sweep_rows
from segjax import files, models
from segjax.analysis import counts, tracing
from segjax.errors import UserError
from segjax.models.network import abstract_variables

SEEDS = 3
"""Runs of each row."""
PEAKS = {"one H100": 989e12, "v5e 2x2": 4 * 197e12}
"""Dense bfloat16 FLOP/s, from the data sheets of NVIDIA's H100 SXM and Google's v5e."""
SHARE = 0.4
"""Of the peak, assumed; docs/plan.md has the TPU compiler's estimates."""

_COST: dict[str, Any] = {
    "type": "object",
    "required": ["networks", "runs", "steps", "images", "flops"],
    "properties": {
        "networks": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "runs": {"type": "integer", "minimum": 1},
        "steps": {"type": "integer", "minimum": 1},
        "images": {"type": "integer", "minimum": 1},
        "flops": {"type": "integer", "minimum": 1},
    },
    "additionalProperties": False,
}
_SCHEMA = {"type": "object", "additionalProperties": _COST}


class Cost(NamedTuple):
    """Of all rows of a sweep, or of one config, with one seed."""

    networks: tuple[str, ...]
    runs: int
    steps: int  # of all runs
    images: int  # that all steps see
    flops: int  # of training: 3 x the forward pass, 2 x MACs of the papers' form


def count(config_file: str) -> Cost:
    """Counts the runs of a config file, FILE or FILE:ARG; computes and reads nothing.

    Raises:
      UserError: there is no such file, or a row is wrong.
    """
    config = arguments.run_config_file(config_file)
    configs = [config]
    if "sweep" in runpy.run_path(config_file.partition(":")[0]):
        configs = [row.config for row in sweep_rows.read(config_file, config)[0]]
    flops = steps = images = 0
    for config in configs:
        if config.total_epochs:
            raise UserError(f"{config_file}: expected total_steps, found total_epochs")
        classes, shape = sweep_rows.example(config)
        model = models.build(config, classes)
        traced = jax.make_jaxpr(tracing.train(tracing.plain_form(model)))(
            abstract_variables(model, shape[-1]),
            tracing.image_struct(shape),
            jax.random.key(0),
        )
        seen = config.total_steps * config.batch_size
        flops += 3 * 2 * counts.macs(traced.jaxpr) * seen
        steps, images = steps + config.total_steps, images + seen
    networks = dict.fromkeys(config.model_name for config in configs)
    return Cost(tuple(networks), len(configs), steps, images, flops)


def hours(cost: Cost, peak: float) -> float:
    """Of training with all seeds at ``SHARE`` of a peak in FLOP/s."""
    return SEEDS * cost.flops / (SHARE * peak) / 3600


def read(path: Path) -> dict[str, Cost]:
    """Counted costs by config file; {} if there are none.

    Raises:
      UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    found = files.read_json(path, "counted costs", _SCHEMA)
    return {
        name: Cost(**values | {"networks": tuple(values["networks"])})
        for name, values in found.items()
    }


def write(path: Path, found: dict[str, Cost]) -> None:
    """Writes what ``read`` reads."""
    files.write_json(path, {name: cost._asdict() for name, cost in found.items()})
