"""ISBI 2012: one TIFF with a page per slice, the probability of the interior of cells.

32-bit floating point, 0 = membrane for certain. The slices of the test set are files of
their own, numbered in the order of the stack.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.datasets import isbi2012
from segjax.errors import UserError


def place(path: Path) -> str:
    """The same file for all slices.

    Raises:
      UserError: the name has no number, by which slices are ordered.
    """
    if not any(map(str.isdigit, path.stem)):
        raise UserError("has no number in its name, by which slices are ordered")
    return "isbi2012.tif"


def write(target: Path, results: Sequence[Path]) -> None:
    """The stack, page by page: only one slice is in memory."""
    import tifffile  # takes 0.1 s, which no --help should wait for

    interior = isbi2012.describe({}).classes.index("interior")
    with (
        files.atomic_write(target) as partial,
        tifffile.TiffWriter(partial) as stack,
    ):
        for result in results:
            with np.load(result) as file:
                page = file["probabilities"][..., interior].astype(np.float32)
            stack.write(page, photometric="minisblack")
