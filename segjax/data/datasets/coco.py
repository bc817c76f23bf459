"""COCO 2017: 80 classes of objects, and COCO-Stuff: these and 91 of surroundings.

118287 training and 5000 validation images (Lin et al., ECCV 2014; Caesar et al., CVPR
2018).  ``coco`` draws the outlines of the objects; pixels without object are
background, class 0.  ``coco_stuff`` reads the label maps of COCO-Stuff, whose 171
classes have no background.
"""

import os
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.datasets import coco_index
from segjax.data.datasets.coco_classes import NO_THINGS, NO_VALUES, STUFF, THINGS
from segjax.data.images import voc_palette
from segjax.data.inventory import require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import read_train_ids
from segjax.data.source import Dataset
from segjax.errors import UserError
from segjax.image_stats import IMAGE_STATS
from segjax.labels import VOID

MEAN = IMAGE_STATS["caffe"][1]
"""ImageNet's; that of COCO is not measured."""
COUNTS = {"train": 118287, "validation": 5000}
EXPECTED = (
    "ROOT/{train,val}2017/ID.jpg (or in ROOT/images) and "
    "ROOT/annotations/instances_{train,val}2017.json, as the zip files of COCO 2017 "
    "unpack"
)
EXPECTED_STUFF = (
    "ROOT/{train,val}2017/ID.jpg (or in ROOT/images) and "
    "ROOT/stuffthingmaps/{train,val}2017/ID.png (or in ROOT/annotations), the content "
    "of stuffthingmaps_trainval2017.zip"
)
CATEGORIES = dict(
    zip((k for k in range(1, 91) if k not in NO_THINGS), THINGS, strict=True)
)
"""Raw ids of the objects, and their names."""
IDS = {raw: 1 + k for k, raw in enumerate(CATEGORIES)}
VALUES = {VOID: VOID} | {
    value: k for k, value in enumerate(v for v in range(182) if v not in NO_VALUES)
}
"""Train ids of the values of COCO-Stuff's maps."""
_PARTS = {"train": "train2017", "validation": "val2017"}


def describe(data: DataConfig) -> Dataset:
    """Background and 80 classes; the same for every config."""
    del data
    return Dataset(
        name="coco",
        classes=("background", *THINGS),
        palette=voc_palette(1 + len(THINGS)),
        mean=MEAN,
        channels=3,
        layout=LAYOUT,
        counts=COUNTS,
        instances=True,
    )


def describe_stuff(data: DataConfig) -> Dataset:
    """171 classes without background; the same for every config."""
    del data
    return Dataset(
        name="coco_stuff",
        classes=(*THINGS, *STUFF),
        palette=voc_palette(1 + len(THINGS) + len(STUFF))[1:],
        mean=MEAN,
        channels=3,
        layout=LAYOUT_STUFF,
        counts=COUNTS,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``: the images of the JSON files, in their order."""
    root = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    splits = {}
    for split, part in _PARTS.items():
        path = root / "annotations" / f"instances_{part}.json"
        require(root, [f"annotations/{path.name}"], name="coco", expected=EXPECTED)
        lines = coco_index.index(path, CATEGORIES, data)
        images = _images(root, part)
        require(images, lines, name="coco", expected=EXPECTED)
        splits[split] = [
            Frame(Path(name).stem, images / name, path, detail=line)
            for name, line in lines.items()
        ]
    return root, splits


def _images(root: Path, part: str) -> Path:
    inner = root / "images" / part
    return inner if inner.is_dir() else root / part


def read_label(frame: Frame) -> np.ndarray:
    """Train ids, uint8 [H, W]: 0 background, 255 groups that were outlined as one."""
    return _drawn(frame)[0]


def read_instance(frame: Frame) -> np.ndarray:
    """Numbers of the objects in the order of the JSON file, uint16 [H, W]."""
    return _drawn(frame)[1]


def _drawn(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Label and instance map.

    COCO does not say which of two objects that overlap is in front.  The smaller one is
    drawn on top: the larger one would hide it.  Groups are below all objects.
    """
    line: coco_index.Line = frame.detail
    things = coco_index.read(line)
    label = np.zeros(line.size, np.uint8)
    instance = np.zeros(line.size, np.uint16)
    order = sorted(range(len(things)), key=lambda k: things[k].mask.sum(), reverse=True)
    for k in sorted(order, key=lambda k: not things[k].crowd):
        thing = things[k]
        label[thing.mask] = VOID if thing.crowd else IDS[thing.category]
        instance[thing.mask] = 0 if thing.crowd else k + 1
    return label, instance


def find_stuff(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``: images and maps of each split, in the order of their names.

    An image without map and a map without image are both refused: the download is not
    complete.
    """
    rule = {"name": "coco_stuff", "expected": EXPECTED_STUFF}
    root = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED_STUFF)
    splits = {}
    for split, part in _PARTS.items():
        images, labels = _images(root, part), root / "stuffthingmaps" / part
        if not labels.is_dir():
            labels = root / "annotations" / part
        names = _stems(images, ".jpg") | _stems(labels, ".png")
        if not names:
            raise UserError(
                f"coco_stuff: {images} and {labels}: no image there; expected "
                f"{EXPECTED_STUFF}"
            )
        every = sorted(names)
        require(images, [f"{name}.jpg" for name in every], **rule)
        require(labels, [f"{name}.png" for name in every], **rule)
        splits[split] = [
            Frame(name, images / f"{name}.jpg", labels / f"{name}.png")
            for name in every
        ]
    return root, splits


def _stems(folder: Path, suffix: str) -> set[str]:
    """Of its files, but for those that MMSegmentation writes beside the maps."""
    names = os.listdir(folder) if folder.is_dir() else []
    stems = {n.removesuffix(suffix) for n in names if n.endswith(suffix)}
    return {s for s in stems if s[0] != "." and not s.endswith("_labelTrainIds")}


def read_stuff(frame: Frame) -> np.ndarray:
    """Train ids 0..170 of a map of COCO-Stuff, uint8 [H, W]; unlabeled is void.

    Raises:
      UserError: a damaged map, or a value that no class has.
    """
    assert frame.label is not None
    return read_train_ids(
        frame.label,
        VALUES,
        name="coco_stuff",
        expected="ids of COCO-Stuff less 1 (0..181 with gaps) and 255 = void",
    )


LAYOUT = Layout(
    Format("coco", "1.0.0", maps=("instance",)),
    find=find,
    read_label=read_label,
    read_instance=read_instance,
)
LAYOUT_STUFF = Layout(
    Format("coco_stuff", "1.0.0"), find=find_stuff, read_label=read_stuff
)
