"""CamVid as its authors published it: 701 frames of 720x960 with colored labels.

Brostow et al., Pattern Recognition Letters 2009.  ``camvid720`` has the 11 classes that
SegNet made of the original ones, ``camvid32`` all 31 and void.  The grouping into 11
classes is that of SegNet's followers (MathWorks' example); SegNet's own program for it
was not published, so a pixel here and there may differ from ``camvid``.
"""

import functools
import re
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.datasets import camvid
from segjax.data.inventory import check_disjoint, read_list, require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import decode_mask
from segjax.data.source import Dataset
from segjax.errors import UserError
from segjax.labels import VOID

IMAGES, LABELS = "701_StillsRaw_full", "LabeledApproved_full"
EXPECTED = (
    f"{IMAGES}/ID.png and {LABELS}/ID_L.png, the original frames and labels of CamVid "
    "(optional: train.txt, val.txt and test.txt, an ID per line)"
)
COLORS = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}
"""Order and colors of its label_colors.txt, without Void."""
GROUPS = {
    "Sky": ("Sky",),
    "Building": ("Bridge", "Building", "Wall", "Tunnel", "Archway"),
    "Pole": ("Column_Pole", "TrafficCone"),
    "Road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "Pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "Tree": ("Tree", "VegetationMisc"),
    "SignSymbol": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "Fence": ("Fence",),
    "Car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "Pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "Bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
"""Original classes of each of the 11."""
STRAY_PIXELS = 0.01
"""Largest share of pixels of other colors, which are void: a few labels hold some."""
_UNKNOWN = 254


def describe(data: DataConfig) -> Dataset:
    """``camvid720``: the 11 classes of ``camvid`` at the original size."""
    coarse = camvid.describe(data)
    return coarse._replace(name="camvid720", size=(720, 960), layout=LAYOUT)


def describe32(data: DataConfig) -> Dataset:
    """``camvid32``: the original classes; void is no class."""
    return describe(data)._replace(
        name="camvid32",
        classes=tuple(COLORS),
        palette=np.array(list(COLORS.values()), np.uint8),
        layout=LAYOUT32,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``.

    Without lists, the frames are in order, split as SegNet did: see ``split_of``.
    """
    folder = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    names = camvid.FOLDERS
    if any((folder / f"{name}.txt").is_file() for name in names.values()):
        splits = {
            split: _listed(folder / f"{name}.txt")
            for split, name in names.items()
            if split != "test" or (folder / f"{name}.txt").is_file()
        }
        check_disjoint(splits, name="camvid", folder=folder)
    else:
        splits = {split: [] for split in names}
        ids = sorted({p.stem for p in (folder / IMAGES).glob("*.png")})
        for i in ids or [""]:
            splits[split_of(i, folder)].append(i)
    every = [i for ids in splits.values() for i in ids]
    wanted = [f"{IMAGES}/{i}.png" for i in every]
    wanted += [f"{LABELS}/{i}_L.png" for i in every]
    require(folder, wanted, name="camvid", expected=EXPECTED)
    return folder, {
        split: [
            Frame(i, folder / IMAGES / f"{i}.png", folder / LABELS / f"{i}_L.png")
            for i in ids
        ]
        for split, ids in splits.items()
        if ids
    }


def _listed(path: Path) -> list[str]:
    """IDs of a list; lines of SegNet's lists are "/…/ID.png /…/ID.png"."""
    lines = read_list(path, name="camvid", expected=EXPECTED)
    return [Path(line.split()[0].replace("\\", "/")).stem for line in lines]


def split_of(name: str, folder: Path) -> str:
    """SegNet's split by sequence and number of the frame, derived from its lists.

    Validation are the frames 7959 to 8159 of 0016E5, which are every second one of 15
    a second; test are Seq05VD and 0001TP from 8550 on.

    Raises:
      UserError: a frame of another sequence.
    """
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", name)
    if not match:
        found = f"{name}.png is of no sequence of CamVid" if name else "no frames"
        raise UserError(
            f"camvid: {folder / IMAGES}: {found}; expected {EXPECTED}; frames of other "
            "sequences than 0001TP, 0006R0, 0016E5 and Seq05VD need lists"
        )
    sequence, number = match[1], int(match[2])
    if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550):
        return "test"
    inside = sequence == "0016E5" and 7959 <= number <= 8159
    return "validation" if inside else "train"


def read_label(frame: Frame) -> np.ndarray:
    """One of the 11 classes, uint8 [H, W].

    Raises:
      UserError: a damaged file, one that is not in color, or other colors than those
        of ``COLORS`` in more than ``STRAY_PIXELS`` of the pixels.
    """
    return _read(frame, fine=False)


def read_label32(frame: Frame) -> np.ndarray:
    """One of the 31 classes, uint8 [H, W]; otherwise as ``read_label``."""
    return _read(frame, fine=True)


def _read(frame: Frame, *, fine: bool) -> np.ndarray:
    colors, kind = decode_mask(frame.label or "")
    if kind != "color":
        raise UserError(
            f"camvid: {frame.label} is no RGB image; expected the colors of CamVid's "
            "32 classes (ids 0..11 of SegNet are --config.data.name=camvid)"
        )
    codes = colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    label = _table(fine)[codes]
    stray = label == _UNKNOWN
    if stray.mean() > STRAY_PIXELS:
        odd = tuple(map(int, colors[stray][0]))
        raise UserError(
            f"camvid: {frame.label}: {stray.mean():.1%} of the pixels have a color of "
            f"no class of CamVid, first {odd}; expected at most {STRAY_PIXELS:.0%}"
        )
    label[stray] = VOID
    return label


@functools.cache
def _table(fine: bool) -> np.ndarray:
    """Train id of every color, uint8 [2^24]."""
    table = np.full(1 << 24, _UNKNOWN, np.uint8)
    groups = {name: (name,) for name in COLORS} if fine else GROUPS
    for k, members in enumerate(groups.values()):
        for red, green, blue in (COLORS[member] for member in members):
            table[red << 16 | green << 8 | blue] = k
    table[0] = VOID
    return table


LAYOUT = Layout(Format("camvid720", "1.0.0"), find=find, read_label=read_label)
LAYOUT32 = Layout(Format("camvid32", "1.0.0"), find=find, read_label=read_label32)
