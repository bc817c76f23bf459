"""What runs one row of a sweep with one seed: the job that submitit starts.

A module of its own, without jax, because submitit imports it in every job.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import submitit

from segjax import buckets, files
from segjax import workdir as workdir_lib

STOPPED = 75  # of experiments.train: it has saved, and wants to be started again

_processes: list[subprocess.Popen] = []  # the training of this job


def work(
    command: Sequence[str], workdir: str, environment: Mapping[str, str | None]
) -> int:
    """Trains; returns the exit code, which it also writes to WORKDIR/exit.json.

    If the same run is still under way, as after a kill of the sweep that had started
    it, this one waits for its end first.

    Args:
      command: of experiments.train.
      workdir: of the run; what the command prints is appended to log.txt there.
      environment: variables to set, or to unset (None).
    """
    folder = files.path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    env = {key: x for key, x in (os.environ | environment).items() if x is not None}
    if buckets.is_bucket(folder):
        return _work_in_bucket(command, folder, env)
    # In a job of several tasks, the first one speaks for all.
    first = int(env.get("SLURM_PROCID", 0)) == 0
    with workdir_lib.lock(folder) if first else contextlib.nullcontext() as held:
        if first:
            env[workdir_lib.LOCK_VARIABLE] = str(held.fileno())
            (folder / workdir_lib.EXIT).unlink(missing_ok=True)
        # SLURM signals every process of a job before its time is up.  Only this one
        # knows what to do then: training inherits that it is ignored.
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        with (folder / workdir_lib.LOG).open("a") as log:
            process = subprocess.Popen(
                command,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[held.fileno()] if first else [],
            )
        _processes.append(process)
        signal.signal(signal.SIGUSR2, handler)
        code = process.wait()
        _processes.clear()
        if first:
            workdir_lib.write_exit(folder, code)
    if first and code == STOPPED and "SLURM_JOB_ID" in env:
        # Preempted: training has saved by itself when it was asked to stop.
        job = submitit.JobEnvironment().job_id
        subprocess.run(["scontrol", "requeue", job], check=False)
    return code


def _work_in_bucket(
    command: Sequence[str], folder: Path, env: Mapping[str, str]
) -> int:
    """As ``work``: without a lock to pass on, and the log is there at the end only."""
    (folder / workdir_lib.EXIT).unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile() as log:
        if (folder / workdir_lib.LOG).exists():
            log.write(buckets.read_bytes(folder / workdir_lib.LOG))
            log.flush()
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT
        )
        code = process.wait()
        buckets.upload(Path(log.name), folder / workdir_lib.LOG)
    workdir_lib.write_exit(folder, code)
    return code


def _save_and_submit_again(*arguments) -> submitit.helpers.DelayedSubmission:
    """Called by submitit shortly before the time of a job is up."""
    for process in _processes:
        process.send_signal(signal.SIGTERM)
        # Not process.wait: this interrupts one, which holds a lock.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return submitit.helpers.DelayedSubmission(work, *arguments)


work.checkpoint = _save_and_submit_again
