"""Reading and writing small files: whole files only, and one-line errors for bad ones.

Every file of a run that is rewritten goes through :func:`atomic_write`, and every text
or JSON file that a user or a crash can damage is read by :func:`read_text` or
:func:`read_json`.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segjax.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name to write to, which becomes ``path`` when the block ends.

    A killed program or a full disk therefore never leaves part of a file under its
    final name, and never damages the file that was there before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 1) -> None:
    """Writes a JSON file atomically, ending in a newline."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


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


def find_folder(address: str, value: str, expected: str) -> Path:
    """A folder that a user has given.

    Args:
      address: of the value, for the message: "--config.data.root".
      value: the path of the folder.
      expected: what should be there.

    Raises:
      UserError: there is no such folder.
    """
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
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{os.fspath(path)}: byte {error.start} is not UTF-8; expected {what} in "
            "UTF-8: save the file again with that encoding"
        ) from error
    except OSError as error:
        raise UserError(
            f"{os.fspath(path)}: cannot be read ({error.strerror}); expected {what}"
        ) from error


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
