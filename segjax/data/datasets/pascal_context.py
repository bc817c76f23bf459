"""PASCAL-Context: 59 classes of objects and surroundings in the images of VOC 2010.

4998 training and 5105 validation images (Mottaghi et al., CVPR 2014).  Every pixel has
one of 459 labels; the 59 most frequent ones count.  ``pascal_context`` has these 59,
all other pixels are void.  ``pascal_context60`` has one more, background, for all
others, as FCN is trained and scored on it (Shelhamer et al., PAMI 2017).
"""

import os
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.images import decode_mask, voc_palette
from segjax.data.inventory import check_disjoint, read_list, require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import to_train_ids
from segjax.data.matlab import read_matlab
from segjax.data.source import Dataset
from segjax.errors import UserError
from segjax.image_stats import IMAGE_STATS
from segjax.labels import VOID

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor", "bag", "bed", "bench", "book", "building"),
    *("cabinet", "ceiling", "clothes", "computer", "cup", "door", "fence", "floor"),
    *("flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse"),
    *("curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk"),
    *("sky", "snow", "bedcloth", "track", "tree", "truck", "wall", "water", "window"),
    "wood",
)
"""In the order of FCN: the classes of VOC first."""
LABELS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
"""Classes that are called otherwise in labels.txt."""
EXPECTED = (
    "VOC2010/JPEGImages/ID.jpg with, in or beside VOC2010, either trainval/ID.mat and "
    "labels.txt of PASCAL-Context (splits: VOC2010/ImageSets/Main/{train,val}.txt), or "
    "VOC2010/SegmentationClassContext/ID.png (splits: "
    "VOC2010/ImageSets/SegmentationContext/{train,val}.txt)"
)
_NAME = "pascal_context"
_LISTS = {"train": "train.txt", "validation": "val.txt"}


def describe(data: DataConfig) -> Dataset:
    """59 classes; the same for every config.

    The mean is ImageNet's, which FCN subtracts from these images, too.
    """
    del data
    return Dataset(
        name="pascal_context",
        classes=CLASSES,
        palette=voc_palette(60)[1:],
        mean=IMAGE_STATS["caffe"][1],
        channels=3,
        layout=LAYOUT,
        counts={"train": 4998, "validation": 5105},
    )


def describe_60(data: DataConfig) -> Dataset:
    """59 classes and background, which is class 0; the same for every config."""
    return describe(data)._replace(
        name="pascal_context60",
        classes=("background", *CLASSES),
        palette=voc_palette(60),
        layout=LAYOUT_60,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; of 59 classes."""
    return _find(data, "pascal_context", first=0, rest=VOID)


def find_60(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; of 59 classes after background."""
    return _find(data, "pascal_context60", first=1, rest=0)


def _find(
    data: DataConfig, name: str, *, first: int, rest: int
) -> tuple[Path, dict[str, list[Frame]]]:
    """Each frame's ``detail`` is the train id of every raw id.

    Args:
      data: of the config.
      name: of the data set.
      first: train id of the first class.
      rest: train id of all that is no class.
    """
    rule = {"name": name, "expected": EXPECTED}
    root = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    places = (root, root / "VOC2010", root / "VOCdevkit" / "VOC2010")
    voc = next((place for place in places if (place / "JPEGImages").is_dir()), None)
    if voc is None:
        raise UserError(
            f"{name}: {root}: VOC2010/JPEGImages is missing; expected {EXPECTED}"
        )
    above = [p / sub for p in (voc, voc.parent, root) for sub in ("", "pascal-context")]
    matlab = next((place for place in above if (place / "trainval").is_dir()), None)
    parts: tuple[Path, ...]
    ids = {label: first + k for k, label in enumerate(CLASSES)}
    if matlab is not None:
        lists, labels, suffix = "Main", matlab / "trainval", ".mat"
        parts = (matlab / "labels.txt",)
        table = _by_name(read_labels(parts[0], **rule), ids, rest=rest)
    elif (voc / "SegmentationClassContext").is_dir():
        lists, suffix, parts = "SegmentationContext", ".png", ()
        labels, table = voc / "SegmentationClassContext", _by_rank(ids, rest=rest)
    else:
        raise UserError(f"{name}: {root}: no labels there; expected {EXPECTED}")
    splits = {
        split: read_list(voc / "ImageSets" / lists / file, **rule)
        for split, file in _LISTS.items()
    }
    check_disjoint(splits, name=name, folder=voc)
    every = [image for images in splits.values() for image in images]
    require(voc, [f"JPEGImages/{i}.jpg" for i in every], **rule)
    require(labels.parent, [f"{labels.name}/{i}{suffix}" for i in every], **rule)

    def frame(image: str) -> Frame:
        path = voc / "JPEGImages" / f"{image}.jpg"
        label = labels / f"{image}{suffix}"
        return Frame(image, path, label, parts=parts, detail=table)

    splits_of_frames = {split: list(map(frame, ids)) for split, ids in splits.items()}
    return Path(os.path.commonpath([voc, labels])), splits_of_frames


def read_labels(path: Path, *, name: str, expected: str) -> dict[int, str]:
    """The raw ids of labels.txt, lines "ID: NAME"; spaces in names are left out.

    Raises:
      UserError: the file is missing or damaged, or lacks one of the 59 classes.
    """
    labels = {}
    for line in read_list(path, name=name, expected=expected):
        raw, _, label = line.partition(":")
        if not raw.strip().isdecimal() or not label.strip() or int(raw) >= 2**16:
            raise UserError(
                f"{name}: {path}: found the line {line[:80]!r}; expected 'ID: NAME'"
            )
        labels[int(raw)] = label.replace(" ", "")
    missing = [k for k in CLASSES if not {k, LABELS.get(k, k)} & set(labels.values())]
    if missing:
        raise UserError(
            f"{name}: {path} has no label {missing[0]!r}; expected the labels.txt of "
            "PASCAL-Context, which names 459"
        )
    return labels


def _by_name(
    labels: dict[int, str], ids: dict[str, int], *, rest: int
) -> dict[int, int]:
    """Train ids of the raw ids of labels.txt; 0 is no label."""
    known = {LABELS.get(name, name): k for name, k in ids.items()} | ids
    return {0: rest} | {raw: known.get(label, rest) for raw, label in labels.items()}


def _by_rank(ids: dict[str, int], *, rest: int) -> dict[int, int]:
    """Train ids of the values of SegmentationClassContext.

    The converter of MMSegmentation ranks the sorted raw ids of the 59 classes.  Raw ids
    are alphabetical, so value k is the k-th name of labels.txt among the 59: 1 is
    aeroplane, 2 bag.  (Its own list of classes has the order of FCN, where 2 is
    bicycle, so names of its scores per class do not fit its masks.)
    """
    names = sorted(ids, key=lambda name: LABELS.get(name, name))
    ranks = {k + 1: ids[name] for k, name in enumerate(names)}
    return {0: rest, VOID: VOID} | ranks


def read_label(frame: Frame) -> np.ndarray:
    """Train ids, uint8 [H, W], of a PNG or of LabelMap in a MATLAB file.

    Raises:
      UserError: a damaged file, or a value that has no label.
    """
    path, table = frame.label, frame.detail
    assert path is not None
    if path.suffix == ".mat":
        values, expected = (
            read_matlab(path, "LabelMap", name=_NAME),
            "ids of labels.txt",
        )
    else:
        values, expected = decode_mask(path)[0], "0..59 and 255 = void"
    return to_train_ids(values, table, path=path, name=_NAME, expected=expected)


LAYOUT = Layout(Format("pascal_context", "1.0.0"), find=find, read_label=read_label)
LAYOUT_60 = Layout(
    Format("pascal_context60", "1.0.0"), find=find_60, read_label=read_label
)
