"""KITTI semantic segmentation 2015: 200 street scenes with the classes of Cityscapes.

The images are the first frames of the stereo 2015 benchmark, about 375x1242; the labels
of its 200 test images were never released (Alhaija et al., IJCV 2018; the format is
that of the benchmark's devkit).  Its authors publish no validation split: neighboring
images may show the same street, so the last 40 validate.
"""

from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.datasets import cityscapes
from segjax.data.inventory import require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import decode_mask, read_train_ids
from segjax.data.source import Dataset
from segjax.data.splits import by_order
from segjax.errors import UserError
from segjax.image_stats import IMAGE_STATS

EXPECTED = (
    "training/{image_2,semantic,instance}/NAME.png as data_semantics.zip unpacks "
    "(optional: testing/image_2/NAME.png, without labels)"
)
_MAPS = ("semantic", "instance")


def describe(data: DataConfig) -> Dataset:
    """The same for every config; the mean is ImageNet's, KITTI's is not measured."""
    del data
    return Dataset(
        name="kitti_semantic",
        classes=tuple(cityscapes.CLASSES),
        palette=np.array([c for _, c in cityscapes.CLASSES.values()], np.uint8),
        mean=IMAGE_STATS["caffe"][1],
        channels=3,
        layout=LAYOUT,
        counts={"train": 160, "validation": 40, "test": 200},
        instances=True,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; frames are in the order of their names."""
    folder = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    if (folder / "data_semantics").is_dir():
        folder = folder / "data_semantics"
    parts = [folder / "training" / part for part in ("image_2", *_MAPS)]
    names = sorted({path.name for part in parts for path in _pngs(part)})
    if len(names) < 2:
        raise UserError(
            f"kitti_semantic: {folder / 'training'} holds {len(names)} images; "
            f"expected {EXPECTED}"
        )
    image, label, instance = parts
    wanted = [f"training/{part.name}/{name}" for part in parts for name in names]
    require(folder, wanted, name="kitti_semantic", expected=EXPECTED)
    splits = by_order(
        [
            Frame(Path(name).stem, image / name, label / name, instance / name)
            for name in names
        ]
    )
    if (folder / "testing" / "image_2").is_dir():
        test = _pngs(folder / "testing" / "image_2")
        wanted = [f"testing/image_2/{path.name}" for path in test]
        require(folder, wanted, name="kitti_semantic", expected=EXPECTED)
        splits["test"] = [Frame(path.stem, path) for path in test]
    return folder, splits


def _pngs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.png") if path.name[0] != ".")


def read_label(frame: Frame) -> np.ndarray:
    """Train ids of Cityscapes, uint8 [H, W].

    Raises:
      UserError: a damaged file, or a value that is no label id.
    """
    assert frame.label is not None
    return read_train_ids(
        frame.label,
        cityscapes.TRAIN_IDS,
        name="kitti_semantic",
        expected="label ids 0..33 of Cityscapes",
    )


def read_instance(frame: Frame) -> np.ndarray:
    """Label id * 256 + number of the object, uint16 [H, W]; 0 = no instance.

    The file holds label ids in its upper 8 bits, and in the lower 8 the number of the
    object, 0 where none is known.  As in Cityscapes, only people and vehicles are
    instances, unless their class is void.

    Raises:
      UserError: a damaged file, or a value that is no label id.
    """
    assert frame.instance is not None
    values, kind = decode_mask(frame.instance)
    ids = values // 256
    if kind == "color" or ids.max() > 33:
        found = "is a color image" if kind == "color" else f"holds {values.max()}"
        raise UserError(
            f"kitti_semantic: {frame.instance} {found}; expected 16-bit values: label "
            "ids 0..33 * 256 + the number of an object"
        )
    known = (values % 256 > 0) & np.isin(ids, cityscapes.THINGS)
    return np.where(known, values, 0).astype(np.uint16)


LAYOUT = Layout(
    Format("kitti_semantic", "1.0.0", maps=("instance",)),
    find=find,
    read_label=read_label,
    read_instance=read_instance,
)
