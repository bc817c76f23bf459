"""Label masks: the raw values of PNGs, before any of them means a class."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np

from segjax.data import decoding
from segjax.data.formats import png
from segjax.errors import UserError
from segjax.labels import VOID


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


def decode_mask(
    source: str | os.PathLike | bytes, name: str = ""
) -> tuple[np.ndarray, str]:
    """Reads the raw values of a label mask.

    Args:
      source: path, or the bytes of the file.
      name: what to call the mask in errors when ``source`` is bytes.

    Returns:
      ``(values, kind)`` with kind

      * "index" (palette PNG): the indices, uint8 [H, W];
      * "gray" (1 to 16 bits): the values as stored, uint8 or int32 [H, W];
      * "color" (RGB, RGBA): the colors without alpha, uint8 [H, W, 3].

    Raises:
      UserError: the file cannot be read, is damaged, or is none of these.
    """
    return read_mask(source, name)[:2]


def read_instances(path: str | os.PathLike) -> np.ndarray:
    """Reads an instance map, uint16 [H, W], 0 = no instance.

    Gray PNGs hold the numbers of the instances. In palette PNGs, which are those of
    PASCAL VOC, 255 is the border of objects and becomes 0.

    Raises:
      UserError: as ``decode_mask``, or a color PNG.
    """
    mask = read_mask(path)
    if mask.kind == "color":
        raise UserError(
            f"{os.fspath(path)}: is a PNG of colors, expected a gray or palette PNG "
            "whose values are the instances, 0 = none"
        )
    instances = mask.values.astype(np.uint16)
    if mask.kind == "index":
        instances[instances == VOID] = 0
    return instances


def read_mask(source: str | os.PathLike | bytes, name: str = "") -> Mask:
    """Reads a mask with all that is needed to say what its values mean.

    Like images, masks are turned as their EXIF data say.

    Raises:
      UserError: as ``decode_mask``.
    """
    data, name = decoding.read_bytes(source, name)
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


def read_train_ids(
    path: str | os.PathLike, table: Mapping[int, int], *, name: str, expected: str
) -> np.ndarray:
    """Reads a mask of raw ids as train ids.

    Args:
      path: of a gray or palette PNG.
      table: train id, or 255 = void, of every raw id that may occur.
      name: of the data set.
      expected: the raw ids in words, for messages.

    Returns:
      uint8 [H, W].

    Raises:
      UserError: the file is damaged, is a color image, or holds another value.
    """
    return to_train_ids(
        decode_mask(path)[0], table, path=path, name=name, expected=expected
    )


def to_train_ids(
    values: np.ndarray,
    table: Mapping[int, int],
    *,
    path: str | os.PathLike,
    name: str,
    expected: str,
) -> np.ndarray:
    """Replaces the raw ids of a label map: see ``read_train_ids``.

    ``values`` are integers [H, W], 0 or more; ``path`` is where they were read.
    """
    if values.ndim != 2:
        raise UserError(f"{name}: {path} is a color image; expected {expected}")
    ids = np.full(max(int(values.max()), 255, *table) + 1, -1, np.int16)
    ids[list(table)] = list(table.values())
    if values.dtype == np.uint8:  # in half the time of indexing
        mapped = cv2.LUT(values, ids[:256].astype(np.uint8))
        odd = cv2.LUT(values, (ids[:256] < 0).view(np.uint8))
    else:
        mapped = ids[values]
        odd = mapped < 0
    if odd.any():
        value = values[odd.astype(bool)][0]
        raise UserError(f"{name}: {path} holds the value {value}; expected {expected}")
    return mapped.astype(np.uint8, copy=False)
