"""Images in and out: 8-bit pixels of image files, PNG, resizing, palettes.

Everything read is uint8 RGB or gray [H, W, C].  ``segjax.data.decoding`` decodes.
"""

import os

import cv2
import numpy as np
from PIL import Image

from segjax import files
from segjax.data import decoding
from segjax.data.listing import list_images
from segjax.data.masks import decode_mask
from segjax.errors import UserError
from segjax.labels import VOID

__all__ = [
    "VOID",
    "VOID_COLOR",
    "decode_image",
    "decode_mask",
    "encode_png",
    "image_header",
    "list_images",
    "resize_image",
    "resize_label",
    "to_pixels",
    "voc_palette",
    "write_ids_png",
    "write_palette_png",
]

VOID_COLOR = (224, 224, 192)
"""How void looks in palette PNGs: entry 255 of the VOC palette."""


def decode_image(
    source: str | os.PathLike | bytes, channels: int = 3, name: str = ""
) -> np.ndarray:
    """Reads one image as 8-bit RGB or gray.

    The EXIF orientation is applied, alpha is dropped (not blended), gray becomes RGB by
    repetition and RGB gray by luma (0.299, 0.587, 0.114).  16-bit samples v become
    round(v / 257), so that 65535 is white whatever the image holds.  Only the first
    page of a TIFF and the first frame of an animation are read.

    Args:
      source: path, or the bytes of the file.
      channels: 3 (RGB) or 1 (gray).
      name: what to call the image in errors when ``source`` is bytes.

    Returns:
      uint8 [H, W, channels].

    Raises:
      UserError: the file cannot be read, is damaged, or is neither 8 nor 16 bit; it
        has channels that are neither color nor alpha.
    """
    if not isinstance(source, bytes):
        name = os.fspath(source)
    return to_pixels(decoding.decode(source, name), channels, name or "image")


def to_pixels(image: np.ndarray, channels: int, name: str = "image") -> np.ndarray:
    """Gray or RGB of 8 or 16 bit, converted as ``decode_image`` says.

    Args:
      image: uint8 or uint16, [H, W], [H, W, 1] or [H, W, 3].
      channels: 3 (RGB) or 1 (gray).
      name: for errors.

    Returns:
      uint8 [H, W, channels]; the same memory where nothing is to be converted.

    Raises:
      UserError: another type or shape.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{name}: holds {image.dtype} samples, expected 8 or 16 bit: convert it"
        )
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        raise UserError(
            f"{name}: has shape {list(image.shape)}, expected [H, W], [H, W, 1] or "
            "[H, W, 3] (RGB)"
        )
    if min(image.shape) < 1:
        raise UserError(f"{name}: has shape {list(image.shape)}, which is empty")
    if image.dtype == np.uint16:
        image = _as_8bit(image)
    if image.ndim == 3 and image.shape[2] == 3 and channels == 1:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    if image.ndim == 2:
        image = image[:, :, None]
    return np.repeat(image, channels, axis=2) if image.shape[2] < channels else image


def _as_8bit(image: np.ndarray) -> np.ndarray:
    """uint16 as round(v / 257), in blocks of rows: the image may be large."""
    result = np.empty(image.shape, np.uint8)
    for top in range(0, len(image), 256):
        rows = image[top : top + 256].astype(np.uint32)
        result[top : top + 256] = (rows + 128) // 257
    return result


def image_header(path: str | os.PathLike) -> tuple[tuple[int, int], bool]:
    """Size and kind of an image, from its header alone (its pixels are not decoded).

    Returns:
      ((height, width) as ``decode_image`` would return it, whether it is gray).

    Raises:
      UserError: not the header of an image, or one that ``decode_image`` refuses.
    """
    header = decoding.read_header(path)
    return header.shown, header.gray


def encode_png(image: np.ndarray) -> bytes:
    """Lossless PNG of uint8 [H, W], [H, W, 1] (gray) or [H, W, 3] (RGB)."""
    if image.ndim == 3 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def write_ids_png(path: str | os.PathLike, label: np.ndarray) -> None:
    """Writes class ids as a gray PNG of 8 bit, or 16 bit for uint16 ``label`` [H, W].

    The file appears under its name only when complete.
    """
    with files.atomic_write(path) as partial:
        partial.write_bytes(encode_png(label))


def write_palette_png(
    path: str | os.PathLike, label: np.ndarray, palette: np.ndarray
) -> None:
    """Writes class ids as a palette PNG: tools read the ids, viewers show colors.

    The file appears under its name only when complete.

    Args:
      path: of the PNG.
      label: integers [H, W] of 0..K-1, or 255 (void, shown as ``VOID_COLOR``).
      palette: uint8 [K, 3] RGB, K <= 255.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[VOID] = VOID_COLOR
    image = Image.fromarray(np.ascontiguousarray(label, np.uint8))
    image.putpalette(table.tobytes())
    with files.atomic_write(path) as partial:
        image.save(partial, format="PNG")


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [H, W, C] to [h, w, C] by averaging over areas (``INTER_AREA``)."""
    h, w = size
    resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    return resized.reshape(h, w, image.shape[2])  # OpenCV drops a single channel


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes integers [H, W] of 8 or 16 bits to [h, w] by nearest neighbor.

    ``INTER_NEAREST_EXACT``: plain ``INTER_NEAREST`` takes the pixel left above the
    center, half a pixel off from the areas of ``resize_image``.
    """
    h, w = size
    return cv2.resize(label, (w, h), interpolation=cv2.INTER_NEAREST_EXACT)


def voc_palette(n: int) -> np.ndarray:
    """The first ``n`` colors of PASCAL VOC, distinct for n <= 256.

    Bits 0, 1, 2 of k become bit 7 of red, green and blue, the next three bits bit 6,
    and so on (VOC development kit).

    Returns:
      uint8 [n, 3], RGB.
    """
    ids = np.arange(n)
    palette = np.zeros((n, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (ids >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette
