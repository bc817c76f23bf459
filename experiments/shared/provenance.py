"""Packages, devices, command line and git commit of a start of a program."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import jax


def versions() -> dict:
    """Packages, devices, command line and git commit of this run."""
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"]
    found = {name: importlib.metadata.version(name) for name in packages}
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    except OSError:  # no git, as in slim container images
        commit = ""
    return found | {
        "python": sys.version.split()[0],
        "git_commit": commit or "not a git checkout",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "host_cores": os.cpu_count(),
        "command": sys.argv,
    }
