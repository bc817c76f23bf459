"""PyTorch's ``.pth`` and ``.pt``: tensors only, without PyTorch and without unpickling.

Such a file is a pickle, a program that may call any function of Python. Here Python
does not run it: :func:`_run` follows the few of its opcodes that containers, numbers,
text and tensors need. Names stay names: nothing is imported, and the only "calls" are
an ordered dictionary and the view that a tensor is of its storage. Any other opcode or
name refuses the whole file. Views are checked against their storage.

Read are the zip files of PyTorch 1.6 and later and the files of the versions before.
"""

import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file before 1.6
_TYPES = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "<u2",  # the upper half of a float32
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "<i1",
    "torch ByteStorage": "<u1",
    "torch BoolStorage": "?",
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
# Entries of a published state dict that are no tensors: milesial/Pytorch-UNet keeps the
# values of the pixels of its masks there.
_NO_TENSORS = ("mask_values",)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(Exception):
    """What the file holds besides tensors."""


class _Name(str):
    """A function or type that the pickle names; never looked up."""


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int  # in elements


class _View(NamedTuple):
    """A tensor before its storage is read; sizes in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _ordered_dict(pairs: Any = ()) -> dict:
    """The call that makes an ordered dictionary: of nothing, or of a list of pairs."""
    if not isinstance(pairs, list | tuple):
        raise _Refused("a copy of a dictionary")
    return dict(_pair(pair) for pair in pairs)


def _pair(pair: Any) -> tuple[Any, Any]:
    """A key and its value; keys that hold others could take long to hash."""
    key, value = pair
    if not isinstance(key, str | int | float | None):
        raise _Refused(f"a key of type {type(key).__name__}")
    return key, value


_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _View,
    "torch._utils _rebuild_tensor_v2": lambda *args: _View(*args[:4]),
    "torch._utils _rebuild_parameter": lambda data, *args: data,
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, for example ``layer1.0.conv1.weight``.

    A training checkpoint may hold it under ``state_dict`` or ``model``; the prefix
    ``module.`` of DataParallel is cut off. bfloat16 comes as float32.

    Raises:
      UserError: a damaged file, one with more than tensors in it, or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} not found")
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        return _state(path, *(_open_zip if is_zip else _open_legacy)(path))
    except UserError:
        raise
    except _Refused as error:
        raise UserError(
            f"{path} is refused: it holds {error}, not only tensors; where you trust "
            "it, save its state dict alone"
        ) from error
    except Exception as error:  # a damaged pickle can end in almost anything
        raise UserError(
            f"{path} cannot be read as a file of torch.save "
            f"({' '.join(str(error).split())[:150] or type(error).__name__}); download "
            "it again"
        ) from error


def _state(path: Path, loaded: Any, load: Callable) -> dict[str, np.ndarray]:
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"{path} holds no state dict (a dict of tensors)")
    values: dict[str, np.ndarray] = {}  # tensors may share their storage
    arrays = {}
    for name, view in loaded.items():
        if name in _NO_TENSORS and not isinstance(view, _View):
            continue
        if not isinstance(view, _View):
            raise UserError(
                f"{path}: {name!r} is a {type(view).__name__}, expected a state dict "
                "of tensors only"
            )
        key = view.storage.key
        if key not in values:
            values[key] = load(view.storage)
        arrays[str(name).removeprefix("module.")] = _tensor(view, values[key])
    return arrays


def _tensor(view: _View, values: np.ndarray) -> np.ndarray:
    """The view of its storage's `values`, without a copy."""
    _, offset, shape, strides = view
    if len(shape) > 8 or min(offset, *shape, *strides, 0) < 0:
        raise ValueError(f"a tensor has {len(shape)} dimensions, or negative ones")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if count and (last >= len(values) or count > len(values)):
        raise ValueError(f"a tensor of shape {shape} does not lie in its storage")
    if not count:
        return np.empty(shape, values.dtype)
    return np.lib.stride_tricks.as_strided(
        values[offset:], shape, [step * values.itemsize for step in strides]
    )


def _open_zip(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """FOLDER/data.pkl, and FOLDER/data/KEY for each storage, not compressed."""
    archive = zipfile.ZipFile(path)
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")
    (name,) = (e.filename for e in entries if e.filename.endswith("/data.pkl"))
    folder = name.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("it was written by a big-endian machine")

    def load(storage: _Storage) -> np.ndarray:
        return _values(storage, archive.read(f"{folder}data/{storage.key}"), 0)

    with archive.open(name) as file:
        return _run(file, {}), load


def _open_legacy(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """Five pickles: magic number, version, system, object, keys; then the storages."""
    with open(path, "rb") as opened:
        file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if _run(file, {}) != _MAGIC:
        raise ValueError("it does not begin with the magic number")
    _run(file, {})
    if not _run(file, {})["little_endian"]:
        raise ValueError("it was written by a big-endian machine")
    storages: dict[str, _Storage] = {}
    loaded = _run(file, storages)
    keys = _run(file, {})
    offsets, offset = {}, file.tell()
    for key in keys:
        # In front of every storage is its number of elements.
        (count,) = np.frombuffer(file, "<i8", 1, offset)
        if count != storages[key].size:
            raise ValueError(f"storage {key} has {count} elements")
        offsets[key] = offset + 8
        offset += 8 + int(count) * np.dtype(_TYPES[storages[key].kind]).itemsize
    return loaded, lambda storage: _values(storage, file, offsets[storage.key])


def _values(storage: _Storage, data: Any, offset: int) -> np.ndarray:
    values = np.frombuffer(data, _TYPES[storage.kind], storage.size, offset)
    if storage.kind == "torch BFloat16Storage":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _run(file: Any, storages: dict[str, _Storage]) -> Any:
    """What one pickle in `file` describes; adds the storages that it names.

    Raises:
      _Refused: it does something else.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def push_name(name: str) -> None:
        if name not in _CALLS and name not in _TYPES:
            raise _Refused(f"Python code ({name.replace(' ', '.')!r})")
        stack.append(_Name(name))

    copied = 0  # by calls; all else makes one item per byte of the pickle at most
    start = file.tell()
    opcodes: Iterable[tuple[Any, Any, Any]] = pickletools.genops(file)
    for opcode, value, position in opcodes:
        op = opcode.name
        if op in _LITERALS:
            stack.append(value)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif op == "MARK":
            marks.append(len(stack))
        elif op == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif op in _TUPLES:
            count = _TUPLES[op]
            stack[-count:] = [tuple(stack[-count:])]
        elif op == "EMPTY_LIST":
            stack.append([])
        elif op == "EMPTY_DICT":
            stack.append({})
        elif op == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif op == "APPENDS":
            items = pop_to_mark()
            stack[-1].extend(items)
        elif op in ("SETITEM", "SETITEMS"):
            if op == "SETITEM":
                marks.append(len(stack) - 2)
            items = pop_to_mark()
            pairs = zip(items[::2], items[1::2], strict=True)
            stack[-1].update(_pair(pair) for pair in pairs)
        elif op == "GLOBAL":
            push_name(value)
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            push_name(f"{module} {name}")
        elif op == "REDUCE":
            args, function = stack.pop(), stack.pop()
            if not isinstance(function, _Name) or function not in _CALLS:
                raise _Refused("a call of something else")
            copied += sum(len(arg) for arg in args if isinstance(arg, list | tuple))
            if copied > position - start:
                raise _Refused("copies of copies")
            stack.append(_CALLS[function](*args))
        elif op == "BUILD":
            stack.pop()  # attributes of an ordered dictionary: versions of the layers
            if not isinstance(stack[-1], dict):
                raise _Refused("an object with attributes")
        elif op == "BINPERSID":
            what, kind, key, _, count, *view = stack.pop()
            if what != "storage" or not isinstance(kind, str) or kind not in _TYPES:
                raise _Refused("a persistent object that is no storage")
            if any(view):
                raise _Refused("a view of a storage")
            if not isinstance(key, str | int) or type(count) is not int:
                raise ValueError("a storage has no name or no size")
            if count < 0:
                raise ValueError(f"storage {key} has {count} elements")
            stack.append(_Storage(str(kind), str(key), count))
            if storages.setdefault(str(key), stack[-1]) != stack[-1]:
                raise ValueError(f"storage {key} is described in two ways")
        elif op not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"the pickle opcode {op}")
    return stack.pop()
