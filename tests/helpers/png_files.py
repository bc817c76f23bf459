"""PNGs of every kind, written chunk by chunk."""

import struct
import zlib

import numpy as np


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(
    values: np.ndarray, bits: int, color: int, before=b"", behind=b""
) -> tuple[bytes, ...]:
    """The parts of a PNG of samples [h, w, samples]: signature, header, chunks before
    the pixels, pixels, chunks behind them, end."""
    height, width, samples = values.shape
    wide = values.reshape(height, -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in wide]
    else:
        planes = (wide[:, :, None] >> np.arange(bits)[::-1]) & 1
        packed = np.packbits(planes.reshape(height, -1).astype(bool), axis=1)
        rows = [row.tobytes() for row in packed]
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (
        *(b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), before),
        *(chunk(b"IDAT", pixels), behind, chunk(b"IEND", b"")),
    )


def whole(parts: tuple[bytes, ...]) -> bytes:
    return b"".join(parts)
