"""One reader of image files: headers and pixels of all formats, which always agree."""

import io
import logging
import os
import stat
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from segjax.data.formats import jpeg, png, tiff
from segjax.data.formats.header import (
    Damaged,
    Header,
    Unsupported,
    check_claim,
    exif_orientation,
)
from segjax.errors import UserError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp"),
    *(".webp", ".gif", ".jp2", ".j2k", ".avif"),
)
FORMATS = "PNG, JPEG, TIFF, BMP, WebP, GIF, JPEG 2000 or AVIF"
COLORS = (0, 1, 3)
"""Numbers of channels that mean gray or RGB, 0 either: what a file holds is converted,
and alpha is dropped.  Of any other number, all channels of a file count."""
MAX_PIXELS = 2**30
"""Maximum for an image that is decoded as a whole; larger TIFFs are read in windows."""

# Claims of headers are compared with the length of the file; Pillow's own limit (179
# megapixels) would reject aerial images.
Image.MAX_IMAGE_PIXELS = None


def _silence() -> None:
    """Libraries say nothing of damaged files: our errors name the file."""
    # Where OpenCV keeps the switch depends on its version.
    places = (cv2, getattr(getattr(cv2, "utils", None), "logging", None))
    for place in places:
        set_level = getattr(place, "setLogLevel", None)
        if set_level is not None:
            set_level(0)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


_silence()


_T = TypeVar("_T")


class _Reader(NamedTuple):
    header: Callable[[BinaryIO, int], Header]
    """Reads the header from a file and its length in bytes."""
    pixels: Callable[[bytes, Header], np.ndarray | None]
    """Decodes the pixels, uint8 or uint16 [H, W] or [H, W, 3]; None if damaged."""
    samples: Callable[[bytes, Header], np.ndarray | None] | None = None
    """Decodes all channels, [H, W, samples]; None for formats of colors only."""


def read_header(
    source: str | os.PathLike | bytes, name: str = "", *, channels: int = 0
) -> Header:
    """Reads a header and checks that the file can hold the pixels it claims.

    Args:
      source: path, or the bytes of the file.
      name: of the image in errors; "" takes the path.
      channels: one of ``COLORS``, or the number of channels that the file must hold.

    Raises:
      UserError: not the header of an image; the file is cut short, or too short for
        the size that it claims; a kind of image that is not read; it has channels that
        are neither color nor alpha, or not as many as ``channels``.
    """
    if isinstance(source, bytes):
        name = name or "image"
        header = _header(io.BytesIO(source), len(source), name)
    else:
        name = name or os.fspath(source)
        with open_file(source, name) as file:
            header = _header(file, os.fstat(file.fileno()).st_size, name)
    _check_channels(header, channels, name)
    return header


def _check_channels(header: Header, channels: int, name: str) -> None:
    if channels in COLORS:
        if header.unclear:
            raise UserError(f"{name}: {header.unclear}")
    elif header.samples != channels:
        found = f"is a {header.format} of {header.samples} channels"
        if not header.samples:
            found = f"is a {header.format} of colors, without channels of its own"
        raise UserError(
            f"{name}: {found}, expected {channels} (--config.data.channels), in the "
            "first page of a TIFF or in a PNG"
        )


def decode(
    source: str | os.PathLike | bytes, name: str = "", *, channels: int = 0
) -> np.ndarray:
    """The pixels of an image, turned as its EXIF data say.

    Args:
      source: path, or the bytes of the file.
      name: of the image in errors; "" takes the path.
      channels: one of ``COLORS`` for the colors without alpha, otherwise the number of
        all channels.

    Returns:
      uint8 or uint16, [H, W] (gray) or [H, W, 3] (RGB); [H, W, channels] if
      ``channels`` is none of ``COLORS``.

    Raises:
      UserError: as ``read_header``; damaged pixels; more than ``MAX_PIXELS``.
    """
    data, name = read_bytes(source, name)
    header = read_header(data, name, channels=channels)
    if header.size[0] * header.size[1] > MAX_PIXELS:
        raise UserError(
            f"{name}: has {header.size[0]}x{header.size[1]} pixels, expected at most "
            f"{MAX_PIXELS}: cut it into parts, or store it as a TIFF without "
            "compression, which is read in windows"
        )
    reader = _READERS[header.format]
    read, depth = reader.pixels, () if header.gray else (3,)
    if channels not in COLORS:
        assert reader.samples is not None  # or the header has no samples
        read, depth = reader.samples, (channels,)
    image = guarded(lambda: read(data, header), data, name)
    if image is None or image.shape != (*header.size, *depth):
        raise damaged(name, len(data), "its pixels are damaged")
    return orient(image, header.orientation)


def read_bytes(source: str | os.PathLike | bytes, name: str = "") -> tuple[bytes, str]:
    """The bytes of a file and what to call it in errors."""
    if isinstance(source, bytes):
        return source, name or "image"
    name = name or os.fspath(source)
    with open_file(source, name) as file:
        return file.read(), name


def guarded(read: Callable[[], _T], data: bytes, name: str) -> _T:
    """Calls a function of a library that raises anything for damaged files."""
    try:
        return read()
    except Unsupported as error:
        raise UserError(f"{name}: {error}") from error
    except Damaged as error:
        raise damaged(name, len(data), str(error)) from error
    except Exception as error:
        raise damaged(name, len(data), "its pixels are damaged") from error


def damaged(name: str, length: int, reason: str) -> UserError:
    """The error of a file that is damaged or of another format."""
    return UserError(
        f"{name}: cannot be decoded ({length} bytes): {reason}; expected a whole "
        f"{FORMATS} image: replace or remove it"
    )


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels [H, W, ...] upright, by the orientation of EXIF, 1 to 8."""
    if orientation > 4:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def sniff(head: bytes) -> str:
    """The format by the first bytes of a file; "" if unknown."""
    starts = {
        "PNG": (b"\x89PNG\r\n\x1a\n",),
        "JPEG": (b"\xff\xd8\xff",),
        "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "BMP": (b"BM",),
        "GIF": (b"GIF87a", b"GIF89a"),
        "JPEG2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    }
    for kind, beginnings in starts.items():
        if head.startswith(beginnings):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and b"avi" in head[8:32]:
        return "AVIF"
    return ""


def open_file(path: str | os.PathLike, name: str = "") -> BinaryIO:
    """Opens a regular file; what cannot be opened is a UserError."""
    name = name or os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end
            raise UserError(f"{name}: is not a regular file; expected an image file")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a null in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{name}: cannot be read ({reason}); expected an image file"
        ) from error


def _header(file: BinaryIO, length: int, name: str) -> Header:
    try:
        kind = sniff(file.read(32))
        if not kind:
            reason = "it is of another format" if length else "it is empty"
            raise damaged(name, length, reason)
        file.seek(0)
        return _READERS[kind].header(file, length)
    except UserError:
        raise
    except Unsupported as error:
        raise UserError(f"{name}: {error}") from error
    except Damaged as error:
        raise damaged(name, length, str(error)) from error
    except Exception as error:
        raise damaged(name, length, f"its {kind} header is damaged") from error


# The largest image a file of a format can hold, in pixels per byte: RLE spends two
# bytes on 255 pixels, LZW 12 bits on at most 4096.  The others predict, so that blank
# images have no bound: this is far above what photographs reach, and images up to
# _ALWAYS pixels are always allowed.
_PIXELS_PER_BYTE = {"BMP": 256, "GIF": 4096}
_PREDICTING = 16384
_ALWAYS = 2**25


def _bits_of_jpeg2000(head: bytes) -> int:
    """The most bits of a channel, by the SIZ marker of the codestream; 0: not found."""
    start = head.find(b"\xff\x4f\xff\x51")
    if start < 0:
        return 0
    count = int.from_bytes(head[start + 40 : start + 42])
    # Three bytes per channel; the first holds the bits less 1, and the sign.
    channels = head[start + 42 : start + 42 + 3 * count : 3]
    return max(((bits & 0x7F) + 1 for bits in channels), default=0)


def _pillow(kind: str) -> _Reader:
    """The reader of a format that Pillow reads rightly; of animations, frame 1."""

    def read_header(file: BinaryIO, length: int) -> Header:
        if kind == "JPEG2000" and _bits_of_jpeg2000(file.read(2**16)) > 8:
            # Pillow cuts colors to 8 bits, and their rounding overflows.
            raise Unsupported("is a JPEG 2000 of more than 8 bits: convert it")
        file.seek(0)
        with Image.open(file, formats=[kind]) as image:
            width, height = image.size
            # Palettes are colors, as in PNG; BMP has no other gray.
            gray = image.mode in ("1", "L", "LA") and kind != "GIF"
            orientation = exif_orientation(image.info.get("exif", b""))
        header = Header(kind, (height, width), gray, 8, orientation)
        bound = _PIXELS_PER_BYTE.get(kind, _PREDICTING) * length
        check_claim(header, pixels=bound if kind == "BMP" else max(bound, _ALWAYS))
        return header

    def decode(data: bytes, header: Header) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if image.mode in ("LA", "RGBA") and not header.gray:
                return np.array(image)[:, :, :3]
            if header.gray and image.mode == "LA":
                return np.array(image)[:, :, 0]
            return np.array(image.convert("L" if header.gray else "RGB"))

    return _Reader(read_header, decode)


_READERS = {
    "PNG": _Reader(png.read_header, png.decode, png.decode_samples),
    "JPEG": _Reader(jpeg.read_header, jpeg.decode),
    "TIFF": _Reader(tiff.read_header, tiff.decode, tiff.decode_samples),
} | {kind: _pillow(kind) for kind in ("BMP", "GIF", "WEBP", "JPEG2000", "AVIF")}
