"""Counts what small networks cost: operations, bytes and compiled programs.

    python -m experiments.benchmarks.counts
    python -m experiments.benchmarks.counts --json=experiments/benchmarks/counts.json

Counts do not depend on what else the machine does, so that a regression shows where
times cannot be trusted. A test of `make test-all` counts again and compares with the
file in this folder, which the second command renews; renew it when a change is meant.

Small networks of configs/sweeps/networks.py, batch 2 of 64x64, on the first device, for
the prediction of labels and for a training step: floating-point operations of the
program as it is traced, bytes that the compiled one reads and writes, and bytes of its
temporary arrays. And the programs that three steps compile beside that of the step.

Exit codes: 0; 2 bad input.
"""

from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from configs.sweeps.networks import NETWORKS as FIELDS
from experiments.benchmarks import measuring, networks
from experiments.shared import cli
from segjax import compilation, models, tables, training
from segjax import config as config_lib
from segjax.inference import predictors

NETWORKS = ("fcn", "deeplab", "pspnet", "unet", "frrn")
CLASSES, BATCH, SIDE = 40, 2, 64


_PROGRAM = measuring.struct(
    flops=measuring.COUNT, bytes=measuring.COUNT, temporary_bytes=measuring.COUNT
)
SCHEMA = measuring.struct(
    predict=_PROGRAM, step=_PROGRAM, further_programs=measuring.COUNT
)


def count(name: str) -> dict[str, Any]:
    """The counts of one of `NETWORKS`, as in `SCHEMA`."""
    config = ConfigDict({"model_name": name, "model": dict(FIELDS[name])})
    model = models.build(config, CLASSES)
    state = networks.random_state(model)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, (BATCH, SIDE, SIDE), np.uint8),
    }
    options = config_lib.make().loss
    step = jax.jit(training.make_step(model, optax.sgd(1e-9), options=options, seed=0))
    predict = jax.jit(predictors.predict_labels(predictors.whole(model)))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    found = {
        "predict": _costs(predict, variables, batch["image"]),
        "step": _costs(step, state, batch),
    }
    before = compilation.count()
    for _ in range(3):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return found | {"further_programs": compilation.count() - before}


def _costs(function: Any, *arguments: Any) -> dict[str, int]:
    lowered = function.lower(*arguments)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return {
        "flops": round(lowered.cost_analysis()["flops"]),
        "bytes": round(compiled.cost_analysis()["bytes accessed"]),
        "temporary_bytes": memory.temp_size_in_bytes if memory else 0,
    }


def conditions() -> dict[str, Any]:
    """What the counts of compiled programs depend on."""
    where = measuring.conditions(classes=CLASSES, batch=BATCH, side=SIDE)
    return {key: where[key] for key in where if key not in ("host_cores", "python")}


def rows(results: dict[str, dict]) -> tables.Rows:
    """One row per network and program."""
    titles = "network, program, MFLOPs, MB read and written, MB of temporaries"
    lines = [tuple(titles.split(", "))]
    for name, result in results.items():
        for program in ("predict", "step"):
            values = [f"{x / 1e6:,.2f}" for x in result[program].values()]
            lines.append((name, program, *values))
    return lines


def main(argv) -> int:
    del argv
    path = measuring.output_files(flags.FLAGS, ("json",)).get("json")
    cli.start()
    jax.config.update("jax_enable_compilation_cache", False)
    results = {}
    for name in NETWORKS:
        cli.log(name)
        results[name] = count(name)
    print(tables.text_table(rows(results)))
    if path:
        measuring.save(path, conditions(), results)
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("json", "", "File for the counts.")
    cli.run(main)
