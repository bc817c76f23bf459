"""Every file of a training run: its name, how it is written and how it is read.

::

    WORKDIR/config.json        the resolved configuration (segjax.config)
    WORKDIR/dataset.json       classes, palette, mean and channels of the data set
    WORKDIR/splits.json        number of images and fingerprint of each split
    WORKDIR/versions.json      packages, devices, command line and git commit
    WORKDIR/metrics.jsonl      one JSON object per logged step
    WORKDIR/validation.json    the newest evaluation: confusion matrix, speed, memory
    WORKDIR/tensorboard/       the same scalars, and pictures
    WORKDIR/pictures/          image, truth and prediction at each evaluation
    WORKDIR/checkpoints/STEP/  training states (segjax.checkpoint)
    WORKDIR/best/STEP/         the best one, in runs of earlier versions
    WORKDIR/profile/           traces of the profiler
    WORKDIR/evaluation/        results of experiments.evaluate
    WORKDIR/lock               held by the process that trains
    WORKDIR/internal_error_N.json  of XLA in process N, and how many starts it ended
    WORKDIR/exit.json, log.txt of the job that trains, in a sweep

Nothing here imports jax: jobs of a sweep read these files before they start training.
"""

import contextlib
import fcntl
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from segjax import bucket_lock, buckets, files
from segjax.data import datasets
from segjax.errors import UserError

CONFIG = "config.json"
DATASET = "dataset.json"
SPLITS = "splits.json"
VERSIONS = "versions.json"
METRICS = "metrics.jsonl"
VALIDATION = "validation.json"
TENSORBOARD = "tensorboard"
PICTURES = "pictures"
PROFILE = "profile"
CHECKPOINTS = "checkpoints"
BEST = "best"
EVALUATION = "evaluation"
LOCK = "lock"
INTERNAL_ERROR = "internal_error_{process}.json"
EXIT = "exit.json"
LOG = "log.txt"

LOCK_VARIABLE = "SEGJAX_LOCK"
"""Environment: the file descriptor of a lock that a parent process holds for us."""

_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**62}
_NUMBER = {"type": "number"}
_DATASET_SCHEMA: dict[str, Any] = {
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
_SPLITS_SCHEMA = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["images", "fingerprint"],
        "properties": {"images": _COUNT, "fingerprint": {"type": "string"}},
        "additionalProperties": False,
    },
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


class Split(NamedTuple):
    """Which images a split of a data set holds."""

    images: int
    fingerprint: str  # of ids and sizes: ``datasets.fingerprint``


def write_dataset(workdir: Path, info: datasets.Dataset) -> None:
    """Writes what programs need to know of the data set when it is not there."""
    values = {key: getattr(info, key) for key in _DATASET_SCHEMA["required"]}
    values["palette"] = np.asarray(info.palette).tolist()
    _write_if_changed(workdir / DATASET, values)


def _write_if_changed(path: Path, value: Any) -> None:
    """Leaves a file alone that holds the same value: a full disk cannot harm it."""
    if path.is_file():
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if json.loads(path.read_bytes()) == json.loads(json.dumps(value)):
                return
    files.write_json(path, value)


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
    _write_if_changed(workdir / VERSIONS, versions)


def write_config(workdir: Path, values: Mapping[str, Any]) -> None:
    """Writes the resolved configuration, as ``config.json_like`` returns it."""
    _write_if_changed(workdir / CONFIG, values)


def write_splits(workdir: Path, splits: Mapping[str, Split]) -> None:
    """Writes number of images and fingerprint of each split, by its name."""
    values = {name: split._asdict() for name, split in splits.items()}
    _write_if_changed(workdir / SPLITS, values)


def read_splits(workdir: Path) -> dict[str, Split]:
    """Reads what :func:`write_splits` wrote; {} for a run of an earlier version.

    Raises:
      UserError: the file is damaged.
    """
    if not (workdir / SPLITS).is_file():
        return {}
    what = "the images of a run of experiments.train"
    values = files.read_json(workdir / SPLITS, what, _SPLITS_SCHEMA)
    return {name: Split(**row) for name, row in values.items()}


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
    path = files.path(workdir) / METRICS
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_bytes().decode(errors="replace").splitlines():
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
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    kept = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line for line in kept if line and "step/s" not in line][-lines:]


def check_same_classes(
    trained: datasets.Dataset, info: datasets.Dataset, *, where: str = "the checkpoint"
) -> None:
    """Raises UserError if a model of ``trained`` cannot be used on ``info``.

    Args:
      trained: what the model was trained on.
      info: of the data at hand.
      where: what was trained, for the message.
    """
    for what, before, now in (
        ("classes", len(trained.classes), len(info.classes)),
        ("image channels", trained.channels, info.channels),
    ):
        if before != now:
            remedy = f"use data with the same {what} or train in another --workdir"
            if what == "classes" and info.name == "folder":
                # Without that file, the masks at hand tell how many there are.
                remedy += ", or name all classes in --config.data.classes"
            raise UserError(
                f"{where} was trained on {trained.name} with {before} {what}, but "
                f"{info.name} has {now}: {remedy}"
            )
    for index, (name, other) in enumerate(zip(trained.classes, info.classes)):
        if name != other:
            raise UserError(
                f"{where} was trained with class {index} named {name!r}, but in "
                f"{info.name} it is {other!r}: list the classes in the order of "
                f"dataset.json beside the checkpoints ({', '.join(trained.classes)}), "
                "or train in another --workdir"
            )


@contextlib.contextmanager
def lock(workdir: Path, wait: bool = True) -> Iterator[IO | None]:
    """Holds the lock of a run; yields its file, or None if another process holds it.

    Without ``wait`` it is shared: several may look at once, none sees the others.
    Processes that inherit the file hold the lock, too: it is free when the training is
    over, whatever became of the process that had started it.

    In a bucket it can only be looked at: see ``bucket_lock.is_held``.
    """
    if buckets.is_bucket(workdir):
        if wait:
            raise UserError(f"{workdir}: a bucket has no locks; expected a folder")
        yield None if bucket_lock.is_held(workdir / LOCK) else io.StringIO()
        return
    with (workdir / LOCK).open("a+") as file:  # some file systems want both
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if wait:
            _write_holder(file)
        yield file


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[Callable[[], None]]:
    """Keeps a second training out of a workdir, or ends the first one in a bucket.

    Yields what to call before anything is saved: see :mod:`segjax.bucket_lock`.

    The lock may be held already by the job that started this process, which then
    passes it on (:data:`LOCK_VARIABLE`). Where the file system has no locks, nothing
    is kept out.

    Raises:
      UserError: another process trains there; names it.
    """
    path = workdir / LOCK
    if buckets.is_bucket(workdir):
        with bucket_lock.hold(path) as check:
            yield check
        return
    if _inherited(path):
        yield lambda: None
        return
    with path.open("a+") as file:
        # Programs that look at a run hold the lock, too, for an instant.
        for attempt in range(10):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if attempt == 9:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise UserError(
                        f"--workdir {workdir}: {holder} trains there: wait for its "
                        "end, stop it, or use another --workdir"
                    ) from error
                time.sleep(0.2)
            except OSError:
                break
            else:
                _write_holder(file)
                break
        yield lambda: None


def _write_holder(file: IO) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def _inherited(path: Path) -> bool:
    """Whether the parent process has passed on that it holds this lock."""
    try:
        number = int(os.environ[LOCK_VARIABLE])
        return os.path.samestat(os.fstat(number), path.stat())
    except (KeyError, ValueError, OSError):
        return False
