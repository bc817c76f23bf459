"""Objects of Google Cloud Storage: paths that begin with ``gs://``.

An object appears whole or not at all, so that nothing is written under another name
first.  It cannot be appended to, there are no folders to be made, and there are no
locks.  Paths are those of etils.epath, which orbax uses as well.  Requests that fail
(503, a lost connection) are repeated with growing pauses: by gcsfs for half a minute
and, of arrays, by tensorstore for much longer.
"""

import contextlib
import datetime
import functools
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from segjax.errors import Unavailable, UserError

SCHEME = "gs://"
_DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_SILENT = ("ABORTED", "DEADLINE_EXCEEDED", "UNAVAILABLE")  # after all its retries


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path names objects of a bucket."""
    return os.fspath(path).startswith(SCHEME)


def open_path(value: str | os.PathLike) -> Path:
    """The path of an object, or of all objects whose names begin with it and "/".

    It has the methods of ``pathlib.Path`` that make sense for objects; ``mkdir`` does
    nothing.

    Raises:
      UserError: no bucket is named, or gcsfs is not installed.
    """
    text = os.fspath(value)
    if not bucket_of(text):
        raise UserError(f"{text}: found no name of a bucket; expected gs://BUCKET/NAME")
    _set_up()
    from etils import epath

    return cast(Path, epath.Path(text.rstrip("/")))


@functools.cache
def _set_up() -> None:
    """Settings of the libraries, once per process and before their first request."""
    if not importlib.util.find_spec("gcsfs"):
        raise UserError(
            "gs:// needs the package gcsfs, which is not installed; install it: "
            "pip install gcsfs"
        )
    # Asks for the kind of a bucket before every operation, and warns where it may not.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # etils would take TensorFlow, if that is installed, in some processes only.
    os.environ.setdefault("EPATH_USE_TF", "false")
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        # The libraries have a variable each; a storage server of tests asks for no
        # credentials, and tensorstore would report that it has found none.
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    import fsspec

    # Other processes write there, too: what was listed is not remembered.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    if "STORAGE_EMULATOR_HOST" in os.environ:
        fsspec.config.conf["gcs"]["token"] = "anon"
    # They report what they also raise, with a traceback, and every file they open.
    for name in ("gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@functools.cache
def silence_arrays(bucket: str) -> None:
    """Lets tensorstore look for credentials once, unheard: it logs where they are from.

    That is written by C++ code, which no logger of Python reaches.
    """
    import tensorstore

    standard_error = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        store = tensorstore.KvStore.open(f"{SCHEME}{bucket}/").result(timeout=30)
        store.read("lock").result(timeout=30)
    except (ValueError, TimeoutError, RuntimeError, OSError):
        pass  # whatever is wrong, the next request says so
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def bucket_of(path: str | os.PathLike) -> str:
    """The name of the bucket in a path."""
    return os.fspath(path).removeprefix(SCHEME).partition("/")[0]


def _file_system() -> Any:
    _set_up()
    import fsspec

    return fsspec.filesystem("gcs")


def read_bytes(path: str | os.PathLike) -> bytes:
    """Reads an object.

    Raises:
      FileNotFoundError: there is none.
      UserError: it may not be read.
      Unavailable: the storage did not answer.
    """
    with errors(path):
        return _file_system().cat_file(os.fspath(path))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes an object.

    Raises:
      UserError: there is no such bucket, or it may not be written to.
      Unavailable: the storage did not answer.
    """
    with errors(path):
        _file_system().pipe_file(os.fspath(path), data)


def upload(source: Path, path: str | os.PathLike) -> None:
    """Writes a file of this machine as an object; raises as ``write_bytes``."""
    with errors(path):
        _file_system().put_file(os.fspath(source), os.fspath(path))


def download(path: str | os.PathLike, target: Path) -> None:
    """Writes an object as a file of this machine; raises as ``read_bytes``."""
    with errors(path):
        _file_system().get_file(os.fspath(path), os.fspath(target))


def remove(path: str | os.PathLike) -> None:
    """Removes an object and all that are named like files below it, if there are any.

    Raises:
      UserError: they may not be removed.
      Unavailable: the storage did not answer.
    """
    with errors(path), contextlib.suppress(FileNotFoundError):
        _file_system().rm(os.fspath(path), recursive=True)


class Entry(NamedTuple):
    """What is known of an object without reading it."""

    size: int
    time_ns: int
    """When it was written, in nanoseconds."""


def find(path: str | os.PathLike) -> dict[str, Entry]:
    """All objects below a name, by the rest of their names; raises as ``remove``."""
    above = os.fspath(path).removeprefix(SCHEME).rstrip("/") + "/"
    with errors(path):
        found = _file_system().find(os.fspath(path), detail=True)
    return {
        name.removeprefix(above): Entry(entry["size"], _nanoseconds(entry["mtime"]))
        for name, entry in found.items()
        # Consoles and Cloud Storage FUSE make empty objects "FOLDER/" for folders.
        if name.startswith(above) and not name.endswith("/")
    }


def _nanoseconds(time: datetime.datetime) -> int:
    """Exactly: timestamps in seconds have too few bits."""
    since = time - datetime.datetime.fromtimestamp(0, datetime.UTC)
    return since // datetime.timedelta(microseconds=1) * 1000


def move(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Renames all objects below a name: copies them, and removes the originals."""
    with errors(source):
        system = _file_system()
        for path in system.find(os.fspath(source)):
            below = f"{SCHEME}{path}".removeprefix(os.fspath(source))
            system.cp_file(path, os.fspath(target) + below)
        system.rm(os.fspath(source), recursive=True)


def download_folder(path: str | os.PathLike, target: Path) -> None:
    """Writes all objects below a name as files below a folder of this machine."""
    for name in find(path):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        download(f"{os.fspath(path)}/{name}", target / name)


def upload_folder(source: Path, target: str | os.PathLike) -> None:
    """Writes all files below a folder of this machine as objects below a name."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            upload(path, f"{os.fspath(target)}/{path.relative_to(source).as_posix()}")


@contextlib.contextmanager
def errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns what a bucket answers into a UserError that names the object.

    FileNotFoundError of an object that is read is left as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if told := explain(error, path):
            raise told from error
        raise


def explain(
    error: BaseException, path: str | os.PathLike = "gs://"
) -> UserError | None:
    """What to tell the user about an exception of a request; None: it is of another
    kind."""
    name, text = os.fspath(path), " ".join(str(error).split())[:200]
    if isinstance(error, FileNotFoundError) and "/upload/" in text:
        bucket = bucket_of(name)
        return UserError(
            f"{name}: cannot be written: found no bucket {bucket!r}; expected one that "
            "exists: gcloud storage buckets create"
        )
    code = str(getattr(error, "code", ""))
    # Errors of tensorstore are ValueErrors that begin with their status.
    status = text.partition(":")[0] if isinstance(error, ValueError) else ""
    denied = code in ("401", "403") or status in _DENIED
    if "Forbidden" in text or denied:
        return UserError(
            f"{name}: access is denied ({text}); expected credentials for this bucket, "
            "such as of gcloud auth application-default login, and the role "
            "roles/storage.objectUser"
        )
    module = type(error).__module__.partition(".")[0]
    if module in ("gcsfs", "aiohttp", "requests") or status in _SILENT:
        return Unavailable(
            f"{name}: the storage has not answered for half a minute or more "
            f"({type(error).__name__}: {text}); start the same command again to "
            "continue"
        )
    return None
