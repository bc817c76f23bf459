"""How the first page of a TIFF stores its pixels, and whether that can be read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from segjax.data.formats.header import Damaged, Unsupported, valid_orientation

if TYPE_CHECKING:  # importing it takes 0.1 s, which no --help should wait for
    import tifffile


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
    unclear: str = ""
    """Of ``Header``."""

    @property
    def gray(self) -> bool:
        return self.photometric in _GRAY and self.samples < 3

    @property
    def plain(self) -> bool:
        """Whether the samples are the channels, and not indices or inks."""
        return self.photometric in (*_GRAY, RGB)


WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_GRAY = (WHITE_IS_ZERO, BLACK_IS_ZERO)
NONE, LZW, JPEG, PACKBITS, LZMA, ZSTD = 1, 5, 7, 32773, 34925, 50000
DEFLATE = (8, 32946)
# The most that the compressions make of a byte; the last two have no real bound.
_RATIO = {NONE: 1, LZW: 4096, PACKBITS: 64, JPEG: 4096, LZMA: 2**14, ZSTD: 2**15}
_RATIO |= dict.fromkeys(DEFLATE, 1032)


def read_layout(file: BinaryIO, length: int) -> Layout:
    """The layout of the first page.

    Args:
      file: opened at its start.
      length: of the file in bytes.

    Raises:
      Unsupported: samples, channels or a compression that are not read.
      Exception: of any type for a damaged file.
    """
    import tifffile

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
        _check_samples(layout)
        unclear = _unclear(layout, tuple(map(int, page.extrasamples)))
        layout = layout._replace(unclear=unclear)
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


def _colors_of(layout: Layout) -> int:
    """How many samples are colors; 0 if it is not known."""
    if layout.photometric in _GRAY:
        # Three channels without a meaning are taken for red, green, blue, as all
        # programs do that write them.
        return 3 if layout.samples == 3 else 1
    known = {RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
    return known.get(layout.photometric, 0)


def _unclear(layout: Layout, extra: tuple[int, ...]) -> str:
    """What is wrong with reading the colors alone; "" if nothing is.

    Channels beyond the colors are dropped if they are marked as alpha, never otherwise.
    """
    beyond = layout.samples - _colors_of(layout)
    if not beyond or (beyond == 1 and extra[-1:] in ((1,), (2,))):
        return ""
    cure = "keep the channels that count"
    if layout.plain:
        cure += f", or use all: --config.data.channels={layout.samples}"
    return (
        f"has {layout.samples} channels, of which {max(beyond, 0)} are neither color "
        f"nor alpha; expected gray or RGB: {cure}"
    )


def _check_samples(layout: Layout) -> None:
    """Raises Unsupported for samples and compressions that are not read."""
    if not _colors_of(layout):
        raise Unsupported(
            f"is a TIFF of PhotometricInterpretation {layout.photometric}, expected "
            "gray, RGB, a palette or CMYK: convert it"
        )
    bits = {PALETTE: (1, 2, 4, 8), CMYK: (8,), YCBCR: (8,)}.get(layout.photometric)
    if bits and layout.bits not in bits:
        raise Unsupported(f"is a TIFF of colors of {layout.bits} bits: convert it")
    if layout.photometric == YCBCR and layout.compression != JPEG:
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
    odd |= layout.compression == JPEG and not whole
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
        rows = segment_rows(layout, index // across % down)
        size = rows * row_bytes(layout, width, depth)
        if not 0 < offset < offset + count <= length or size > ratio * count + 256:
            raise Damaged("a strip or tile is cut short")


def segment_rows(layout: Layout, row: int) -> int:
    """Rows that a segment stores: the last strip has fewer, tiles are padded."""
    height = layout.segment[0]
    return height if layout.tiled else min(height, layout.height - row * height)


def row_bytes(layout: Layout, width: int, depth: int) -> int:
    return (width * depth * layout.bits + 7) // 8
