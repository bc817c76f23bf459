"""What a training run measures of itself, for tables that compare runs.

WORKDIR/validation.json holds the newest evaluation: its step, its confusion matrix and
what it took; the largest memory and the longest compilation of all starts of the run.
"""

import resource
import sys
from pathlib import Path

import jax
import numpy as np

from segjax import compilation
from segjax import workdir as workdir_lib


def save(workdir: Path, step: int, *, confusion: np.ndarray, rate: float) -> None:
    """Writes an evaluation; the file is replaced at once.

    Args:
      workdir: of the run.
      step: of training.
      confusion: [K, K], rows are the truth.
      rate: images per second of the evaluation, reading them included.
    """
    before = workdir_lib.read_validation(workdir)
    memory, place = peak_memory()
    values = {
        "step": step,
        "images_per_second": rate,
        # A run that continues finds its programs in the cache.
        "compile_seconds": max(
            compilation.seconds(), before.get("compile_seconds", 0.0)
        ),
        "peak_bytes": max(memory, before.get("peak_bytes", 0)),
        "peak_of": place,
        "confusion": confusion,
    }
    workdir_lib.write_validation(workdir, values)


def peak_memory() -> tuple[int, str]:
    """Bytes of the fullest device at its fullest, or of this process; and of which."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each.get("peak_bytes_in_use", 0) for each in stats]
    if all(peaks):
        return max(peaks), "device"
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process"
