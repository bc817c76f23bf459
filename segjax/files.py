"""Reading and writing small files: whole files only, and one-line errors for bad ones.

Every file of a run that is rewritten goes through :func:`atomic_write`, and every text
or JSON file that a user or a crash can damage is read by :func:`read_text` or
:func:`read_json`.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segjax import bucket_mirror, buckets
from segjax.errors import UserError


def path(value: str | os.PathLike) -> Path:
    """The path of a file or folder; ``~`` is expanded.

    ``gs://BUCKET/NAME`` becomes a path of a bucket: see :mod:`segjax.buckets`.

    Raises:
      UserError: as ``buckets.open_path``.
    """
    if buckets.is_bucket(value):
        return buckets.open_path(value)
    if "://" in os.fspath(value):
        raise UserError(
            f"{os.fspath(value)}: found a URL; expected a path of this machine or "
            "gs://BUCKET/NAME"
        )
    return Path(value).expanduser()


def absolute(value: str | os.PathLike) -> Path:
    """As ``path``, from the root of this machine's files or with the bucket."""
    return path(value) if buckets.is_bucket(value) else path(value).absolute()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name to write to, which becomes ``path`` when the block ends.

    A killed program or a full disk therefore never leaves part of a file under its
    final name, and never damages the file that was there before.  What becomes an
    object of a bucket is written on this machine first.
    """
    if buckets.is_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, os.path.basename(path))
            yield temporary
            buckets.upload(temporary, path)
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    if buckets.is_bucket(path):
        buckets.write_bytes(path, text.encode())
        return
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 1) -> None:
    """Writes a JSON file atomically, ending in a newline."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """The file itself or, while the block runs, a copy of an object of a bucket.

    Raises:
      FileNotFoundError: there is no such object.
      UserError: it may not be read.
    """
    if not buckets.is_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        buckets.download(path, copy)
        yield copy


@contextlib.contextmanager
def folder_on_disk(path: Path, *, continued: bool = False) -> Iterator[Path]:
    """The folder itself, or a new one that is uploaded to a bucket when the block ends.

    Args:
      path: of the folder, or gs://BUCKET/NAME.
      continued: the new one holds what is in the bucket already, and is uploaded after
        an error, too.

    Raises:
      UserError: the bucket cannot be read or written to.
    """
    if not buckets.is_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        if continued:
            buckets.download_folder(path, Path(folder))
        try:
            yield Path(folder)
        except BaseException:
            if continued:
                buckets.upload_folder(Path(folder), path)
            raise
        buckets.upload_folder(Path(folder), path)


def modified(path: Path) -> float:
    """When a file was written, in seconds."""
    if not buckets.is_bucket(path):
        return path.stat().st_mtime
    with buckets.errors(path):
        return path.stat().mtime  # type: ignore[attr-defined]


def remove_folder(folder: Path) -> None:
    """Removes a folder and what is in it; there need be none."""
    if buckets.is_bucket(folder):
        buckets.remove(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Gives a folder another name."""
    if buckets.is_bucket(source):
        buckets.move(source, target)
    else:
        source.rename(target)


def user_path(address: str, value: str) -> Path:
    """A path that a user has given, with ``~`` expanded.

    Args:
      address: of the value, for the message: "--config.data.root".
      value: the path.

    Raises:
      UserError: it names a bucket, holds a zero byte, or begins with a home directory
        that does not exist.
    """
    if "://" in value:
        problem = "found a URL"
    elif "\0" in value:
        problem = "found a zero byte in it"
    else:
        try:
            return Path(value).expanduser()
        except RuntimeError:
            problem = "there is no such home directory, or HOME is not set"
    raise UserError(
        f"{address}: {value!r}: {problem}; expected a path of this machine: mount "
        "buckets first"
    )


def local_folder(address: str, value: str) -> Path:
    """As ``user_path``; of a bucket, where its copy on this machine is kept."""
    if buckets.is_bucket(value):
        return bucket_mirror.folder_of(value, bucket_mirror.PREPARED)
    return user_path(address, value)


def find_folder(address: str, value: str, expected: str) -> Path:
    """A folder that a user has given, or the copy of one in a bucket.

    Args:
      address: of the value, for the message: "--config.data.root".
      value: the path of the folder.
      expected: what should be there.

    Raises:
      UserError: there is no such folder.
    """
    if buckets.is_bucket(value):
        path = bucket_mirror.pull(value)
        if any(path.iterdir()):
            return path
        raise UserError(f"{address}: {value[:200]!r} is empty; expected {expected}")
    path = user_path(address, value)
    try:
        if value and path.is_dir():
            return path
        state = "is not a folder" if value else "is empty"
    except OSError as error:  # such as a name that is too long
        state = f"cannot be read ({error.strerror})"
    raise UserError(f"{address}: {value[:200]!r} {state}; expected {expected}")


def read_text(path: str | os.PathLike, what: str) -> str:
    """Reads a text file in UTF-8, with or without a byte-order mark.

    Args:
      path: of the file.
      what: the file should be, for the message: "a list of class names".

    Raises:
      UserError: the file is missing, not readable, or not in UTF-8.
    """
    try:
        if buckets.is_bucket(path):
            return buckets.read_bytes(path).decode("utf-8-sig")
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{os.fspath(path)}: byte {error.start} is not UTF-8; expected {what} in "
            "UTF-8: save the file again with that encoding"
        ) from error
    except OSError as error:
        raise UserError(
            f"{os.fspath(path)}: cannot be read ({_reason(error)}); expected {what}"
        ) from error


def _reason(error: OSError) -> str | None:
    missing = isinstance(error, FileNotFoundError) and not error.strerror
    return "No such object" if missing else error.strerror


def read_json(
    path: str | os.PathLike, what: str, schema: Mapping[str, Any] | None = None
) -> Any:
    """Reads a JSON file that may be damaged.

    Args:
      path: of the file.
      what: the file should be, for the message: "the data set of a training run".
      schema: a JSON schema (https://json-schema.org) that the value must satisfy;
        None accepts any object.

    Raises:
      UserError: the file is missing, is not JSON, or does not satisfy the schema.
    """
    text = read_text(path, what)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        state = f"not valid JSON ({error})" if text.strip() else "empty"
        raise UserError(
            f"{os.fspath(path)}: is {state}; expected {what}: restore or remove it"
        ) from error
    if "\\ud" in text.lower():  # half of a pair, which no file and no terminal takes
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{os.fspath(path)}: holds a character that is not Unicode; expected "
                f"{what}: restore or remove it"
            ) from error
    check_json(value, path=path, what=what, schema=schema or {"type": "object"})
    return value


def check_json(
    value: Any, *, path: str | os.PathLike, what: str, schema: Mapping[str, Any]
) -> None:
    """Raises a UserError that names the first field that does not fit a JSON schema."""
    # Imported on demand: most programs read no damaged file.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        where = error.json_path.removeprefix("$").lstrip(".") or "the file"
        reason = " ".join(error.message.split())
        if len(reason) > 200:
            reason = f"{reason[:90]} ... {reason[-90:]}"
        raise UserError(
            f"{os.fspath(path)}: {where}: {reason}; expected {what}: restore or remove "
            "the file"
        )
