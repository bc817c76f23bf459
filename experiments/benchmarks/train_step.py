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
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.benchmarks import first_step, train_step_text
from experiments.shared import cli, evaluation, provenance
from experiments.shared.training_run import TrainingRun, build_run
from segjax import compilation, files, sharding, training
from segjax import config as config_lib
from segjax.data import datasets, transforms
from segjax.errors import UserError


def benchmark(
    config: ConfigDict, *, steps: int = 20, rounds: int = 3, forward: bool = False
) -> dict:
    """All measurements that need no process of their own, of ``rounds`` x ``steps``."""
    run = build_run(config)
    cli.log("training step ...")
    state, results = measure_training(run, config, steps=steps, rounds=rounds)
    cli.log("input ...")
    results["input"] = measure_input(run, config, steps=steps, rounds=rounds)
    results["input"]["one_core"] = one_core = measure_one_core(run, config, rounds)
    # How many cores must read and augment for this device never to wait.
    needed = results["step"]["synthetic"]["images_per_second"] / jax.process_count()
    one_core["cores_needed"] = needed / one_core["images_per_second"]
    if forward:
        cli.log("prediction ...")
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        results["forward"] = measure_forward(
            run, config, variables=variables, steps=steps, rounds=rounds
        )
        results["compilations"]["after_first_step"] += results["forward"].pop(
            "compilations_after_first_batch"
        )
    return results


def measure_training(
    run: TrainingRun, config: ConfigDict, *, steps: int, rounds: int
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
    state, _ = run_steps(step_fn, state, feed=feeds["synthetic"], steps=1)
    compiled = compilation.count()

    times = {"synthetic": [], "real": []}
    for _ in range(rounds):
        for name, rows in times.items():
            # Not measured: what the pipeline had time to prepare meanwhile, and the
            # first step, which the device did not have waiting.
            many = _settling(config) + steps
            state, row = run_steps(step_fn, state, feed=feeds[name], steps=many)
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
    """Times of consecutive training steps."""

    seconds: np.ndarray  # from the end of the step before to the end of this one
    waits: np.ndarray  # the part of them spent waiting for a batch


def run_steps(
    step_fn: Callable, state: training.TrainState, *, feed: Iterator, steps: int
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
    run: TrainingRun, config: ConfigDict, *, steps: int, rounds: int
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
    *,
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


def _spread(values) -> dict[str, float]:
    return {
        name: float(of(values))
        for name, of in (("median", np.median), ("min", np.min), ("max", np.max))
    }


def main(argv) -> int:
    del argv
    values = flags.FLAGS
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
        first = first_step.measure(config, rounds)
    cli.start()
    results = provenance.versions() | {"steps": steps, "rounds": rounds}
    if first:
        results["first_step"] = first
    results |= benchmark(config, steps=steps, rounds=rounds, forward=values.forward)
    results["config"] = config_lib.json_like(config)
    if jax.process_index() == 0:
        print(train_step_text.header(config, results, steps=steps, rounds=rounds))
        print(train_step_text.table(results))
        if output:
            files.write_json(output, results)
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
    cli.run(main)
