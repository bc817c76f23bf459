"""Label masks: the raw values of PNGs, before any of them means a class."""

import os
from typing import NamedTuple

import numpy as np

from segjax.data import decoding
from segjax.data.formats import png
from segjax.errors import UserError


class Mask(NamedTuple):
    """The raw values of a mask."""

    values: np.ndarray
    """Integers [H, W], or uint8 [H, W, 3] (RGB) of kind "color"."""
    kind: str
    """"index" (of a palette), "gray" or "color"."""
    bits: int
    """Bits per stored value: a gray mask of 1 bit shows 1 as white."""
    palette: np.ndarray | None
    """Colors of the indices if the kind is "index", uint8 [N, 3] (RGB)."""


def decode_mask(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Reads the raw values of a label mask.

    Returns:
      ``(values, kind)`` with kind

      * "index" (palette PNG): the indices, uint8 [H, W];
      * "gray" (1 to 16 bits): the values as stored, uint8 or int32 [H, W];
      * "color" (RGB, RGBA): the colors without alpha, uint8 [H, W, 3].

    Raises:
      UserError: the file cannot be read, is damaged, or is none of these.
    """
    return read_mask(path)[:2]


def read_mask(path: str | os.PathLike) -> Mask:
    """Reads a mask with all that is needed to say what its values mean.

    Like images, masks are turned as their EXIF data say.

    Raises:
      UserError: as ``decode_mask``.
    """
    data, name = decoding.read_bytes(path)
    kind = decoding.sniff(data[:32])
    if kind not in ("PNG", ""):
        raise UserError(
            f"{name}: mask is stored as {kind}, expected PNG, which keeps every value: "
            "save it again as PNG"
        )
    header = decoding.read_header(data, name)
    values, palette = decoding.guarded(
        lambda: png.decode_values(data, header), data, name
    )
    if values.shape[:2] != header.size:
        raise decoding.damaged(name, len(data), "its pixels are damaged")
    kind = "index" if header.palette else "gray" if header.gray else "color"
    values = decoding.orient(values, header.orientation)
    return Mask(values, kind, header.bits, palette)
