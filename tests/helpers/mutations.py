"""Damaged files: hypothesis strategies that mutate valid bytes."""

import copy
import json
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


ODD_VALUES = (
    *(None, True, "", "x", "\ud800", "a\0b", "../../x", "é" * 300, "1"),
    *(0, 1, -1, 0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**400),
    *([], {}, [[]], [None], {"a": {}}, [1, 2, 3], {"step": "x"}),
)
"""What no field of a JSON file expects, or only some of them."""


def mutate_json(data: bytes, seed: int) -> bytes:
    """One to three edits of the values of a JSON file, or of its bytes.

    Values are replaced by odd ones, removed, added, renamed, repeated, or exchanged for
    others of the same file.
    """
    draw = random.Random(seed)
    if draw.random() < 0.15:
        return draw.choice((b"", b"{", data[: draw.randrange(len(data) + 1)], b"\xff"))
    if draw.random() < 0.15:
        return mutate(data, seed)
    value = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return json.dumps(draw.choice(ODD_VALUES)).encode()
        # Fields near the root matter most.
        near = [place for place in places if place[2] <= 2]
        parent, key, _ = draw.choice(near if near and draw.random() < 0.6 else places)
        kind = draw.choice(("odd", "odd", "delete", "rename", "repeat", "exchange"))
        if kind == "odd":
            parent[key] = copy.deepcopy(draw.choice(ODD_VALUES))
        elif kind == "delete":
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw.choice(("x", f"{key}x", ""))] = parent.pop(key)
        elif kind == "repeat" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            other, other_key, _ = draw.choice(places)
            parent[key] = copy.deepcopy(other[other_key])
    return json.dumps(value).encode()


def _places(value, depth: int = 1):
    """(container, key, depth) of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in list(items):
        yield value, key, depth
        yield from _places(item, depth + 1)
