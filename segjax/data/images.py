"""Images in and out: 8-bit pixels of image files, PNG, resizing, palettes.

Everything read is uint8 RGB or gray [H, W, C].  ``segjax.data.decoding`` decodes.
"""

import os

import cv2
import numpy as np
from PIL import Image

from segjax import files
from segjax.data import decoding
from segjax.data.channel_groups import by_group
from segjax.data.formats import png
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
    "majority_label",
    "resize_label",
    "to_pixels",
    "voc_palette",
    "write_ids_png",
    "write_palette_png",
]

VOID_COLOR = (224, 224, 192)
"""How void looks in palette PNGs: entry 255 of the VOC palette."""
ValueRange = tuple[int, int]
"""(low, high): the values that become 0 and 255; (0, 0) those of the type."""
WHOLE: ValueRange = (0, 0)


def decode_image(
    source: str | os.PathLike | bytes,
    channels: int = 3,
    name: str = "",
    *,
    value_range: ValueRange = WHOLE,
) -> np.ndarray:
    """Reads one image as 8-bit RGB, gray, or all of its channels.

    The EXIF orientation is applied.  For 1 and 3 channels, alpha is dropped (not
    blended), gray becomes RGB by repetition and RGB gray by luma (0.299, 0.587, 0.114).
    For any other number, all channels of the file count and must be as many.
    16-bit samples v become round(v / 257), so that 65535 is white whatever the image
    holds, and samples of 8 bits stay; with a value range, samples of both become
    round(255 (v - low) / (high - low)), cut to 0..255.  Only the first page of a TIFF
    and the first frame of an animation are read.

    Args:
      source: path, or the bytes of the file.
      channels: 3 (RGB), 1 (gray), or another number.
      name: what to call the image in errors when ``source`` is bytes.
      value_range: (low, high) of the stored samples.

    Returns:
      uint8 [H, W, channels].

    Raises:
      UserError: the file cannot be read, is damaged, or is neither 8 nor 16 bit; it
        has other channels than are asked for, or some that are neither color nor alpha.
    """
    if not isinstance(source, bytes):
        name = os.fspath(source)
    image = decoding.decode(source, name, channels=channels)
    return to_pixels(image, channels, name or "image", value_range=value_range)


def to_pixels(
    image: np.ndarray,
    channels: int,
    name: str = "image",
    *,
    value_range: ValueRange = WHOLE,
) -> np.ndarray:
    """Samples of 8 or 16 bit, converted as ``decode_image`` says.

    Args:
      image: uint8 or uint16, [H, W], [H, W, 1] or [H, W, 3], or [H, W, channels] if
        there are neither 1 nor 3.
      channels: 3 (RGB), 1 (gray), or another number.
      name: for errors.
      value_range: see ``decode_image``.

    Returns:
      uint8 [H, W, channels]; the same memory where nothing is to be converted.

    Raises:
      UserError: another type or shape.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{name}: holds {image.dtype} samples, expected 8 or 16 bit: convert it"
        )
    colors = channels in decoding.COLORS
    depths = ((), (1,), (3,)) if colors else ((channels,),)
    if image.ndim not in (2, 3) or image.shape[2:] not in depths:
        expected = "[H, W], [H, W, 1] or [H, W, 3] (RGB)"
        raise UserError(
            f"{name}: has shape {list(image.shape)}, expected "
            + (expected if colors else f"[H, W, {channels}]")
        )
    if min(image.shape) < 1:
        raise UserError(f"{name}: has shape {list(image.shape)}, which is empty")
    if image.dtype == np.uint16 or value_range != WHOLE:
        image = _as_8bit(image, value_range)
    if image.ndim == 3 and image.shape[2] == 3 and channels == 1:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    if image.ndim == 2:
        image = image[:, :, None]
    return np.repeat(image, channels, axis=2) if image.shape[2] < channels else image


def _as_8bit(image: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Stretches a range of values, in blocks of rows: the image may be large."""
    low, high = value_range if value_range != WHOLE else (0, 2**16 - 1)
    width = high - low
    result = np.empty(image.shape, np.uint8)
    for top in range(0, len(image), 256):
        rows = image[top : top + 256].astype(np.int32).clip(low, high) - low
        # In integers; halves are rounded up.
        result[top : top + 256] = (2 * 255 * rows + width) // (2 * width)
    return result


def image_header(
    path: str | os.PathLike, channels: int = 0
) -> tuple[tuple[int, int], bool]:
    """Size and kind of an image, from its header alone (its pixels are not decoded).

    Args:
      path: of the image.
      channels: as ``decode_image`` is asked for; 0: 1 or 3.

    Returns:
      ((height, width) as ``decode_image`` would return it, whether it is gray).

    Raises:
      UserError: not the header of an image, or one that ``decode_image`` refuses.
    """
    header = decoding.read_header(path, channels=channels)
    return header.shown, header.gray


def encode_png(image: np.ndarray, *, compressed: bool = True) -> bytes:
    """Lossless PNG of uint8 [H, W], [H, W, 1] (gray) or [H, W, 3] (RGB).

    Without compression it takes a byte per sample, and a fifth of the time to decode.
    """
    if image.ndim == 3 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    how = []
    if not compressed:
        how = [cv2.IMWRITE_PNG_COMPRESSION, 0]
        if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # not in the oldest versions
            how += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    data = cv2.imencode(".png", image, how)[1].tobytes()
    return data if compressed else png.with_one_data_chunk(data)


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
    return by_group(
        lambda part: cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA), image
    )


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes integers [H, W] of 8 or 16 bits to [h, w] by nearest neighbor.

    ``INTER_NEAREST_EXACT``: plain ``INTER_NEAREST`` takes the pixel left above the
    center, half a pixel off from the areas of ``resize_image``.
    """
    h, w = size
    return cv2.resize(label, (w, h), interpolation=cv2.INTER_NEAREST_EXACT)


_QUARTER = 0.25 + 1e-5  # rounded sums of areas


def majority_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes train ids uint8 [H, W] to [h, w] by the most frequent one in each area.

    FRRN's reduction of Cityscapes (its code: ``dltools``): void takes part in the vote,
    and a label with at most a quarter of the area becomes void. Of equally frequent
    labels the lowest one counts. Areas are those of :func:`resize_image`.
    """
    h, w = size
    best = np.zeros(size, np.float32)
    winner = np.full(size, VOID, np.uint8)
    for value in np.unique(label):
        there = (label == value).astype(np.float32)
        share = cv2.resize(there, (w, h), interpolation=cv2.INTER_AREA)
        more = share > best + 1e-5
        best[more], winner[more] = share[more], value
    winner[best <= _QUARTER] = VOID
    return winner


LABEL_RULES = {"nearest": resize_label, "majority": majority_label}
"""How label maps are resized, by ``config.data.resize_labels``."""


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
