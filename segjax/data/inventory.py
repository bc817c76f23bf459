"""Whether the files of a published data set are all there."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from segjax import files
from segjax.errors import UserError


def read_list(path: Path, *, name: str, expected: str) -> list[str]:
    """The lines of a split list, stripped, without empty ones.

    Args:
      path: of the list.
      name: of the data set.
      expected: the layout of the data set, for messages.

    Raises:
      UserError: the list is missing, empty, not text, or has a line twice.
    """
    if not path.is_file():
        raise UserError(f"{name}: {path} is missing; expected {expected}")
    text = files.read_text(path, f"a list of the images of {name}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{name}: {path} lists no image")
    twice = [line for line, count in Counter(lines).items() if count > 1]
    if twice:
        raise UserError(
            f"{name}: {path} lists {twice[0]} more than once; expected each image once"
        )
    return lines


def require(folder: Path, wanted: Iterable[str], *, name: str, expected: str) -> None:
    """Checks that files are there and hold something; lists each folder once.

    Args:
      folder: of the data set.
      wanted: paths in it, with "/".
      name: of the data set.
      expected: its layout, for messages.

    Raises:
      UserError: files are missing or empty, as after a download that was cut short.
    """
    by_folder: dict[str, list[str]] = {}
    for path in wanted:
        above, _, file = path.rpartition("/")
        by_folder.setdefault(above, []).append(file)
    total, missing, empty = 0, [], []
    for above, names in by_folder.items():
        sizes: dict[str, int] = {}
        if (folder / above).is_dir():
            with os.scandir(folder / above) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
        total += len(names)
        start = f"{above}/" if above else ""
        missing += [f"{start}{file}" for file in names if file not in sizes]
        empty += [f"{start}{file}" for file in names if sizes.get(file) == 0]
    if missing:
        raise UserError(
            f"{name}: {folder}: {len(missing)} of {total} files are missing, first "
            f"{missing[0]}; expected {expected}: is the download complete?"
        )
    if empty:
        raise UserError(
            f"{name}: {folder}: {len(empty)} of {total} files are empty, first "
            f"{empty[0]}: the download was cut short; load them again"
        )


def check_disjoint(splits: dict[str, list[str]], *, name: str, folder: Path) -> None:
    """Raises UserError if an image is in two splits."""
    seen: dict[str, str] = {}
    for split, ids in splits.items():
        for image in ids:
            if image in seen:
                raise UserError(
                    f"{name}: {folder}: {image} is in the lists of {seen[image]} and "
                    f"of {split}; scores on training images mean nothing: list each "
                    "image once"
                )
            seen[image] = split
