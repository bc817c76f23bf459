"""Cell Tracking Challenge: uint16 TIFFs of objects, and the text file of their tracks.

Objects are the 4-connected components of the class "cell". They are not followed from
frame to frame: each is a track of its own frame, which the measure SEG does not mind
and TRA does.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.datasets import cell_tracking
from segjax.data.masks import decode_mask
from segjax.errors import UserError
from segjax.scoring.flooding import components


def place(path: Path) -> str:
    """``NN_RES/maskTTT.tif`` of the frame ``NN/tTTT.tif``, or of the id ``NN_tTTT``.

    Raises:
      UserError: the frame or its folder has another name.
    """
    match = re.fullmatch(r"(?:(\d\d)_)?t(\d{3,4})", path.stem)
    sequence = (match and match[1]) or path.absolute().parent.name
    if not match or not re.fullmatch(r"\d\d", sequence):
        raise UserError(
            "is not named as a frame; expected 01/t000.tif, 01/t001.tif, .."
        )
    return f"{sequence}_RES/mask{match[2]}.tif"


def write(target: Path, results: Sequence[Path]) -> None:
    """The objects of one frame, 1, 2, ..; 0 is the background."""
    import tifffile  # takes 0.1 s, which no --help should wait for

    (result,) = results
    cell = cell_tracking.describe({}).classes.index("cell")
    objects = components(decode_mask(result)[0] == cell)
    if objects.max() > np.iinfo(np.uint16).max:
        raise _too_many(target.name)
    with files.atomic_write(target) as partial:
        tifffile.imwrite(partial, objects.astype(np.uint16))


def finish(folder: Path) -> None:
    """Numbers the objects through each sequence, and writes ``res_track.txt``.

    A track is a line "label, first frame, last frame, parent (0: none)".

    Raises:
      UserError: a sequence has more objects than uint16 can number.
    """
    import tifffile

    for sequence in sorted(folder.glob("*_RES")):
        lines, before = [], 0
        for path in sorted(sequence.glob("mask*.tif")):
            objects = tifffile.imread(path).astype(np.int64)
            count, frame = int(objects.max()), int(path.stem.removeprefix("mask"))
            if before + count > np.iinfo(np.uint16).max:
                raise _too_many(sequence.name)
            objects[objects > 0] += before
            with files.atomic_write(path) as partial:
                tifffile.imwrite(partial, objects.astype(np.uint16))
            numbers = range(before + 1, before + count + 1)
            lines += [f"{number} {frame} {frame} 0\n" for number in numbers]
            before += count
        files.write_text(sequence / "res_track.txt", "".join(lines))


def _too_many(name: str) -> UserError:
    return UserError(
        f"--submission=cell_tracking: {name} has more than 65535 objects, which its "
        "numbers of 16 bits cannot tell apart"
    )
