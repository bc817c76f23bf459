"""TIFF: layouts from tifffile, compression from libtiff (in Pillow), zlib and lzma.

No library at hand reads every TIFF rightly: Pillow takes the upper bytes of 16-bit
colors, OpenCV multiplies colors by alpha and garbles planes, tifffile needs a compiled
package for LZW.  So the segments (strips or tiles) are decompressed one by one, and
what their samples mean is decided here.
"""

import io
import lzma
import math
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from segjax.data.formats import jpeg
from segjax.data.formats.header import Damaged, Header, Unsupported, check_claim
from segjax.data.formats.tiff_layout import (
    BLACK_IS_ZERO,
    CMYK,
    DEFLATE,
    JPEG,
    LZMA,
    NONE,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    Layout,
    read_layout,
    row_bytes,
    segment_rows,
)

_REVERSE = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LZMA_MEMORY = 2**28


def read_header(file: BinaryIO, length: int) -> Header:
    """The header of the first page; raises as ``read_layout``."""
    layout = read_layout(file, length)
    size = layout.height, layout.width
    header = Header(
        format="TIFF",
        size=size,
        gray=layout.gray,
        bits=layout.bits,
        orientation=layout.orientation,
        samples=layout.samples if layout.plain else 0,
        unclear=layout.unclear,
    )
    check_claim(header, pixels=math.inf)  # its segments have been checked
    return header


def decode(data: bytes, header: Header) -> np.ndarray:
    """Pixels of the first page as stored, without alpha and not turned.

    Returns:
      uint8 or uint16, [H, W] or [H, W, 3] (RGB), black is 0.

    Raises:
      Unsupported: as ``read_layout``, or channels are neither color nor alpha.
      Exception: of any type for a damaged file.
    """
    del header
    layout = read_layout(io.BytesIO(data), len(data))
    if layout.unclear:
        raise Unsupported(layout.unclear)
    return _colors(_stored(data, layout), layout)


def decode_samples(data: bytes, header: Header) -> np.ndarray:
    """All channels of the first page, uint8 or uint16 [H, W, samples], black is 0.

    Raises:
      Unsupported: as ``read_layout``.
      Exception: of any type for a damaged file.
    """
    del header
    layout = read_layout(io.BytesIO(data), len(data))
    return _gray_levels(_stored(data, layout), layout)


def _stored(data: bytes, layout: Layout) -> np.ndarray:
    """The samples of the first page, [H, W, samples]."""
    (height, width), depth = layout.segment, 1 if layout.planes else layout.samples
    down, across = math.ceil(layout.height / height), math.ceil(layout.width / width)
    planes = layout.samples if layout.planes else 1
    dtype = np.uint16 if layout.bits == 16 else np.uint8
    image = np.empty((layout.height, layout.width, planes * depth), dtype)
    for index, (offset, count) in enumerate(zip(layout.offsets, layout.counts)):
        plane, row, column = map(int, np.unravel_index(index, (planes, down, across)))
        segment = data[offset : offset + count]
        samples = _samples(segment, layout, rows=segment_rows(layout, row), depth=depth)
        top, left = row * height, column * width
        target = image[top : top + height, left : left + width, plane : plane + depth]
        target[:] = samples[: target.shape[0], : target.shape[1]]
    return image


def map_pixels(path: str | os.PathLike, channels: int) -> np.ndarray | None:
    """The samples of a plain TIFF, mapped into memory, of whatever byte order.

    Args:
      path: of the file.
      channels: 1 or 3 for the colors, otherwise the number of all channels.

    Returns:
      8 or 16 bits, [H, W], [H, W, 3] or [H, W, channels], read-only; None unless the
      samples lie uncompressed in one piece, upright and with black as 0.
    """
    with open(path, "rb") as file:
        layout = read_layout(file, os.fstat(file.fileno()).st_size)
    sizes = [
        segment_rows(layout, row) * row_bytes(layout, layout.width, layout.samples)
        for row in range(len(layout.offsets))
    ]
    starts = layout.offsets[0] + np.cumsum([0, *sizes[:-1]])
    plain = (
        (layout.compression, layout.predictor, layout.orientation) == (NONE, 1, 1)
        and not (layout.tiled or layout.planes or layout.reversed_bits)
        and layout.photometric in (BLACK_IS_ZERO, RGB)
        and layout.samples in ((1, 3) if channels in (1, 3) else (channels,))
        and layout.bits in (8, 16)
        and starts.tolist() == list(layout.offsets)
    )
    if not plain:
        return None
    shape = (layout.height, layout.width, layout.samples)
    dtype = layout.byteorder + f"u{layout.bits // 8}"
    array = np.memmap(path, dtype, "r", layout.offsets[0], shape)
    return array[:, :, 0] if layout.samples == 1 else array


def _samples(segment: bytes, layout: Layout, *, rows: int, depth: int) -> np.ndarray:
    """The samples of one segment, [rows, width, depth]."""
    width = layout.segment[1]
    if layout.compression == JPEG:
        return _decode_jpeg(segment, layout, rows=rows, depth=depth)
    stride = row_bytes(layout, width, depth)
    if layout.reversed_bits:
        segment = segment.translate(_REVERSE)
    raw = _decompress(segment, layout, size=(rows, stride))
    if len(raw) < rows * stride:
        raise Damaged("a strip or tile is cut short")
    stored = np.frombuffer(raw, np.uint8, rows * stride).reshape(rows, stride)
    values: np.ndarray = stored
    if layout.bits == 16:
        values = stored.view(layout.byteorder + "u2").astype(np.uint16)
    elif layout.bits < 8:
        bits = np.unpackbits(stored, axis=1).reshape(rows, -1, layout.bits)
        values = np.packbits(bits, axis=2)[:, : width * depth, 0] >> (8 - layout.bits)
    samples = values.reshape(rows, width, depth)
    if layout.predictor == 2:
        return np.cumsum(samples, axis=1, dtype=samples.dtype)
    return samples


def _decompress(segment: bytes, layout: Layout, *, size: tuple[int, int]) -> bytes:
    """The bytes of a segment of so many rows and bytes per row."""
    if layout.compression == NONE:
        return segment
    if layout.compression in DEFLATE:
        stream = zlib.decompressobj()
        raw = stream.decompress(segment, math.prod(size))
        stream.decompress(stream.unconsumed_tail, 1)  # compares the checksum
        return raw
    if layout.compression == LZMA:
        other = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
        return other.decompress(segment, math.prod(size))
    return _libtiff(segment, layout.compression, size=size)


def _libtiff(segment: bytes, compression: int, size: tuple[int, int]) -> bytes:
    """Decompresses a segment as a gray TIFF of one strip: libtiff knows the codecs."""
    tags = {256: size[1], 257: size[0], 258: 8, 259: compression, 262: 1}
    tags |= {273: 8, 277: 1, 278: size[0], 279: len(segment)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
    padded = segment + bytes(len(segment) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(padded))
    number = struct.pack("<H", len(tags))
    wrapped = head + padded + number + directory + bytes(4)
    with Image.open(io.BytesIO(wrapped), formats=["TIFF"]) as image:
        return image.tobytes()


def _decode_jpeg(
    segment: bytes, layout: Layout, *, rows: int, depth: int
) -> np.ndarray:
    """A segment that is a JPEG, whose tables may stand in the TIFF."""
    if segment[:2] != b"\xff\xd8":
        raise Damaged("a segment is no JPEG")
    # Whether three channels are RGB or YCbCr, which TIFF says: Adobe's marker.
    transform = int(layout.photometric == YCBCR)
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    stream = b"\xff\xd8" + (adobe if depth == 3 else b"") + layout.tables[2:-2]
    stream += segment[2:]
    header = jpeg.read_header(io.BytesIO(stream), len(stream))
    height, width = header.size
    fits = rows <= height <= layout.segment[0] and width == layout.segment[1]
    image = jpeg.decode(stream, header) if fits else None
    if image is None or image.size != height * width * depth:
        raise Damaged("a segment is a JPEG of another size")
    return image.reshape(height, width, depth)


def _colors(image: np.ndarray, layout: Layout) -> np.ndarray:
    """Samples [H, W, samples] as gray [H, W] or RGB [H, W, 3]."""
    if layout.photometric == PALETTE:
        if layout.colormap is None:
            raise Damaged("it has no color map")
        table: np.ndarray = layout.colormap.reshape(3, 2**layout.bits).T.astype(
            np.uint16
        )
        if table.max(initial=0) > 255:  # as specified; some programs write 8 bits
            table = table >> 8
        return table.astype(np.uint8)[image[:, :, 0]]
    if layout.photometric == CMYK:
        ink = image.astype(np.uint16)
        black = 255 - ink[:, :, 3:4]
        return ((255 - ink[:, :, :3]) * black.astype(np.uint32) // 255).astype(np.uint8)
    image = _gray_levels(image, layout)
    if layout.samples < 3:
        return np.ascontiguousarray(image[:, :, 0])
    return np.ascontiguousarray(image[:, :, :3])


def _gray_levels(image: np.ndarray, layout: Layout) -> np.ndarray:
    """Samples of at least 8 bits, black is 0."""
    if layout.bits < 8:
        image = image * (255 // (2**layout.bits - 1))
    return np.invert(image) if layout.photometric == WHITE_IS_ZERO else image
