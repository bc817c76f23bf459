"""Images that are read when their turn comes, and the versions of files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax.data.source import Size, Source


class Stored(NamedTuple):
    """An image of a data set, whose pixels are those that training has seen."""

    name: str
    size: Size
    """(height, width)."""
    read: Callable[[], np.ndarray]
    """Its pixels, uint8 [H, W, C]. Raises UserError for a damaged file."""

    def __str__(self) -> str:
        return self.name


def stored(source: Source, index: int, *, name: str, size: Size) -> Stored:
    """Image ``index`` of a source."""
    return Stored(name, size, lambda: source[index]["image"])


def file_version(image: np.ndarray | str | os.PathLike | Stored) -> tuple[int, ...]:
    """Size in bytes and time of change of a file; () for what is no file."""
    if isinstance(image, np.ndarray | Stored):
        return ()
    try:
        status = Path(image).stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
