"""SLURM through submitit: one task per GPU, requeued when preempted or out of time."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.launch.job import GRACE_SECONDS, ROOT, Job
from segjax.errors import UserError


def parameters(
    job: Job, nodes: int, *, gpus: int, hours: float, extra: Mapping[str, Any]
) -> dict:
    """What sbatch is told, in submitit's names.

    Args:
      nodes: machines.
      gpus: GPUs of each machine; 0: a CPU job of one task per machine.
      hours: after which SLURM stops the job; it is then queued again.
      extra: further options of sbatch, such as partition.
    """
    values = {
        "job_name": job.name,
        "nodes": nodes,
        # jax.distributed takes one GPU per task under SLURM.
        "ntasks_per_node": max(gpus, 1),
        "time": round(hours * 60),
        "signal_delay_s": GRACE_SECONDS,
        "additional_parameters": {"requeue": True, **extra},
    }
    return values | ({"gpus_per_node": gpus} if gpus else {})


def script(job: Job, folder: Path, values: Mapping[str, Any]) -> str:
    """The sbatch file that submitit would submit."""
    _import()
    # Not public, but what submitit itself calls; it needs a SLURM cluster otherwise.
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{sys.executable} -u -m submitit.core._submit {folder}"
    text = _make_sbatch_string(command, folder, **values)
    return f"{text}\n# Each task of submitit runs: {job.shell()}"


def submit(job: Job, folder: Path, values: Mapping[str, Any]) -> str:
    """Submits the job; its id.

    Args:
      folder: of what submitit writes, in the workdir of the run.
      values: of ``parameters``.

    Raises:
      UserError: this machine has no SLURM, or it refuses the job.
    """
    submitit = _import()
    from experiments.sweeps import worker as sweep_worker

    command = [sys.executable, *job.command[1:]]
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=job.max_restarts)
        executor.update_parameters(**values)
        os.chdir(ROOT)  # where the job runs, too
        work = sweep_worker.work
        return executor.submit(work, command, str(folder.parent), {}).job_id
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(
            f"--engine slurm: {' '.join(str(error).split())}; --dry_run prints what "
            "would be submitted"
        ) from error


def _import():
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--engine slurm needs submitit: pip install submitit"
        ) from error
    return submitit
