"""Folders of masks that take the place of the labels of training images.

FOLDER/ID.png is a palette PNG of train ids, as large as the image that training reads
(after ``data.resize``); FOLDER/pseudo_labels.json says what they are.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segjax import files
from segjax.data.images import write_palette_png
from segjax.data.masks import read_mask
from segjax.errors import UserError
from segjax.labels import VOID

DESCRIPTION = "pseudo_labels.json"
_WHAT = "the description of masks that experiments.pseudo_labels wrote"
_SCHEMA = {
    "type": "object",
    "required": ["classes", "images", "complete"],
    "properties": {
        "classes": {"type": "array", "items": {"type": "string"}},
        "images": {"type": "integer"},
        "complete": {"type": "boolean"},
    },
}


def mask_path(folder: str | Path, image: str) -> Path:
    """Where the mask of an image lies; ids may hold folders."""
    return Path(folder).expanduser() / f"{image}.png"


def write(folder: Path, image: str, label: np.ndarray, palette: np.ndarray) -> None:
    """Writes the mask of an image, uint8 [H, W], whole or not at all."""
    path = mask_path(folder, image)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_palette_png(path, label, palette)


def describe(folder: Path, description: Mapping[str, Any]) -> None:
    """Writes the description; ``complete`` says whether all masks are there."""
    files.write_json(folder / DESCRIPTION, dict(description))


def description(folder: str | Path) -> dict[str, Any]:
    """The description of a folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = files.user_path("--config.data.pseudo_labels", str(folder)) / DESCRIPTION
    return files.read_json(path, _WHAT, _SCHEMA)


def check(folder: str | Path, *, classes: Iterable[str], images: int) -> None:
    """Raises UserError unless a folder is complete, for these classes and images."""
    found = description(folder)
    if not found["complete"]:
        raise UserError(
            f"--config.data.pseudo_labels: {folder} is not complete; start the command "
            "of experiments.pseudo_labels again"
        )
    if found["classes"] != list(classes):
        raise UserError(
            f"--config.data.pseudo_labels: {folder} has the classes "
            f"{', '.join(found['classes'])}; expected {', '.join(classes)}"
        )
    if found["images"] != images:
        raise UserError(
            f"--config.data.pseudo_labels: {folder} has masks of {found['images']} "
            f"images; expected those of the {images} training images"
        )


def read(
    folder: str | Path, image: str, size: tuple[int, int], *, num_classes: int
) -> np.ndarray:
    """The mask of an image.

    Args:
      folder: of pseudo-labels.
      image: its id.
      size: height and width that it must have.
      num_classes: K.

    Returns:
      uint8 [H, W], train ids and 255 = void.

    Raises:
      UserError: no such mask, another size, or another value.
    """
    path = mask_path(folder, image)
    if not path.is_file():
        raise UserError(
            f"{path} not found: expected a mask for every training image: write them "
            "again by experiments.pseudo_labels with the data fields of this run"
        )
    values = read_mask(path).values
    if values.shape != size:
        raise UserError(
            f"{path} has shape {values.shape}, expected {size}, the size of the image "
            "that training reads"
        )
    odd = values[(values >= num_classes) & (values != VOID)]
    if odd.size:
        raise UserError(
            f"{path} holds the value {int(odd[0])}; expected 0 to {num_classes - 1}, "
            f"or {VOID} for void"
        )
    return values.astype(np.uint8)


def fingerprint(folder: str | Path) -> str:
    """24 hex digits that change with the names and bytes of the masks in a folder."""
    root = Path(folder).expanduser()
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root).as_posix()
        digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]
