"""PNG: headers and checksums here, pixels from OpenCV, raw values from Pillow."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image

from segjax.data.formats.header import (
    Damaged,
    Header,
    Unsupported,
    check_claim,
    exif_orientation,
)

_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_SAMPLES = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGB_ALPHA: 4}
_DEFLATE = 1032
"""The most bytes that deflate makes of one (zlib's technical details)."""
_HEAD = struct.Struct(">I4s")
_PIXELS = b"IHDR", b"PLTE", b"IDAT", b"IEND"
_EXIF_BYTES = 2**20
"""Longer EXIF data are not looked into."""


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    """Offset of its data in the file."""
    length: int


def _chunks(file: BinaryIO, length: int) -> Iterator[_Chunk]:
    """The chunks up to IEND, all of which lie within the file."""
    start = 8
    while True:
        file.seek(start)
        head = file.read(8)
        size, kind = _HEAD.unpack(head) if len(head) == 8 else (0, b"")
        if start + 12 + size > length:
            raise Damaged("it is cut short")
        yield _Chunk(kind, start + 8, size)
        if kind == b"IEND":
            return
        start += 12 + size


def read_header(file: BinaryIO, length: int) -> Header:
    """Reads a header; EXIF may stand before or behind the pixels.

    Raises:
      Damaged: no header, a chunk that does not lie within the file, or fewer bytes of
        compressed pixels than the claimed size needs.
    """
    compressed, orientation = 0, 1
    fields: tuple[int, int, int, int] | None = None
    for chunk in _chunks(file, length):
        if fields is None:
            if chunk.kind != b"IHDR" or chunk.length != 13:
                raise Damaged("its first chunk is no header")
            file.seek(chunk.start)
            fields = struct.unpack(">IIBB", file.read(10))
        elif chunk.kind == b"IDAT":
            compressed += chunk.length
        elif chunk.kind == b"eXIf" and chunk.length < _EXIF_BYTES:
            file.seek(chunk.start)
            orientation = exif_orientation(file.read(chunk.length))
    if fields is None:
        raise Damaged("it has no header")
    width, height, bits, color = fields
    small = color in (_GRAY, _PALETTE)
    if color not in _SAMPLES or bits not in ((1, 2, 4, 8, 16) if small else (8, 16)):
        raise Damaged(f"its header claims color type {color} of {bits} bits")
    gray = color in (_GRAY, _GRAY_ALPHA)
    header = Header(
        format="PNG",
        size=(height, width),
        gray=gray,
        bits=bits,
        orientation=orientation,
        palette=color == _PALETTE,
        samples=0 if color == _PALETTE else _SAMPLES[color],
    )
    row_bytes = 1 + (width * _SAMPLES[color] * bits + 7) // 8
    check_claim(header, pixels=width * _DEFLATE * compressed / row_bytes)
    return header


def _pixel_chunks(data: bytes) -> bytes:
    """The PNG of the chunks that make the pixels, whose checksums are right.

    Decoders differ in what they make of profiles, transparency and animations.
    """
    view = memoryview(data)
    parts, whole = [view[:8]], True
    for kind, start, end in _chunks_of(data):
        if kind in _PIXELS:
            checksum = int.from_bytes(view[end - 4 : end])
            if zlib.crc32(view[start + 4 : end - 4]) != checksum:
                raise Damaged(f"the checksum of its {kind.decode()} chunk is wrong")
            parts.append(view[start:end])
        else:
            whole = False
    return data if whole and end == len(data) else b"".join(parts)


def _chunks_of(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the chunks up to IEND, with their heads and checksums."""
    start, kind = 8, b""
    while kind != b"IEND":
        if start + 12 > len(data):
            raise Damaged("it is cut short")
        length, kind = _HEAD.unpack_from(data, start)
        end = start + 12 + length
        if end > len(data):
            raise Damaged("it is cut short")
        yield kind, start, end
        start = end


def with_one_data_chunk(data: bytes) -> bytes:
    """The same PNG with all of its pixels in one chunk, which is faster to read."""
    view = memoryview(data)
    chunks = [view[start:end] for _, start, end in _chunks_of(data)]
    pixels = [i for i, chunk in enumerate(chunks) if chunk[4:8] == b"IDAT"]
    body = b"IDAT" + b"".join(chunks[i][8:-4] for i in pixels)
    one = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return b"".join([view[:8], *chunks[: pixels[0]], one, *chunks[pixels[-1] + 1 :]])


def decode(data: bytes, header: Header) -> np.ndarray | None:
    """Pixels as stored: uint8 or uint16, [H, W] or [H, W, 3] (RGB), without alpha."""
    data = _pixel_chunks(data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim == 2:
        return image
    if header.gray:
        return np.ascontiguousarray(image[:, :, 0])
    code = cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(image, code)


def decode_samples(data: bytes, header: Header) -> np.ndarray | None:
    """All channels as stored, alpha among them: uint8 or uint16 [H, W, samples]."""
    data = _pixel_chunks(data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim == 2:
        return image if image is None else image[:, :, None]
    if header.gray:  # OpenCV repeats gray before alpha
        return np.ascontiguousarray(image[:, :, [0, 3]])
    code = cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(image, code)


def decode_values(data: bytes, header: Header) -> tuple[np.ndarray, np.ndarray | None]:
    """The stored values, which OpenCV would turn into colors or spread over 0..255.

    Returns:
      Values: integers [H, W] of gray (of 1 to 16 bits as they are) and palettes, uint8
      [H, W, 3] of colors, without alpha; and the palette, uint8 [N, 3], or None.

    Raises:
      Unsupported: 16-bit colors, or 16-bit gray with alpha, of which Pillow reads the
        upper bytes only.
      Exception: of any type for a damaged file.
    """
    with Image.open(io.BytesIO(_pixel_chunks(data)), formats=["PNG"]) as image:
        mode = image.mode
        if header.bits == 16 and (mode in ("LA", "RGBA") or not header.gray):
            raise Unsupported(
                "holds 16-bit colors or alpha, expected 8 bits, or 16-bit gray without "
                "alpha: convert it"
            )
        values = np.array(image)
        palette = image.getpalette("RGB") if header.palette else None
    if palette is not None:
        return values, np.array(palette, np.uint8).reshape(-1, 3)
    if header.bits < 8 and mode == "L":  # Pillow spreads 2 and 4 bits over 0..255
        return values // (255 // (2**header.bits - 1)), None
    if header.gray and values.ndim == 3:
        values = values[:, :, 0]
    if header.gray:
        return values.astype(np.int32 if header.bits == 16 else np.uint8), None
    return values[:, :, :3], None
