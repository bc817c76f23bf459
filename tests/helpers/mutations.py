"""Damaged files: hypothesis strategies that mutate valid bytes."""

import random
import zlib

from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Sizes and counts that code forgets."""


def mutate(data: bytes, seed: int) -> bytes:
    """One to four edits: bytes, bits, numbers of 1 to 8 bytes, cuts, copies, moves."""
    draw, result = random.Random(seed), bytearray(data)
    for _ in range(draw.randint(1, 4)):
        # Headers are short, and most of what can go wrong is there.
        end = len(result) if draw.random() < 0.4 else min(len(result), 200)
        at = draw.randrange(end) if end else 0
        kind = draw.choice(("byte", "bit", "number", "cut", "insert", "delete", "copy"))
        if kind == "byte" and end:
            result[at] = draw.randrange(256)
        elif kind == "bit" and end:
            result[at] ^= 1 << draw.randrange(8)
        elif kind == "number":
            width = draw.choice((1, 2, 4, 8))
            number = draw.choice(NUMBERS) % 256**width
            order = draw.choice(("big", "little"))
            result[at : at + width] = number.to_bytes(width, order)
        elif kind == "cut":
            del result[draw.randrange(len(result) + 1) :]
        elif kind == "insert":
            result[at:at] = draw.randbytes(draw.choice((1, 4, 100)))
        elif kind == "delete":
            del result[at : at + draw.choice((1, 4, 100))]
        elif kind == "copy" and end:
            start = draw.randrange(len(result))
            piece = result[start : start + draw.choice((4, 12, 200))]
            result[at : at + len(piece)] = piece
    return bytes(result)


def repair(data: bytes) -> bytes:
    """A mutated PNG with the checksums of what its chunks hold now."""
    result, at = bytearray(data), 8
    while at + 12 <= len(result):
        end = at + 8 + int.from_bytes(result[at : at + 4])
        if end + 4 > len(result):
            break
        result[end : end + 4] = zlib.crc32(result[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(result)


def mutants(files: dict[str, bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    """(name of the valid file, mutated bytes)."""
    return st.tuples(st.sampled_from(sorted(files)), st.integers(0, 2**32)).map(
        lambda pair: (pair[0], mutate(files[pair[0]], pair[1]))
    )
