"""Data sets that TensorFlow Datasets has prepared: ``tfds:NAME[/CONFIG][:VERSION]``.

Read from their array_record files, without TensorFlow.  A data set needs an image and a
label map, which are found by their types; what the values of the map mean is said by
its feature, by ``KNOWN``, or by the user.
"""

import contextlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax import errors, files
from segjax.data import folder_classes
from segjax.data.datasets import cityscapes
from segjax.data.images import voc_palette
from segjax.data.layout import DataConfig
from segjax.data.source import Dataset, Source
from segjax.data.tfds_source import Features, TfdsSource, open_builder
from segjax.errors import UserError
from segjax.image_stats import IMAGE_STATS
from segjax.labels import VOID

_log = logging.getLogger(__name__)

PREFIX = "tfds:"
_NAME = re.compile(r"tfds:(\w+)(?:/([^:/]+))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Known(NamedTuple):
    """What the values of a label map mean where its feature does not say so."""

    classes: tuple[str, ...]
    table: Mapping[int, int]
    """Train id, or 255 = void, of every value."""
    palette: np.ndarray


KNOWN = {
    # Parkhi et al., CVPR 2012: 1 foreground, 2 background, 3 not classified.
    "oxford_iiit_pet": Known(
        ("pet", "background", "border"), {1: 0, 2: 1, 3: 2, 255: VOID}, voc_palette(3)
    ),
    "cityscapes": Known(
        tuple(cityscapes.CLASSES),
        cityscapes.TRAIN_IDS,
        np.array([color for _, color in cityscapes.CLASSES.values()], np.uint8),
    ),
}
REFUSED = {
    "voc": "has boxes and no label maps there; take --config.data.name=voc2012",
    "coco": "has boxes and no label maps there; take --config.data.name=coco",
    "scene_parse150": "has instances there and no label maps; take "
    "--config.data.name=ade20k",
}
"""Data sets of TFDS that one would expect to have label maps."""
_IMAGES = ("image", "image_left")
_IDS = ("id", "image_id", "file_name", "filename", "image/filename")


def is_one(name: str) -> bool:
    """Whether ``data.name`` means a data set of TFDS."""
    return name.startswith(PREFIX)


def describe(data: DataConfig) -> Dataset:
    """Reads the metadata of the data set.

    Args:
      data: of the config: ``name``; ``root``, the data_dir of TFDS ("": its own
        default); ``image_feature``, ``label_feature`` ("": found by type);
        ``classes``, ``label_offset``, ``void_values``: what the values mean where
        TFDS does not say so.

    Raises:
      UserError: it is not there, not in array_record, or without a label map; nothing
        says which classes there are.
    """
    folder = find(data)
    builder = open_builder(folder)
    features = _features(data, builder)
    known = _meaning(data, builder, features)
    mean = IMAGE_STATS["caffe"][1]
    return Dataset(
        name=data["name"],
        classes=known.classes,
        palette=known.palette,
        mean=mean if features.channels == 3 else (127.5,),
        channels=features.channels,
        size=features.size,
        build=build,
    )


def build(data: DataConfig, split: str) -> Source:
    """Opens a split, or a part of one, such as ``train[90%:]``.

    Raises:
      UserError: as of ``describe``, or there is no such split.
    """
    folder = find(data)
    builder = open_builder(folder)
    features = _features(data, builder)
    table = _meaning(data, builder, features).table
    source = TfdsSource(str(folder), split, features, table, data["name"])
    if split == data.get("eval_split"):
        _warn_of_overlap(builder, data)
    return source


def _warn_of_overlap(builder: Any, data: DataConfig) -> None:
    """Says if parts of splits, such as ``train[80%:]``, were not cut apart."""
    train, other = data.get("train_split", ""), data["eval_split"]
    with contextlib.suppress(Exception):  # the other split is not opened here
        shared = _records_of(builder, train) & _records_of(builder, other)
        if shared and train != other:
            _log.warning(
                "note: %d images of --config.data.eval_split=%s are also in "
                "--config.data.train_split=%s",
                *(len(shared), other, train),
            )


def _records_of(builder: Any, split: str) -> set[tuple[str, int]]:
    """The records of a split: files, and positions in them."""
    return {
        (part.filename, i)
        for part in builder.info.splits[split].file_instructions
        for i in range(part.skip, part.skip + part.take)
    }


def find(data: DataConfig) -> Path:
    """The folder of the records: ROOT/NAME[/CONFIG]/VERSION.

    Raises:
      UserError: there is none, or there are several configs.
    """
    address, given = "--config.data.name", data["name"]
    match = _NAME.fullmatch(given)
    if match is None:
        raise UserError(
            f"{address} is {given!r}; expected tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME/CONFIG:1.2.3"
        )
    name, config, version = match.groups()
    if name in REFUSED:
        raise UserError(f"{address} is {given!r}: {name} {REFUSED[name]}")
    root, remedy = _root(data), f"tfds build {name} --file_format=array_record"
    home = root / name / (config or "")
    found = _versions(home)
    if not found and not config:
        configs = sorted(p.name for p in _folders(home) if _versions(p))
        if len(configs) > 1:
            raise UserError(
                f"{address} is {given!r}; expected tfds:{name}/CONFIG with one of "
                f"{', '.join(configs)}"
            )
        home = home / configs[0] if configs else home
        found = _versions(home)
    if not found or (version and version not in found):
        there = f"it holds {', '.join(found)}; " if found else ""
        raise UserError(
            f"{address} is {given!r}, but there are no such records in {home}; {there}"
            f"expected --config.data.root with a data_dir of TFDS ({root} now), where "
            f"'{remedy}' has prepared them"
        )
    return home / (version or found[-1])


def _root(data: DataConfig) -> Path:
    if data.get("root"):
        expected = "a data_dir of TFDS, or '' for its default"
        return files.find_folder("--config.data.root", data["root"], expected)
    from tensorflow_datasets.core import constants

    return Path(constants.DATA_DIR).expanduser()


def _folders(home: Path) -> list[Path]:
    return [p for p in home.iterdir() if p.is_dir()] if home.is_dir() else []


def _versions(home: Path) -> list[str]:
    """Prepared versions in a folder, the newest last."""
    found = [
        p.name
        for p in _folders(home)
        if _VERSION.fullmatch(p.name) and (p / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


# --- What the records hold


def _features(data: DataConfig, builder: Any) -> Features:
    """The features of image, label map and id."""
    import tensorflow_datasets as tfds

    features, where = builder.info.features, data["name"]
    images = {k: f for k, f in features.items() if isinstance(f, tfds.features.Image)}
    maps = [
        k
        for k, f in images.items()
        if f.shape[-1] == 1 and np.dtype(f.np_dtype) in (np.uint8, np.uint16)
    ]
    labeled = [k for k in maps if isinstance(images[k], tfds.features.LabeledImage)]
    label = _chosen(
        data, "label_feature", labeled or [k for k in maps if k not in _IMAGES], maps
    )
    others = [k for k in images if k != label]
    named = [k for k in others if k in _IMAGES]
    image = _chosen(
        data,
        "image_feature",
        named[:1] or [k for k in others if images[k].shape[-1] == 3] or others,
        others,
    )
    texts = [k for k in features if isinstance(features[k], tfds.features.Text)]
    height, width, channels = images[image].shape
    if channels not in (1, 3, 4):
        raise UserError(
            f"{where}: the images of {image!r} have {channels} channels; expected 1 "
            "(gray) or 3 (RGB)"
        )
    return Features(
        image,
        label,
        next((name for name in _IDS if name in texts), ""),
        1 if channels == 1 else 3,
        (height, width) if height and width else (0, 0),
    )


def _chosen(data: DataConfig, field: str, found: list[str], possible: list[str]) -> str:
    """The feature that a field names, or the only one that was found."""
    address, what = f"--config.data.{field}", field.partition("_")[0]
    if given := data.get(field, ""):
        if given not in possible:
            raise errors.unknown(address, given, possible)
        return given
    if len(found) == 1:
        return found[0]
    if not found and what == "label":
        raise UserError(
            f"{data['name']} has no label map: none of its features is an image of "
            "one channel with 8 or 16 bits"
        )
    if not found:
        raise UserError(f"{data['name']} has no images besides its label map")
    raise UserError(
        f"{data['name']} has several features that may be the {what}: "
        f"{', '.join(sorted(found))}; name one in {address}"
    )


def _meaning(data: DataConfig, builder: Any, features: Features) -> Known:
    """Classes and values of the label map."""
    label = builder.info.features[features.label]
    offset, own = data.get("label_offset", 0), data.get("classes", "")
    known, count = KNOWN.get(builder.name), getattr(label, "num_classes", None)
    if known is not None and (own or offset):
        field = "classes" if own else "label_offset"
        raise UserError(
            f"--config.data.{field} is {data[field]!r}, but the classes of "
            f"{data['name']} are known; expected {'' if own else 0!r}"
        )
    if known is not None:
        return known
    palette, void_line = None, False
    if own:
        path = files.user_path("--config.data.classes", own)
        read = folder_classes.read_classes(path)
        classes, palette, void_line = read.names, read.colors, read.void_line
    elif count:
        # ClassLabel makes names of the numbers where none were given.
        names = tuple(label.names)
        plain = names == tuple(map(str, range(count)))
        classes = tuple(f"class{i}" for i in range(count)) if plain else names
    else:
        raise UserError(
            f"{data['name']} does not say which classes the values of "
            f"{features.label!r} are; give a file with a name per line in "
            "--config.data.classes, and the value of the first one in "
            "--config.data.label_offset if it is not 0"
        )
    if not 2 <= len(classes) <= VOID:
        raise UserError(
            f"{data['name']}: has {len(classes)} classes; expected 2 to {VOID}"
        )
    table = {offset + k: k for k in range(len(classes))}
    if void_line:
        table[offset + len(classes)] = VOID
    table |= dict.fromkeys(data.get("void_values", (VOID,)), VOID)
    if palette is None or not len(palette):
        palette = voc_palette(len(classes))
    return Known(classes, table, palette)
