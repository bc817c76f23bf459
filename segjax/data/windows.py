"""Windows of images that are too large to be held several times."""

import os
from collections.abc import Callable

import numpy as np

from segjax.data.decoding import open_file, read_header, sniff
from segjax.data.formats import tiff
from segjax.data.images import WHOLE, ValueRange, decode_image, to_pixels

ReadWindow = Callable[[slice, slice], np.ndarray]


def open_windows(
    source: str | os.PathLike, channels: int, *, value_range: ValueRange = WHOLE
) -> tuple[tuple[int, int], ReadWindow]:
    """A large image to be read in windows.

    An uncompressed TIFF is mapped into memory, so that only what is read is loaded; of
    all other files the 8-bit pixels are held.

    Returns:
      (height, width) and a function of a slice of rows and a slice of columns, inside
      the image, that returns uint8 [h, w, channels] as ``decode_image`` does.

    Raises:
      UserError: as ``decode_image``.
    """
    image = _map_tiff(source, channels)
    if image is None:
        pixels = decode_image(source, channels, value_range=value_range)
        return pixels.shape[:2], array_windows(pixels, channels)
    return image.shape[:2], array_windows(image, channels, value_range=value_range)


def array_windows(
    image: np.ndarray, channels: int, *, value_range: ValueRange = WHOLE
) -> ReadWindow:
    """Reads windows of an array, perhaps one on disk, converted as by ``to_pixels``."""

    def read(rows: slice, columns: slice) -> np.ndarray:
        window = np.asarray(image[rows, columns])
        # Files may hold the other order of bytes.
        window = window.astype(window.dtype.newbyteorder("="), copy=False)
        return to_pixels(window, channels, value_range=value_range)

    return read


def _map_tiff(source: str | os.PathLike, channels: int) -> np.ndarray | None:
    """The first page of a plain TIFF, as ``tiff.map_pixels``; None for other files."""
    with open_file(source) as file:
        if sniff(file.read(8)) != "TIFF":
            return None
    read_header(source, channels=channels)  # says what is wrong with the file
    return tiff.map_pixels(source, channels)
