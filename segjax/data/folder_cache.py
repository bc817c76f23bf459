"""What is counted in a mask and read of its image's header, kept between programs."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax import bucket_mirror, buckets, files
from segjax.data import decoding
from segjax.data.folder_classes import Values, color_codes, describe
from segjax.data.folder_files import Pair
from segjax.data.masks import read_mask
from segjax.errors import UserError

_MIN_PAIRS = 32
"""Fewer masks are counted in no time."""
_MAX_VALUES = 2**20
"""More counts than this, of photographs given as masks, are not kept."""
_INTEGERS = {"type": "array", "items": {"type": "integer"}}
_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": [
            "size",
            "gray",
            "image_bits",
            "kind",
            "bits",
            "ramp",
            "values",
            "shown",
            "counts",
        ],
        "properties": {
            "size": _INTEGERS | {"minItems": 2, "maxItems": 2},
            "gray": {"type": "boolean"},
            "image_bits": {"enum": [1, 2, 4, 8, 16]},
            "kind": {"enum": ["index", "gray", "color"]},
            "bits": {"enum": [1, 2, 4, 8, 16]},
            "ramp": {"type": "boolean"},
            "values": _INTEGERS | {"minItems": 1},
            "shown": _INTEGERS,
            "counts": _INTEGERS,
        },
    },
}


class Examined(NamedTuple):
    """What is known of an image and its mask."""

    size: tuple[int, int]
    """(H, W)."""
    gray: bool
    """Whether the image is gray."""
    image_bits: int
    """Bits per sample of the image."""
    values: Values
    """The distinct raw values of the mask."""
    counts: np.ndarray
    """Pixels of each, int64 [M]."""


def examine(pair: Pair, channels: int = 0) -> Examined:
    """Reads the header of an image, and counts the values of its mask.

    Args:
      pair: the files; of an instance map, only the header is read.
      channels: as the image is to be read, see ``decoding.read_header``.

    Raises:
      UserError: a file that cannot be read, of another size than its partner, or an
        image of other channels.
    """
    header = decoding.read_header(pair.image, channels=channels)
    size = header.shown
    if pair.instances:
        check_instances(pair, size)
    mask = read_mask(pair.mask)
    if mask.values.shape[:2] != size:
        raise UserError(
            f"{pair.mask}: {mask.values.shape[0]}x{mask.values.shape[1]}, but "
            f"{pair.image} is {size[0]}x{size[1]} (height x width, after EXIF "
            "rotation); expected equal sizes"
        )
    if mask.kind == "color":
        values, counts = np.unique(color_codes(mask.values), return_counts=True)
    else:
        counts = np.bincount(mask.values.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    return Examined(
        size=size,
        gray=header.gray,
        image_bits=header.bits,
        values=describe(mask, values),
        counts=counts,
    )


def check_instances(pair: Pair, size: tuple[int, int]) -> None:
    """Raises UserError unless the header of an instance map fits its image."""
    header = decoding.read_header(pair.instances)
    colors = not (header.gray or header.palette)
    if header.format != "PNG" or colors:
        raise UserError(
            f"{pair.instances}: is a {header.format}{' of colors' * colors}, expected "
            "a gray or palette PNG whose values are the instances, 0 = none"
        )
    if header.shown != size:
        raise UserError(
            f"{pair.instances}: the instance map is {header.shown[0]}x"
            f"{header.shown[1]}, but {pair.image} is {size[0]}x{size[1]} (height x "
            "width, after EXIF rotation); expected equal sizes"
        )


def read(data_dir: str, key: str, number: int) -> list[Examined] | None:
    """What was kept under a key; None if there is nothing or the file is damaged."""
    path = _path(data_dir, key)
    if path is None or not path.is_file():
        return None
    try:
        rows = files.read_json(path, "counts of masks", _SCHEMA)
    except UserError:
        return None
    if len(rows) != number:
        return None
    examined = []
    for row in rows:
        arrays = [
            np.array(row[name], np.int64) for name in ("values", "shown", "counts")
        ]
        values, shown, counts = arrays
        if not values.shape == shown.shape == counts.shape or values.min() < 0:
            return None
        mask_values = Values(values, row["kind"], row["bits"], shown, row["ramp"])
        known = tuple(row["size"]), row["gray"], row["image_bits"]
        examined.append(Examined(*known, mask_values, counts))
    return examined


def write(data_dir: str, key: str, examined: Sequence[Examined]) -> None:
    """Keeps what was found; if that fails, the next program counts again."""
    path = _path(data_dir, key)
    number = sum(len(each.counts) for each in examined)
    if path is None or len(examined) < _MIN_PAIRS or number > _MAX_VALUES:
        return
    rows = [
        {
            "size": each.size,
            "gray": each.gray,
            "image_bits": each.image_bits,
            "kind": each.values.kind,
            "bits": each.values.bits,
            "ramp": each.values.ramp,
            "values": each.values.values.tolist(),
            "shown": each.values.shown.tolist(),
            "counts": each.counts.tolist(),
        }
        for each in examined
    ]
    with contextlib.suppress(OSError):  # another process may be writing the same
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, rows, indent=None)


def _path(data_dir: str, key: str) -> Path | None:
    if buckets.is_bucket(data_dir):
        data_dir = str(bucket_mirror.folder_of(data_dir, bucket_mirror.PREPARED))
    folder = os.path.expanduser(data_dir)
    if not folder or folder.startswith("~"):  # no home folder
        return None
    return Path(folder) / "folder" / f"{key}.json"
