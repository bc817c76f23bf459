"""ADE20K scene parsing (SceneParse150): 150 classes of scenes of all kinds.

20210 training and 2000 validation images of many sizes (Zhou et al., CVPR 2017; the
layout of the MIT scene parsing benchmark, sceneparsing.csail.mit.edu).  The annotations
hold 0 = other objects, which do not count, and 1..150.
"""

from pathlib import Path

import numpy as np

from segjax import files
from segjax.data.datasets.ade20k_classes import CLASSES
from segjax.data.inventory import require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.masks import read_train_ids
from segjax.data.source import Dataset
from segjax.errors import UserError
from segjax.image_stats import IMAGE_STATS
from segjax.labels import VOID

EXPECTED = (
    "ADEChallengeData2016/images/{training,validation}/NAME.jpg and "
    "ADEChallengeData2016/annotations/{training,validation}/NAME.png, as "
    "ADEChallengeData2016.zip unpacks"
)
TRAIN_IDS = {0: VOID} | {raw: raw - 1 for raw in range(1, 151)}
_PARTS = {"train": "training", "validation": "validation"}


def describe(data: DataConfig) -> Dataset:
    """The same for every config; the mean is ImageNet's, ADE20K's is not measured."""
    del data
    return Dataset(
        name="ade20k",
        classes=tuple(CLASSES),
        palette=np.array(list(CLASSES.values()), np.uint8),
        mean=IMAGE_STATS["caffe"][1],
        channels=3,
        layout=LAYOUT,
        counts={"train": 20210, "validation": 2000},
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; frames are in the order of their names.

    An image without annotation and an annotation without image are both refused: the
    folder is not complete.
    """
    folder = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    if (folder / "ADEChallengeData2016").is_dir():
        folder = folder / "ADEChallengeData2016"
    return folder, {split: _frames(folder, part) for split, part in _PARTS.items()}


def _frames(folder: Path, part: str) -> list[Frame]:
    images, labels = folder / "images" / part, folder / "annotations" / part
    stems = {path.stem for path in images.glob("*.jpg")}
    stems |= {path.stem for path in labels.glob("*.png")}
    names = sorted(stem for stem in stems if stem[0] != ".")
    if not names:
        raise UserError(
            f"ade20k: {images} is {'empty' if images.is_dir() else 'missing'}; "
            f"expected {EXPECTED}"
        )
    wanted = [f"images/{part}/{name}.jpg" for name in names]
    wanted += [f"annotations/{part}/{name}.png" for name in names]
    require(folder, wanted, name="ade20k", expected=EXPECTED)
    return [Frame(n, images / f"{n}.jpg", labels / f"{n}.png") for n in names]


def read_label(frame: Frame) -> np.ndarray:
    """Train ids 0..149, uint8 [H, W]; other objects are void.

    Raises:
      UserError: a damaged annotation, or a value above 150.
    """
    assert frame.label is not None
    return read_train_ids(
        frame.label,
        TRAIN_IDS,
        name="ade20k",
        expected="0 (other objects) and the classes 1..150 of SceneParse150",
    )


LAYOUT = Layout(Format("ade20k", "1.0.0"), find=find, read_label=read_label)
