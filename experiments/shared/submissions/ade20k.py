"""ADE20K, scene parsing: gray PNGs of the ids 1..150, one per image."""

from collections.abc import Sequence
from pathlib import Path

from segjax.data import images
from segjax.data.masks import decode_mask


def place(path: Path) -> str:
    """The name of the image, as PNG."""
    return f"{path.stem}.png"


def write(target: Path, results: Sequence[Path]) -> None:
    """Class 0 is id 1: 0 means other objects there, which are not scored."""
    (result,) = results
    images.write_ids_png(target, (decode_mask(result)[0] + 1).astype("uint8"))
