"""Raw folders to array_record, once.

Prepared records live in ``DATA_DIR/NAME/KEY/VERSION``.  The key is a hash of the
names, sizes and times of the raw files, so that another folder or a changed file is
another data set and stale records are never read.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segjax import files
from segjax.data.layout import DataConfig, Format
from segjax.errors import UserError

Record = dict[str, str | bytes]
"""One example: ``image`` and ``label`` (bytes of image files) and ``id``."""

Read = Callable[[], Mapping[str, Iterable[Record]]]
"""Checks all raw files, then returns the records of each split in order."""


def key_of(root: Path, paths: Iterable[Path], order: str = "") -> str:
    """12 hex digits from the relative names, sizes and modification times of files.

    ``order`` is more text that the records depend on, such as the images of each split.
    """
    digest = hashlib.sha256(order.encode())
    for path in sorted(paths):
        stat = path.stat()
        entry = f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(entry.encode())
    return digest.hexdigest()[:12]


def prepare(form: Format, *, key: str, read: Read, data: DataConfig) -> str:
    """Writes the records if ``key`` is new, and returns their folder.

    The records are written in a temporary folder, renamed at the end: a killed
    preparation leaves nothing that is mistaken for a data set, and of several
    processes that prepare the same data the first one to finish wins.  (TFDS has such
    a folder too, but names it through ``random``: processes that set the same
    ``random.seed`` would write to the same one.)

    Args:
      form: of the records.
      key: see ``key_of``.
      read: called only if ``key`` is new; raises UserError for bad files.
      data: of the config; ``data_dir`` is the root of the prepared data.

    Raises:
      UserError: from ``read``, or nothing can be written to ``data_dir``.
    """
    root = _root(data)
    folder = root / form.name / key / form.version
    try:
        if prepared(form, key, data):
            return str(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root) as own:
            # Imported on demand: TFDS takes a second.
            from segjax.data import builder

            written = builder.write(form, key=key, read=read, root=own)
            os.rename(written.data_path, folder)
    except OSError as error:
        # The rename fails where another process was faster.
        if not _is_complete(folder):
            raise UserError(
                f"--config.data.data_dir: {str(root)[:200]}: cannot write {form.name} "
                f"there ({error.strerror or error}); expected a folder with write "
                "permission and space for the records"
            ) from error
    return str(folder)


def prepared(form: Format, key: str, data: DataConfig) -> str:
    """The folder of the records of ``key``; "" if there are none.

    Raises:
      UserError: the records are not complete.
    """
    folder = _root(data) / form.name / key / form.version
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            return ""
    except OSError:  # such as a name that is too long, or no permission
        return ""
    if not _is_complete(folder):
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
    found = sorted(_root(data).glob(f"{form.name}/*/{form.version}/dataset_info.json"))
    if len(found) > 1:
        keys = ", ".join(path.parent.parent.name for path in found)
        raise UserError(
            f"--config.data.root is empty, and {_root(data) / form.name} holds records "
            f"of several folders ({keys}); set root, or remove those that are old"
        )
    return str(found[0].parent) if found else ""


def _root(data: DataConfig) -> Path:
    """The folder of all prepared data."""
    given = data.get("data_dir") or "~/.cache/segjax"
    return files.user_path("--config.data.data_dir", given)


def _is_complete(folder: Path) -> bool:
    # The last file that TFDS writes.
    return os.path.isfile(folder / "dataset_info.json")


def check_each(check: Callable[..., object], items: Iterable[tuple]) -> None:
    """Calls ``check(*item)`` in threads; the first error in the order of items wins."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for done in [pool.submit(check, *item) for item in items]:
            done.result()
