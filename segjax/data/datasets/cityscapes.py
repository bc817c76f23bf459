"""Cityscapes: street scenes of 50 cities, 19 classes, 1024x2048.

2975 training, 500 validation and 1525 test images, and 19998 more with coarse labels
(Cordts et al., CVPR 2016; names, ids and colors of cityscapesScripts,
helpers/labels.py).  The label ids of the download are read, not the train ids that its
scripts can make of them, so that nothing has to be generated first.
"""

import os
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.inventory import require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import decode_mask, read_train_ids
from segjax.data.source import Dataset
from segjax.errors import UserError
from segjax.labels import VOID

EXPECTED = (
    "leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png and gtFine/{train,val}/CITY/"
    "NAME_gtFine_{labelIds,instanceIds}.png, as leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip unpack (optional: leftImg8bit/test without labels, "
    "train_extra with gtCoarse)"
)
CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
"""Label id and color, in the order of the train ids."""
LABEL_IDS = tuple(label for label, _ in CLASSES.values())
"""Label id of each class, as the evaluation server takes them."""
THINGS = tuple(label for label in LABEL_IDS if label >= 24)
"""Label ids of people and vehicles, which have instances."""
TRAIN_IDS = (
    dict.fromkeys((*range(34), 255), VOID)  # 255: the license plates, -1 in 8 bits
    | {label: k for k, label in enumerate(LABEL_IDS)}
)
"""Train id of each label id."""
EXPECTED_IDS = "label ids 0..33 (a file _labelIds.png)"
MEAN = (73.158, 82.909, 72.392)
"""RGB of the training images, as published implementations give it; not measured."""

_SPLITS = {
    "train": ("train", "gtFine"),
    "validation": ("val", "gtFine"),
    "test": ("test", ""),
    "train_extra": ("train_extra", "gtCoarse"),
}
"""Folder of the images, and of the labels; "" where they were never released."""
_IMAGE = "_leftImg8bit.png"


def describe(data: DataConfig) -> Dataset:
    """The same for every config."""
    del data
    return Dataset(
        name="cityscapes",
        classes=tuple(CLASSES),
        palette=np.array([color for _, color in CLASSES.values()], np.uint8),
        mean=MEAN,
        channels=3,
        size=(1024, 2048),
        layout=LAYOUT,
        counts={"train": 2975, "validation": 500, "test": 1525, "train_extra": 19998},
        instances=True,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; frames are in the order of their city and name.

    An image without labels and labels without an image are both refused: one of the
    archives is not complete.
    """
    folder = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    splits = {}
    for split, (part, labels) in _SPLITS.items():
        required = split in ("train", "validation")
        images = folder / "leftImg8bit" / part
        if required and not images.is_dir():
            raise UserError(f"cityscapes: {images} is missing; expected {EXPECTED}")
        if images.is_dir():
            splits[split] = _frames(folder, part, labels)
    return folder, splits


def _frames(folder: Path, part: str, labels: str) -> list[Frame]:
    kinds = [f"_{labels}_{k}.png" for k in ("labelIds", "instanceIds") if labels]
    names = _names(folder / "leftImg8bit" / part, _IMAGE)
    for kind in kinds:
        names |= _names(folder / labels / part, kind)
    if not names:
        raise UserError(
            f"cityscapes: {folder / 'leftImg8bit' / part} holds no image; expected "
            f"{EXPECTED}"
        )
    wanted = [f"leftImg8bit/{part}/{name}{_IMAGE}" for name in sorted(names)]
    wanted += [f"{labels}/{part}/{n}{kind}" for n in sorted(names) for kind in kinds]
    require(folder, wanted, name="cityscapes", expected=EXPECTED)

    def frame(name: str) -> Frame:
        image = folder / "leftImg8bit" / part / f"{name}{_IMAGE}"
        label, instance = (
            [folder / labels / part / f"{name}{kind}" for kind in kinds]
            if labels
            else (None, None)
        )
        return Frame(name.rpartition("/")[2], image, label, instance)

    return [frame(name) for name in sorted(names)]


def _names(folder: Path, ending: str) -> set[str]:
    """CITY/NAME of the files of a split."""
    cities = sorted(path for path in folder.glob("*") if path.is_dir())
    return {
        f"{city.name}/{file.removesuffix(ending)}"
        for city in cities
        for file in os.listdir(city)
        if file.endswith(ending) and not file.startswith(".")
    }


def read_label(frame: Frame) -> np.ndarray:
    """Train ids, uint8 [H, W]; the classes that are not evaluated are void.

    Raises:
      UserError: a damaged file, or a value that is no label id.
    """
    assert frame.label is not None
    return read_train_ids(
        frame.label, TRAIN_IDS, name="cityscapes", expected=EXPECTED_IDS
    )


def read_instance(frame: Frame) -> np.ndarray:
    """Label id * 1000 + number of the object, uint16 [H, W]; 0 = no instance.

    Groups that were not divided have values below 1000 and are no instances, and
    neither are objects of the classes that are void.

    Raises:
      UserError: a damaged file, or a value that is no label id.
    """
    assert frame.instance is not None
    values, kind = decode_mask(frame.instance)
    ids = values // 1000  # 0 of groups, whose values are label ids
    if kind == "color" or ids.max() > 33:
        found = "is a color image" if kind == "color" else f"holds {values.max()}"
        raise UserError(
            f"cityscapes: {frame.instance} {found}; expected label ids 0..33, or these "
            "* 1000 + the number of an object (a file _instanceIds.png)"
        )
    return np.where(np.isin(ids, THINGS), values, 0).astype(np.uint16)


LAYOUT = Layout(
    Format("cityscapes", "1.0.0", maps=("instance",)),
    find=find,
    read_label=read_label,
    read_instance=read_instance,
)
