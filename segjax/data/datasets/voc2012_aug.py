"""VOC 2012 with the masks of the Semantic Boundaries Dataset (SBD): 10582 to train on.

SBD (Hariharan et al., ICCV 2011) labels 11355 images of VOC.  Training images are those
of VOC and all of SBD but VOC's validation images; validation and test are VOC's.  SBD
has no void, not even at contours, and coarser masks than VOC: images of VOC's own
training list keep VOC's.
"""

import os
from pathlib import Path

import numpy as np

from segjax.data.datasets import voc2012
from segjax.data.images import voc_palette
from segjax.data.inventory import read_list, require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import to_train_ids
from segjax.data.matlab import read_matlab
from segjax.data.source import Dataset
from segjax.errors import UserError

EXPECTED = (
    f"{voc2012.EXPECTED}, and SBD: benchmark_RELEASE/dataset/{{cls/ID.mat, train.txt, "
    "val.txt}} (inst/ID.mat for instances) in or beside VOCdevkit, or its masks as "
    "VOCdevkit/VOC2012/SegmentationClassAug/ID.png with "
    "ImageSets/Segmentation/{trainaug,aug}.txt"
)
_LISTS = ("trainaug.txt", "train_aug.txt", "aug.txt")
_SBD = ("benchmark_RELEASE/dataset", "VOCaug/dataset")


def describe(data: DataConfig) -> Dataset:
    """The same for every config, as ``voc2012``."""
    return Dataset(
        name="voc2012_aug",
        classes=voc2012.CLASSES,
        palette=voc_palette(len(voc2012.CLASSES)),
        mean=voc2012.MEAN,
        channels=3,
        layout=INSTANCES if data.get("instances") else LAYOUT,
        counts=voc2012.COUNTS | {"train": 10582},
        instances=True,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``.

    Masks are taken from SegmentationClassAug if there is such a folder with a list,
    otherwise from SBD's MATLAB files; the images from VOC, or else from SBD.
    """
    rule = {"name": "voc2012_aug", "expected": EXPECTED}
    folder = voc2012.find_voc(data, **rule)
    instances = bool(data.get("instances"))
    lists = voc2012.split_lists(folder, **rule)
    voc2012.check_files(folder, lists, name="voc2012_aug", instances=instances)
    frames = {
        split: [
            voc2012.frame_of(folder, i, split=split, instances=instances) for i in ids
        ]
        for split, ids in lists.items()
    }
    own = {image for ids in lists.values() for image in ids}
    sbd = _find_sbd(folder)
    png = _png_list(folder)
    if png:
        listed = [Path(line.split()[-1]).stem for line in read_list(png, **rule)]
    elif sbd:
        listed = [
            line
            for name in ("train.txt", "val.txt")
            for line in read_list(sbd / name, **rule)
        ]
    else:
        raise UserError(
            f"voc2012_aug: {folder}: the masks of SBD are missing; expected {EXPECTED}"
        )
    if instances and not sbd:
        raise UserError(
            f"voc2012_aug: {folder}: instances need benchmark_RELEASE/dataset/inst/"
            f"ID.mat; expected {EXPECTED}"
        )
    added = [image for image in dict.fromkeys(listed) if image not in own]
    labels = folder / "SegmentationClassAug" if png else (sbd or folder) / "cls"
    suffix = ".png" if png else ".mat"
    require(labels, [f"{i}{suffix}" for i in added], **rule)
    if instances and sbd:
        require(sbd, [f"inst/{i}.mat" for i in added], **rule)
    images = _images(folder, sbd, added)
    frames["train"] += [
        Frame(
            i,
            images[i],
            labels / f"{i}{suffix}",
            sbd / "inst" / f"{i}.mat" if instances and sbd else None,
        )
        for i in added
    ]
    return Path(os.path.commonpath([folder, sbd or folder])), frames


def _find_sbd(folder: Path) -> Path | None:
    """The folder ``dataset`` of SBD in VOC2012, beside it or beside VOCdevkit."""
    for above in (folder, *list(folder.absolute().parents)[:2]):
        for name in _SBD:
            if (above / name / "train.txt").is_file():
                return above / name
    return None


def _png_list(folder: Path) -> Path | None:
    """The list of SegmentationClassAug, if there are both."""
    if (folder / "SegmentationClassAug").is_dir():
        for name in _LISTS:
            if (folder / "ImageSets" / "Segmentation" / name).is_file():
                return folder / "ImageSets" / "Segmentation" / name
    return None


def _images(folder: Path, sbd: Path | None, ids: list[str]) -> dict[str, Path]:
    """The image of each id.

    Raises:
      UserError: some are neither in VOC nor in SBD, or are empty.
    """
    names = set(os.listdir(folder / "JPEGImages"))
    in_sbd = [i for i in ids if sbd and f"{i}.jpg" not in names]
    in_voc = [i for i in ids if i not in set(in_sbd)]
    rule = {"name": "voc2012_aug", "expected": EXPECTED}
    require(folder, [f"JPEGImages/{i}.jpg" for i in in_voc], **rule)
    found = {i: folder / "JPEGImages" / f"{i}.jpg" for i in in_voc}
    if sbd:
        require(sbd, [f"img/{i}.jpg" for i in in_sbd], **rule)
        found |= {i: sbd / "img" / f"{i}.jpg" for i in in_sbd}
    return found


def read_label(frame: Frame) -> np.ndarray:
    """Train ids, uint8 [H, W], of a PNG or of GTcls.Segmentation in a MATLAB file.

    Raises:
      UserError: a damaged file, or a value that is no class.
    """
    assert frame.label is not None
    if frame.label.suffix != ".mat":
        return voc2012.read_label(frame)
    return to_train_ids(
        read_matlab(frame.label, "GTcls", "Segmentation", name="voc2012_aug"),
        {k: k for k in range(len(voc2012.CLASSES))},
        path=frame.label,
        name="voc2012_aug",
        expected="the ids 0..20",
    )


def read_instance(frame: Frame) -> np.ndarray:
    """Numbers of the objects, uint16 [H, W], of a PNG or of GTinst.Segmentation.

    Raises:
      UserError: a damaged file.
    """
    assert frame.instance is not None
    if frame.instance.suffix != ".mat":
        return voc2012.read_instance(frame)
    values = read_matlab(frame.instance, "GTinst", "Segmentation", name="voc2012_aug")
    return values.astype(np.uint16)


LAYOUT = Layout(Format("voc2012_aug", "1.0.0"), find=find, read_label=read_label)
INSTANCES = LAYOUT._replace(
    form=Format("voc2012_aug_instances", "1.0.0", maps=("instance",)),
    read_instance=read_instance,
)
