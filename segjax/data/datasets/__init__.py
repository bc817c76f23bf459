"""The data sets: what each is called, its classes and colors, and how to read it.

A *source* is random access to examples: ``len(source)`` and ``source[i]``, a dict of

* ``image``: uint8 [H, W, C], RGB or gray;
* ``label``: uint8 [H, W], train ids 0..K-1, 255 = void;
* ``id``: str.

``source.sizes`` lists (H, W) of every example without decoding images.  Sources are
picklable (reading workers are processes) and may be read from several threads.
"""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from segjax.data import folder
from segjax.data import scenes as procedural
from segjax.data.images import (
    VOID,
    decode_image,
    resize_image,
    resize_label,
    voc_palette,
)
from segjax.errors import UserError

__all__ = ["DATASETS", "NAMES", "VOID", "Dataset", "load", "voc_palette"]


class Dataset(NamedTuple):
    """What is known of a data set before its images are read."""

    name: str
    classes: tuple[str, ...]
    """Name of class k at position k."""
    palette: np.ndarray
    """Color of class k, uint8 [K, 3] RGB."""
    mean: tuple[float, ...]
    """Mean value of each channel over the training images, 0..255."""
    channels: int
    """3 (RGB) or 1 (gray)."""


_CAMVID = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
"""Order and colors of SegNet (its test script for CamVid)."""

_IMAGENET_MEAN = (122.67892, 116.66877, 104.00699)
"""RGB; serves as padding color for data whose own mean is not known."""

DATASETS = {
    "scenes": Dataset(
        name="scenes",
        classes=tuple(procedural.CLASSES),
        palette=np.array(procedural.PALETTE, np.uint8),
        mean=(122.7, 125.5, 108.0),  # of 256 scenes of 96 x 96, seed 0
        channels=3,
    ),
    "camvid": Dataset(
        name="camvid",
        classes=tuple(_CAMVID),
        palette=np.array(list(_CAMVID.values()), np.uint8),
        mean=(105.033, 108.409, 110.331),
        channels=3,
    ),
    "isbi2012": Dataset(
        name="isbi2012",
        classes=("membrane", "interior"),
        palette=np.array([(0, 0, 0), (255, 255, 255)], np.uint8),
        mean=(126.163,),
        channels=1,
    ),
}
"""The data sets with known classes; those of "folder" are found by scanning it."""

NAMES = (*DATASETS, "folder")


def load(data: Mapping[str, Any], split: str) -> tuple[Any, Dataset]:
    """Opens one split of a data set; prepares the data set on first use.

    Args:
      data: the ``data`` section of a config: ``name`` (one of ``NAMES``), ``root``,
        ``data_dir``, ``resize``; for "scenes" also ``scenes_size``, ``scenes_train``,
        ``scenes_validation``, ``scenes_seed``; for "folder" ``classes`` and
        ``void_values``.  docs/data.md says what they mean.
      split: "train", "validation", and "test" for some.

    Returns:
      The source, with images and labels resized to ``data.resize`` unless that is
      (0, 0), and the description of the data set.

    Raises:
      UserError: unknown name or split, or anything wrong with the raw files.
    """
    name = data["name"]
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"data.name: found {name!r}, expected one of {', '.join(NAMES)}; did you "
            f"mean {near}?"
        )
    size = _resize(data)
    if name == "folder":
        source, dataset = _load_folder(data, split)
    else:
        dataset = DATASETS[name]
        source = RecordSource(_prepare(data), split, dataset.channels)
    return (Resized(source, size) if size != (0, 0) else source), dataset


def scan_folder(data: Mapping[str, Any]) -> folder.Scan:
    """Checks the user's own data and counts its classes; see ``folder.scan``."""
    return folder.scan(
        data.get("root", ""),
        data.get("classes", ""),
        tuple(data.get("void_values", (VOID,))),
    )


def _load_folder(data: Mapping[str, Any], split: str) -> tuple[Any, Dataset]:
    scan = scan_folder(data)
    _check_split("folder", split, scan.splits)
    mean = _IMAGENET_MEAN if scan.channels == 3 else (127.5,)
    dataset = Dataset("folder", scan.classes, scan.palette, mean, scan.channels)
    return folder.FolderSource(scan, split), dataset


def _prepare(data: Mapping[str, Any]) -> Any:
    """The TFDS builder of a data set, prepared."""
    # Imported on demand: TFDS takes a second, and folders do without it.
    data_dir = data.get("data_dir") or "~/.cache/segjax"
    if data["name"] == "camvid":
        from segjax.data.datasets import camvid

        return camvid.build(data_dir, data.get("root", ""))
    if data["name"] == "isbi2012":
        from segjax.data.datasets import isbi2012

        return isbi2012.build(data_dir, data.get("root", ""))
    from segjax.data.datasets import scenes as scenes_builder

    return scenes_builder.build(
        data_dir=data_dir,
        size=tuple(data["scenes_size"]),
        train=data["scenes_train"],
        validation=data["scenes_validation"],
        seed=data["scenes_seed"],
    )


def _check_split(name: str, split: str, splits: Mapping[str, Any]) -> None:
    if split not in splits:
        raise UserError(
            f"data: {name} has no split {split!r}; it has {', '.join(splits)}"
        )


def _resize(data: Mapping[str, Any]) -> tuple[int, int]:
    size = data.get("resize", (0, 0))
    pair = isinstance(size, tuple | list) and len(size) == 2
    good = pair and all(isinstance(side, int) for side in size)
    if good and (tuple(size) == (0, 0) or min(size) > 0):
        return tuple(size)
    raise UserError(
        f"data.resize: found {size!r}, expected two positive integers (height, width), "
        "or (0, 0) to keep the sizes"
    )


class RecordSource:
    """One split of a prepared TFDS builder.

    Unlike the data source of TFDS it decodes through ``decode_image``, leaves out
    features that are not needed, and pickles as a path (a builder would be made
    again, with its log messages, in every worker).
    """

    def __init__(self, builder: Any, split: str, channels: int):
        _check_split(builder.name, split, builder.info.splits)
        self._state = (str(builder.data_dir), split, channels)
        self._open()

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        directory, split, self._channels = self._state
        builder = tfds.builder_from_directory(directory)
        features = builder.info.features
        images = [k for k in features if isinstance(features[k], tfds.features.Image)]
        self._records = builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in images}
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        name = record["id"].decode()
        return {
            "image": decode_image(record["image"], self._channels, name),
            "label": decode_image(record["label"], 1, name)[:, :, 0],
            "id": name,
        }

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every example, from the headers of the labels."""
        # Labels are PNGs: width and height are big-endian at bytes 16 and 20.
        heads = (self._records[i]["label"][16:24] for i in range(len(self)))
        shapes = [np.frombuffer(head, ">u4") for head in heads]
        return [(int(h), int(w)) for w, h in shapes]

    def __getstate__(self) -> tuple:
        return self._state

    def __setstate__(self, state: tuple) -> None:
        self._state = state
        self._open()

    def __repr__(self) -> str:
        return f"RecordSource{self._state}"


class Resized:
    """A source with every image (``INTER_AREA``) and label (nearest) resized."""

    def __init__(self, source: Any, size: tuple[int, int]):
        self._source, self._size = source, size

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        example = self._source[index]
        return {
            "image": resize_image(example["image"], self._size),
            "label": resize_label(example["label"], self._size),
            "id": example["id"],
        }

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every example."""
        return [self._size] * len(self)

    def __repr__(self) -> str:
        return f"Resized({self._source!r}, {self._size})"
