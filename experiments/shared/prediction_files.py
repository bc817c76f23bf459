"""The output folder of experiments.predict: names, files, and what is done already.

``settings.json`` says which weights and settings the predictions in it are of, and
``done.jsonl`` has a line for every image that is finished, written after its files.
"""

import contextlib
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from segjax import viz
from segjax.data import datasets
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.files import atomic_write

SUFFIXES = {
    "labels": ".png",
    "ids": ".png",
    "overlays": ".jpg",
    "probabilities": ".npz",
}

JPEG_SIDE = 65_500
"""Longer ones cannot be written."""


class Results(NamedTuple):
    """An output folder, opened."""

    folder: Path
    outputs: tuple[str, ...]
    info: datasets.Dataset
    done: dict[str, dict]  # by name
    log: Path
    lock: threading.Lock


def check_outputs(outputs: Sequence[str], classes: int) -> None:
    """Raises UserError for unknown outputs, and colors of too many classes."""
    for name in outputs:
        if name not in SUFFIXES:
            raise UserError(
                f"--outputs: unknown {name!r}; known: {', '.join(SUFFIXES)}"
            )
        if name in ("labels", "overlays") and classes > 255:
            raise UserError(
                f"--outputs: a palette has no colors for {classes} classes; give "
                "--outputs=ids (16 bit)"
            )
    if not outputs:
        raise UserError(f"--outputs is empty; known: {', '.join(SUFFIXES)}")


def open_results(
    folder: Path,
    outputs: Sequence[str],
    info: datasets.Dataset,
    settings: dict[str, Any],
    overwrite: bool = False,
    process: tuple[int, int] = (0, 1),
) -> Results:
    """Makes the folder, or continues one of the same settings.

    Args:
      folder: of all results.
      outputs: keys of ``SUFFIXES``.
      info: the classes.
      settings: of the predictions, to be the same for all of them.
      overwrite: forget what is done, and the settings of it.
      process: (i, n): i of n writes; each has its own list of what it has done.

    Raises:
      UserError: the folder cannot be made, or holds predictions of other settings.
    """
    try:
        for name in outputs:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror}") from error
    settings = json.loads(json.dumps(settings))
    index, count = process
    logs = {file.name: file for file in sorted(folder.glob("done_*.jsonl"))}
    path, log = folder / "settings.json", folder / f"done_{index}.jsonl"
    if overwrite:
        others = {f"done_{other}.jsonl" for other in range(count)} - {log.name}
        for name in logs.keys() - others:
            logs[name].unlink(missing_ok=True)
        logs = {}
    elif path.exists():
        _check_same(folder, json.loads(path.read_text()), settings)
    if index == 0:
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(settings, indent=1) + "\n")
    done = {}
    if logs.get(log.name) and not log.read_bytes().endswith(b"\n"):
        with open(log, "a") as file:  # or the next line would be lost with this one
            file.write("\n")
    for file in logs.values():
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line cut short by a kill
                record = json.loads(line)
                done[record["name"]] = record
    return Results(folder, tuple(outputs), info, done, log, threading.Lock())


def _check_same(folder: Path, before: dict, now: dict) -> None:
    for key in before.keys() | now.keys():
        if before.get(key) != now.get(key):
            raise UserError(
                f"--output {folder} holds predictions with {key} = "
                f"{json.dumps(before.get(key))}, this command has "
                f"{json.dumps(now.get(key))}: choose another folder, or --overwrite "
                "to do all of them again"
            )


def output_names(files: Sequence[str]) -> dict[str, str]:
    """A name for the results of each file: its stem, or its path where stems repeat.

    ``a/1.jpg`` and ``b/1.jpg`` become ``a_1`` and ``b_1``; ``1.jpg`` and ``1.png``
    become ``1_jpg`` and ``1_png``.  ``A`` and ``a`` are one name on some disks, so
    they count as repeated unless they are beside each other.
    """
    parts = {file: Path(file).absolute().parts for file in files}
    most = max(map(len, parts.values()), default=1)
    for same in (str.casefold, str):
        for count in range(1, most + 1):
            for keep_suffix in (False, True):
                names = {}
                for file, path in parts.items():
                    name = "_".join(path[-count:]).strip("/")
                    stem = name.removesuffix(Path(file).suffix)
                    names[file] = name.replace(".", "_") if keep_suffix else stem
                if len(set(map(same, names.values()))) == len(files):
                    return names
    raise UserError("two images would get one name: give them different --output")


def is_done(results: Results, name: str, file: str) -> bool:
    """Whether all outputs of an unchanged file are there.

    Raises:
      UserError: there are some of another file of that name.
    """
    record = results.done.get(name)
    if record is None:
        return False
    paths = [path_of(results, output, name) for output in results.outputs]
    exist = [path.exists() for path in paths]
    source = str(Path(file).absolute())
    if record["file"] != source and any(exist):
        raise UserError(
            f"{paths[exist.index(True)]} is of {record['file']}, not of {source}: name "
            "both in one command, choose another --output, or --overwrite"
        )
    return all(exist) and record["version"] == version_of(file)


def version_of(file: str) -> list[int]:
    """Size and time of change; a missing file has none."""
    try:
        status = Path(file).stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def path_of(results: Results, output: str, name: str) -> Path:
    return results.folder / output / f"{name}{SUFFIXES[output]}"


def write(
    results: Results,
    name: str,
    file: str,
    image: np.ndarray,
    label: np.ndarray,
    version: list[int],
    probabilities: np.ndarray | None = None,
    step: int = 1,
) -> None:
    """Writes all outputs of an image, then that it is done.

    Args:
      results: where.
      name: of the image.
      file: it comes from.
      image: every ``step``-th of its pixels, for the overlay; uint8 [h, w, C].
      label: integers [H, W].
      version: of the file, from before it was read: see ``version_of``.
      probabilities: float16 [H, W, K]; None if they are written already.
      step: by which overlays are reduced.

    Raises:
      UserError: the disk is full, say.
    """
    palette, target = results.info.palette, results.folder
    try:
        for output in results.outputs:
            target = path_of(results, output, name)
            if output == "labels":
                image_files.write_palette_png(target, label, palette)
            elif output == "ids":
                image_files.write_ids_png(target, label)
            elif output == "overlays":
                reduced = np.asarray(label[::step, ::step])
                picture = viz.overlay(image, reduced, palette)
                every = -(-max(picture.shape) // JPEG_SIDE)
                picture = picture[::every, ::every]
                data = cv2.imencode(".jpg", picture[..., ::-1])[1]
                with atomic_write(target) as partial:
                    partial.write_bytes(data)
            elif probabilities is not None:
                with probability_rows(results, name, probabilities.shape) as add:
                    add(probabilities)
        classes = len(results.info.classes)
        pixels = sum(np.bincount(row, minlength=classes) for row in label)
        record = {
            "name": name,
            "file": str(Path(file).absolute()),
            "version": version,
            "size": list(label.shape),
            "pixels": pixels.tolist(),
        }
        with results.lock, open(results.log, "a") as log:
            log.write(json.dumps(record) + "\n")
        results.done[name] = record
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; predictions before it "
            "are complete: free some space and start the same command again"
        ) from error


@contextlib.contextmanager
def probability_rows(
    results: Results, name: str, shape: tuple[int, int, int]
) -> Iterator[Callable[[np.ndarray], Any]]:
    """Takes probabilities [H, W, K] row by row for an npz file, if it is wanted."""
    if "probabilities" not in results.outputs:
        yield lambda rows: None
        return
    header = {"descr": "<f2", "fortran_order": False, "shape": tuple(shape)}
    with (
        atomic_write(path_of(results, "probabilities", name)) as partial,
        zipfile.ZipFile(partial, "w") as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_2_0(file, header)
        yield lambda rows: file.write(np.ascontiguousarray(rows, "<f2").data)


@contextlib.contextmanager
def label_array(
    results: Results, name: str, size: tuple[int, int], dtype: type
) -> Iterator[np.ndarray]:
    """A label map [H, W] on disk instead of in memory, while it is made.

    Raises:
      UserError: there is no space for it.
    """
    path = results.folder / f".{name}.labels"
    try:
        try:
            array = np.memmap(path, dtype, "w+", shape=tuple(size))
            if hasattr(os, "posix_fallocate"):
                # Writing to a mapped file without space for it kills the program.
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, array.nbytes)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        yield array
    finally:
        path.unlink(missing_ok=True)
