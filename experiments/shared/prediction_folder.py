"""The output folder of experiments.predict: what is in it, and what is done already.

``settings.json`` says which weights and settings the predictions are of, and
``done_0.jsonl`` (a file per process) has a line for every image that is finished,
written after its files.
"""

import contextlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tqdm

from experiments.shared import prediction_files
from experiments.shared.prediction_files import (
    label_array,
    path_of,
    probability_rows,
    write_errors,
    write_outputs,
)
from segjax import files
from segjax.data import datasets
from segjax.errors import UserError
from segjax.inference import PredictOptions, collection, predictors
from segjax.inference.stored import file_version
from segjax.line_file import LineFile

OVERLAY_SIDE = 2048
"""Overlays of images that are predicted in parts are reduced to about this side."""

SETTINGS = "settings.json"
SUBMISSION = "submission"
"""The folder of what evaluation servers take (``experiments.shared.submissions``)."""

# Settings that folders written before them do not have, and their names before.
_ADDED: dict[str, Any] = {
    "resize": [0, 0],
    "value_range": [0, 0],
    "precision": "default",
    "split": None,
}
_RENAMED = {"method": "options"}


class PredictionFolder(NamedTuple):
    """An output folder, opened."""

    folder: Path
    outputs: tuple[str, ...]
    info: datasets.Dataset
    done: dict[str, dict]
    """Records of finished images, by name."""
    log: LineFile
    """The file that this process adds records to."""
    lock: threading.Lock


def open_folder(
    folder: Path,
    outputs: Sequence[str],
    *,
    info: datasets.Dataset,
    settings: dict[str, Any],
    overwrite: bool = False,
    process: tuple[int, int] = (0, 1),
) -> PredictionFolder:
    """Makes the folder, or continues one of the same settings.

    Args:
      folder: of all results.
      outputs: keys of ``prediction_files.SUFFIXES``.
      info: the classes.
      settings: of the predictions, which must be the same for all of them.
      overwrite: forget what is done, and the settings of it.
      process: (i, n): i of n writes; each has its own list of what it has done.

    Raises:
      UserError: the folder cannot be made, or holds predictions of other settings.
    """
    try:
        for name in outputs:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder}: {error.strerror}") from error
    settings = json.loads(json.dumps(settings))
    index, count = process
    logs = {file.name: file for file in sorted(folder.glob("done_*.jsonl"))}
    path, log = folder / SETTINGS, folder / f"done_{index}.jsonl"
    if overwrite:
        others = {f"done_{other}.jsonl" for other in range(count)} - {log.name}
        for name in logs.keys() - others:
            logs[name].unlink(missing_ok=True)
        logs = {}
    elif path.exists():
        before = files.read_json(path, "the settings of predictions")
        _check_same(folder, before, settings)
    if index == 0:
        with write_errors(path):
            files.write_json(path, settings)
    lines = LineFile(log)
    if logs.get(log.name) and not log.read_bytes().endswith(b"\n"):
        lines.add("")  # or the next line would be lost with this one
    done: dict[str, dict] = {}
    for file in logs.values():
        done |= _read_records(file, len(info.classes))
    return PredictionFolder(folder, tuple(outputs), info, done, lines, threading.Lock())


def _check_same(folder: Path, before: dict, now: dict) -> None:
    before = _ADDED | {_RENAMED.get(key, key): value for key, value in before.items()}
    if isinstance(before.get("options"), dict):  # the same of single options
        defaults = json.loads(json.dumps(PredictOptions()._asdict()))
        before["options"] = defaults | before["options"]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"--output={folder} holds predictions with {key} = "
                f"{json.dumps(before.get(key))}, this command has "
                f"{json.dumps(now.get(key))}: choose another folder, or --overwrite "
                "to do all of them again"
            )


def _read_records(path: Path, classes: int) -> dict[str, dict]:
    """The records of finished images; damaged lines count as not done."""
    records = {}
    for line in path.read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):  # cut short by a kill
            record = json.loads(line)
            if _is_record(record, classes):
                records[record["name"]] = record
    return records


def _is_record(record: Any, classes: int) -> bool:
    def counts(value: Any, length: int | None = None) -> bool:
        return (
            isinstance(value, list)
            and all(type(item) is int and 0 <= item < 2**62 for item in value)
            and length in (None, len(value))
        )

    return (
        isinstance(record, dict)
        and isinstance(record.get("name"), str)
        and isinstance(record.get("file"), str)
        and counts(record.get("version"))
        and counts(record.get("size"), 2)
        and min(record["size"]) > 0
        and counts(record.get("pixels"), classes)
    )


def is_done(results: PredictionFolder, name: str, file: str) -> bool:
    """Whether all outputs of an unchanged file are there.

    Raises:
      UserError: there are some of another file of that name.
    """
    record = results.done.get(name)
    if record is None:
        return False
    paths = [path_of(results.folder, output, name) for output in results.outputs]
    exist = [path.exists() for path in paths]
    source = str(Path(file).absolute())
    if record["file"] != source and any(exist):
        raise UserError(
            f"{paths[exist.index(True)]} is of {record['file']}, not of {source}: name "
            "both in one command, choose another --output, or --overwrite"
        )
    return all(exist) and tuple(record["version"]) == file_version(file)


def holds_predictions(folder: Path) -> bool:
    """Whether this is an output folder of experiments.predict."""
    return (folder / SETTINGS).is_file() and any(folder.glob("done_*.jsonl"))


def without_own_outputs(paths: Sequence[str], output: Path) -> list[str]:
    """The paths that are not results of experiments.predict, in this or other folders.

    A glob such as ``photos/**/*.png`` also matches what an earlier run has written
    below ``photos``.
    """
    known: dict[Path, bool] = {}

    def is_result(path: str) -> bool:
        above = Path(path).absolute().parent
        # What the output folder would be, if this were one of its results.
        folders = [
            Path(*above.parts[:i])
            for i, part in enumerate(above.parts)
            if part == SUBMISSION
        ]
        if above.name in prediction_files.SUFFIXES:
            folders.append(above.parent)
        elif Path(path).suffix in (".json", ".jsonl"):
            folders.append(above)
        for folder in folders:
            if folder not in known:
                known[folder] = holds_predictions(folder)
        return any(known[folder] or folder == output for folder in folders)

    return [path for path in paths if not is_result(path)]


def write(
    results: PredictionFolder,
    name: str,
    *,
    file: str,
    prediction: collection.Prediction,
) -> None:
    """Writes all outputs of an image, then that it is done.

    A large image is predicted while its rows are written.

    Args:
      results: where to write.
      name: of the image.
      file: it comes from.
      prediction: for that image.

    Raises:
      UserError: a file cannot be written; ``prediction_files.NotWritable`` if that is
        due to its name.
    """
    classes = len(results.info.classes)
    shape = (*prediction.size, classes)
    label, probabilities = prediction.label, prediction.probabilities
    with contextlib.ExitStack() as stack:
        if prediction.parts is not None:
            dtype = predictors.label_type(classes)
            label = stack.enter_context(
                label_array(results.folder, name, size=prediction.size, dtype=dtype)
            )
            _write_rows(results, name, label=label, prediction=prediction)
        elif "probabilities" in results.outputs:
            with probability_rows(results.folder, name, shape) as add:
                add(probabilities)
        step = -(-max(prediction.size) // OVERLAY_SIDE) if prediction.parts else 1
        every = [slice(0, length, step) for length in prediction.size]
        write_outputs(
            results.folder,
            name,
            outputs=results.outputs,
            palette=results.info.palette,
            image=prediction.read(*every),
            label=label,
            step=step,
        )
        pixels = sum(np.bincount(row, minlength=classes) for row in label)
    record = {
        "name": name,
        "file": str(Path(file).absolute()),
        "version": list(prediction.version),
        "size": list(prediction.size),
        "pixels": pixels.tolist(),
    }
    with write_errors(results.log.path), results.lock:
        results.log.add(json.dumps(record))
    results.done[name] = record


def _write_rows(
    results: PredictionFolder,
    name: str,
    *,
    label: np.ndarray,
    prediction: collection.Prediction,
) -> None:
    """Takes the rows of a large image: into the label map and the probabilities."""
    shape = (*prediction.size, len(results.info.classes))
    with contextlib.ExitStack() as stack:
        add = None
        if "probabilities" in results.outputs:
            add = stack.enter_context(probability_rows(results.folder, name, shape))
        bar = tqdm.tqdm(total=len(label), desc=name, unit="row", leave=False)
        top = 0  # not the bar's own count, which stays 0 where bars are switched off
        with bar:
            for rows in prediction.parts:
                label[top : top + len(rows)] = rows.argmax(-1)
                top += len(rows)
                bar.update(len(rows))
                if add:
                    add(rows)
