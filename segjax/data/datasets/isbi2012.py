"""ISBI 2012 EM segmentation challenge: membranes in a serial-section stack.

30 labeled and 30 unlabeled slices of 512x512 (Drosophila larva ventral nerve cord,
4x4x50 nm; Arganda-Carreras et al., Frontiers in Neuroanatomy 2015), as the TIFF volumes
of the challenge or as one PNG per slice.

Consecutive slices show nearly the same cells, so the validation slices are a block: the
last fifth of the stack.  A random split would validate on the neighbors of training
slices.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from segjax import files
from segjax.data.images import decode_image, encode_png
from segjax.data.layout import DataConfig, Format
from segjax.data.prepare import Record, key_of, prepare
from segjax.data.records import RecordSource
from segjax.data.source import Dataset, Source
from segjax.errors import UserError
from segjax.labels import VOID

LAYOUT = (
    "membrane/train/image/N.png, membrane/train/label/N.png and membrane/test/N.png, "
    "or train-volume.tif, train-labels.tif and test-volume.tif (test optional)"
)
VOLUMES = ("train-volume.tif", "train-labels.tif", "test-volume.tif")

Slices = dict[int, np.ndarray]
"""uint8 [H, W] by z."""


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
        build=build,
    )


def build(data: DataConfig, split: str) -> Source:
    """Prepares the stack and opens a split.

    Ids are 0 = membrane and 1 = interior of a cell; test labels are all 255 = void.

    Args:
      data: of the config; ``root`` is the folder of the files, or holds ``membrane``.
      split: "train", "validation", and "test" if there are test slices.

    Raises:
      UserError: missing or damaged files, labels other than 0 and 255, unequal sizes;
        no such split.
    """
    folder, paths = find(data.get("root", ""))

    def records() -> dict[str, Iterator[Record]]:
        return {name: _records(slices) for name, slices in read(folder).items()}

    form = Format("isbi2012", "1.0.0", channels=1)
    directory = prepare(form, key=key_of(folder, paths), read=records, data=data)
    return RecordSource(directory, split, 1)


def find(root: str) -> tuple[Path, list[Path]]:
    """Returns the folder and the raw files in it, PNG slices before TIFF volumes."""
    folder = files.find_folder("--config.data.root", root, LAYOUT)
    if (folder / "membrane").is_dir():
        folder = folder / "membrane"
    slices = [
        path
        for name in ("train/image", "train/label", "test")
        for path in _numbered(folder / name).values()
    ]
    volumes = [folder / name for name in VOLUMES if (folder / name).is_file()]
    if not slices and not volumes:
        raise UserError(f"isbi2012: {folder} holds no slices; expected {LAYOUT}")
    return folder, slices or volumes


def _numbered(folder: Path) -> dict[int, Path]:
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
    return dict(sorted(paths.items()))


def read(folder: Path) -> dict[str, list[tuple[str, np.ndarray, np.ndarray]]]:
    """Reads and checks the stacks.

    Returns:
      ``(id, image uint8 [H, W], label uint8 [H, W])`` by split, in z order.
    """
    if _numbered(folder / "train/image") or _numbered(folder / "train/label"):
        images, labels, test = (
            {z: decode_image(path, 1)[:, :, 0] for z, path in _numbered(part).items()}
            for part in (
                folder / "train/image",
                folder / "train/label",
                folder / "test",
            )
        )
    else:
        images, labels, test = (_volume(folder / name) for name in VOLUMES)
    unpaired = sorted(images.keys() ^ labels.keys())
    if unpaired or len(images) < 2:
        what = (
            f"{len(images)} images and {len(labels)} labels, first without partner: "
            f"slice {unpaired[0]}"
            if unpaired
            else f"{len(images)} labeled slices, at least 2 are needed"
        )
        raise UserError(f"isbi2012: {folder} is incomplete: {what}; expected {LAYOUT}")
    labeled = [
        (f"train_{z:02d}", image, _train_ids(folder, z, image=image, raw=labels[z]))
        for z, image in images.items()
    ]
    count = len(labeled) * 4 // 5
    splits = {"train": labeled[:count], "validation": labeled[count:]}
    if test:
        splits["test"] = [
            (f"test_{z:02d}", image, np.full_like(image, VOID))
            for z, image in test.items()
        ]
    return splits


def _volume(path: Path) -> Slices:
    """The pages of a TIFF; none if the file is missing."""
    if not path.is_file():
        return {}
    good, pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_GRAYSCALE)
    if not good or not pages:
        raise UserError(f"isbi2012: {path} is damaged or not a TIFF: replace it")
    return dict(enumerate(pages))


def _train_ids(
    folder: Path, z: int, *, image: np.ndarray, raw: np.ndarray
) -> np.ndarray:
    if image.shape != raw.shape:
        raise UserError(
            f"isbi2012: slice {z} of {folder}: image "
            f"{image.shape[0]}x{image.shape[1]}, label {raw.shape[0]}x{raw.shape[1]} "
            "(height x width); expected equal sizes"
        )
    odd = np.setdiff1d(raw, (0, 255))
    if odd.size:
        raise UserError(
            f"isbi2012: label of slice {z} of {folder} holds the value {odd[0]}; "
            "expected 0 (membrane) and 255 (interior) only"
        )
    return (raw == 255).astype(np.uint8)


def _records(slices: list[tuple[str, np.ndarray, np.ndarray]]) -> Iterator[Record]:
    for name, image, label in slices:
        yield {"image": encode_png(image), "label": encode_png(label), "id": name}
