"""PASCAL VOC 2012 segmentation: 20 classes of objects and background.

1464 training, 1449 validation and 1456 test images (Everingham et al., IJCV 2015; the
development kit VOC2012).  The masks are palette PNGs of the ids 0..20; 255 marks the
contours of objects and what is difficult, and is void.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.images import decode_mask, voc_palette
from segjax.data.inventory import check_disjoint, read_list, require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import read_mask, to_train_ids
from segjax.data.source import Dataset
from segjax.errors import UserError
from segjax.image_stats import IMAGE_STATS
from segjax.labels import VOID

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
    *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MEAN = IMAGE_STATS["caffe"][1]
"""ImageNet's, which FCN and DeepLab subtract from the images of VOC, too."""
COUNTS = {"train": 1464, "validation": 1449, "test": 1456}
EXPECTED = (
    "VOCdevkit/VOC2012/{JPEGImages/ID.jpg, SegmentationClass/ID.png, "
    "ImageSets/Segmentation/{train,val}.txt}, as VOCtrainval_11-May-2012.tar unpacks "
    "(SegmentationObject/ID.png for instances; test.txt only with the images of the "
    "test set)"
)
IDS = "a palette PNG of the ids 0..20 and 255 = void"
TRAIN_IDS = {k: k for k in (*range(len(CLASSES)), VOID)}
LISTS = {"train": "train", "validation": "val", "test": "test"}


def describe(data: DataConfig) -> Dataset:
    """The same for every config; records with instance maps are records of their own.

    Not every copy of VOC has instance maps, so they are only looked for where
    ``data.instances`` asks for them.
    """
    return Dataset(
        name="voc2012",
        classes=CLASSES,
        palette=voc_palette(len(CLASSES)),
        mean=MEAN,
        channels=3,
        layout=INSTANCES if data.get("instances") else LAYOUT,
        counts=COUNTS,
        instances=True,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; ``test`` is there if ``test.txt`` is, without labels."""
    folder = find_voc(data, name="voc2012", expected=EXPECTED)
    lists = split_lists(folder, name="voc2012", expected=EXPECTED)
    instances = bool(data.get("instances"))
    check_files(folder, lists, name="voc2012", instances=instances)
    return folder, {
        split: [frame_of(folder, i, split=split, instances=instances) for i in ids]
        for split, ids in lists.items()
    }


def find_voc(data: DataConfig, *, name: str, expected: str) -> Path:
    """The folder VOC2012: the root itself, or one or two levels below it.

    Raises:
      UserError: there is none.
    """
    root = files.find_folder("--config.data.root", data.get("root", ""), expected)
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "ImageSets" / "Segmentation").is_dir():
            return folder
    raise UserError(
        f"{name}: {root}: VOC2012/ImageSets/Segmentation is missing; expected "
        f"{expected}"
    )


def split_lists(folder: Path, *, name: str, expected: str) -> dict[str, list[str]]:
    """The ids of train, validation and, if there is a list of it, test.

    Raises:
      UserError: a list is missing, or an image is in two of them.
    """
    lists = {}
    for split, stem in LISTS.items():
        path = folder / "ImageSets" / "Segmentation" / f"{stem}.txt"
        if split != "test" or path.is_file():
            lists[split] = read_list(path, name=name, expected=expected)
    check_disjoint(lists, name=name, folder=folder)
    return lists


def check_files(
    folder: Path, lists: dict[str, list[str]], *, name: str, instances: bool
) -> None:
    """Raises UserError unless all images and masks of the lists are there."""
    labeled = [i for split, ids in lists.items() if split != "test" for i in ids]
    wanted = [f"JPEGImages/{i}.jpg" for ids in lists.values() for i in ids]
    wanted += [f"SegmentationClass/{i}.png" for i in labeled]
    if instances:
        wanted += [f"SegmentationObject/{i}.png" for i in labeled]
    require(folder, wanted, name=name, expected=EXPECTED)


def frame_of(folder: Path, image: str, *, split: str, instances: bool) -> Frame:
    """The frame of an image of VOC's own lists."""
    path = folder / "JPEGImages" / f"{image}.jpg"
    if split == "test":
        return Frame(image, path)
    label = folder / "SegmentationClass" / f"{image}.png"
    objects = folder / "SegmentationObject" / f"{image}.png"
    return Frame(image, path, label, objects if instances else None)


def read_label(frame: Frame) -> np.ndarray:
    """Train ids of a mask of VOC, uint8 [H, W].

    Raises:
      UserError: a damaged mask, another value, or a palette of other colors: some
        programs reorder the palette of an image that they save.
    """
    assert frame.label is not None
    mask = read_mask(frame.label)
    ids = to_train_ids(
        mask.values, TRAIN_IDS, path=frame.label, name="voc2012", expected=IDS
    )
    if mask.palette is not None:
        _check_palette(mask.palette, np.unique(ids), frame.label)
    return ids


def _check_palette(palette: np.ndarray, used: Iterable[int], path: Path) -> None:
    """Of VOC, or the gray levels of a mask that was saved without its palette."""
    colors = voc_palette(256)
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for value in used:
        shown = tuple(int(part) for part in palette[value])
        if shown not in (tuple(colors[value]), tuple(gray[value])):
            raise UserError(
                f"voc2012: {path} shows the id {value} in the color {shown}, VOC in "
                f"{tuple(map(int, colors[value]))}; expected the palette of VOC: a "
                "program may have reordered it: load the file again"
            )


def read_instance(frame: Frame) -> np.ndarray:
    """Numbers of the objects of an image, uint16 [H, W]; contours (255) are 0.

    Raises:
      UserError: a damaged map.
    """
    assert frame.instance is not None
    values, kind = decode_mask(frame.instance)
    if kind == "color":
        raise UserError(
            f"voc2012: {frame.instance} is a color image; expected a palette PNG of "
            "object numbers"
        )
    return np.where(values == VOID, 0, values).astype(np.uint16)


LAYOUT = Layout(Format("voc2012", "1.0.0"), find=find, read_label=read_label)
INSTANCES = LAYOUT._replace(
    form=Format("voc2012_instances", "1.0.0", maps=("instance",)),
    read_instance=read_instance,
)
