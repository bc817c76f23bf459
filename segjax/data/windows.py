"""Windows of images too large to be decoded and held carelessly."""

import os
from collections.abc import Callable

import numpy as np
import tifffile

from segjax.data.images import decode_image, to_pixels

ReadWindow = Callable[[slice, slice], np.ndarray]


def open_windows(
    source: str | os.PathLike, channels: int
) -> tuple[tuple[int, int], ReadWindow]:
    """A large image to be read in windows.

    An uncompressed TIFF is mapped into memory, so that only what is read is loaded; of
    all other files the 8-bit pixels are held.

    Returns:
      (height, width) and a function of a slice of rows and a slice of columns, inside
      the image, that returns uint8 [h, w, channels] as of ``decode_image``.

    Raises:
      UserError: as ``decode_image``.
    """
    image = _map_tiff(source)
    if image is None:
        image = decode_image(source, channels)
    return image.shape[:2], array_windows(image, channels)


def array_windows(image: np.ndarray, channels: int) -> ReadWindow:
    """Reads windows of an array, perhaps one on disk, as of ``to_pixels``."""

    def read(rows: slice, columns: slice) -> np.ndarray:
        window = np.asarray(image[rows, columns])
        # Files may hold the other order of bytes.
        window = window.astype(window.dtype.newbyteorder("="), copy=False)
        return to_pixels(window, channels)

    return read


def _map_tiff(source: str | os.PathLike) -> np.ndarray | None:
    """The first page of a plain TIFF, [H, W] or [H, W, 3], or None for other files."""
    if not os.fspath(source).lower().endswith((".tif", ".tiff")):
        return None
    try:
        with tifffile.TiffFile(source) as file:
            page = file.pages[0]
            plain = (
                page.is_memmappable
                and page.dtype in (np.uint8, np.uint16)
                and page.axes in ("YX", "YXS")
                and page.shape[2:] in ((), (3,))
                and page.photometric.name in ("MINISBLACK", "RGB")
                and page.tags.valueof("Orientation", 1) == 1
            )
        return tifffile.memmap(source, page=0, mode="r") if plain else None
    except Exception:  # a damaged file raises anything; decoding it says so
        return None
