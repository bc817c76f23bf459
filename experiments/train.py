"""Trains a segmentation network; resumes by itself.

    python -m experiments.train --config configs/quickstart.py --workdir /tmp/run
    python -m experiments.train --config configs/unet_camvid.py --workdir /tmp/run \\
        --config.data.root=/data/CamVid --config.optim.lr=0.02

Every field of the config can be overridden with --config.FIELD=VALUE; segjax/config.py
explains each.  The same command started again continues from the last checkpoint and
ends with the same bits as an uninterrupted run.  On several hosts, start the same
command on each of them.

The workdir holds config.json, dataset.json, versions.json, metrics.jsonl,
validation.json (the newest evaluation: confusion matrix, speed, memory), tensorboard/,
pictures/, checkpoints/ (the latest) and best/ (highest validation mIoU).

Exit codes: 0 finished; 2 bad input; 3 the loss became NaN or infinite; 75 stopped by
SIGTERM or SIGINT after saving: start again to continue.
"""

import errno
import signal
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import tqdm
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from experiments.shared import (
    cli,
    evaluation,
    initialization,
    provenance,
    run_stats,
    training_run,
)
from segjax import (
    checkpoint,
    compilation,
    evaluators,
    metrics,
    optim,
    sharding,
    training,
    viz,
)
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.errors import UserError
from segjax.writer import Writer

STOPPED = 75  # EX_TEMPFAIL: schedulers restart on it
NON_FINITE = 3

# Fields that may differ when a run is continued: they do not change what is learned.
FREE_FIELDS = {
    "workers",
    "threads",
    "eval_every",
    "eval_batch_size",
    "eval_images",
    "save_every",
    "log_every",
    "keep",
    "tile",
    "total_steps",
    "total_epochs",
    "data.root",
    "data.data_dir",
    *(f"crf.{field}" for field in config_lib.DEFAULTS["crf"]),
}


def train(config: ConfigDict, workdir: Path) -> int:
    """Trains ``config`` in ``workdir``, or continues there; returns the exit code."""
    # Everything is checked before any long work.
    run = training_run.build_run(config)
    sharding.check_batch_size(config.eval_batch_size, "eval_batch_size")
    eval_source, info = datasets.load(config.data, config.data.eval_split)
    abstract = _abstract_state(run)
    if jax.process_index() == 0:
        _prepare_workdir(config, info, workdir)
        checkpoint.check_space(workdir, abstract, copies=config.keep + 2)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir")

    # The state: from the newest checkpoint, or from the seed.
    latest = checkpoint.open_folder(workdir / "checkpoints", config.keep)
    best = checkpoint.open_folder(workdir / "best", 1)
    restored = checkpoint.restore_latest(latest, abstract)
    if restored:
        state, extra = restored
        cli.log(f"continuing from step {int(state.step)} of {config.total_steps}")
    else:
        state, extra = run.init(), {"best_miou": -1.0}
        if config.init_from:
            state = _initialize(state, config, run, abstract)
    start = int(state.step)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    cli.log(
        f"{config.model_name}: {count:,} parameters; {info.name}: {len(run.source)} "
        f"train and {len(eval_source)} evaluation images, {len(info.classes)} classes"
    )
    step_fn = run.make_train_step(state.params)
    eval_step = evaluation.make_eval_step(
        config, run.model, len(info.classes), run.mesh
    )

    cli.log("compiling the training step (kept for the next start) ...")

    # The loop.  Its order makes resuming exact: a checkpoint of step i has consumed
    # exactly i batches, and neither evaluating nor saving changes the state.
    code, stop, step = 0, _StopSignal(), start
    progress = _Progress(config, workdir, start)
    try:
        feed = sharding.prefetch(run.batches(start), run.mesh)
        for step in range(start + 1, config.total_steps + 1):
            batch, on_device = progress.wait_for(feed)
            state, values = step_fn(state, on_device)
            progress.add(step, batch["id"], values)
            last = step == config.total_steps
            stopping = stop.requested(step) and not last
            evaluating = last or (config.eval_every and step % config.eval_every == 0)
            saving = last or stopping or step % config.save_every == 0
            if (evaluating or saving or step % config.log_every == 0) and (
                bad := progress.flush()
            ):
                progress.close()
                good = max(latest.all_steps(), default=None)
                cli.log(
                    f"error: {bad}; last good checkpoint: "
                    + ("none" if good is None else f"{workdir}/checkpoints/{good}")
                    + "; lower config.optim.lr or set config.optim.clip_norm"
                )
                code = NON_FINITE
                break
            if evaluating and not stopping:
                variables = {"params": state.params, "batch_stats": state.batch_stats}
                began = time.perf_counter()
                h, shown = evaluators.evaluate(
                    eval_step,
                    variables,
                    evaluation.eval_batches(config, eval_source, info.channels),
                    run.mesh,
                    config.eval_images,
                )
                rate = len(eval_source) / (time.perf_counter() - began)
                if jax.process_index() == 0:
                    run_stats.save(workdir, step, h, rate)
                scores = metrics.scores(h)
                progress.evaluation(step, scores, shown, info)
                if scores["miou"] > extra["best_miou"]:
                    extra["best_miou"] = scores["miou"]
                    checkpoint.finish(latest)  # processes agree on one save at a time
                    checkpoint.save(best, state, {"miou": scores["miou"]})
                    checkpoint.finish(best)
            if saving:
                checkpoint.save(latest, state, extra)
            if stopping:
                code = STOPPED
                break
        checkpoint.finish(latest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise checkpoint.write_failed(latest, error) from error
        raise
    finally:
        stop.restore()
        progress.close()
    if code == STOPPED:
        cli.log(f"stopped and saved at step {step}; start again to continue")
    elif code == 0:
        cli.log(
            f"done: best validation mIoU {extra['best_miou']:.4f}; "
            f"{compilation.count()} programs compiled; results in {workdir}"
        )
    return code


class _Progress:
    """Metrics that are still on the device, timing, the bar and the log files."""

    def __init__(self, config: ConfigDict, workdir: Path, start: int):
        self.workdir = workdir
        self.batch_size = config.batch_size
        self.rate = optim.schedule(config.optim, config.total_steps)
        main = jax.process_index() == 0
        self.writer = Writer(workdir, start) if main else None
        self.bar = tqdm.tqdm(
            total=config.total_steps,
            initial=start,
            unit="step",
            disable=not main,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )
        self.pending: list[tuple[int, np.ndarray, dict]] = []
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.began, self.waited = time.perf_counter(), 0.0

    def wait_for(self, feed):
        asked = time.perf_counter()
        item = next(feed)
        self.waited += time.perf_counter() - asked
        return item

    def add(self, step: int, ids: np.ndarray, values: dict) -> None:
        self.pending.append((step, ids, values))

    def flush(self) -> str:
        """Fetches and logs the pending metrics; says which step was not finite."""
        rows = jax.device_get([values for _, _, values in self.pending])
        elapsed = time.perf_counter() - self.began
        bad = training.non_finite(rows)
        if bad is not None:
            step, ids, _ = self.pending[bad]
            return (
                f"loss {rows[bad]['loss']}, gradient norm {rows[bad]['grad_norm']} at "
                f"step {step}, batch of {', '.join(map(str, ids))}"
            )
        step = self.pending[-1][0]
        speed = len(rows) * self.batch_size / elapsed
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        means["lr"] = float(self.rate(step - 1))
        means["images_per_second"] = speed
        means["input_wait"] = self.waited / elapsed
        if self.writer:
            self.writer.scalars(step, means)
        text = f"loss {means['loss']:.3f}, {speed:.1f} img/s"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(step - self.bar.n)
        self.pending.clear()
        self._restart_clock()
        return ""

    def evaluation(self, step: int, scores: dict, shown: list[dict], info) -> None:
        """Logs the scores and the pictures image / truth / prediction."""
        if self.writer:
            names = ("pixel_accuracy", "mean_accuracy", "miou", "fwiou")
            values = {f"val_{name}": scores[name] for name in names}
            self.writer.scalars(step, values)
            line = ", ".join(f"{name} {scores[name]:.4f}" for name in names)
            self.bar.write(f"step {step}: validation {line}", file=sys.stderr)
            folder = self.workdir / "pictures"
            folder.mkdir(exist_ok=True)
            for i, example in enumerate(shown):
                picture = viz.panel(
                    example["image"],
                    example["label"],
                    example["prediction"],
                    info.palette,
                )
                self.writer.picture(step, f"validation/{i}", picture)
                path = folder / f"{step:08d}_{i}.png"
                cv2.imwrite(str(path), picture[..., ::-1])
        self._restart_clock()

    def close(self) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()
            self.writer = None


class _StopSignal:
    """Whether SIGTERM or SIGINT asked for a save; agreed on by all processes."""

    def __init__(self):
        self.received = False
        self.many = jax.process_count() > 1
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.getsignal(number) for number in numbers}
        if self.many:
            # The runtime's own SIGTERM handler tells all processes; Ctrl-C joins it.
            signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
        else:
            signal.signal(signal.SIGTERM, self._receive)
            signal.signal(signal.SIGINT, self._receive)

    def _receive(self, number: int, _) -> None:
        self.received = True
        signal.signal(number, signal.SIG_DFL)  # the second one ends at once

    def restore(self) -> None:
        """Gives the signals back: what follows training is not to be saved."""
        for number, handler in self.before.items():
            if not (self.many and number == signal.SIGTERM):
                signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        if self.many:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.received


def _abstract_state(run: training_run.TrainingRun) -> training.TrainState:
    """The structure of the state; no computation, so that bad fields fail early."""
    try:
        shapes = jax.eval_shape(run.init)
    except UserError:
        raise
    except ValueError as error:
        h, w = run.augment.crop
        raise UserError(f"config on {h}x{w} crops: {error}") from error
    place = sharding.replicated(run.mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )


def _initialize(
    state: training.TrainState,
    config: ConfigDict,
    run: training_run.TrainingRun,
    abstract: training.TrainState,
) -> training.TrainState:
    """Replaces what a run or a file of weights holds, and says what it does not."""
    variables, report = initialization.start(
        config.init_from,
        config,
        classes=run.info.classes,
        variables={
            "params": jax.device_get(state.params),
            "batch_stats": jax.device_get(state.batch_stats),
        },
        mesh=run.mesh,
    )
    for line in report.lines():
        cli.log(line)
    places = {"params": abstract.params, "batch_stats": abstract.batch_stats}
    put = jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), variables, places
    )
    return state.replace(**put)


def _prepare_workdir(config: ConfigDict, info: datasets.Dataset, workdir: Path) -> None:
    """Writes what describes the run; refuses to continue a different one."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: {error.strerror}") from error
    path = workdir / "config.json"
    if path.exists():
        workdir_lib.check_same_classes(workdir_lib.read_dataset(workdir), info)
        old, new = _flat(config_lib.load(path)), _flat(config)
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and key not in FREE_FIELDS:
                raise UserError(
                    f"{workdir} was trained with config.{key}={old.get(key)!r}, this "
                    f"command has {new.get(key)!r}: use another --workdir, or the old "
                    "value to continue"
                )
    workdir_lib.write_dataset(workdir, info)
    workdir_lib.write_versions(workdir, provenance.versions())
    config_lib.save(config, path)


def _flat(values, prefix: str = "") -> dict:
    flat = {}
    for key, value in config_lib.json_like(values).items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def main(argv) -> int:
    del argv
    if "://" in _WORKDIR.value:
        raise UserError(
            f"--workdir {_WORKDIR.value}: expected a folder; mount the bucket, or let "
            "experiments.launch do it (docs/pods.md)"
        )
    cli.start()
    return train(_CONFIG.value, Path(_WORKDIR.value).expanduser().absolute())


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "A file in configs/, e.g. configs/quickstart.py."
    )
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Where everything is written; resumes if it exists."
    )
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
