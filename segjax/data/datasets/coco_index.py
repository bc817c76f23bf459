"""The objects of each image of COCO, out of the one JSON file that holds all of them.

The file of the training images has 450 MB.  It is read once, and rewritten as one line
per image, with polygons as run lengths.  Readers then take the line of their image.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tqdm

from segjax import files
from segjax.data.layout import DataConfig
from segjax.errors import UserError

_log = logging.getLogger(__name__)

_VERSION = 1
"""To be raised whenever the lines of the same file change."""
_WHAT = "the object annotations of COCO (instances_*2017.json)"


class Line(NamedTuple):
    """Where the objects of an image are."""

    path: Path
    """The file of lines."""
    offset: int
    length: int
    """In bytes; 0 if it has no object."""
    size: tuple[int, int]
    """(H, W) of the image."""


class Thing(NamedTuple):
    """An object of an image."""

    category: int
    """Its raw id, 1..90."""
    crowd: bool
    """Whether it is a group that was outlined as one."""
    mask: np.ndarray
    """Where it is, bool [H, W]."""


def index(
    path: Path, categories: Mapping[int, str], data: DataConfig
) -> dict[str, Line]:
    """The line of each image of a JSON file, by the name of the image's file.

    Args:
      path: of ``instances_train2017.json`` or ``instances_val2017.json``.
      categories: name of each raw id, as the file must have them.
      data: of the config; the lines are kept in ``data_dir``, by name, size and time of
        the JSON file.

    Raises:
      UserError: the file is damaged or not of COCO, or there is no pycocotools.
    """
    folder = files.local_folder(
        "--config.data.data_dir", data.get("data_dir") or "~/.cache/segjax"
    )
    stat = path.stat()
    text = f"{_VERSION} {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    table = folder / "coco_objects" / f"{key}.json"
    lines = table.with_suffix(".lines")
    if not (table.is_file() and lines.is_file()):
        _write(path, categories, table=table, lines=lines)
    found = files.read_json(table, "the index of COCO's objects")
    return {
        name: Line(lines, offset, length, (height, width))
        for name, (offset, length, height, width) in found.items()
    }


def _write(
    path: Path, categories: Mapping[int, str], *, table: Path, lines: Path
) -> None:
    tools = _pycocotools()
    images, objects = _read(path, categories)
    places, offset, empty = {}, 0, 0
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(lines) as partial, partial.open("wb") as file:
            bar = tqdm.tqdm(images.items(), f"index {path.name}", unit="image")
            for image, (name, height, width) in bar:
                every = [
                    _encoded(thing, height, width, path=path, tools=tools)
                    for thing in objects.get(image, ())
                ]
                some = [thing for thing in every if thing[2]]
                empty += len(every) - len(some)
                line = json.dumps(some).encode() + b"\n" if some else b""
                file.write(line)
                places[name] = (offset, len(line), height, width)
                offset += len(line)
        files.write_json(table, places, indent=None)
        if empty:
            _log.warning(
                "note: %s: %d objects are left out, whose outlines have fewer than "
                "three corners",
                *(path, empty),
            )
    except OSError as error:
        raise UserError(
            f"--config.data.data_dir: {table.parent}: cannot be written "
            f"({error.strerror or error}); expected space for the objects of COCO"
        ) from error


def _read(
    path: Path, categories: Mapping[int, str]
) -> tuple[dict[int, tuple[str, int, int]], dict[int, list[dict]]]:
    """Images by id, and the annotations of each.

    Raises:
      UserError: the file is damaged, or not of COCO.
    """
    content = files.read_json(path, _WHAT)
    try:
        found = {each["id"]: each["name"] for each in content["categories"]}
        odd = [k for k in {**categories, **found} if found.get(k) != categories.get(k)]
        if odd:
            raise UserError(
                f"coco: {path}: category {odd[0]} is {found.get(odd[0])!r}, in COCO "
                f"{categories.get(odd[0])!r}; expected {_WHAT}: masks of other "
                "categories are own data (--config.data.name=folder)"
            )
        images = {
            each["id"]: (
                str(each["file_name"]),
                int(each["height"]),
                int(each["width"]),
            )
            for each in content["images"]
        }
        objects: dict[int, list[dict]] = {}
        for each in content["annotations"]:
            objects.setdefault(each["image_id"], []).append(each)
            if each["category_id"] not in categories or each["image_id"] not in images:
                raise UserError(
                    f"coco: {path}: the annotation {each['id']} is of category "
                    f"{each['category_id']} and image {each['image_id']}; expected one "
                    "of the 80 categories of COCO, and an image of this file"
                )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"coco: {path} is not in the form of COCO ({error!r}); expected {_WHAT}"
        ) from error
    return images, objects


def _encoded(
    thing: dict[str, Any], height: int, width: int, *, path: Path, tools: Any
) -> tuple[int, int, list[list]]:
    """Category, crowd and run lengths [height, width, counts] of an annotation.

    There are none if its outline encloses nothing.
    """
    shape = thing.get("segmentation")
    try:
        if isinstance(shape, list):
            if any(len(polygon) % 2 for polygon in shape):
                raise ValueError("a corner has two coordinates")
            # Two corners enclose nothing, and pycocotools takes them for a box.
            shape = [polygon for polygon in shape if len(polygon) >= 6]
            if not all(np.isfinite(np.asarray(p, np.float64)).all() for p in shape):
                raise ValueError("a corner is not finite")
            runs = tools.frPyObjects(shape, height, width) if shape else []
        elif isinstance(shape, dict) and list(shape["size"]) == [height, width]:
            counts = shape["counts"]
            if isinstance(counts, str):
                runs = [{"size": [height, width], "counts": counts.encode()}]
                tools.decode(runs)  # raises ValueError if it is damaged
            elif sum(counts) == height * width and min(counts) >= 0:
                runs = [tools.frPyObjects(shape, height, width)]
            else:
                raise ValueError("its run lengths do not fill the image")
        else:
            raise ValueError("neither polygons nor run lengths of the image's size")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"coco: {path}: the annotation {thing.get('id')} has no outline ({error}); "
            f"expected {_WHAT}"
        ) from error
    some = [[*run["size"], run["counts"].decode()] for run in runs]
    return thing["category_id"], int(thing.get("iscrowd", 0)), some


def read(line: Line) -> list[Thing]:
    """The objects of an image, in the order of the JSON file.

    Raises:
      UserError: the file of lines is damaged.
    """
    if not line.length:
        return []
    tools = _pycocotools()
    try:
        with line.path.open("rb") as file:
            file.seek(line.offset)
            content = json.loads(file.read(line.length))
        things = []
        for category, crowd, runs in content:
            parts = [{"size": [h, w], "counts": text.encode()} for h, w, text in runs]
            mask = tools.decode(tools.merge(parts)).astype(bool)
            things.append(Thing(category, bool(crowd), mask))
        return things
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{line.path}: the index of COCO's objects is damaged ({error}); remove "
            "this file: the next start writes it again"
        ) from error


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "coco: its outlines need pycocotools; pip install 'segjax[coco]'"
        ) from error
    return mask
