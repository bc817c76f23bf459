"""ADE20K's scene parsing benchmark, on tiny trees."""

import numpy as np
import pytest
from image_folders import cut, error_of, write
from published_sets import assert_readable
from set_trees import make_ade20k

from segjax.data import datasets


def test_classes():
    """Against objectInfo150.txt (Name) and the first colors of color150.mat."""
    dataset = datasets.describe({"name": "ade20k"})
    assert len(dataset.classes) == 150 == len(set(dataset.classes))
    assert dataset.classes[:3] == ("wall", "building", "sky")
    assert dataset.classes[12] == "person" and dataset.classes[149] == "flag"
    assert dataset.classes[86] == "awning" and dataset.classes[123] == "trade name"
    assert dataset.palette[:3].tolist() == [
        [120, 120, 120],
        [180, 120, 120],
        [6, 230, 230],
    ]
    assert dataset.palette[9].tolist() == [4, 250, 7]


def test_examples(tmp_path):
    data = make_ade20k(tmp_path / "raw") | {"data_dir": str(tmp_path / "records")}
    examples = assert_readable(data, {"train": ["t1", "t2"], "validation": ["v1"]})
    label = examples["train"][0]["label"]
    assert label.shape == (7, 8) and label[:3, 0].tolist() == [255, 0, 149]
    inner = data | {"root": str(tmp_path / "raw/ADEChallengeData2016")}
    assert len(datasets.load(inner, "train")[0]) == 2


@pytest.mark.parametrize(
    "how, expected",
    [
        ("value", "annotations/training/t1.png holds the value 151; expected 0"),
        ("size", "annotations/training/t1.png: label map of t1 is 6x9, its image"),
        ("cut", "images/training/t1.jpg: cannot be decoded"),
        ("missing", "first annotations/training/t1.png; expected ADEChallengeData2016"),
        ("image", "1 of 4 files are missing, first images/training/t1.jpg"),
        ("empty", "1 of 4 files are empty, first annotations/training/t1.png"),
        ("folder", "images/training is missing; expected ADEChallengeData2016/images"),
    ],
)
def test_errors(tmp_path, how, expected):
    data = make_ade20k(tmp_path)
    home = tmp_path / "ADEChallengeData2016"
    label = home / "annotations/training/t1.png"
    image = home / "images/training/t1.jpg"
    if how == "value":
        write(label, np.full((7, 8), 151, np.uint8))
    elif how == "size":
        write(label, np.zeros((6, 9), np.uint8))
    elif how == "cut":
        cut(image)
    elif how == "missing":
        label.unlink()
    elif how == "image":
        image.unlink()
    elif how == "empty":
        label.write_bytes(b"")
    elif how == "folder":
        home.rename(tmp_path / "other")

    def read():
        return datasets.load(data, "train")[0][0]

    assert expected in error_of(read)
