"""Caffe's ``.caffemodel``: the protocol-buffer wire format, without Caffe.

Only the messages on the way to the arrays are read (field numbers of caffe.proto)::

    NetParameter: layer = 100 (LayerParameter), layers = 2 (V1LayerParameter)
    LayerParameter: name = 1, blobs = 7        V1LayerParameter: name = 4, blobs = 6
    BlobProto: data = 5, double_data = 8, shape = 7 (BlobShape: dim = 1),
        num, channels, height, width = 1, 2, 3, 4 (before there was a shape)

Every length is checked against the message around it, so a damaged file is an error
and never a read beyond it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segjax.errors import UserError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# field of NetParameter -> fields of the layer: (name, blobs)
_LAYERS = {100: (1, 7), 2: (4, 6)}


class _Damaged(Exception):
    """What is wrong with the file; `read` adds its name."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file as ``{"LAYER[INDEX]": array}``, ``conv1[0]`` for example.

    Arrays are copies, float32 or float64 as stored, in Caffe's shapes: convolutions
    [out, in / groups, h, w], inner products [out, in], in old files with leading ones.

    Raises:
      UserError: not a caffemodel, truncated, or without arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} not found")
    try:
        # Mapped, not read: only the arrays are copied.
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "r").data if size else memoryview(b"")
        arrays = dict(_arrays(data))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except _Damaged as error:
        raise UserError(
            f"{path} is not a whole caffemodel: {error}; download it again"
        ) from error
    if not arrays:
        raise UserError(
            f"{path} holds no arrays; give the .caffemodel of a trained network"
        )
    return arrays


def _arrays(data: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    seen = set()
    for number, wire, layer in _fields(data):
        if number not in _LAYERS or wire != _BYTES:
            continue
        name_field, blobs_field = _LAYERS[number]
        name, blobs = "", []
        for number, wire, value in _fields(layer):
            if number == name_field and wire == _BYTES:
                name = _text(value)
            elif number == blobs_field and wire == _BYTES:
                blobs.append(value)
        if not blobs:
            continue
        if name in seen:
            raise _Damaged(f"two layers with arrays are called {name!r}")
        seen.add(name)
        for index, blob in enumerate(blobs):
            yield f"{name}[{index}]", _blob(blob, f"{name}[{index}]")


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise _Damaged("the name of a layer is no text") from error


def _blob(data: memoryview, name: str) -> np.ndarray:
    shape: list[int] = []
    sides = {1: 0, 2: 0, 3: 0, 4: 0}
    has_shape = False
    values = {5: bytearray(), 8: bytearray()}  # of float and double
    for number, wire, value in _fields(data):
        if number == 7 and wire == _BYTES:
            has_shape, shape = True, _dims(value)
        elif number in sides and wire == _VARINT:
            sides[number] = value
        elif number in values and wire in (_BYTES, _FIXED32, _FIXED64):
            values[number] += value  # packed (many) or not (one): the same bytes
    kind = np.dtype("<f8" if values[8] else "<f4")
    stored = values[8] or values[5]
    count, rest = divmod(len(stored), kind.itemsize)
    shape = shape if has_shape else list(sides.values())
    if rest or not count or len(shape) > 32 or math.prod(shape) != count:
        raise _Damaged(
            f"{name!r} of shape {tuple(shape[:9])} has {len(stored)} bytes of values"
        )
    return np.frombuffer(stored, kind).reshape(shape)


def _dims(data: memoryview) -> list[int]:
    dims = []
    for number, wire, value in _fields(data):
        if number == 1 and wire == _VARINT:
            dims.append(value)
        elif number == 1 and wire == _BYTES:
            position = 0
            while position < len(value):
                dim, position = _varint(value, position)
                dims.append(dim)
    return dims


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """The fields of one message: number, wire type and int (varint) or memoryview."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        wire = key & 7
        value: int | memoryview
        if wire == _VARINT:
            value, position = _varint(data, position)
        elif wire in (_FIXED64, _BYTES, _FIXED32):
            if wire == _BYTES:
                size, position = _varint(data, position)
            else:
                size = 8 if wire == _FIXED64 else 4
            if size > end - position:
                raise _Damaged(f"{size} bytes announced, {end - position} left")
            value = data[position : position + size]
            position += size
        else:
            raise _Damaged(f"unknown wire type {wire}")
        yield key >> 3, wire, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Seven bits per byte, lowest first; the top bit says that more follow."""
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, position + index + 1
    raise _Damaged("it ends within a number, or is no protocol buffer")


def write(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes what :func:`read` returns: V2 layers with packed data, and no more.

    Arrays are float32 or float64 and named ``LAYER[INDEX]``, indices from 0 in order.
    """
    layers: dict[str, list[bytes]] = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(.*)\[(\d+)\]", name)
        if match is None:
            raise ValueError(f"{name!r} is not of the form LAYER[INDEX]")
        layer, index = match.groups()
        blobs = layers.setdefault(layer, [])
        if int(index) != len(blobs):
            raise ValueError(f"{name} comes after {len(blobs)} arrays of its layer")
        dims = b"".join(map(_encode, array.shape))
        number = 8 if array.dtype == np.float64 else 5
        values = np.ascontiguousarray(array, "<f8" if number == 8 else "<f4").tobytes()
        blobs.append(_message(7, _message(1, dims)) + _message(number, values))
    with open(path, "wb") as file:
        for layer, blobs in layers.items():
            body = _message(1, layer.encode())
            body += b"".join(_message(7, blob) for blob in blobs)
            file.write(_message(100, body))


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(number: int, body: bytes) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(len(body)) + body
