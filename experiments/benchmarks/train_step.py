"""Measures the training step of a config, its input, its compilation; nothing is saved.

    python -m experiments.benchmarks.train_step --config configs/quickstart.py
    python -m experiments.benchmarks.train_step --config configs/unet_camvid.py \\
        --steps 50 --forward --output /tmp/benchmark.json \\
        --config.data.root=/data/CamVid
    python -m experiments.benchmarks.train_step --config configs/quickstart.py \\
        --nofirst_step --config.threads=8

The model, step, pipeline and transfers are those of experiments.train.  Measured are:

    first step   from the start of the program to the first finished step, with an empty
                 and with a filled compilation cache; each in a process of its own
    step         time and images/s with one batch that stays on the device (synthetic)
                 and with the pipeline (real), in turns; what the device waits for input
    input        the pipeline alone, and reading and augmenting on one core
    transfer     bytes and types that reach the device
    compilation  programs compiled after the first step: there must be none
    forward      with --forward: prediction of evaluation batches

Prints a table, and writes the same as JSON to --output.  docs/benchmark.md explains
each number.  Compare numbers of one run, or of runs on the same idle machine.

Exit codes: 0 measured; 1 something was compiled after the first step; 2 bad input.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import absl.logging
import cv2
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import cli, evaluation, provenance
from experiments.shared.training_run import TrainingRun, build_run
from segjax import compilation, sharding, training
from segjax import config as config_lib
from segjax.data import datasets, transforms
from segjax.errors import UserError


def benchmark(
    config: ConfigDict, steps: int = 20, rounds: int = 3, forward: bool = False
) -> dict:
    """All measurements that need no process of their own, of ``rounds`` x ``steps``."""
    run = build_run(config)
    cli.log("training step ...")
    state, results = measure_training(run, config, steps, rounds)
    cli.log("input ...")
    results["input"] = measure_input(run, config, steps, rounds)
    results["input"]["one_core"] = one_core = measure_one_core(run, config, rounds)
    # How many cores must read and augment for this device never to wait.
    needed = results["step"]["synthetic"]["images_per_second"] / jax.process_count()
    one_core["cores_needed"] = needed / one_core["images_per_second"]
    if forward:
        cli.log("prediction ...")
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        results["forward"] = measure_forward(run, config, variables, steps, rounds)
        results["compilations"]["after_first_step"] += results["forward"].pop(
            "compilations_after_first_batch"
        )
    return results


def measure_training(
    run: TrainingRun, config: ConfigDict, steps: int, rounds: int
) -> tuple[training.TrainState, dict]:
    """Trains on one batch and on the pipeline in turns.

    Everything from the second step on must run without compiling anything: the state
    that a step returns, and the batches, look to the compiler like the first ones.

    Returns:
      The last state, and ``step``, ``transfer`` and ``compilations`` of the results.
    """
    state = run.init()
    step_fn = run.make_train_step(state.params)
    feeds = {"real": sharding.prefetch(run.batches(0), run.mesh)}
    host, on_device = next(feeds["real"])
    feeds["synthetic"] = itertools.repeat((host, on_device))
    state, _ = run_steps(step_fn, state, feeds["synthetic"], 1)
    compiled = compilation.count()

    times = {"synthetic": [], "real": []}
    for _ in range(rounds):
        for name, rows in times.items():
            # Not measured: what the pipeline had time to prepare meanwhile, and the
            # first step, which the device did not have waiting.
            many = _settling(config) + steps
            state, row = run_steps(step_fn, state, feeds[name], many)
            rows.append(StepTimes(row.seconds[-steps:], row.waits[-steps:]))
    after = compilation.count() - compiled

    results = {
        name: {
            "step_seconds": _spread(np.concatenate([row.seconds for row in rows])),
            "images_per_second": statistics.median(
                config.batch_size * steps / sum(row.seconds) for row in rows
            ),
        }
        for name, rows in times.items()
    }
    results["real_over_synthetic"] = statistics.median(
        sum(synthetic.seconds) / sum(real.seconds)
        for synthetic, real in zip(times["synthetic"], times["real"])
    )
    waited = sum(sum(row.waits) for row in times["real"])
    results["input_wait"] = waited / sum(sum(row.seconds) for row in times["real"])
    return state, {
        "step": results,
        "transfer": transferred(on_device, len(host["image"])),
        "compilations": {"first_step": compiled, "after_first_step": after},
    }


class StepTimes(NamedTuple):
    """Of some steps in a row."""

    seconds: np.ndarray  # from the end of the step before to the end of this one
    waits: np.ndarray  # of these, until there was a batch to work on


def run_steps(
    step_fn: Callable, state: training.TrainState, feed: Iterator, steps: int
) -> tuple[training.TrainState, StepTimes]:
    """Trains without ever stopping the device, as a run does, but watches it.

    Blocking after each step would add the time to fetch and launch the next one, which
    otherwise happens while the device works.  A second thread blocks instead, and notes
    when each step has ended.

    Args:
      step_fn: ``(state, batch) -> (state, metrics)``.
      state: donated.
      feed: of (host batch, device batch).
      steps: how many.
    """
    jax.block_until_ready(state)
    fetched, ended, began = [], [], time.perf_counter()
    with ThreadPoolExecutor(1) as watcher:
        for _ in range(steps):
            _, batch = next(feed)
            fetched.append(time.perf_counter())
            state, values = step_fn(state, batch)
            ended.append(watcher.submit(_end_of, values))
        ends = np.array([began, *(end.result() for end in ended)])
    jax.block_until_ready(state)
    return state, StepTimes(np.diff(ends), np.maximum(fetched - ends[:-1], 0))


def _end_of(values) -> float:
    jax.block_until_ready(values)
    return time.perf_counter()


def _settling(config: ConfigDict) -> int:
    """More batches than the pipeline and the transfers hold ready."""
    return 8 * max(config.workers, 1)


def transferred(on_device: dict[str, jax.Array], rows: int) -> dict:
    """Type and bytes per image of a batch on the devices, counting every copy.

    Args:
      on_device: the arrays of a batch.
      rows: images of the batch that come from this process.
    """
    return {
        name: {
            "dtype": str(x.dtype),
            "shape": list(x.shape[1:]),
            "bytes_per_image": sum(s.data.nbytes for s in x.addressable_shards) / rows,
        }
        for name, x in on_device.items()
    }


def measure_input(
    run: TrainingRun, config: ConfigDict, steps: int, rounds: int
) -> dict:
    """The pipeline of this process without a step that would use its batches."""
    batches, seconds = run.batches(0), []
    for _ in range(_settling(config)):
        batch = next(batches)
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(steps):
            batch = next(batches)
        seconds.append((time.perf_counter() - began) / steps)
    seconds = statistics.median(seconds)
    return {
        "threads": config.threads,
        "workers": config.workers,
        "batches_per_second": 1 / seconds,
        "images_per_second": len(batch["image"]) / seconds,
    }


def measure_one_core(run: TrainingRun, config: ConfigDict, rounds: int) -> dict:
    """Reading and augmenting one after the other, in one thread; means per image."""
    rng = np.random.default_rng(config.seed)
    order = np.resize(rng.permutation(len(run.source)), 4 * config.batch_size)
    reads, augments = [], []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for _ in range(rounds):
            read = augment = 0.0
            for index in order.tolist():
                began = time.perf_counter()
                example = run.source[index]
                middle = time.perf_counter()
                transforms.augment(example, rng, run.augment)
                read += middle - began
                augment += time.perf_counter() - middle
            reads.append(read / len(order))
            augments.append(augment / len(order))
    finally:
        cv2.setNumThreads(threads)
    read, augment = statistics.median(reads), statistics.median(augments)
    return {
        "read_seconds": read,
        "augment_seconds": augment,
        "images_per_second": 1 / (read + augment),
        "augmented_images_per_second": 1 / augment,
    }


def measure_forward(
    run: TrainingRun,
    config: ConfigDict,
    variables: dict,
    steps: int,
    rounds: int,
) -> dict:
    """Probabilities and scores of the first evaluation batch, as evaluation runs it."""
    sharding.check_batch_size(config.eval_batch_size, "eval_batch_size")
    source, info = datasets.load(config.data, config.data.eval_split)
    host = next(evaluation.eval_batches(config, source, info.channels))
    batch = sharding.put(host, run.mesh)
    eval_step = evaluation.make_eval_step(
        config, run.model, len(run.info.classes), run.mesh
    )
    jax.block_until_ready(eval_step(variables, batch))
    compiled, seconds = compilation.count(), []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(steps):
            predictions = eval_step(variables, batch)
        jax.block_until_ready(predictions)
        seconds.append((time.perf_counter() - began) / steps)
    return {
        "image": list(host["image"].shape[1:]),
        "tile": config.tile,
        "batch_seconds": _spread(seconds),
        "images_per_second": config.eval_batch_size / statistics.median(seconds),
        "compilations_after_first_batch": compilation.count() - compiled,
    }


def measure_first_step(config: ConfigDict, rounds: int) -> dict:
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
    program = "experiments.benchmarks.train_step"
    command = [sys.executable, "-m", program, f"--first_step_of={path}"]
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


def _spread(values) -> dict[str, float]:
    return {
        name: float(of(values))
        for name, of in (("median", np.median), ("min", np.min), ("max", np.max))
    }


def table(results: dict) -> str:
    """The results as aligned text."""
    step, transfer = results["step"], results["transfer"]
    rows = []
    if "first_step" in results:
        for name, run in results["first_step"].items():
            parts = ", ".join(f"{key} {s:.1f}" for key, s in run["parts"].items())
            rows.append((f"first step, {name}", f"{run['seconds']:.1f} s", parts))
    for name in ("synthetic", "real"):
        spread = step[name]["step_seconds"]
        rows += [
            (
                f"step, {name} input",
                _ms(spread["median"]),
                f"{_ms(spread['min'])} to {_ms(spread['max'])}",
            ),
            (
                f"training, {name} input",
                _rate(step[name]["images_per_second"]),
                f"{step['real_over_synthetic']:.3f} of synthetic"
                if name == "real"
                else "",
            ),
        ]
    feed, core = results["input"], results["input"]["one_core"]
    rows += [
        ("device waits for input", f"{step['input_wait']:.1%}", "of the real step"),
        (
            "pipeline alone",
            _rate(feed["images_per_second"]),
            f"{feed['batches_per_second']:.1f} batches/s, {feed['threads']} threads, "
            f"{feed['workers']} workers",
        ),
        (
            "pipeline on one core",
            _rate(core["images_per_second"]),
            f"{core['cores_needed']:.2f} cores would feed the step",
        ),
        ("  read and decode", _ms(core["read_seconds"]), "per image"),
        (
            "  augment",
            _ms(core["augment_seconds"]),
            f"per image, {_rate(core['augmented_images_per_second'])}",
        ),
    ]
    for name, row in transfer.items():
        shape = "x".join(map(str, row["shape"]))
        value = f"{row['bytes_per_image']:,.0f} bytes"
        rows.append((f"to the device, {name}", value, f"{row['dtype']} {shape}"))
    if forward := results.get("forward"):
        size = "x".join(map(str, forward["image"]))
        how = f"in tiles of {forward['tile']}" if forward["tile"] else "whole"
        value = _rate(forward["images_per_second"])
        rows.append(("forward", value, f"{size} images, {how}"))
    count = results["compilations"]
    rows += [
        ("compiled up to the first step", str(count["first_step"]), "programs"),
        ("compiled after it", str(count["after_first_step"]), "programs"),
    ]
    left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(
        f"{name:{left}}  {value:>{middle}}  {note}".rstrip()
        for name, value, note in rows
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds > 0.01 else 3}f} ms"


def _rate(images: float) -> str:
    return f"{images:,.1f} images/s"


def header(config: ConfigDict, where: dict, steps: int, rounds: int) -> str:
    """What was measured on what, in two lines."""
    versions = ", ".join(f"{key} {where[key]}" for key in ("python", "jax", "jaxlib"))
    return (
        f"{config.model_name} on {config.data.name}, batch {config.batch_size}, "
        f"{rounds} rounds of {steps} steps; {where['devices']}, {where['processes']} "
        f"processes, {where['host_cores']} host cores\n{versions}\n"
    )


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    if values.first_step_of:
        cli.start()
        began = time.time()
        parts = first_step(config_lib.load(Path(values.first_step_of)))
        print(json.dumps({"began": began, "parts": parts}))
        return 0
    config, steps, rounds = values.config, values.steps, values.rounds
    if config is None:
        raise UserError("--config must be given, such as configs/quickstart.py")
    output = Path(values.output).expanduser() if values.output else None
    if output and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: {output.parent} is not a folder")
    config_lib.check(config)
    first = None
    if values.first_step:
        # Not cli.log, which would ask this process's devices for its index.
        print("first step, in processes of its own ...", file=sys.stderr, flush=True)
        first = measure_first_step(config, rounds)
    cli.start()
    results = provenance.versions() | {"steps": steps, "rounds": rounds}
    if first:
        results["first_step"] = first
    results |= benchmark(config, steps, rounds, values.forward)
    results["config"] = config_lib.json_like(config)
    if jax.process_index() == 0:
        print(header(config, results, steps, rounds))
        print(table(results))
        if output:
            output.write_text(json.dumps(results, indent=1) + "\n")
            print(f"written to {output}")
    if count := results["compilations"]["after_first_step"]:
        cli.log(f"error: {count} programs were compiled after the first step")
        return 1
    return 0


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "A file in configs/, e.g. configs/quickstart.py."
    )
    flags.DEFINE_integer("steps", 20, "Steps of one repetition.", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "Repetitions of everything.", lower_bound=1)
    flags.DEFINE_bool("forward", False, "Also measure prediction.")
    flags.DEFINE_bool(
        "first_step",
        True,
        "Measure the first step in processes of their own; each works alone, so "
        "switch it off where devices serve only a job of several hosts.",
    )
    flags.DEFINE_string("output", "", "JSON file for the results.")
    flags.DEFINE_string(
        "first_step_of", "", "Internal: a config.json whose first step to time."
    )
    cli.run(main)
