"""ISBI 2012 EM segmentation challenge: membranes in a serial-section stack.

30 labeled and 30 unlabeled slices of 512x512 (Drosophila larva ventral nerve cord,
4x4x50 nm; Arganda-Carreras et al., Frontiers in Neuroanatomy 2015), as the TIFF volumes
of the challenge or as one PNG per slice.  Consecutive slices show nearly the same
cells, so the last fifth of the stack validates.
"""

from pathlib import Path

import cv2
import numpy as np

from segjax import files
from segjax.data.images import decode_image
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.source import Dataset
from segjax.data.splits import by_order
from segjax.errors import UserError

EXPECTED = (
    "membrane/train/image/N.png, membrane/train/label/N.png and membrane/test/N.png, "
    "or train-volume.tif, train-labels.tif and test-volume.tif (test optional)"
)
VOLUMES = ("train-volume.tif", "train-labels.tif", "test-volume.tif")

Slices = dict[int, tuple[Path, int | None]]
"""File of each slice by z, and the page of a volume, None for files of one slice."""


def describe(data: DataConfig) -> Dataset:
    """The same for every config."""
    del data
    return Dataset(
        name="isbi2012",
        classes=("membrane", "interior"),
        palette=np.array([(0, 0, 0), (255, 255, 255)], np.uint8),
        mean=(126.163,),
        channels=1,
        size=(512, 512),
        layout=LAYOUT,
        counts={"train": 24, "validation": 6, "test": 30},
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; frames are in the order of z, PNG slices before volumes."""
    folder = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    if (folder / "membrane").is_dir():
        folder = folder / "membrane"
    images, labels, test = (
        _numbered(folder / part) for part in ("train/image", "train/label", "test")
    )
    if not images and not labels:
        images, labels, test = (_volume(folder / name) for name in VOLUMES)
    if not images and not labels:
        raise UserError(f"isbi2012: {folder} holds no slices; expected {EXPECTED}")
    unpaired = sorted(images.keys() ^ labels.keys())
    if unpaired or len(images) < 2:
        what = (
            f"{len(images)} images and {len(labels)} labels, first without partner: "
            f"slice {unpaired[0]}"
            if unpaired
            else f"{len(images)} labeled slices, at least 2 are needed"
        )
        raise UserError(
            f"isbi2012: {folder} is incomplete: {what}; expected {EXPECTED}"
        )
    splits = by_order(
        [
            Frame(f"train_{z:02d}", path, labels[z][0], detail=page)
            for z, (path, page) in images.items()
        ]
    )
    if test:
        splits["test"] = [
            Frame(f"test_{z:02d}", path, detail=page)
            for z, (path, page) in test.items()
        ]
    return folder, splits


def _numbered(folder: Path) -> Slices:
    """``N.png`` by N; other names, such as ``0_predict.png``, are not slices."""
    if not folder.is_dir():
        return {}
    paths: dict[int, Path] = {}
    for path in sorted(folder.glob("*.png")):
        if not path.stem.isdecimal():
            continue
        z = int(path.stem)
        if z in paths:
            raise UserError(
                f"isbi2012: {folder} holds both {paths[z].name} and {path.name}; "
                "expected one file per slice"
            )
        paths[z] = path
    return {z: (path, None) for z, path in sorted(paths.items())}


def _volume(path: Path) -> Slices:
    """The pages of a TIFF; none if the file is missing."""
    if not path.is_file():
        return {}
    try:
        pages = cv2.imcount(str(path), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        pages = 0
    if pages < 1:
        raise _damaged(path)
    return {page: (path, page) for page in range(pages)}


def _damaged(path: Path) -> UserError:
    return UserError(f"isbi2012: {path} is damaged or not a TIFF: replace it")


def _pixels(path: Path, page: int | None) -> np.ndarray:
    if page is None:
        return decode_image(path, 1)
    try:
        good, pages = cv2.imreadmulti(
            str(path), start=page, count=1, flags=cv2.IMREAD_GRAYSCALE
        )
    except cv2.error:
        good, pages = False, ()
    if not good or not pages:
        raise _damaged(path)
    return pages[0][:, :, None]


def read_image(frame: Frame, channels: int) -> np.ndarray:
    """A slice, uint8 [H, W, 1].

    Raises:
      UserError: the file is damaged.
    """
    del channels  # always 1
    return _pixels(frame.image, frame.detail)


def read_label(frame: Frame) -> np.ndarray:
    """0 = membrane, 1 = interior of a cell, uint8 [H, W].

    Raises:
      UserError: the file is damaged, or holds other values than 0 and 255.
    """
    assert frame.label is not None
    raw = _pixels(frame.label, frame.detail)[:, :, 0]
    odd = np.setdiff1d(raw, (0, 255))
    if odd.size:
        raise UserError(
            f"isbi2012: {frame.label}: label of {frame.id} holds the value {odd[0]}; "
            "expected 0 (membrane) and 255 (interior) only"
        )
    return (raw == 255).astype(np.uint8)


LAYOUT = Layout(
    Format("isbi2012", "1.0.0", channels=1),
    find=find,
    read_label=read_label,
    read_image=read_image,
    small=True,
)
