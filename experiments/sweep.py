"""Trains every row of a config's sweep() with several seeds.

    python -m experiments.sweep --config configs/sweeps/pyramid_bins.py:quick \\
        --workdir runs/bins --seeds 3
    python -m experiments.report runs/bins

A config file may define sweep(), or sweep(arg) for FILE:ARG, which yields the rows:
dicts of fields that differ from get_config(), such as {"model.rates": (6, 12)}.  A row
may be another network, {"model_name": "fcn", "model.skips": 8}: fields of the model
that it does not name have their defaults.  It may be another config file,
{"config": "configs/fcn_camvid.py:fcn8s"}, and differ from that.  experiments.compare
shows networks side by side.
--config.FIELD=VALUE changes a field of all rows.

Before anything runs, every row is resolved, checked and its training step traced.  A
row is named by what differs and a hash of its config; seed 1 of it trains in
WORKDIR/ROW/seed1, by one and the same command everywhere:

    python -m experiments.train --config FILE --workdir WORKDIR/ROW/seed1 --config. ...

Engines: "local" starts processes here, --jobs at a time, and waits for them; "slurm"
submits jobs, which are queued again when they are preempted or their time is up, both
through submitit; "print" prints the commands, one per line.

The same command started again skips the finished runs, continues the interrupted ones
from their last checkpoint, and tries the failed ones again.  A run that fails does not
stop the others.  Runs that outlive a killed sweep are waited for.

Exit codes: 0 all runs finished, or were submitted or printed; 1 some failed; 2 bad
input.
"""

import collections
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import absl.logging
import jax
import tqdm
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import arguments, chains, cli
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from experiments.sweeps import worker as sweep_worker
from experiments.sweeps.runs import Sweep
from segjax import buckets, files
from segjax import workdir as workdir_lib
from segjax.errors import UserError

_FOREVER = 60 * 24 * 365  # minutes


class Job(NamedTuple):
    """What trains one row with one seed."""

    command: list[str]
    steps: int


def sweep(
    config_file: str,
    config: ConfigDict,
    *,
    workdir: Path,
    engine: str,
    seeds: int,
    jobs: int,
    slurm: dict,
    options: list[str],
    given: Iterable[str] = (),
) -> int:
    """Runs the sweep of a config file; returns the exit code.

    Args:
      config_file: FILE or FILE:ARG.
      config: of that file, with overrides for all rows.
      workdir: of the sweep.
      engine: "local", "slurm" or "print".
      seeds: how many, from config.seed on.
      jobs: runs at the same time; 0: 1 of "local", and all of "slurm".
      slurm: parameters of submitit's SlurmExecutor.
      options: flags that experiments.train gets besides the config's.
      given: see ``rows.read``.
    """
    rows, overrides = sweep_rows.read(config_file, config, given)
    rows = [
        sweep_rows.check_row(row, data=engine != "print")
        for row in tqdm.tqdm(rows, "checking", unit="row", disable=len(rows) < 2)
    ]

    for row in rows:
        file = row.overrides.get("config", config_file)
        if note := chains.note(file, row.config):
            cli.log(f"note: row {row.name}: {note}")
    description = Sweep(config_file, rows, overrides, options, seeds)
    python = "python" if engine == "print" else sys.executable
    runs = {
        run.folder: Job(
            sweep_runs.command(description, run, python), run.row.config.total_steps
        )
        for run in sweep_runs.runs_of(description, workdir)
    }
    if engine == "print":
        for run in runs.values():
            print(sweep_runs.shell(run.command))
        return 0
    _describe(workdir, description)
    if engine == "slurm":
        return _submit(workdir, runs, jobs=jobs, parameters=slurm)
    return _run_here(workdir, runs, jobs or 1)


def _describe(workdir: Path, sweep: Sweep) -> None:
    """Writes sweep.json; refuses to mix two sweeps."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: {error.strerror}") from error
    if (workdir / sweep_runs.DESCRIPTION).exists():
        before = sweep_runs.load(workdir).config_file
        if before != sweep.config_file:
            raise UserError(
                f"--workdir {workdir} holds the sweep of {before}, this command has "
                f"{sweep.config_file}: use another --workdir"
            )
    sweep_runs.save(workdir, sweep)


def _run_here(workdir: Path, runs: dict[Path, Job], jobs: int) -> int:
    """Keeps ``jobs`` of the runs going until all have ended; returns the exit code.

    submitit's local executor starts whatever it is given at once, so that the number of
    processes is kept here.  Its jobs do not die with this process: the lock of a run
    (workdir.lock) keeps two of them from training in the same folder.
    """
    executor = _executor(workdir, "local", timeout_min=_FOREVER, stderr_to_stdout=True)
    at = {folder: sweep_runs.state(folder, run.steps) for folder, run in runs.items()}
    waiting = collections.deque(x for x in runs if at[x].kind != "finished")
    skipped = len(runs) - len(waiting)
    cli.log(f"{len(runs)} runs, {skipped} of them finished before", everywhere=True)
    free, running, failed = collections.deque(range(jobs)), {}, []
    bar = tqdm.tqdm(
        total=sum(run.steps for run in runs.values()),
        initial=sum(state.step for state in at.values()),
        unit="step",
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    while waiting or running:
        while waiting and free:
            folder, slot = waiting.popleft(), free.popleft()
            variables = _devices(slot, jobs)
            command = runs[folder].command
            job = executor.submit(sweep_worker.work, command, str(folder), variables)
            running[folder] = job, slot
        time.sleep(1)
        for folder, (job, slot) in list(running.items()):
            ended = job.done()
            at[folder] = sweep_runs.state(folder, runs[folder].steps)
            if not ended:
                continue
            del running[folder]
            free.append(slot)
            if at[folder].kind != "finished":
                failed.append(folder)
                bar.write(_failure(folder, at[folder]), file=sys.stderr)
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in running)
        ended = len(runs) - len(waiting) - len(running)
        bar.set_postfix_str(
            f"{ended}/{len(runs)} runs, {len(failed)} failed; {names}", refresh=False
        )
        bar.update(sum(state.step for state in at.values()) - bar.n)
    bar.close()
    finished = len(runs) - len(failed)
    print(
        f"{finished} of {len(runs)} runs finished; python -m experiments.report "
        f"{workdir} makes the table"
    )
    for folder in failed:
        print(f"failed: {folder}", file=sys.stderr)
    return 1 if failed else 0


def _failure(folder: Path, state: sweep_runs.State) -> str:
    """Why a run ended, in a few lines."""
    tail = workdir_lib.log_tail(folder) or ["it has no log; jobs/ has submitit's"]
    return "\n    ".join([f"{folder} {sweep_runs.state_text(state)}:", *tail])


def _devices(slot: int, jobs: int) -> dict[str, str | None]:
    """Undoes that submitit hides all GPUs, and divides them among the jobs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or jobs == 1:
        return {"CUDA_VISIBLE_DEVICES": visible}
    devices = [name for name in visible.split(",") if name]
    share = len(devices) // jobs
    if devices and not share:
        raise UserError(
            f"--jobs={jobs}, but CUDA_VISIBLE_DEVICES={visible} has {len(devices)}"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * share :][:share])}


def _submit(
    workdir: Path, runs: dict[Path, Job], *, jobs: int, parameters: dict
) -> int:
    """Submits one job array to SLURM; does not wait for it."""
    kinds = {
        folder: sweep_runs.state(folder, run.steps) for folder, run in runs.items()
    }
    left = [x for x in runs if kinds[x].kind not in ("finished", "running")]
    if not left:
        print(f"nothing to do: all {len(runs)} runs are finished or running")
        return 0
    executor = _executor(
        workdir,
        "slurm",
        **{
            "job_name": workdir.name,
            "array_parallelism": jobs or len(left),
            "stderr_to_stdout": True,
            "time": 24 * 60,  # minutes
            "signal_delay_s": 120,  # to save in, before the time is up
            **parameters,
        },
    )
    submitted = executor.map_array(
        sweep_worker.work,
        [runs[folder].command for folder in left],
        [str(folder) for folder in left],
        [{}] * len(left),
    )
    for folder, job in zip(left, submitted, strict=True):
        print(f"{job.job_id}  {folder}")
    print(f"submitted; python -m experiments.report {workdir} tells how far they are")
    return 0


def _executor(workdir: Path, engine: str, **parameters):
    import submitit

    folder = workdir / "jobs"  # submitit's own files; logs are with the runs
    if buckets.is_bucket(workdir):
        folder = Path(tempfile.mkdtemp())
    try:
        if engine == "local":
            executor = submitit.LocalExecutor(folder)
        else:
            # A run may be queued again any number of times.
            executor = submitit.SlurmExecutor(folder, max_num_timeout=10_000)
        executor.update_parameters(**parameters)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"--engine={engine}: {error}") from error
    return executor


def _slurm_parameters(pairs: list[str]) -> dict:
    """["partition=gpu", "time=600"] -> {"partition": "gpu", "time": 600}."""
    parameters = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"--slurm={pair}: expected NAME=VALUE, such as time=600")
        parameters[key] = int(value) if value.isdecimal() else value
    return parameters


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    workdir = files.absolute(values.workdir)
    if buckets.is_bucket(workdir) and values.engine == "slurm":
        raise UserError(
            f"--workdir {workdir}: --engine=slurm expects a folder that all machines "
            "see; or use --engine=print (docs/pods.md)"
        )
    cache = values["compilation_cache"]
    absl.logging.set_verbosity("fatal")
    # The devices belong to the runs; this process only looks at shapes.
    jax.config.update("jax_platforms", "cpu")
    return sweep(
        cli.flag_value("config"),
        values.config,
        workdir=workdir,
        engine=values.engine,
        seeds=values.seeds,
        jobs=values.jobs,
        slurm=_slurm_parameters(values.slurm),
        options=[f"--compilation_cache={cache.value}"] if cache.present else [],
        given=arguments.given_fields(),
    )


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "A file with a sweep(), e.g. configs/sweeps/rates.py:quick."
    )
    flags.DEFINE_string("workdir", None, "Of the sweep; continues if it exists.")
    flags.DEFINE_enum(
        "engine", "local", ["local", "slurm", "print"], "Where the runs take place."
    )
    flags.DEFINE_integer("seeds", 3, "Runs of each row.", lower_bound=1)
    flags.DEFINE_integer(
        "jobs",
        0,
        "Runs at the same time; 0: one of 'local', all of 'slurm'. With several on "
        "GPUs, set CUDA_VISIBLE_DEVICES: they are divided among the runs.",
        lower_bound=0,
    )
    flags.DEFINE_list(
        "slurm",
        [],
        "Parameters of the jobs, as submitit's SlurmExecutor has them: "
        "time=600,partition=gpu,gpus_per_node=8,mem=64GB (time in minutes; a day if "
        "not given).",
    )
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
