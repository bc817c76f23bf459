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
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from segjax.data.formats import jpeg
from segjax.data.formats.header import (
    Damaged,
    Header,
    Unsupported,
    check_claim,
    valid_orientation,
)


class Layout(NamedTuple):
    """How the first page of a TIFF stores its pixels."""

    height: int
    width: int
    samples: int
    """Samples per pixel, alpha included."""
    bits: int
    """Bits per sample."""
    photometric: int
    planes: bool
    """Whether every sample has segments of its own."""
    compression: int
    predictor: int
    reversed_bits: bool
    orientation: int
    tiled: bool
    segment: tuple[int, int]
    """(height, width) of a tile or strip."""
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    """Bytes of every segment."""
    byteorder: str
    tables: bytes
    """Tables shared by the JPEG-compressed segments."""
    colormap: np.ndarray | None

    @property
    def gray(self) -> bool:
        return self.photometric in _GRAY and self.samples < 3


_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_GRAY = (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
_NONE, _LZW, _JPEG, _PACKBITS, _LZMA, _ZSTD = 1, 5, 7, 32773, 34925, 50000
_DEFLATE = (8, 32946)
# The most that the compressions make of a byte; the last two have no real bound.
_RATIO = {_NONE: 1, _LZW: 4096, _PACKBITS: 64, _JPEG: 4096, _LZMA: 2**14, _ZSTD: 2**15}
_RATIO |= dict.fromkeys(_DEFLATE, 1032)
_REVERSE = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LZMA_MEMORY = 2**28


def read_layout(file: BinaryIO, length: int) -> Layout:
    """The layout of the first page.

    Args:
      file: opened at its start.
      length: of the file in bytes.

    Raises:
      Unsupported: samples, channels or a compression that are not read.
      Exception: of any type for a damaged file.
    """
    with tifffile.TiffFile(file) as opened:
        page = opened.pages.first
        byteorder = opened.byteorder
        tags = page.tags
        colormap = tags.valueof("ColorMap")
        layout = Layout(
            height=int(page.imagelength),
            width=int(page.imagewidth),
            samples=int(page.samplesperpixel),
            bits=_bits(page),
            photometric=int(tags.valueof("PhotometricInterpretation", -1)),
            planes=int(page.planarconfig) == 2 and page.samplesperpixel > 1,
            compression=int(page.compression),
            predictor=int(page.predictor),
            reversed_bits=int(tags.valueof("FillOrder", 1)) == 2,
            orientation=valid_orientation(tags.valueof("Orientation", 1)),
            tiled=bool(page.is_tiled),
            segment=_segment_size(page),
            offsets=tuple(map(int, page.dataoffsets)),
            counts=tuple(map(int, page.databytecounts)),
            byteorder=byteorder,
            tables=bytes(page.jpegtables or b""),
            colormap=None if colormap is None else np.asarray(colormap),
        )
        _check_samples(layout, tuple(map(int, page.extrasamples)))
    _check_segments(layout, length)
    return layout


def _bits(page: tifffile.TiffPage) -> int:
    formats = np.atleast_1d(page.sampleformat)
    bits = set(np.atleast_1d(page.bitspersample).tolist())
    kinds = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "unsigned"}
    found = {kinds.get(int(kind), "complex") for kind in formats}
    if found != {"unsigned"} or not bits <= {1, 2, 4, 8, 16} or len(bits) > 1:
        number = "/".join(map(str, sorted(bits)))
        kind = "/".join(sorted(found))
        raise Unsupported(
            f"holds {kind} samples of {number} bits, expected unsigned samples of 8 or "
            "16 bits: convert it"
        )
    return bits.pop()


def _segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _check_samples(layout: Layout, extra: tuple[int, ...]) -> None:
    """Whether it is known what every channel means.

    Channels beyond the colors are dropped if they are marked as alpha, never otherwise.
    """
    colors = {_RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}.get(layout.photometric)
    if layout.photometric in _GRAY:
        # Three channels without a meaning are taken for red, green, blue, as all
        # programs do that write them.
        colors = 3 if layout.samples == 3 else 1
    if colors is None:
        raise Unsupported(
            f"is a TIFF of PhotometricInterpretation {layout.photometric}, expected "
            "gray, RGB, a palette or CMYK: convert it"
        )
    beyond = layout.samples - colors
    if beyond and not (beyond == 1 and extra[-1:] in ((1,), (2,))):
        raise Unsupported(
            f"has {layout.samples} channels, of which {max(beyond, 0)} are neither "
            "color nor alpha; expected gray or RGB: keep the channels that count"
        )
    bits = {_PALETTE: (1, 2, 4, 8), _CMYK: (8,), _YCBCR: (8,)}.get(layout.photometric)
    if bits and layout.bits not in bits:
        raise Unsupported(f"is a TIFF of colors of {layout.bits} bits: convert it")
    if layout.photometric == _YCBCR and layout.compression != _JPEG:
        raise Unsupported("is a TIFF in YCbCr without JPEG compression: convert it")
    if layout.compression not in _RATIO or layout.predictor not in (1, 2):
        known = "none, LZW, deflate, PackBits, JPEG, ZSTD or LZMA"
        raise Unsupported(
            f"is a TIFF of compression {layout.compression} with predictor "
            f"{layout.predictor}, expected {known}, without or with differences: "
            "convert it"
        )
    odd = layout.bits < 8 and layout.predictor == 2
    depth = 1 if layout.planes else layout.samples
    whole = layout.bits == 8 and layout.predictor == 1 and depth in (1, 3)
    odd |= layout.compression == _JPEG and not whole
    if odd:
        raise Unsupported(
            f"is a TIFF of {layout.samples} channels of {layout.bits} bits with "
            f"compression {layout.compression}, which is not read together: convert it"
        )


def _check_segments(layout: Layout, length: int) -> None:
    """Raises ValueError unless all segments lie within the file and can be as large."""
    height, width = layout.segment
    if min(layout.height, layout.width, height, width) < 1:
        raise Damaged("it claims no pixels")
    down, across = math.ceil(layout.height / height), math.ceil(layout.width / width)
    number = down * across * (layout.samples if layout.planes else 1)
    if len(layout.offsets) != number or len(layout.counts) != number:
        raise Damaged("strips or tiles are missing")
    depth = 1 if layout.planes else layout.samples
    ratio = _RATIO[layout.compression]
    for index, (offset, count) in enumerate(zip(layout.offsets, layout.counts)):
        rows = _rows(layout, index // across % down)
        size = rows * _row_bytes(layout, width, depth)
        if not 0 < offset < offset + count <= length or size > ratio * count + 256:
            raise Damaged("a strip or tile is cut short")


def _rows(layout: Layout, row: int) -> int:
    """Rows that a segment stores: the last strip has fewer, tiles are padded."""
    height = layout.segment[0]
    return height if layout.tiled else min(height, layout.height - row * height)


def _row_bytes(layout: Layout, width: int, depth: int) -> int:
    return (width * depth * layout.bits + 7) // 8


def read_header(file: BinaryIO, length: int) -> Header:
    """The header of the first page; raises as ``read_layout``."""
    layout = read_layout(file, length)
    size = layout.height, layout.width
    header = Header("TIFF", size, layout.gray, layout.bits, layout.orientation)
    check_claim(header, pixels=math.inf)  # its segments have been checked
    return header


def decode(data: bytes, header: Header) -> np.ndarray:
    """Pixels of the first page as stored, without alpha and not turned.

    Returns:
      uint8 or uint16, [H, W] or [H, W, 3] (RGB), black is 0.

    Raises:
      Unsupported: as ``read_layout``.
      Exception: of any type for a damaged file.
    """
    del header
    layout = read_layout(io.BytesIO(data), len(data))
    (height, width), depth = layout.segment, 1 if layout.planes else layout.samples
    down, across = math.ceil(layout.height / height), math.ceil(layout.width / width)
    planes = layout.samples if layout.planes else 1
    dtype = np.uint16 if layout.bits == 16 else np.uint8
    image = np.empty((layout.height, layout.width, planes * depth), dtype)
    for index, (offset, count) in enumerate(zip(layout.offsets, layout.counts)):
        plane, row, column = map(int, np.unravel_index(index, (planes, down, across)))
        segment = data[offset : offset + count]
        samples = _samples(segment, layout, rows=_rows(layout, row), depth=depth)
        top, left = row * height, column * width
        target = image[top : top + height, left : left + width, plane : plane + depth]
        target[:] = samples[: target.shape[0], : target.shape[1]]
    return _colors(image, layout)


def map_pixels(path: str | os.PathLike) -> np.ndarray | None:
    """The samples of a plain TIFF, mapped into memory, of whatever byte order.

    Returns:
      8 or 16 bits, [H, W] or [H, W, 3], read-only; None unless the samples lie
      uncompressed in one piece, upright and with black as 0.
    """
    with open(path, "rb") as file:
        layout = read_layout(file, os.fstat(file.fileno()).st_size)
    sizes = [
        _rows(layout, row) * _row_bytes(layout, layout.width, layout.samples)
        for row in range(len(layout.offsets))
    ]
    starts = layout.offsets[0] + np.cumsum([0, *sizes[:-1]])
    plain = (
        (layout.compression, layout.predictor, layout.orientation) == (_NONE, 1, 1)
        and not (layout.tiled or layout.planes or layout.reversed_bits)
        and (layout.samples, layout.photometric)
        in ((1, _BLACK_IS_ZERO), (3, _BLACK_IS_ZERO), (3, _RGB))
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
    if layout.compression == _JPEG:
        return _decode_jpeg(segment, layout, rows=rows, depth=depth)
    row_bytes = _row_bytes(layout, width, depth)
    if layout.reversed_bits:
        segment = segment.translate(_REVERSE)
    raw = _decompress(segment, layout, rows=rows, row_bytes=row_bytes)
    if len(raw) < rows * row_bytes:
        raise Damaged("a strip or tile is cut short")
    stored = np.frombuffer(raw, np.uint8, rows * row_bytes).reshape(rows, row_bytes)
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


def _decompress(segment: bytes, layout: Layout, *, rows: int, row_bytes: int) -> bytes:
    size = rows * row_bytes
    if layout.compression == _NONE:
        return segment
    if layout.compression in _DEFLATE:
        stream = zlib.decompressobj()
        raw = stream.decompress(segment, size)
        stream.decompress(stream.unconsumed_tail, 1)  # compares the checksum
        return raw
    if layout.compression == _LZMA:
        return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(segment, size)
    return _libtiff(segment, layout.compression, size=(rows, row_bytes))


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
    transform = int(layout.photometric == _YCBCR)
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
    if layout.photometric == _PALETTE:
        if layout.colormap is None:
            raise Damaged("it has no color map")
        table: np.ndarray = layout.colormap.reshape(3, 2**layout.bits).T.astype(
            np.uint16
        )
        if table.max(initial=0) > 255:  # as specified; some programs write 8 bits
            table = table >> 8
        return table.astype(np.uint8)[image[:, :, 0]]
    if layout.photometric == _CMYK:
        ink = image.astype(np.uint16)
        black = 255 - ink[:, :, 3:4]
        return ((255 - ink[:, :, :3]) * black.astype(np.uint32) // 255).astype(np.uint8)
    if layout.bits < 8:
        image = image * (255 // (2**layout.bits - 1))
    if layout.photometric == _WHITE_IS_ZERO:
        image = np.invert(image)
    if layout.samples < 3:
        return np.ascontiguousarray(image[:, :, 0])
    return np.ascontiguousarray(image[:, :, :3])
