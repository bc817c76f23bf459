"""The data sets: a file each, and a line each in ``DATASETS``."""

import logging
from collections.abc import Callable

from segjax import errors
from segjax.data import folder, frames
from segjax.data.datasets import (
    ade20k,
    camvid,
    camvid_original,
    cell_tracking,
    cityscapes,
    coco,
    dsb2018,
    isbi2012,
    kitti_semantic,
    own_folder,
    pascal_context,
    scenes,
    tfds_sets,
    voc2012,
    voc2012_aug,
)
from segjax.data.images import WHOLE, voc_palette
from segjax.data.layout import DataConfig, Recipe
from segjax.data.source import (
    Dataset,
    Example,
    KeptClasses,
    Resized,
    Size,
    Source,
    fingerprint,
)
from segjax.errors import UserError
from segjax.labels import VOID

_log = logging.getLogger(__name__)

__all__ = [
    "DATASETS",
    "NAMES",
    "VOID",
    "Dataset",
    "Example",
    "Resized",
    "Source",
    "describe",
    "fingerprint",
    "load",
    "recipe",
    "scan_folder",
    "voc_palette",
]

DATASETS: dict[str, Callable[[DataConfig], Dataset]] = {
    "scenes": scenes.describe,
    "camvid": camvid.describe,
    "camvid720": camvid_original.describe,
    "camvid32": camvid_original.describe32,
    "cityscapes": cityscapes.describe,
    "kitti_semantic": kitti_semantic.describe,
    "ade20k": ade20k.describe,
    "isbi2012": isbi2012.describe,
    "dsb2018": dsb2018.describe,
    "cell_tracking": cell_tracking.describe,
    "voc2012": voc2012.describe,
    "voc2012_aug": voc2012_aug.describe,
    "pascal_context": pascal_context.describe,
    "pascal_context60": pascal_context.describe_60,
    "coco": coco.describe,
    "coco_stuff": coco.describe_stuff,
    "folder": own_folder.describe,
}
"""Each function gets the ``data`` section of a config and describes the data set."""

NAMES = tuple(DATASETS)


def describe(data: DataConfig) -> Dataset:
    """What is known of a data set without preparing it.

    Args:
      data: the ``data`` section of a config: ``name`` (of ``NAMES``, or "tfds:NAME"),
        ``root``,
        ``data_dir``, ``resize``, ``keep_classes``; for "scenes" also ``scenes_size``,
        ``scenes_train``, ``scenes_validation``, ``scenes_seed``; for "folder"
        ``classes``, ``void_values``, ``channels``, ``value_range`` and ``instances``.
        docs/data.md says what they mean.

    Returns:
      The description, with ``size`` after resizing.  Published data sets need no files
      for it; the user's own folder is scanned.

    Raises:
      UserError: an unknown name or class, a bad ``resize``, or anything wrong with
        the folder.
    """
    return _kept(data, _describe(data))


def _describe(data: DataConfig) -> Dataset:
    """With all classes."""
    check_name(data["name"])
    size = _resize(data)
    _check_used(data)
    dataset = _describe_one(data)
    return dataset._replace(size=size) if any(size) else dataset


def check_name(name: str) -> None:
    """Raises UserError unless there is such a data set."""
    if name not in DATASETS and not tfds_sets.is_one(name):
        raise errors.unknown("--config.data.name", name, (*NAMES, "tfds:NAME"))


def _describe_one(data: DataConfig) -> Dataset:
    one = tfds_sets.describe if tfds_sets.is_one(data["name"]) else None
    return (one or DATASETS[data["name"]])(data)


def load(data: DataConfig, split: str) -> tuple[Source, Dataset]:
    """Opens one split of a data set; prepares the data set on first use.

    Args:
      data: as of ``describe``.
      split: "train", "validation", and "test" for some.

    Returns:
      The source, with images and labels resized to ``data.resize`` unless that is
      (0, 0) and only the classes ``data.keep_classes`` unless that is (), and the
      description of what it holds.

    Raises:
      UserError: unknown name or split, or anything wrong with the raw files.
    """
    dataset, size = _describe(data), _resize(data)
    source: Source
    if dataset.layout is not None:
        source = frames.open_split(dataset.layout, data, split)
    else:
        assert dataset.build is not None
        source = dataset.build(data, split)
    expected = dataset.counts.get(split, len(source))
    if len(source) != expected:
        _log.warning(
            "note: %s/%s has %d images, the whole data set has %d",
            *(dataset.name, split, len(source), expected),
        )
    if ids := _kept_ids(data, dataset):
        source = KeptClasses(source, ids)
    if any(size):
        source = Resized(source, size, data.get("resize_labels", "nearest"))
    return source, _kept(data, dataset)


def _kept_ids(data: DataConfig, dataset: Dataset) -> list[int]:
    """Ids of ``data.keep_classes`` in a data set of all its classes; [] keeps all."""
    names, address = tuple(data.get("keep_classes", ())), "--config.data.keep_classes"
    for name in names:
        if name not in dataset.classes:
            raise errors.unknown(address, name, dataset.classes)
    if names and (len(names) < 2 or len(set(names)) < len(names)):
        raise UserError(
            f"{address}: found {', '.join(names)}; expected two or more classes of "
            f"{dataset.name}, each once, or () for all"
        )
    return [dataset.classes.index(name) for name in names]


def _kept(data: DataConfig, dataset: Dataset) -> Dataset:
    """The description of a data set with the classes of ``data.keep_classes``."""
    ids = _kept_ids(data, dataset)
    return dataset._replace(
        classes=tuple(dataset.classes[k] for k in ids) or dataset.classes,
        palette=dataset.palette[ids] if ids else dataset.palette,
    )


def recipe(data: DataConfig) -> Recipe:
    """How the records of a data set are made; reads no images.

    Raises:
      UserError: it has no records, or anything is wrong with the raw files.
    """
    dataset = describe(data)
    if dataset.layout is not None:
        return frames.recipe(dataset.layout, data)
    if dataset.recipe is not None:
        return dataset.recipe(data)
    raise UserError(
        f"--config.data.name is {data['name']!r}, which is read where it is and needs "
        "no records; train with it as it is"
    )


def _check_used(data: DataConfig) -> None:
    """Raises UserError for files of a data set that would not be read."""
    name, own = data["name"], "own data are --config.data.name=folder"
    if data.get("instances") and not _describe_one(data).instances:
        raise UserError(
            "instance maps are asked for (--config.data.instances, "
            "--config.loss.border_weight or --config.augment.separate), but --config."
            f"data.name={name} has none"
        )
    if name == "scenes" and data.get("root"):
        raise UserError(
            f"--config.data.root is {data['root']!r}, but --config.data.name=scenes "
            f"draws its images; expected '': {own}"
        )
    for field in ("image_feature", "label_feature", "label_offset"):
        if data.get(field) and not tfds_sets.is_one(name):
            raise UserError(
                f"--config.data.{field} is {data[field]!r}, but --config.data.name="
                f"{name} is no data set of TFDS (tfds:NAME); expected "
                f"{type(data[field])()!r}"
            )
    if name != "folder" and not tfds_sets.is_one(name) and data.get("classes"):
        raise UserError(
            f"--config.data.classes is {data['classes']!r}, but {name} has classes of "
            f"its own; expected '': {own}"
        )
    if name != "folder":
        layout = _describe_one(data).layout
        for field, default in (("channels", 0), ("value_range", WHOLE)):
            value = data.get(field, default)
            ranged = field == "value_range" and layout is not None and layout.ranged
            if value != default and not ranged:
                raise UserError(
                    f"--config.data.{field} is {value!r}, but the images of {name} are "
                    f"read in one way only; expected {default!r}: {own}"
                )


def scan_folder(data: DataConfig) -> folder.Scan:
    """Checks the user's own data and counts its classes; see ``folder.scan``."""
    return own_folder.scan(data)


def _resize(data: DataConfig) -> Size:
    size = data.get("resize", (0, 0))
    pair = isinstance(size, tuple | list) and len(size) == 2
    good = pair and all(type(side) is int for side in size)
    if good and (tuple(size) == (0, 0) or 0 < min(size) <= max(size) <= 2**16):
        return tuple(size)
    raise UserError(
        f"--config.data.resize: found {size!r}, expected two positive integers "
        "(height, width) up to 65536, or (0, 0) to keep the sizes"
    )
