"""Copies on this machine of folders in buckets.

Raw files and prepared records are read many times and in any order, and array_record
reads files of this machine only.  So what a bucket holds is copied once to each host,
below ``~/.cache/segjax/buckets``; later starts copy what has changed.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from segjax import buckets
from segjax.errors import UserError

_log = logging.getLogger(__name__)

HOME = "~/.cache/segjax/buckets"
RAW, PREPARED = "raw", "prepared"
_LAST = "dataset_info.json"  # says that records are complete: it is uploaded last


def folder_of(path: str | os.PathLike, kind: str = RAW) -> Path:
    """Where the copy of a folder of a bucket is, or would be.

    Args:
      path: gs://BUCKET/FOLDER.
      kind: RAW or PREPARED, which are kept apart.

    Raises:
      UserError: no folder is named.
    """
    name = os.fspath(path).removeprefix(buckets.SCHEME).strip("/")
    if not name or ".." in PurePosixPath(name).parts:
        raise UserError(
            f"{os.fspath(path)}: found no name of objects; expected gs://BUCKET/FOLDER"
        )
    return Path(HOME).expanduser() / kind / name


def pull(path: str | os.PathLike, kind: str = RAW) -> Path:
    """Copies what a folder of a bucket holds, and returns the folder of the copy.

    Copies have the time of their objects, so that they are the same on every host.
    What the bucket does not hold any more is removed.

    Raises:
      UserError: the bucket may not be read.
      Unavailable: the storage did not answer.
    """
    folder = folder_of(path, kind)
    with _locked(folder):
        there = buckets.find(path)
        missing = {
            name: entry
            for name, entry in there.items()
            if _version(folder / name) != (entry.size, entry.time_ns)
        }
        if missing:
            size = sum(entry.size for entry in missing.values())
            _log.info(
                "copying %d files (%.1f MB) of %s to %s",
                *(len(missing), size / 1e6, os.fspath(path), folder),
            )
        for old in set(_files(folder)) - there.keys():
            (folder / old).unlink()
        for below in sorted(folder.rglob("*/"), reverse=True):
            with suppress(OSError):  # unless it is empty
                below.rmdir()

        def copy(name: str) -> None:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            buckets.download(f"{os.fspath(path).rstrip('/')}/{name}", partial)
            time_ns = missing[name].time_ns
            os.utime(partial, ns=(time_ns, time_ns))
            partial.replace(target)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(copy, missing))
    return folder


def push(folder: Path, path: str | os.PathLike) -> None:
    """Uploads prepared records; raises as ``pull``."""
    names = sorted(_files(folder), key=lambda name: name == _LAST)
    for name in names:
        buckets.upload(folder / name, f"{os.fspath(path).rstrip('/')}/{name}")


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of this machine copies, the others wait for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); expected space for a "
            "copy of what is in the bucket: HOME must be a folder of this machine"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
