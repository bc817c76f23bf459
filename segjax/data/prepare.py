"""Raw files to array_record, once.

Prepared records live in ``DATA_DIR/NAME/KEY/VERSION``.  The key is a hash of the
names, sizes and times of the raw files, so that another folder or a changed file is
another data set and stale records are never read.
"""

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from segjax import bucket_mirror, buckets, files
from segjax.data import shards
from segjax.data.layout import DataConfig, Format, Recipe
from segjax.errors import UserError

_log = logging.getLogger(__name__)

MANY = 1000
"""So many records take a while, which is said before they are written."""
_METADATA = "dataset_info.json"


class Prepared(NamedTuple):
    """A folder of records in ``data_dir``."""

    folder: Path
    """DATA_DIR/NAME/KEY/VERSION, or the folder of what is not complete."""
    records: dict[str, int]
    """Number of records of each split; {} if it is not complete."""
    bytes: int
    stale: bool = False
    """Whether it is not complete, and nobody is writing it."""


def key_of(root: Path, paths: Iterable[Path], order: str = "") -> str:
    """12 hex digits from the relative names, sizes and modification times of files.

    ``order`` is more text that the records depend on, such as the images of each split.
    """
    digest = hashlib.sha256(order.encode())
    ordered = sorted(map(os.fspath, paths), key=lambda path: path.split(os.sep))
    parts = [ordered[i : i + 256] for i in range(0, len(ordered), 256)]
    # In threads: on a network, every answer takes a while.
    with ThreadPoolExecutor(16) as pool:
        stats = pool.map(lambda part: list(map(os.stat, part)), parts)
        for path, stat in zip(ordered, itertools.chain.from_iterable(stats)):
            name = os.path.relpath(path, root)
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def folder_of(recipe: Recipe, data: DataConfig) -> Path:
    """Where the records of a recipe are, or will be."""
    return root_of(data) / recipe.form.name / recipe.key / recipe.form.version


def prepare(recipe: Recipe, data: DataConfig) -> str:
    """Writes the records unless they are there, and returns their folder.

    Raises:
      UserError: as of ``write``.
    """
    folder, count = folder_of(recipe, data), sum(map(len, recipe.splits.values()))
    if count >= MANY and not prepared(recipe.form, recipe.key, data):
        _log.warning(
            "note: preparing %d records of %s first, in %s; experiments.prepare does "
            "that in parallel",
            *(count, recipe.form.name, folder),
        )
    for _ in write(recipe, data):
        pass
    return str(folder)


def write(
    recipe: Recipe, data: DataConfig, *, processes: int = 1
) -> Iterator[shards.Progress]:
    """Writes the records unless they are there: see ``shards.write``.

    Args:
      recipe: of the records.
      data: of the config; ``data_dir`` is the root of the prepared data.
      processes: that write; with 1, this one does.

    Raises:
      UserError: bad files, or nothing can be written to ``data_dir``.
    """
    form, folder = recipe.form, folder_of(recipe, data)
    try:
        if prepared(form, recipe.key, data):
            return
        yield from shards.write(recipe, folder, processes=processes)
        if above := _in_bucket(folder, data):
            bucket_mirror.push(folder, above)
        # The set without a key is the one that was prepared last.
        default = folder.parent.parent / ".config" / "metadata.json"
        default.parent.mkdir(exist_ok=True)
        files.write_json(default, {"default_config_name": recipe.key})
    except OSError as error:
        if shards.is_complete(folder):
            return
        raise UserError(
            f"--config.data.data_dir: {str(root_of(data))[:200]}: cannot write "
            f"{form.name} there ({error.strerror or error}); expected a folder with "
            "write permission and space for the records"
        ) from error


def prepared(form: Format, key: str, data: DataConfig) -> str:
    """The folder of the records of ``key``; "" if there are none.

    Raises:
      UserError: the records are not complete.
    """
    folder = root_of(data) / form.name / key / form.version
    _pull(folder, data)
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            return ""
    except OSError:  # such as a name that is too long, or no permission
        return ""
    if not shards.is_complete(folder):
        raise UserError(
            f"{folder}: the prepared records are incomplete (there is no "
            "dataset_info.json); remove this folder: the next start prepares them again"
        )
    return str(folder)


def only_prepared(form: Format, data: DataConfig) -> str:
    """The folder of the only records of a form in ``data_dir``; "" if there are none.

    Raises:
      UserError: there are records of several keys.
    """
    home = root_of(data) / form.name
    if above := _in_bucket(home, data):
        for name in buckets.find(above):
            if name.endswith(f"/{form.version}/{_METADATA}"):
                _pull((home / name).parent, data)
    found = sorted(home.glob(f"*/{form.version}/{_METADATA}"))
    if len(found) > 1:
        keys = ", ".join(path.parent.parent.name for path in found)
        raise UserError(
            f"--config.data.root is empty, and {home} holds records of several folders "
            f"({keys}); set root, or remove those that are old"
        )
    return str(found[0].parent) if found else ""


def root_of(data: DataConfig) -> Path:
    """The folder of all prepared data on this machine."""
    given = data.get("data_dir") or "~/.cache/segjax"
    return files.local_folder("--config.data.data_dir", given)


def _in_bucket(folder: Path, data: DataConfig) -> str:
    """The name in the bucket of a folder of ``root_of``; "" if that is no copy."""
    given = data.get("data_dir") or ""
    if not buckets.is_bucket(given):
        return ""
    below = folder.relative_to(root_of(data)).as_posix()
    return f"{given.rstrip('/')}/{below}".removesuffix("/.")


def _pull(folder: Path, data: DataConfig) -> None:
    """Copies complete records of a bucket; there need be none."""
    above = _in_bucket(folder, data)
    if above and _METADATA in buckets.find(above):
        bucket_mirror.pull(above, bucket_mirror.PREPARED)


def find_all(data: DataConfig) -> list[Prepared]:
    """All prepared records in ``data_dir``, and what is left of killed preparations."""
    found = []
    if above := _in_bucket(root_of(data), data):
        return _find_in_bucket(above, root_of(data))
    for path in sorted(root_of(data).glob(f"*/*/*/{_METADATA}")):
        if path.parent.name.startswith("incomplete."):
            continue
        info = files.read_json(path, "the metadata of prepared records")
        found.append(Prepared(path.parent, _counts(info), _bytes(path.parent)))
    # Also those of earlier versions, which lay at the top.
    for pattern in ("incomplete.*", "*/*/incomplete.*"):
        for folder in sorted(root_of(data).glob(pattern)):
            claims = [shards.is_stale(claim) for claim in folder.glob("work/*.claim")]
            found.append(Prepared(folder, {}, _bytes(folder), stale=all(claims)))
    return found


def _find_in_bucket(above: str, root: Path) -> list[Prepared]:
    """What ``find_all`` tells of a bucket; ``root`` stands for its name."""
    found, entries = [], buckets.find(above)
    for name in sorted(entries):
        folder = name.removesuffix(f"/{_METADATA}")
        if folder.count("/") == 2 and folder != name:
            path = f"{above}/{name}"
            info = files.read_json(path, "the metadata of prepared records")
            sizes = [
                entry.size
                for other, entry in entries.items()
                if other.startswith(f"{folder}/")
            ]
            found.append(Prepared(root / folder, _counts(info), sum(sizes)))
    return found


def _counts(info: dict[str, Any]) -> dict[str, int]:
    """Number of records of each split, of the metadata of TFDS."""
    return {
        split["name"]: sum(map(int, split["shardLengths"]))
        for split in info.get("splits", ())
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
