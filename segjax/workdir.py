"""Every file of a training run: its name, how it is written and how it is read.

::

    WORKDIR/config.json        the resolved configuration (segjax.config)
    WORKDIR/dataset.json       classes, palette, mean and channels of the data set
    WORKDIR/versions.json      packages, devices, command line and git commit
    WORKDIR/metrics.jsonl      one JSON object per logged step
    WORKDIR/validation.json    the newest evaluation: confusion matrix, speed, memory
    WORKDIR/tensorboard/       the same scalars, and pictures
    WORKDIR/pictures/          image, truth and prediction at each evaluation
    WORKDIR/checkpoints/STEP/  training states (segjax.checkpoint)
    WORKDIR/best/STEP/         the state with the highest validation mIoU
    WORKDIR/evaluation/        results of experiments.evaluate
    WORKDIR/lock, exit.json, log.txt   of the job that trains, in a sweep

Nothing here imports jax: jobs of a sweep read these files before they start training.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from segjax import files
from segjax.data import datasets
from segjax.errors import UserError

CONFIG = "config.json"
DATASET = "dataset.json"
VERSIONS = "versions.json"
METRICS = "metrics.jsonl"
VALIDATION = "validation.json"
TENSORBOARD = "tensorboard"
PICTURES = "pictures"
CHECKPOINTS = "checkpoints"
BEST = "best"
EVALUATION = "evaluation"
LOCK = "lock"
EXIT = "exit.json"
LOG = "log.txt"

_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**62}
_NUMBER = {"type": "number"}
_DATASET_SCHEMA = {
    "type": "object",
    "required": ["name", "classes", "palette", "mean", "channels"],
    "properties": {
        "name": {"type": "string"},
        "classes": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "palette": {
            "type": "array",
            "items": {
                "type": "array",
                "minItems": 3,
                "maxItems": 3,
                "items": {"type": "integer", "minimum": 0, "maximum": 255},
            },
        },
        "mean": {"type": "array", "minItems": 1, "items": _NUMBER},
        "channels": {"type": "integer", "minimum": 1, "maximum": 65535},
    },
    "additionalProperties": False,
}
_VALIDATION_SCHEMA = {
    "type": "object",
    "required": ["step", "confusion"],
    "properties": {
        "step": _COUNT,
        "images_per_second": _NUMBER,
        "compile_seconds": _NUMBER,
        "peak_bytes": _COUNT,
        "peak_of": {"type": "string"},
        "confusion": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "items": _COUNT},
        },
    },
}


def write_dataset(workdir: Path, info: datasets.Dataset) -> None:
    """Writes what programs need to know of the data set when it is not there."""
    values = {key: getattr(info, key) for key in _DATASET_SCHEMA["required"]}
    values["palette"] = np.asarray(info.palette).tolist()
    files.write_json(workdir / DATASET, values)


def read_dataset(workdir: Path) -> datasets.Dataset:
    """Reads what :func:`write_dataset` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    what = "the data set of a run of experiments.train"
    path = workdir / DATASET
    values = files.read_json(path, what, _DATASET_SCHEMA)
    for key, number in (
        ("palette", len(values["classes"])),
        ("mean", values["channels"]),
    ):
        if len(values[key]) != number:
            raise UserError(
                f"{path}: {key} has {len(values[key])} entries, expected {number}; "
                f"restore or remove the file, which holds {what}"
            )
    values["palette"] = np.array(values["palette"], np.uint8).reshape(-1, 3)
    for key in ("classes", "mean"):
        values[key] = tuple(values[key])
    return datasets.Dataset(**values)


def write_versions(workdir: Path, versions: dict[str, Any]) -> None:
    """Writes packages, devices, command line and git commit of a start."""
    files.write_json(workdir / VERSIONS, versions)


def read_versions(workdir: Path) -> dict[str, Any]:
    """Reads what :func:`write_versions` wrote; {} before the run has started.

    Raises:
      UserError: the file is damaged.
    """
    if not (workdir / VERSIONS).is_file():
        return {}
    return files.read_json(workdir / VERSIONS, "the versions of a training run")


def write_validation(workdir: Path, values: dict[str, Any]) -> None:
    """Writes the newest evaluation during training.

    Args:
      workdir: of the run.
      values: ``step``, ``confusion`` [K, K] with the truth in rows,
        ``images_per_second``, ``compile_seconds``, ``peak_bytes`` and ``peak_of``.
    """
    confusion = np.asarray(values["confusion"]).tolist()
    files.write_json(
        workdir / VALIDATION, values | {"confusion": confusion}, indent=None
    )


def read_validation(workdir: Path) -> dict[str, Any]:
    """Reads what :func:`write_validation` wrote; {} if there is nothing yet.

    Raises:
      UserError: the file is damaged.
    """
    if not (workdir / VALIDATION).is_file():
        return {}
    path, what = workdir / VALIDATION, "the newest evaluation of a run"
    values = files.read_json(path, what, _VALIDATION_SCHEMA)
    if any(len(row) != len(values["confusion"]) for row in values["confusion"]):
        raise UserError(
            f"{path}: the confusion matrix is not square; expected {what}: restore or "
            "remove the file"
        )
    return values


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of ``metrics.jsonl``.

    Reading ends at the first line that is no row, as a kill or a full disk leaves the
    last one.
    """
    path = Path(workdir) / METRICS
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not _is_log_entry(row):
            break
        rows.append(row)
    return rows


def _is_log_entry(row: Any) -> bool:
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    return all(type(value) in (int, float) for value in row.values())


def write_exit(workdir: Path, code: int) -> None:
    """Writes the exit code of a job."""
    files.write_json(workdir / EXIT, code)


def read_exit(workdir: Path) -> int:
    """The exit code of the job; 0 if it has not ended, or was killed with its job.

    Raises:
      UserError: the file is damaged.
    """
    if not (workdir / EXIT).is_file():
        return 0
    return files.read_json(workdir / EXIT, "an exit code", {"type": "integer"})


def log_tail(workdir: Path, lines: int = 5) -> list[str]:
    """The last lines of the run's log, progress bars left out."""
    path = workdir / LOG
    text = path.read_text(errors="replace") if path.is_file() else ""
    kept = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line for line in kept if line and "step/s" not in line][-lines:]


def check_same_classes(trained: datasets.Dataset, info: datasets.Dataset) -> None:
    """Raises UserError if a model of ``trained`` cannot be used on ``info``."""
    for what, have, want in (
        ("classes", len(trained.classes), len(info.classes)),
        ("image channels", trained.channels, info.channels),
    ):
        if have != want:
            remedy = f"use data with the same {what} or train in another --workdir"
            if what == "classes" and info.name == "folder":
                # Without that file, the masks at hand tell how many there are.
                remedy += ", or name all classes in config.data.classes"
            raise UserError(
                f"the checkpoint was trained on {trained.name} with {have} {what}, but "
                f"{info.name} has {want}: {remedy}"
            )
