"""Trains a segmentation network; resumes by itself.

    python -m experiments.train --config configs/quickstart.py --workdir /tmp/run
    python -m experiments.train --config configs/unet_camvid.py --workdir /tmp/run \\
        --config.data.root=/data/CamVid --config.optim.lr=0.02

Every field of the config can be overridden with --config.FIELD=VALUE; segjax/config.py
explains each.  The same command started again continues from the last checkpoint and
ends with the same bits as an uninterrupted run.  On several hosts, start the same
command on each of them.

The workdir holds config.json, dataset.json, splits.json, versions.json, metrics.jsonl,
validation.json (the newest evaluation: confusion matrix, speed, memory), tensorboard/,
pictures/ and checkpoints/ (the latest, and the one of the highest validation mIoU).

Exit codes: 0 finished; 2 bad input; 3 training diverged: the loss became NaN or
infinite, or the weights absurdly large; 75 stopped by SIGTERM or SIGINT after saving,
or because another process of the job has died, and 69 a device, a disk or a connection
was lost: start again to continue.  1 an exception that nobody expected, or the same
internal error of XLA at three starts in a row.
"""

import contextlib
import errno
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from experiments.shared import (
    chains,
    cli,
    evaluation,
    internal_errors,
    run_description,
    run_stats,
    training_run,
)
from experiments.shared.peers import Peers
from experiments.shared.stop_signal import StopSignal
from experiments.shared.training_log import TrainingLog
from segjax import (
    buckets,
    checkpoint,
    checkpoint_scores,
    compilation,
    evaluators,
    files,
    metrics,
    sharding,
)
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.errors import UserError

STOPPED = 75  # EX_TEMPFAIL: schedulers restart on it
DIVERGED = 3

PROFILED_STEPS = 3, 5  # of this start; the first one compiles


class _Stopped(Exception):
    """The stop signal came during an evaluation."""


def train(config: ConfigDict, workdir: Path, profile: bool = False) -> int:
    """Trains ``config`` in ``workdir``, or continues there; returns the exit code.

    Args:
      config: see segjax/config.py.
      workdir: of a new run, or of one with the same config.
      profile: writes a trace of a few early steps to WORKDIR/profile.
    """
    with contextlib.ExitStack() as stack:
        return _train(config, workdir, profile=profile, stack=stack)


def _train(
    config: ConfigDict, workdir: Path, *, profile: bool, stack: contextlib.ExitStack
) -> int:
    main = jax.process_index() == 0

    # Data. Everything is checked before any long work.
    training_run.check(config)
    if not checkpoint_scores.steps(workdir / workdir_lib.CHECKPOINTS):
        config_lib.check_start(config)
    source, info = training_run.load_data(config)
    eval_source, _ = datasets.load(config.data, config.data.eval_split)
    # Resolved here, so that schedules and the saved config have the number of steps.
    config.total_steps = config_lib.count_steps(config, len(source))

    # Model
    mesh = sharding.make_mesh()
    model = training_run.build_model(config, info)
    augment = training_run.augmentation(config, source, model=model, info=info)
    image_shape = (*augment.crop, info.channels)

    # Optimizer, whose state is a part of the training state
    init = training_run.make_init(config, model, image_shape=image_shape, mesh=mesh)
    abstract = training_run.abstract_state(
        config, init, image_shape=image_shape, mesh=mesh
    )

    # Step
    train_step = training_run.make_train_step(
        config, model, params=abstract.params, mesh=mesh
    )
    eval_step = evaluation.make_eval_step(config, model, len(info.classes), mesh)

    # Restore: the newest checkpoint, or the weights of the seed or of another run.
    if main:
        _make_folder(workdir)
        splits = training_run.splits(config, source, eval_source)
        # Before the lock: in a bucket it is taken from a training that runs.
        run_description.check_same_run(config, info, splits, workdir=workdir)
        still_ours = stack.enter_context(workdir_lib.hold(workdir))
        checkpoint.check_space(workdir, abstract, copies=config.keep + 2)
        run_description.write_description(config, info, splits, workdir=workdir)
        checkpoint_scores.tidy(workdir)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir")
    manager = checkpoint.open_folder(workdir / workdir_lib.CHECKPOINTS, config.keep)
    restored = checkpoint.restore_latest(manager, abstract)
    if restored:
        state = restored[0]
        cli.log(f"continuing from step {int(state.step)} of {config.total_steps}")
    else:
        state = init()
        if config.init_from:
            state = training_run.start_from_weights(
                state, config, classes=info.classes, mesh=mesh
            )
    start = int(state.step)
    evaluated = start in checkpoint_scores.scores(manager.directory)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    cli.log(
        f"{config.model_name}: {count:,} parameters; {info.name}: {len(source)} "
        f"train and {len(eval_source)} evaluation images, {len(info.classes)} classes"
    )

    def evaluate(step: int) -> None:
        """Scores the checkpoint of this step; raises _Stopped between two batches."""
        variables = training_run.whole_variables(state, mesh)
        batches = evaluation.eval_batches(config, eval_source, info.channels)
        began = time.perf_counter()
        confusion, examples = evaluators.evaluate(
            eval_step,
            variables,
            batches=_until(stop, batches),
            mesh=mesh,
            pictures=config.eval_images,
        )
        rate = len(eval_source) / (time.perf_counter() - began)
        scores = metrics.scores(confusion)
        if main:
            run_stats.save(workdir, step, confusion=confusion, rate=rate)
        log.evaluation(step, scores, examples=examples, info=info)
        checkpoint.add_score(manager, step, scores["miou"])

    def evaluation_due(step: int) -> bool:
        if step == config.total_steps:
            return True
        return bool(config.eval_every) and step % config.eval_every == 0

    # Loop. Its order makes resuming exact: a checkpoint of step i has consumed exactly
    # i batches, and neither saving nor evaluating changes the state. A checkpoint is
    # saved before it is evaluated, so that nothing is lost if the evaluation is long.
    cli.log("compiling the training step (kept for the next start) ...")
    code, step, stop = 0, start, StopSignal()
    log = TrainingLog(config, workdir, start=start, evaluated=evaluated)
    try:
        if start and evaluation_due(start) and not evaluated:
            evaluate(start)  # an interruption had left it out
        batches = training_run.train_batches(
            config, source, augment=augment, start=start
        )
        stack.callback(batches.close)
        batches = sharding.prefetch(batches, mesh)
        for step in range(start + 1, config.total_steps + 1):
            try:
                with log.waiting():
                    batch, on_device = next(batches)
            except UserError as error:
                # A worker has died or a file has gone bad; the state is whole.
                if jax.process_count() > 1:  # a save needs all of them
                    raise
                good = not log.flush() and not training_run.divergence(state)
                if step - 1 > start and good:
                    checkpoint.save(manager, state)
                checkpoint.finish(manager)
                saved = max(manager.all_steps(), default="none")
                raise UserError(
                    f"{error}; last checkpoint: step {saved}: start again to continue"
                ) from error
            state, values = train_step(state, on_device)
            log.add(step, batch["id"], values)
            if profile:
                _profile(workdir, step - start, values)
            last = step == config.total_steps
            stopping = stop.requested() and not last
            evaluating = evaluation_due(step) and not stopping
            saving = last or stopping or evaluating or step % config.save_every == 0
            if saving or step % config.log_every == 0:
                problem = log.flush(saving)
                if saving and not problem:
                    problem = training_run.divergence(state)
                if problem:
                    log.close()
                    cli.log(f"error: {problem}; {_advice(manager, workdir)}")
                    code = DIVERGED
                    break
            if saving:
                if main:
                    still_ours()
                checkpoint.save(manager, state)
            if evaluating:
                evaluate(step)
            if stopping:
                code = STOPPED
                break
        checkpoint.finish(manager)
    except _Stopped:
        checkpoint.finish(manager)
        code = STOPPED
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise checkpoint.write_failed(manager, error) from error
        raise
    finally:
        stop.restore()
        log.close()
    if code == STOPPED:
        cli.log(f"stopped and saved at step {step}; start again to continue")
    elif code == 0:
        _, best_step, miou = checkpoint_scores.best(workdir)
        cli.log(
            f"done: best validation mIoU {miou:.4f} at step {best_step}; "
            f"{compilation.count()} programs compiled; results in {workdir}"
        )
    return code


def _until(stop: StopSignal, batches: Iterable[dict]) -> Iterator[dict]:
    """The batches; raises _Stopped before the next one when the signal has come."""
    for batch in batches:
        if stop.requested():
            raise _Stopped
        yield batch


def _make_folder(workdir: Path) -> None:
    """Makes the workdir, and makes sure that files can be written there."""
    if buckets.is_bucket(workdir):  # the lock is written first
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / workdir_lib.LOCK).touch()
    except OSError as error:
        raise UserError(
            f"--workdir {workdir}: cannot be written ({error.strerror}): choose "
            "another one"
        ) from error


def _advice(manager: Any, workdir: Path) -> str:
    """What to do after training has diverged."""
    steps = manager.all_steps()
    good = f"{manager.directory}/{max(steps)}" if steps else "none"
    start = f"--config.init_from={workdir} and " if steps else ""
    return (
        f"last good checkpoint: {good}; start again in another --workdir with {start}"
        "a lower --config.optim.lr or a --config.optim.clip_norm such as 1"
    )


def _profile(workdir: Path, step: int, values: dict[str, jax.Array]) -> None:
    """Starts and ends the trace; ``step`` counts from 1 in every start."""
    first, last = PROFILED_STEPS
    if step == first - 1:
        jax.block_until_ready(values)
        jax.profiler.start_trace(workdir / workdir_lib.PROFILE)
    elif step == last:
        jax.block_until_ready(values)
        jax.profiler.stop_trace()
        cli.log(
            f"profile of steps {first} to {last} of this start in "
            f"{workdir / workdir_lib.PROFILE}; open it with TensorBoard or XProf"
        )


def main(argv) -> int:
    del argv
    workdir = files.absolute(_WORKDIR.value)
    if _PROFILE.value and buckets.is_bucket(workdir):
        raise UserError(
            f"--profile with --workdir {_WORKDIR.value}: traces are written to folders "
            "of this machine only; profile a run with such a --workdir"
        )
    cli.start(trains=True)
    if note := chains.note(cli.flag_value("config"), _CONFIG.value):
        cli.log(f"note: {note}")
    with Peers(exit_code=STOPPED), internal_errors.counted(workdir):
        return train(_CONFIG.value, workdir, profile=_PROFILE.value)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "A file in configs/, e.g. configs/quickstart.py."
    )
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Where everything is written; resumes if it exists."
    )
    _PROFILE = flags.DEFINE_bool(
        "profile", False, "Write a trace of a few early steps to WORKDIR/profile."
    )
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
