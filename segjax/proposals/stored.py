"""Proposals on disk, so that each image is searched once.

A file per image, named by a hash of its pixels and of the settings: it is right
wherever the image comes from, work that was killed is continued, and processes and
hosts may share the folder (what two of them do twice is the same file).
"""

import contextlib
import functools
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from segjax import files
from segjax.proposals import Settings, propose

VERSION = 1
"""To be raised when the same settings give other boxes."""
FOLDER = "proposals"
"""Inside ``config.data.data_dir``."""


# np.load parses the header of a file with `ast`, which Python 3.11 cannot do in several
# threads at once ("SystemError: AST constructor recursion depth mismatch").
_READING = threading.Lock()


def folder_of(data_dir: str) -> Path:
    """Where the proposals are kept, in ``config.data.data_dir``."""
    return files.local_folder("--config.data.data_dir", data_dir) / FOLDER


def boxes(image: np.ndarray, settings: Settings, folder: Path) -> np.ndarray:
    """``propose``, or what it has found before.

    Args:
      image: uint8 [H, W, C].
      settings: of the proposals.
      folder: of ``folder_of``. If it cannot be written, nothing is kept.

    Returns:
      int32 [N, 4], the most promising box first.
    """
    path = _path(image, settings, folder)
    with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or damaged
        with _READING:
            found = np.load(path, allow_pickle=False)
        if found.dtype == np.int32 and found.ndim == 2 and found.shape[1] == 4:
            return found
    found = propose(image, settings)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with own.open("wb") as file:
                np.save(file, found)
            own.replace(path)
        finally:
            own.unlink(missing_ok=True)
    return found


def _path(image: np.ndarray, settings: Settings, folder: Path) -> Path:
    model = model_hash(settings.edge_model)
    text = f"{VERSION} {settings.method} {settings.number} {model} {image.shape}"
    digest = hashlib.sha256(text.encode())
    digest.update(np.ascontiguousarray(image).data)
    name = digest.hexdigest()[:32]
    return folder / settings.method / name[:2] / f"{name}.npy"


def model_hash(path: str) -> str:
    """A hash of the contents of an edge model; "" for none."""
    path = os.path.expanduser(path)
    if not path or not os.path.isfile(path):
        return ""
    status = os.stat(path)
    return _hash_of(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _hash_of(path: str, *version: int) -> str:
    del version
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def collect(
    source: Any,
    settings: Settings,
    folder: Path,
    *,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
    threads: int = 4,
) -> list[np.ndarray]:
    """The proposals of all images of a source, with a progress bar.

    Args:
      source: of examples; picklable.
      settings: of the proposals.
      folder: see ``boxes``.
      process: (i, n): process i of n begins with images of its own, and finds those of
        the others done if they share the folder.
      workers: processes; 0: ``threads`` of this one.
      threads: see ``workers``.
    """
    index, count = process
    turns = [(index + k) % count for k in range(count)]
    order = [i for turn in turns for i in range(turn, len(source), count)]
    found: list[np.ndarray] = [np.zeros((0, 4), np.int32)] * len(source)
    with _executor(source, settings, folder, workers, threads) as pool:
        results = pool.map(_one, order, chunksize=4 if workers else 1)
        bar = tqdm.tqdm(
            zip(order, results),
            total=len(order),
            desc="proposals",
            unit="image",
            disable=index > 0,
        )
        for i, own in bar:
            found[i] = own
    return found


@contextlib.contextmanager
def _executor(
    source: Any, settings: Settings, folder: Path, workers: int, threads: int
) -> Iterator[Executor]:
    arguments = source, settings, folder
    pool: Executor
    if workers:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            workers, context, initializer=_start, initargs=arguments
        )
    else:
        pool = ThreadPoolExecutor(
            max(threads, 1), initializer=_start, initargs=arguments
        )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_own = threading.local()  # of a thread, or of the thread of a worker


def _start(*arguments: Any) -> None:
    _own.arguments = arguments


def _one(index: int) -> np.ndarray:
    source, settings, folder = _own.arguments
    return boxes(source[index]["image"], settings, folder)
