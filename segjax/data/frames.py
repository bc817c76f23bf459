"""Published data sets as sources: read in place, or as records once they are prepared.

A data set that is not small is read in place until ``experiments.prepare`` has written
its records; both give the same examples.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data import prepare
from segjax.data.images import WHOLE, encode_png, image_header
from segjax.data.layout import DataConfig, Frame, Layout, Recipe, Record
from segjax.data.records import RecordSource
from segjax.data.source import Example, Size, Source, check_split
from segjax.errors import UserError
from segjax.labels import VOID


def open_split(layout: Layout, data: DataConfig, split: str) -> Source:
    """Opens a split of a data set on disk.

    Args:
      layout: of the data set.
      data: of the config; ``root`` is the folder of the files.  If it is empty, the
        records that were prepared in ``data_dir`` are read.
      split: its name.

    Raises:
      UserError: files are missing or wrong, there are no records, or no such split.
    """
    form, instances = layout.form, bool(data.get("instances"))
    anywhere = not data.get("root") and not layout.ranged
    if anywhere and (folder := prepare.only_prepared(form, data)):
        return RecordSource(folder, split, form.channels, instances=instances)
    made = recipe(layout, data)
    folder = prepare.prepared(form, made.key, data)
    if layout.small and not folder:
        folder = prepare.prepare(made, data)
    if folder:
        return RecordSource(folder, split, form.channels, instances=instances)
    check_split(form.name, split, made.splits)
    return FrameSource(layout, made.splits[split], instances=instances)


def recipe(layout: Layout, data: DataConfig) -> Recipe:
    """How the records of a data set on disk are made.

    Raises:
      UserError: files are missing or wrong.
    """
    root, splits = layout.find(data)
    record = functools.partial(_record, layout)
    value_range = tuple(data.get("value_range", WHOLE))
    more = "" if value_range == WHOLE else json.dumps(value_range)
    return Recipe(layout.form, key_of(root, splits, more), splits, record)


def _record(layout: Layout, split: str, frame: Frame) -> Record:
    del split  # what there is to say of it is in the frame
    return record_of(layout, frame)


def key_of(root: Path, splits: Mapping[str, Sequence[Frame]], more: str = "") -> str:
    """The key of the records of these frames: see ``prepare.key_of``.

    ``more`` is what they depend on besides, such as a range of values.
    """
    paths = {
        path
        for frames in splits.values()
        for frame in frames
        for path in (frame.image, frame.label, frame.instance, *frame.parts)
        if path is not None
    }
    order = {name: [frame.id for frame in frames] for name, frames in splits.items()}
    return prepare.key_of(root, paths, json.dumps(order) + more)


def read_frame(layout: Layout, frame: Frame, *, instances: bool = False) -> Example:
    """Decodes one frame.

    Raises:
      UserError: a file is missing or damaged, or the sizes of its maps differ.
    """
    image = layout.read_image(frame, layout.form.channels)
    size = image.shape[:2]
    if frame.label is None:
        label = np.full(size, VOID, np.uint8)
    else:
        label = _checked(layout.read_label, frame, size)
    example: Example = {"image": image, "label": label, "id": frame.id}
    if instances and layout.read_instance:
        if frame.label is None:
            example["instance"] = np.zeros(size, np.uint16)
        else:
            instance = _checked(layout.read_instance, frame, size, instances=True)
            example["instance"] = instance
    return example


def _checked(
    read: Callable[[Frame], np.ndarray],
    frame: Frame,
    size: Size,
    *,
    instances: bool = False,
) -> np.ndarray:
    pixels = read(frame)
    if pixels.shape != size:
        what = "instance map" if instances else "label map"
        path = (frame.instance if instances else None) or frame.label
        raise UserError(
            f"{path}: {what} of {frame.id} is {pixels.shape[0]}x"
            f"{pixels.shape[1]}, its image {frame.image} {size[0]}x{size[1]} (height x "
            "width); expected equal sizes"
        )
    return pixels


def _labels(frame: Frame) -> tuple[Path, ...]:
    return (frame.label, *frame.parts) if frame.label else ()


def record_of(layout: Layout, frame: Frame) -> Record:
    """The record of a frame: the image file as it is where one file is one image.

    Small data sets are decoded in every epoch and fit the disk, so theirs are not
    compressed.
    """
    example = read_frame(layout, frame, instances=True)
    encode = functools.partial(encode_png, compressed=not layout.small)
    whole = layout.read_image is Layout._field_defaults["read_image"]
    if whole and not layout.small:
        image = frame.image.read_bytes()
    else:
        image = encode(example["image"])
    record: Record = {
        "image": image,
        "label": encode(example["label"]),
        "id": example["id"],
    }
    if "instance" in example:
        record["instance"] = encode(example["instance"])
    if not layout.small:  # small ones are always read from records
        record["identity"] = _identity(frame, example["image"].shape[:2])
    return record


def _identity(frame: Frame, size: Size) -> str:
    """Id, size, and the bytes that the files take."""
    label_bytes = sum(map(os.path.getsize, _labels(frame)))
    return f"{frame.id} {size} {os.path.getsize(frame.image)} {label_bytes}"


class FrameSource:
    """One split of a data set, read from its files: see ``Source``."""

    def __init__(
        self, layout: Layout, frames: Sequence[Frame], *, instances: bool = False
    ):
        self._layout, self._frames, self._instances = layout, frames, instances

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Example:
        return read_frame(self._layout, self._frames[index], instances=self._instances)

    @functools.cached_property
    def sizes(self) -> list[Size]:
        """(H, W) of every example, from the headers of the images."""

        def size(frame: Frame) -> Size:
            if self._layout.read_image is Layout._field_defaults["read_image"]:
                return image_header(frame.image)[0]
            return self._layout.read_image(frame, self._layout.form.channels).shape[:2]

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return list(pool.map(size, self._frames))

    @property
    def identities(self) -> list[str]:
        """See ``Source``: id, size, and the bytes that the files take."""
        return [_identity(*pair) for pair in zip(self._frames, self.sizes)]

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("_layout", "_frames", "_instances")}

    def __repr__(self) -> str:
        return f"FrameSource({self._layout.form.name!r}, {len(self)} images)"
