"""Times a run from the start of its process to the end of its first step.

Each measurement is a process of its own, which runs this module.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import absl.logging
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.shared import cli
from experiments.shared.training_run import build_run
from segjax import config as config_lib
from segjax import sharding
from segjax.data import datasets
from segjax.errors import UserError


def measure(config: ConfigDict, rounds: int) -> dict:
    """Fresh processes up to the end of their first step, in turns.

    Call it before this process uses a device: some devices serve one process only.

    Returns:
      ``cold`` (the folder of compiled programs is empty) and ``cached`` (the process
      before filled it): medians of ``seconds`` and of its ``parts``.

    Raises:
      UserError: such a process failed.
    """
    # Preparing data happens once per machine, not at every start.
    absl.logging.set_verbosity("fatal")  # as cli.start, which comes later
    datasets.load(config.data, config.data.train_split)
    runs = {"cold": [], "cached": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            config_lib.save(config, path)
            for name in runs:
                runs[name].append(_first_step_of_process(path, Path(folder) / "cache"))
    return {
        name: {
            "seconds": statistics.median(sum(run.values()) for run in rows),
            "parts": {
                part: statistics.median(run[part] for run in rows) for part in rows[0]
            },
        }
        for name, rows in runs.items()
    }


def _first_step_of_process(path: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.benchmarks.first_step", str(path)]
    command += [f"--compilation_cache={cache}", "--distributed=off"]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    launched = time.time()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        message = lines[-1].removeprefix("error: ")
        if done.returncode != 2:  # not bad input
            message = f"the process that times the first step failed: {message}"
        raise UserError(message)
    result = json.loads(done.stdout.splitlines()[-1])
    return {"start": result["began"] - launched, **result["parts"]}


def first_step(config: ConfigDict) -> dict[str, float]:
    """Seconds of the parts of a run up to the end of its first step."""
    times = [time.perf_counter()]

    def lap(value):
        jax.block_until_ready(value)
        times.append(time.perf_counter())
        return value

    run = build_run(config)
    _, batch = lap(next(sharding.prefetch(run.batches(0), run.mesh)))
    state = lap(run.init())
    lap(run.make_train_step(state.params)(state, batch))
    return dict(zip(("input", "state", "step"), np.diff(times).tolist()))


def main(argv) -> int:
    if len(argv) != 2:
        raise UserError("give the config.json of a training run")
    config = config_lib.load(Path(argv[1]))
    cli.start()
    began = time.time()
    print(json.dumps({"began": began, "parts": first_step(config)}))
    return 0


if __name__ == "__main__":
    cli.run(main, positional=True)
