"""Kills a training run at random moments, again and again, and compares the end.

    python tests/helpers/kill.py --kills 20

The killed run must end with the same bits (parameters, optimizer state, batch
statistics) and the same logged losses as one that was left alone.  It saves after
every second step, so that many kills fall into a save.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import forked
import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[2]

# Everything that could make a difference is on: dropout, batch normalization,
# momentum, elastic deformation, noise, and void pixels.
TINY = {
    "model.widths": "4,8",
    "data.scenes_size": "48,48",
    "data.scenes_train": 10,
    "data.scenes_validation": 4,
    "augment.crop": "32,32",
    "augment.elastic_sigma": 2.0,
    "augment.noise": 4.0,
    "augment.scale": "0.7,1.4",
    "optim.name": "sgd",
    "batch_size": 4,
    "eval_batch_size": 4,
    "log_every": 1,
    "threads": 1,
}


def command(workdir: Path, data_dir: Path, cache="", **overrides) -> list[str]:
    """The training command of a tiny network; ``overrides`` are config fields.

    Without ``cache``, a folder, the compiled functions of all tests are used.
    """
    values = TINY | {"data.data_dir": data_dir} | overrides
    return [
        *(sys.executable, "-m", "experiments.train"),
        *("--config", "configs/quickstart.py", "--workdir", str(workdir)),
        f"--compilation_cache={cache}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def environment(devices: int) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longest
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }


def start(args: list[str], devices: int = 1, **options) -> subprocess.Popen:
    """Starts a program on fake CPU devices."""
    env = environment(devices)
    return subprocess.Popen(
        args, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options
    )


def fork(args: list[str], devices: int = 1) -> forked.Program:
    """Starts a program on fake CPU devices, without the seconds that imports take."""
    assert args[0] == sys.executable
    return forked.Program(args[1:], environment(devices))


def finish(process: subprocess.Popen | forked.Program, code: int = 0) -> str:
    """Waits; the stderr of the process.  Raises if it ended with another code."""
    _, err = process.communicate(timeout=300)
    if process.returncode != code:
        raise RuntimeError(f"exit code {process.returncode}, expected {code}:\n{err}")
    return err


def final_arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, read without our own code."""
    arrays = {}
    for item in ("model", "optimizer"):
        path = workdir / "checkpoints" / str(step) / item
        with ocp.PyTreeCheckpointer() as checkpointer:
            meta = checkpointer.metadata(path).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), meta)
            tree = checkpointer.restore(path, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def losses(workdir: Path) -> dict[int, float]:
    """The logged loss of every step; raises if a step was logged twice."""
    rows = [json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    found = {row["step"]: row["loss"] for row in rows}
    if len(found) != len(rows):
        raise AssertionError("a step was logged twice")
    return found


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """Raises AssertionError unless two runs ended with the same bits."""
    first, second = final_arrays(a, step), final_arrays(b, step)
    assert first.keys() == second.keys() and len(first) > 20
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), f"{name} differs"
    assert losses(a) == losses(b) and sorted(losses(a)) == list(range(1, step + 1))


def kill_test(folder: Path, kills: int, steps: int, seed: int = 0) -> dict[str, int]:
    """Runs both; how often a kill hit which moment.

    Raises:
      AssertionError: the runs differ.
    """
    args = {
        "total_steps": steps,
        "eval_every": 20,
        "eval_images": 0,
        "save_every": 2,
    }
    cache = folder / "compiled"  # a kill may leave half a file there
    finish(fork(command(folder / "whole", folder, cache, **args)))
    rng, moments, done = random.Random(seed), {}, 0
    victim = command(folder / "killed", folder, cache, **args)
    checkpoints = folder / "killed" / "checkpoints"
    metrics = folder / "killed" / "metrics.jsonl"

    def rows() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    while done < kills:
        process = fork(victim)
        if rng.random() < 0.2:  # one kill in five at any moment of the start
            time.sleep(rng.uniform(0, 8))
        else:  # the others some steps later, at any moment of a step or a save
            goal = rows() + rng.randint(1, max(2, steps // kills))
            while process.poll() is None and rows() < goal:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            break  # it came to its end: no kill is left to give
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done += 1
        saving = any("tmp" in path.name for path in checkpoints.glob("*"))
        moment = "during a save" if saving else "in between"
        moments[moment] = moments.get(moment, 0) + 1
        print(f"kill {done}: {moment}, {rows()} rows logged", flush=True)
    finish(fork(victim))
    if done < kills:
        raise AssertionError(f"only {done} kills before the end; use more --steps")
    assert_same_run(folder / "whole", folder / "killed", steps)
    return moments


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = kill_test(Path(name), options.kills, options.steps, options.seed)
    print(f"bit-identical after {options.kills} kills: {result}")
