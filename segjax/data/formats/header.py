"""What the header of an image file says, and what can be wrong with it."""

import struct
from typing import NamedTuple


class Header(NamedTuple):
    """What a file says about its pixels."""

    format: str
    """ "PNG", "JPEG", ..."""
    size: tuple[int, int]
    """(height, width) as stored, before the orientation is applied."""
    gray: bool
    """Whether the pixels are gray, perhaps with alpha."""
    bits: int
    """Per sample: 1, 2, 4, 8 or 16; of a palette, those of an index."""
    orientation: int = 1
    """Of EXIF: 1 (upright) to 8."""
    palette: bool = False
    samples: int = 0
    """Channels that can be read one by one, alpha included; 0: only the colors can."""
    unclear: str = ""
    """What is wrong with reading the colors, if channels are neither color nor alpha.
    """

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) with the orientation applied."""
        height, width = self.size
        return (width, height) if self.orientation > 4 else (height, width)


class Damaged(ValueError):
    """A file that is damaged; says what is wrong with it."""


class Unsupported(ValueError):
    """A file that is whole but of a kind that is not read; says what and the cure."""


def check_claim(header: Header, *, pixels: float) -> None:
    """Raises Damaged if the header claims more than ``pixels`` pixels.

    Memory is taken for what a header claims, so that a file of 69 bytes could take
    gigabytes.
    """
    height, width = header.size
    if min(height, width) < 1:
        raise Damaged(f"its header claims {height}x{width} pixels")
    if height * width > pixels:
        raise Damaged(
            f"its header claims {height}x{width} pixels, more than so short a file "
            "can hold"
        )


def exif_orientation(data: bytes) -> int:
    """The orientation that EXIF data name, 1 where they name none.

    Only EXIF counts: XMP may hold another orientation, which viewers do not apply.
    """
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", data, at)
            if tag == 0x0112 and kind == 3:
                return valid_orientation(value)
    except struct.error:  # cut short
        pass
    return 1


def valid_orientation(value: object) -> int:
    """1 for a value that is no orientation."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
