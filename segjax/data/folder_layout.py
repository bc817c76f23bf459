"""Where images, masks and lists lie in a folder of the user's own data.

==============  ==============  ==================  =======================
layout          images          masks               lists of splits
==============  ==============  ==================  =======================
own             images/         masks/ or labels/   ROOT
PASCAL VOC      JPEGImages/     SegmentationClass/  ImageSets/Segmentation/
splits inside   images/train/   masks/train/        none: the folders
splits outside  train/images/   train/masks/        none: the folders
==============  ==============  ==================  =======================
"""

import os
from pathlib import Path
from typing import NamedTuple

from segjax.data.listing import is_image_name
from segjax.errors import UserError

EXPECTED = "ROOT/images/STEM.png (or jpg, tif, bmp, webp) and ROOT/masks/STEM.png"
LISTS = {
    "train": ("train.txt",),
    "validation": ("val.txt", "validation.txt"),
    "test": ("test.txt",),
}
"""Names of the list of each split."""
_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_MASKS = ("masks", "labels")
_VOC = ("JPEGImages", "SegmentationClass", "SegmentationObject")
_VOC_LISTS = Path("ImageSets", "Segmentation")


class Part(NamedTuple):
    """Folders of images and masks that belong together, relative to the root."""

    images: str
    masks: str
    instances: str
    split: str = ""
    """The split of all its images; "": lists or hashes decide."""
    name: str = ""
    """The name of the split's folder, "train"; "" without one."""


class FolderLayout(NamedTuple):
    """How a folder is laid out."""

    parts: tuple[Part, ...]
    lists: Path
    """The folder of the lists of splits."""
    note: str
    """Says what was recognized; "" for the own layout."""


def recognize(root: Path) -> FolderLayout:
    """Finds out how a folder is laid out.

    Raises:
      UserError: it is laid out in no known way, or in two at once; says what to do.
    """
    if (root / "images").is_dir():
        masks = _mask_folder(root)
        if not masks:
            raise _missing(root, "masks")
        parts = _inside(root, masks) if not _has_images(root / "images") else ()
        if parts:
            return _by_folder(root, parts)
        note = f"the masks are read from {masks}/" if masks != _MASKS[0] else ""
        return FolderLayout((Part("images", masks, "instances"),), root, note)
    if all((root / name).is_dir() for name in _VOC[:2]):
        own = any((root / name).is_file() for names in LISTS.values() for name in names)
        lists = root if own else root / _VOC_LISTS
        which = f"with the lists of {lists}" if lists.is_dir() else "without lists"
        note = f"the layout is that of PASCAL VOC, {which}"
        return FolderLayout((Part(*_VOC),), lists, note)
    if parts := _outside(root):
        return _by_folder(root, parts)
    raise _missing(root, "images")


def unread_folders(root: Path, layout: FolderLayout) -> list[str]:
    """Folders of images beside or inside those that are read, relative to the root."""
    read = {part.images for part in layout.parts}
    above = {part.images.rpartition("/")[0] for part in layout.parts} - {""}
    inside = [f"{name}/{inner}" for name in read for inner in _folders(root / name)]
    if "images" in above:
        inside += [f"images/{name}" for name in _folders(root / "images")]
    elif above:
        inside += [
            f"{n}/images" for n in _folders(root) if (root / n / "images").is_dir()
        ]
    return sorted(set(inside) - read)


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [e.name for e in entries if e.name[0] != "." and e.is_dir()]


def _mask_folder(folder: Path) -> str:
    """The name of the folder of masks: masks, or labels if there are PNGs; or ""."""
    own, other = _MASKS
    if (folder / own).is_dir():
        return own
    return other if next((folder / other).rglob("*.[pP][nN][gG]"), None) else ""


def _has_images(folder: Path) -> bool:
    return any(is_image_name(path) and path.is_file() for path in folder.iterdir())


def _inside(root: Path, masks: str) -> tuple[Part, ...]:
    """The parts of images/train, masks/train and so on."""
    return tuple(
        Part(f"images/{name}", f"{masks}/{name}", f"instances/{name}", split, name)
        for split, names in _SPLIT_FOLDERS.items()
        for name in names
        if (root / "images" / name).is_dir()
    )


def _outside(root: Path) -> tuple[Part, ...]:
    """The parts of train/images, train/masks and so on."""
    parts = []
    for split, names in _SPLIT_FOLDERS.items():
        for name in names:
            if (root / name / "images").is_dir():
                masks = _mask_folder(root / name) or _MASKS[0]
                parts.append(
                    Part(
                        f"{name}/images",
                        f"{name}/{masks}",
                        f"{name}/instances",
                        split,
                        name,
                    )
                )
    return tuple(parts)


def _by_folder(root: Path, parts: tuple[Part, ...]) -> FolderLayout:
    """The layout whose splits are folders; checks that there is one of each."""
    found: dict[str, Part] = {}
    for part in parts:
        if part.split in found:
            raise UserError(
                f"folder: {root} holds both {found[part.split].images} and "
                f"{part.images}, which are the same split: keep one"
            )
        found[part.split] = part
        if part.split != "test" and not (root / part.masks).is_dir():
            raise _missing(root, part.masks)
    if "train" not in found:
        raise UserError(
            f"folder: {root} holds {parts[0].images} but no folder of that kind for "
            "training; expected one called train"
        )
    for names in LISTS.values():
        for name in names:
            if (root / name).is_file():
                raise UserError(
                    f"folder: {root} holds both {name} and {parts[0].images}, which "
                    "both say what is trained on: remove the lists, or put all images "
                    "into images/ and all masks into masks/"
                )
    return FolderLayout(
        parts,
        root,
        "the splits are the folders " + ", ".join(part.images for part in parts),
    )


def _missing(root: Path, name: str) -> UserError:
    """The error of a folder that is not there, with what to do about it."""
    advice = _conversion(root)
    voc = {"images": _VOC[0], "masks": _VOC[1]}.get(name, "")
    inner = sorted(path.parent.name for path in root.glob(f"*/{name}"))
    if not advice and voc and (root / voc).is_dir():
        advice = f"; {voc} is there: rename or link it as {name}"
    if not advice and inner:
        advice = f"; {inner[0]}/{name} is there: set --config.data.root to "
        advice += str(root / inner[0])
    return UserError(f"folder: {root / name} is missing; expected {EXPECTED}{advice}")


def _conversion(root: Path) -> str:
    """What to do with labels of annotation programs that are no pixels; ""."""
    for pattern, kind, cure in (
        ("**/*coco*.json", "annotations of COCO", "pycocotools (COCO.annToMask)"),
        ("annotations/*.json", "annotations of COCO", "pycocotools (COCO.annToMask)"),
        ("instances_*.json", "annotations of COCO", "pycocotools (COCO.annToMask)"),
        ("labels/**/*.txt", "polygons of YOLO", "an export of masks as PNG"),
        ("*.json", "polygons, as of Labelme", "labelme's labelme2voc.py"),
        ("images/*.json", "polygons, as of Labelme", "labelme's labelme2voc.py"),
        ("*.xml", "XML annotations", "an export of masks as PNG"),
        ("Annotations/*.xml", "boxes of PASCAL VOC", "labels of every pixel"),
    ):
        if found := next(root.glob(pattern), None):
            name = found.relative_to(root).as_posix()
            return f"; {name} holds {kind}, which are no masks: use {cure}"
    return ""
