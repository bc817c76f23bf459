"""JPEG: headers here, pixels from OpenCV."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import cv2
import numpy as np

from segjax.data.formats.header import (
    Damaged,
    Header,
    Unsupported,
    check_claim,
    exif_orientation,
)

_APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xDA, 0xD9
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
"""Tables and a reserved marker among the markers of frames, 0xC0 to 0xCF."""
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_PIXELS_PER_BYTE = 512
"""At least one bit is spent on every block of 8x8."""


def _segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """(marker, start of its data, their length) up to the first scan."""
    start = 2
    while True:
        file.seek(start)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            raise Damaged("its header is damaged or cut short")
        marker, size = head[1], int.from_bytes(head[2:])
        if marker == 0xFF:  # padding
            start += 1
        elif marker in _WITHOUT_LENGTH:
            start += 2
        elif size < 2 or marker == _END_OF_IMAGE:
            raise Damaged("it has no pixels")
        else:
            yield marker, start + 4, size - 2
            if marker == _START_OF_SCAN:
                return
            start += 2 + size


def read_header(file: BinaryIO, length: int) -> Header:
    """Reads the header of the frame and the orientation of EXIF data.

    Raises:
      Damaged: no frame, or one that claims more pixels than the file can hold; the
        file is cut short, of which some decoders make gray pixels.
      Unsupported: 12 bits per sample, or 2 channels.
    """
    orientation, frame, scan = None, None, length
    for marker, start, size in _segments(file):
        scan = start
        if marker == _APP1 and orientation is None:
            file.seek(start)
            data = file.read(size)
            if data[:6] == b"Exif\0\0":
                orientation = exif_orientation(data)
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES and frame is None:
            file.seek(start)
            frame = file.read(6)
    if frame is None or len(frame) < 6:
        raise Damaged("it has no frame")
    bits, height, width, samples = struct.unpack(">BHHB", frame)
    if bits != 8 or samples not in (1, 3, 4):
        raise Unsupported(
            f"is a JPEG of {samples} channels of {bits} bits, expected 1, 3 or 4 "
            "channels of 8 bits: convert it"
        )
    header = Header("JPEG", (height, width), samples == 1, 8, orientation or 1)
    check_claim(header, pixels=_PIXELS_PER_BYTE * length)
    if not _has_end(file, length, scan):
        raise Damaged("it is cut short")
    return header


def _has_end(file: BinaryIO, length: int, scan: int) -> bool:
    """Whether the end of the image follows its first scan, perhaps not at once."""
    file.seek(max(length - 2, scan))
    if file.read(2) == b"\xff\xd9":
        return True
    # Within a scan, 0xFF is followed by 0 or a restart marker; before the first scan
    # there may be a thumbnail with an end of its own.
    file.seek(scan)
    return b"\xff\xd9" in file.read()


def decode(data: bytes, header: Header) -> np.ndarray | None:
    """Pixels as stored: uint8 [H, W] or [H, W, 3] (RGB)."""
    flags = cv2.IMREAD_GRAYSCALE if header.gray else cv2.IMREAD_COLOR
    flags |= cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is not None and image.ndim == 3:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)  # in place: it may be large
    return image
