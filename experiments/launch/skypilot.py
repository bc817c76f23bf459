"""SkyPilot: a task for ``sky jobs launch``; an example to start from.

Source: docs.skypilot.co, "SkyPilot YAML" and "Managed jobs".
"""

from experiments.launch.job import CURABLE, MOUNTS, Job, to_yaml


def task(job: Job) -> str:
    """A managed job on one slice; it is started again when the slice is taken away."""
    mounts = {
        f"{MOUNTS}/{bucket}": {"source": f"gs://{bucket}", "mode": "MOUNT"}
        for bucket in job.buckets
    }
    values = {
        "name": job.name,
        "workdir": ".",
        "resources": {
            "infra": "gcp",
            "accelerators": f"tpu-{job.slice.accelerator_type}",
            "accelerator_args": {"runtime_version": job.slice.kind["runtime"]},
            "use_spot": job.spot,
            "job_recovery": {
                # Only these codes: any other is fatal. They have no limit.
                "max_restarts_on_errors": 0,
                "recover_on_exit_codes": list(CURABLE),
            },
        },
        "envs": dict(job.environment),
        "file_mounts": mounts,
        "setup": (
            "pip install --quiet uv\n"
            "uv venv --quiet --python 3.11 ~/venv\n"
            "uv pip install --quiet --python ~/venv/bin/python "
            "--editable '.[tpu,gcs]'\n"
        ),
        "run": f"exec ~/venv/bin/{job.shell()}\n",
    }
    return to_yaml([values])
