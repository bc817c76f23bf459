"""Image files in and out, in one place: decoding, masks, PNG, lists of files, palettes.

Everything read is uint8 RGB or gray [H, W, C]; OpenCV's BGR never leaves this module.
"""

import glob
import io
import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from segjax import files
from segjax.errors import UserError
from segjax.labels import VOID

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOID_COLOR = (224, 224, 192)
"""How void looks in palette PNGs: entry 255 of the VOC palette."""

# Only headers and masks go through Pillow, and they are the user's own files: its
# limit against decompression bombs (179 megapixels) would reject aerial images.
Image.MAX_IMAGE_PIXELS = None

# Of damaged files, OpenCV prints warnings besides; our errors name the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

_EXIF_ORIENTATION = 0x0112
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANES = 258, 262, 277, 284
_TILE_WIDTH, _EXTRA_SAMPLES = 322, 338
_GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def decode_image(
    source: str | os.PathLike | bytes, channels: int = 3, name: str = ""
) -> np.ndarray:
    """Reads one image as 8-bit RGB or gray.

    The EXIF orientation is applied, alpha is dropped (not blended), gray becomes RGB by
    repetition and RGB gray by luma (0.299, 0.587, 0.114).  16-bit samples v become
    round(v / 257), so that 65535 is white whatever the image holds.  Of a multi-page
    TIFF, the first page is read.

    Args:
      source: path, or the bytes of the file.
      channels: 3 (RGB) or 1 (gray).
      name: what to call the image in errors when ``source`` is bytes.

    Returns:
      uint8 [H, W, channels].

    Raises:
      UserError: the file cannot be read, is damaged, or is neither 8 nor 16 bit.
    """
    if isinstance(source, bytes):
        data, name = source, name or "image"
    else:
        name = os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise UserError(
                f"{name}: cannot be read ({error.strerror}); expected an image file"
            ) from error
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    try:
        if data[:2] in (b"II", b"MM"):
            image = _decode_odd_tiff(data, name)
            if image is not None:
                return to_pixels(image, channels, name)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # raised for an empty file or an absurd size, otherwise None
        image = None
    if image is None:
        raise UserError(
            f"{name}: cannot be decoded ({len(data)} bytes); the file is damaged, cut "
            "short or not a PNG, JPEG, TIFF or BMP image: replace or remove it"
        )
    if image.ndim == 3:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)  # in place: it may be large
    return to_pixels(image, channels, name)


def _decode_odd_tiff(data: bytes, name: str) -> np.ndarray | None:
    """A TIFF of the kinds that OpenCV garbles; None for all others.

    OpenCV multiplies 8-bit colors by their alpha, and cannot read or turn some tiles
    of 8 bit, which Pillow can; nobody here reads planes or white as 0 in 16 bit, of
    which OpenCV makes noise and a negative.

    Returns:
      uint8 [H, W] or [H, W, 3], turned as the file says.

    Raises:
      UserError: 16 bit in planes or with white as 0.
    """
    try:
        # Of bytes, not of the path: Pillow does not turn what it maps.
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            tags = image.tag_v2
            deep = max(tags.get(_BITS, (1,))) == 16
            planes = tags.get(_PLANES, 1) == 2 and tags.get(_SAMPLES, 1) > 1
            inverted = tags.get(_PHOTOMETRIC) == 0
            odd = _TILE_WIDTH in tags or 2 in tags.get(_EXTRA_SAMPLES, ())
            odd = odd and image.mode in ("L", "LA", "RGB", "RGBA") and not deep
            pixels = np.array(image) if odd else None
    except Exception:  # a damaged file raises anything; the decoder says so
        return None
    if deep and (planes or inverted):
        what = "in planes" if planes else "with white as 0"
        raise UserError(
            f"{name}: is a 16-bit TIFF {what}, expected samples side by side and black "
            "as 0: convert it"
        )
    if pixels is None or pixels.ndim == 2:
        return pixels
    colors = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return np.ascontiguousarray(colors)


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
      UserError: not the header of an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            gray = image.mode in _GRAY_MODES
            # Pillow has applied the orientation of a TIFF to its size already, and
            # would decode a whole PNG to look for EXIF behind the pixels.
            known = image.format != "TIFF" and (
                image.format != "PNG" or "exif" in image.info
            )
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1) if known else 1
            turned = orientation in (5, 6, 7, 8)  # by 90 degrees
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{os.fspath(path)}: not readable as an image ({_state(path)}); expected "
            "a PNG, JPEG, TIFF or BMP image: replace or remove it"
        ) from error
    return ((width, height) if turned else (height, width)), gray


def _state(path: str | os.PathLike) -> str:
    """What an unreadable file is."""
    try:
        size = os.path.getsize(path)
    except OSError as error:
        return error.strerror or "missing"
    return f"{size} bytes, damaged or of another format" if size else "empty"


def decode_mask(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Reads the raw values of a label mask, before any of them means a class.

    OpenCV would turn palette indices into colors and 1-bit values into 0 and 255, so
    masks go through Pillow.

    Returns:
      ``(values, kind)`` with kind

      * "index" (palette PNG): the indices, uint8 [H, W];
      * "gray" (1, 8 or 16 bit): the values, uint8 or int32 [H, W];
      * "color" (RGB, RGBA): the colors without alpha, uint8 [H, W, 3].

    Raises:
      UserError: the file cannot be read, is damaged, or is none of these.
    """
    name = os.fspath(path)
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{name}: mask cannot be decoded; the file is missing, damaged or cut "
            "short: replace it"
        ) from error
    if mode == "P":
        return values, "index"
    if mode in ("1", "L"):
        return values.astype(np.uint8, copy=False), "gray"
    if mode == "LA":
        return values[:, :, 0], "gray"
    if mode == "I" or mode.startswith("I;16"):
        return values.astype(np.int32), "gray"
    if mode in ("RGB", "RGBA"):
        return values[:, :, :3], "color"
    raise UserError(
        f"{name}: mask of Pillow mode {mode}, expected a palette, gray (8 or 16 bit) "
        "or RGB PNG"
    )


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


def list_images(paths: Iterable[str | os.PathLike]) -> list[str]:
    """Expands files, folders (their images, not those of subfolders), globs and lists.

    Args:
      paths: what a user typed; ``**`` in a glob descends into folders. ``@FILE`` is a
        text file with one path per line, which need not exist; blank lines and lines
        that start with # are left out.

    Returns:
      Paths in the order given, those of one folder or glob sorted by name, each once.

    Raises:
      UserError: something that does not exist or holds no image.
    """
    found: list[str] = []
    for given in map(os.fspath, paths):
        path = os.path.expanduser(given)
        if given.startswith("@"):
            names = _read_list(os.path.expanduser(given[1:]))
        elif os.path.isfile(path):
            names = [path]
        elif os.path.isdir(path):
            names = [os.path.join(path, name) for name in image_names(path)]
        else:
            matches = sorted(glob.glob(path, recursive=True))
            names = [name for name in matches if is_image_name(name)]
        if not names:
            raise UserError(
                f"{given}: no image there; expected a file, a folder or a glob of "
                f"{', '.join(IMAGE_SUFFIXES)} files"
            )
        found += names
    return list(dict.fromkeys(found))


def _read_list(path: str) -> list[str]:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"@{path}: not readable ({error}); expected a text file of paths"
        ) from error
    lines = [line.strip() for line in lines]
    return [os.path.expanduser(s) for s in lines if s and not s.startswith("#")]


def image_names(folder: str | os.PathLike) -> list[str]:
    """Sorted names of the image files in a folder; hidden files are not images."""
    return sorted(entry.name for entry in os.scandir(folder) if is_image_name(entry))


def is_image_name(path: str | os.PathLike) -> bool:
    """Whether the name is that of an image: a known suffix, and not hidden."""
    name = os.path.basename(path)
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [H, W, C] to [h, w, C] by averaging over areas (``INTER_AREA``)."""
    h, w = size
    resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    return resized.reshape(h, w, image.shape[2])  # OpenCV drops a single channel


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [H, W] to [h, w] by nearest neighbor between pixel centers.

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
