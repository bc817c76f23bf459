"""Files of predictions: their names and formats."""

import concurrent.futures
import contextlib
import errno
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segjax import buckets, files, viz
from segjax.data import datasets
from segjax.data import images as image_files
from segjax.errors import UserError

SUFFIXES = {
    "labels": ".png",
    "ids": ".png",
    "overlays": ".jpg",
    "probabilities": ".npz",
}
"""Outputs, which are folders too, and the suffix of their files."""

JPEG_SIDE = 65_500
"""Longer sides cannot be written as JPEG."""
NAME_BYTES = 200
"""Longer names are shortened: file systems take 255 bytes, suffixes included."""


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


def ids_of(source: datasets.Source, threads: int) -> list[str]:
    """The ids of all images, which are read for it."""
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        return list(pool.map(lambda i: str(source[i]["id"]), range(len(source))))


def output_names(paths: Sequence[str]) -> dict[str, str]:
    """A name for the results of each file: its stem, or its path where stems repeat.

    ``a/1.jpg`` and ``b/1.jpg`` become ``a_1`` and ``b_1``; ``1.jpg`` and ``1.png``
    become ``1_jpg`` and ``1_png``. ``A`` and ``a`` are one name on some disks, so they
    count as repeated unless they are beside each other. Names that file systems would
    refuse as too long are shortened and end in a checksum of the whole.
    """
    parts = {path: Path(path).absolute().parts for path in paths}
    deepest = max(map(len, parts.values()), default=1)
    for same in (str.casefold, str):
        for count in range(1, deepest + 1):
            for keep_suffix in (False, True):
                names = {}
                for path, folders in parts.items():
                    name = "_".join(folders[-count:]).strip("/")
                    stem = name.removesuffix(Path(path).suffix)
                    name = name.replace(".", "_") if keep_suffix else stem
                    names[path] = _shortened(name)
                if len(set(map(same, names.values()))) == len(paths):
                    return names
    raise UserError("two images would get one name: give them different --output")


def _shortened(name: str) -> str:
    data = os.fsencode(name)
    if len(data) <= NAME_BYTES:
        return name
    # Characters of several bytes are kept whole.
    head = data[: NAME_BYTES - 9].decode("utf-8", "ignore")
    return f"{head}-{hashlib.sha256(data).hexdigest()[:8]}"


def write_outputs(
    folder: Path,
    name: str,
    *,
    outputs: Sequence[str],
    palette: np.ndarray,
    image: np.ndarray,
    label: np.ndarray,
    step: int = 1,
) -> None:
    """Writes the pictures of a prediction, each under its name only when complete.

    Args:
      folder: of all results.
      name: of the image.
      outputs: which to write, of SUFFIXES; probabilities are left to
        :func:`probability_rows`.
      palette: uint8 [K, 3].
      image: uint8 [h, w, C]: every ``step``-th pixel, for the overlay.
      label: integers [H, W].
      step: by which overlays are reduced.

    Raises:
      UserError: a file cannot be written. ``of_one_image`` says whether others can.
    """
    for output in outputs:
        target = path_of(folder, output, name)
        with write_errors(target):
            if output == "labels":
                image_files.write_palette_png(target, label, palette)
            elif output == "ids":
                image_files.write_ids_png(target, label)
            elif output == "overlays":
                reduced = np.asarray(label[::step, ::step])
                picture = viz.overlay(image, reduced, palette=palette)
                every = -(-max(picture.shape) // JPEG_SIDE)
                picture = picture[::every, ::every]
                data = cv2.imencode(".jpg", picture[..., ::-1])[1]
                with files.atomic_write(target) as partial:
                    partial.write_bytes(data)


class NotWritable(UserError):
    """A result that the disk refuses for its name; those of other images may do."""


@contextlib.contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Turns what the disk refuses into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise NotWritable(
                f"cannot write {target}: {reason}; give the image another name"
            ) from error
        raise UserError(
            f"cannot write {target}: {reason}; predictions before it are complete: "
            "free some space and start the same command again"
        ) from error


def path_of(folder: Path, output: str, name: str) -> Path:
    """Where an output of an image is written."""
    return folder / output / f"{name}{SUFFIXES[output]}"


@contextlib.contextmanager
def probability_rows(
    folder: Path, name: str, shape: tuple[int, int, int]
) -> Iterator[Callable[[np.ndarray], Any]]:
    """Writes probabilities [H, W, K] row by row into an npz file."""
    target = path_of(folder, "probabilities", name)
    header = {"descr": "<f2", "fortran_order": False, "shape": tuple(shape)}
    with (
        write_errors(target),
        files.atomic_write(target) as partial,
        zipfile.ZipFile(partial, "w") as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_2_0(file, header)
        yield lambda rows: file.write(np.ascontiguousarray(rows, "<f2").data)


@contextlib.contextmanager
def label_array(
    folder: Path, name: str, *, size: tuple[int, int], dtype: type
) -> Iterator[np.ndarray]:
    """A label map [H, W] on disk instead of in memory, while it is made.

    Raises:
      UserError: there is no space for it.
    """
    with contextlib.ExitStack() as stack:
        scratch = folder
        if buckets.is_bucket(folder):  # others of this machine may write there, too
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = scratch / f".{name}.labels"
        stack.callback(path.unlink, missing_ok=True)
        with write_errors(path):
            array = np.memmap(path, dtype, "w+", shape=tuple(size))
            if hasattr(os, "posix_fallocate"):
                # Writing to a mapped file without space for it kills the process.
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, array.nbytes)
        yield array
