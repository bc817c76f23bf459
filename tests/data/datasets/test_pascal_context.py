"""PASCAL-Context as MATLAB files and as PNGs: which raw id is which class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import photo_sets as sets
import pytest
from image_folders import cut
from scipy.io import savemat

from segjax.data import datasets
from segjax.data.datasets import pascal_context
from segjax.errors import UserError

# The raw ids of the 59 classes in the annotations (Mottaghi et al.), read off the list
# of all 459 names, which is alphabetical: 1 accordion, 2 aeroplane, 3 air conditioner.
RAW = {
    **{"aeroplane": 2, "bag": 9, "bed": 18, "bedcloth": 19, "bench": 22, "bicycle": 23},
    **{"bird": 25, "boat": 31, "book": 33, "bottle": 34, "building": 44, "bus": 45},
    **{"cabinet": 46, "car": 59, "cat": 65, "ceiling": 68, "chair": 72, "clothes": 80},
    **{"computer": 85, "cow": 98, "cup": 104, "curtain": 105, "dog": 113, "door": 115},
    **{"fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187},
    **{"ground": 189, "horse": 207, "keyboard": 220, "light": 232, "motorbike": 258},
    **{"mountain": 259, "mouse": 260, "person": 284, "plate": 295, "platform": 296},
    **{"pottedplant": 308, "road": 324, "rock": 326, "sheep": 347, "shelves": 349},
    **{"sidewalk": 354, "sign": 355, "sky": 360, "snow": 366, "sofa": 368},
    **{"diningtable": 397, "track": 415, "train": 416, "tree": 420, "truck": 424},
    **{"tvmonitor": 427, "wall": 440, "water": 445, "window": 454, "wood": 458},
}


def config(root: Path, name: str = "pascal_context") -> dict:
    return {"name": name, "root": str(root)}


@pytest.mark.parametrize(
    "name, first", [("pascal_context", 0), ("pascal_context60", 1)]
)
@pytest.mark.parametrize("above", ["", "VOC2010"])
def test_names_decide_in_matlab_files(tmp_path, name, first, above):
    sets.make_context(tmp_path, "mat")
    source, info = datasets.load(config(tmp_path / above, name), "train")
    assert [source[i]["id"] for i in range(2)] == ["2008_b", "2008_a"]
    assert len(info.classes) == 59 + first and info.classes[first] == "aeroplane"
    # accordion, aeroplane, bag, bicycle, cloth, motor bike, and no label.
    rest = 0 if first else 255
    classes = ("aeroplane", "bag", "bicycle", "clothes", "motorbike")
    stripes = [rest, *map(info.classes.index, classes), rest, rest]
    expected = np.repeat(np.array(stripes, np.uint8), 4)[:, None]
    np.testing.assert_array_equal(
        source[0]["label"], np.broadcast_to(expected, (sets.H, sets.W))
    )
    validation, _ = datasets.load(config(tmp_path / above, name), "validation")
    assert len(validation) == 1 and info.counts == {"train": 4998, "validation": 5105}


def test_the_folder_of_fcn_is_found(tmp_path):
    sets.make_context(tmp_path, "mat")
    (tmp_path / "pascal-context").mkdir()
    for name in ("trainval", "labels.txt"):
        (tmp_path / name).rename(tmp_path / "pascal-context" / name)
    assert len(datasets.load(config(tmp_path), "train")[0]) == 2


@pytest.mark.parametrize(
    "name, first", [("pascal_context", 0), ("pascal_context60", 1)]
)
def test_values_of_pngs_are_ranks_of_raw_ids(tmp_path, name, first):
    assert RAW.keys() == set(pascal_context.CLASSES)
    sets.make_context(tmp_path, "png")
    source, info = datasets.load(config(tmp_path, name), "train")
    label = source[0]["label"].ravel()
    ranked = sorted(RAW, key=RAW.__getitem__)
    at = sets.W  # the first row is void
    assert (label[:at] == 255).all()
    for value in range(60):
        k = label[at + (value - at) % 60]
        if value == 0:
            assert k == (0 if first else 255)
        else:
            assert info.classes[k] == ranked[value - 1]
    assert set(np.unique(label)) == {*range(59 + first), 255}


def labels_of(root: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = root / "labels.txt"
    sets.lines(path, change(path.read_text().splitlines()))


MAT = "trainval/2008_b.mat"
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no images": (
        "mat",
        lambda root: (root / "VOC2010/JPEGImages").rename(root / "VOC2010/other"),
        "VOC2010/JPEGImages is missing; expected VOC2010/JPEGImages/ID.jpg with",
    ),
    "no labels": (
        "mat",
        lambda root: (root / "trainval").rename(root / "train"),
        "no labels there; expected",
    ),
    "no labels.txt": (
        "mat",
        lambda root: (root / "labels.txt").unlink(),
        "labels.txt is missing; expected",
    ),
    "line": (
        "mat",
        lambda root: labels_of(root, lambda some: [*some, "car"]),
        "labels.txt: found the line 'car'; expected 'ID: NAME'",
    ),
    "name": (
        "mat",
        lambda root: labels_of(root, lambda some: [s for s in some if "wood" not in s]),
        "labels.txt has no label 'wood'",
    ),
    "raw id": (
        "mat",
        lambda root: savemat(root / MAT, {"LabelMap": np.full((sets.H, sets.W), 5)}),
        "2008_b.mat holds the value 5; expected ids of labels.txt",
    ),
    "cut": ("mat", lambda root: cut(root / MAT), "2008_b.mat cannot be read"),
    "empty": (
        "mat",
        lambda root: (root / MAT).write_bytes(b""),
        "1 of 3 files are empty, first trainval/2008_b.mat",
    ),
    "missing": (
        "mat",
        lambda root: (root / MAT).unlink(),
        "1 of 3 files are missing, first trainval/2008_b.mat",
    ),
    "image": (
        "png",
        lambda root: (root / "VOC2010/JPEGImages/2008_a.jpg").unlink(),
        "1 of 3 files are missing, first JPEGImages/2008_a.jpg",
    ),
    "list": (
        "png",
        lambda root: (
            root / "VOC2010/ImageSets/SegmentationContext/train.txt"
        ).unlink(),
        "SegmentationContext/train.txt is missing",
    ),
    "value": (
        "png",
        lambda root: sets.gray_png(
            root / "VOC2010/SegmentationClassContext/2008_b.png",
            np.full((sets.H, sets.W), 60, np.uint8),
        ),
        "2008_b.png holds the value 60; expected 0..59",
    ),
    "size": (
        "png",
        lambda root: sets.gray_png(
            root / "VOC2010/SegmentationClassContext/2008_b.png",
            np.zeros((sets.H, 3), np.uint8),
        ),
        "2008_b.png: label map of 2008_b is 32x3",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    form, break_it, message = FAULTS[fault]
    sets.make_context(tmp_path, form)
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        datasets.load(config(tmp_path), "train")[0][0]
    assert "\n" not in str(caught.value)
