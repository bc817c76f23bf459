"""Nuclei of the 2018 Data Science Bowl (BBBC038): microscopy of many kinds.

670 images with a mask for each nucleus, fluorescent and stained, gray and in color, of
several sizes (Caicedo et al., Nature Methods 2019).  No validation split is published:
the images whose ids have the lowest hashes validate.
"""

import os
from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.inventory import require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import decode_mask
from segjax.data.source import Dataset
from segjax.data.splits import by_hash
from segjax.errors import UserError

EXPECTED = (
    "stage1_train/ID/images/ID.png with one mask per nucleus in stage1_train/ID/masks/ "
    "(stage1_test optional), or images/ID.png and instances/ID.png (16 bits, "
    "0 = background, 1, 2, .. = nuclei)"
)


def describe(data: DataConfig) -> Dataset:
    """The same for every config."""
    del data
    return Dataset(
        name="dsb2018",
        classes=("background", "nucleus"),
        palette=np.array([(0, 0, 0), (255, 160, 0)], np.uint8),  # visible over gray
        mean=(36.5, 32.8, 40.7),  # of 180 of the training images
        channels=3,
        layout=LAYOUT,
        counts={"test": 65},
        instances=True,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; frames are in the order of their ids."""
    folder = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    if (folder / "images").is_dir():
        frames = _flat(folder)
    else:
        train = folder / "stage1_train"
        frames = _folders(train if train.is_dir() else folder, masks=True)
    if len(frames) < 2:
        raise UserError(
            f"dsb2018: {folder} holds {len(frames)} images, at least 2 are needed; "
            f"expected {EXPECTED}"
        )
    splits = {
        split: [frames[name] for name in names]
        for split, names in by_hash(list(frames)).items()
    }
    if (folder / "stage1_test").is_dir():
        test = _folders(folder / "stage1_test", masks=False)
        splits["test"] = list(test.values())
    return folder, splits


def _flat(folder: Path) -> dict[str, Frame]:
    names = {
        path.name
        for part in ("images", "instances")
        for path in (folder / part).glob("*.png")
        if path.name[0] != "."
    }
    wanted = [f"{part}/{n}" for part in ("images", "instances") for n in sorted(names)]
    require(folder, wanted, name="dsb2018", expected=EXPECTED)
    paths = [Path(name) for name in sorted(names)]
    return {
        p.stem: Frame(p.stem, folder / "images" / p, folder / "instances" / p)
        for p in paths
    }


def _folders(folder: Path, *, masks: bool) -> dict[str, Frame]:
    """A folder per image, which holds the folders ``images`` and ``masks``."""
    ids = sorted(path.parent.name for path in folder.glob("*/images"))
    images = [f"{name}/images/{name}.png" for name in ids]
    require(folder, images, name="dsb2018", expected=EXPECTED)
    found: dict[str, list[str]] = {}
    for name in ids if masks else ():
        part = folder / name / "masks"
        listed = os.listdir(part) if part.is_dir() else []
        found[name] = sorted(n for n in listed if n.endswith(".png") and n[0] != ".")
        if not found[name]:
            raise UserError(
                f"dsb2018: {part} holds no mask; expected {EXPECTED}: is the download "
                "complete?"
            )
    wanted = [f"{name}/masks/{mask}" for name in found for mask in found[name]]
    require(folder, wanted, name="dsb2018", expected=EXPECTED)

    def frame(name: str) -> Frame:
        image = folder / name / "images" / f"{name}.png"
        paths = [folder / name / "masks" / mask for mask in found.get(name, ())]
        if not paths:
            return Frame(name, image)
        return Frame(name, image, paths[0], parts=tuple(paths[1:]), detail="masks")

    return {name: frame(name) for name in ids}


def read_label(frame: Frame) -> np.ndarray:
    """1 = nucleus, 0 = background, uint8 [H, W].

    Raises:
      UserError: a damaged mask, or masks of different sizes.
    """
    return (read_instance(frame) > 0).astype(np.uint8)


def read_instance(frame: Frame) -> np.ndarray:
    """Number of the nucleus, uint16 [H, W]; 0 = background.

    Nuclei are numbered in the order of the names of their masks; the masks of the
    competition do not overlap, and where others do, the last one counts.

    Raises:
      UserError: as ``read_label``.
    """
    assert frame.label is not None
    if frame.detail is None:
        values, kind = decode_mask(frame.label)
        if kind == "color":
            raise UserError(
                f"dsb2018: {frame.label} is a color image; expected numbers of nuclei, "
                "gray of 8 or 16 bits"
            )
        return values.astype(np.uint16)
    numbers: np.ndarray | None = None
    for number, path in enumerate((frame.label, *frame.parts), start=1):
        mask = _inside(path)
        if numbers is None:
            numbers = np.zeros(mask.shape, np.uint16)
        if mask.shape != numbers.shape:
            raise UserError(
                f"dsb2018: {path}: mask is {mask.shape[0]}x{mask.shape[1]}, the first "
                f"one of its image {numbers.shape[0]}x{numbers.shape[1]} (height x "
                "width); expected equal sizes"
            )
        numbers[mask] = number
    assert numbers is not None
    return numbers


def _inside(path: Path) -> np.ndarray:
    values, kind = decode_mask(path)
    inside = values > 0
    return np.any(inside, axis=2) if kind == "color" else inside


LAYOUT = Layout(
    Format("dsb2018", "1.0.0", maps=("instance",)),
    find=find,
    read_label=read_label,
    read_instance=read_instance,
    small=True,
)
