"""Cityscapes and KITTI, which share label ids, on tiny trees."""

from pathlib import Path

import numpy as np
import pytest
from image_folders import cut, error_of, rgb, write
from published_sets import assert_readable, make_cityscapes
from set_trees import make_kitti

from segjax.data import datasets
from segjax.data.datasets import cityscapes

# cityscapesScripts, helpers/labels.py: trainId of the ids 0..33.
PUBLISHED = (
    *[255] * 7,
    *(0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12),
    *(13, 14, 15, 255, 255, 16, 17, 18),
)


def test_label_ids():
    assert len(PUBLISHED) == 34
    assert [cityscapes.TRAIN_IDS[i] for i in range(34)] == list(PUBLISHED)
    assert [PUBLISHED[i] for i in cityscapes.LABEL_IDS] == list(range(19))
    dataset = datasets.describe({"name": "cityscapes"})
    assert dataset.classes[13] == "car" and dataset.palette[13].tolist() == [0, 0, 142]
    assert dataset.counts["train"] == 2975 and dataset.instances


def test_examples(tmp_path):
    data = make_cityscapes(tmp_path / "raw") | {"data_dir": str(tmp_path / "records")}
    expected = {
        "train": ["aachen_000000_000019", "aachen_000001_000019"],
        "validation": ["lindau_000000_000019", "ulm_000000_000019"],
        "test": ["berlin_000000_000019"],
    }
    examples = assert_readable(data, expected)
    example = examples["validation"][1]
    np.testing.assert_array_equal(example["image"], rgb(1))
    label = np.zeros((6, 8), np.uint8)
    label[0], label[1, :4], label[2] = 255, 13, 255
    np.testing.assert_array_equal(example["label"], label)
    # A group of cars is no instance, nor is a caravan, whose class is void.
    assert np.unique(example["instance"]).tolist() == [0, 26000]
    assert (example["instance"][1, :2] == 26000).all()
    (unlabeled,) = examples["test"]
    assert unlabeled["label"].min() == 255 and unlabeled["instance"].max() == 0


def test_coarse_labels(tmp_path):
    data = make_cityscapes(tmp_path)
    write(tmp_path / "leftImg8bit/train_extra/bonn/b_leftImg8bit.png", rgb(0))
    assert "gtCoarse/train_extra/bonn/b_gtCoarse_labelIds.png" in error_of(
        datasets.load, data, "train_extra"
    )
    for kind in ("labelIds", "instanceIds"):
        path = tmp_path / f"gtCoarse/train_extra/bonn/b_gtCoarse_{kind}.png"
        write(path, np.full((6, 8), 23, np.uint8))
    source, _ = datasets.load(data, "train_extra")
    assert source[0]["id"] == "b" and (source[0]["label"] == 10).all()


def break_cityscapes(root: Path, how: str) -> None:
    image = root / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    stem = root / "gtFine/val/ulm/ulm_000000_000019_gtFine"
    label = stem.with_name(f"{stem.name}_labelIds.png")
    instance = stem.with_name(f"{stem.name}_instanceIds.png")
    if how == "label missing":
        label.unlink()
    elif how == "image missing":
        image.unlink()
    elif how == "image empty":
        image.write_bytes(b"")
    elif how == "image cut":
        cut(image)
    elif how == "value":
        write(label, np.full((6, 8), 34, np.uint8))
    elif how == "color":
        write(label, rgb(0))
    elif how == "size":
        write(label, np.zeros((6, 9), np.uint8))
    elif how == "instance value":
        write(instance, np.full((6, 8), 34000, np.uint16))
    elif how == "instance size":
        write(instance, np.zeros((6, 9), np.uint16))
    elif how == "no split":
        (root / "leftImg8bit/val").rename(root / "leftImg8bit/validation")


@pytest.mark.parametrize(
    "how, expected",
    [
        (
            "label missing",
            ["1 of 6 files are missing, first gtFine/val/ulm/ulm_", "gtF"],
        ),
        ("image missing", ["1 of 6 files are missing, first leftImg8bit/val/ulm/ulm_"]),
        ("image empty", ["1 of 6 files are empty, first leftImg8bit/val/ulm/ulm_"]),
        ("image cut", ["ulm_000000_000019_leftImg8bit.png: cannot be decoded"]),
        (
            "value",
            ["_gtFine_labelIds.png holds the value 34; expected label ids 0..33"],
        ),
        ("color", ["_gtFine_labelIds.png is a color image; expected label ids"]),
        ("size", ["_labelIds.png: label map of ulm_000000_000019 is 6x9", "6x8"]),
        ("instance value", ["_gtFine_instanceIds.png holds 34000; expected label ids"]),
        (
            "instance size",
            ["_instanceIds.png: instance map of ulm_000000_000019 is 6x9"],
        ),
        ("no split", ["leftImg8bit/val is missing; expected leftImg8bit/{train,val}"]),
    ],
)
def test_errors(tmp_path, how, expected):
    data = make_cityscapes(tmp_path) | {"instances": True}
    break_cityscapes(tmp_path, how)

    def read():
        source, _ = datasets.load(data, "validation")
        return [source[i] for i in range(len(source))]

    message = error_of(read)
    for part in expected:
        assert part in message


def test_empty_and_missing_folders(tmp_path):
    for root, found in (("", "'' is empty"), (str(tmp_path / "no"), "is not a folder")):
        message = error_of(datasets.load, {"name": "cityscapes", "root": root}, "train")
        assert found in message and "gtFine/{train,val}/CITY" in message


# --- KITTI


def test_kitti(tmp_path):
    data = make_kitti(tmp_path / "raw") | {"data_dir": str(tmp_path / "records")}
    names = [f"{i:06d}_10" for i in range(5)]
    expected = {"train": names[:4], "validation": names[4:], "test": names[:1]}
    example = assert_readable(data, expected)["validation"][0]
    np.testing.assert_array_equal(example["image"], rgb(4))
    assert example["label"][:3, 0].tolist() == [2, 255, 13]  # building, trailer, car
    # The lower 8 bits number the objects; 0 is none.  Trailers are void, and a building
    # is no instance.
    assert example["instance"][2].tolist() == [0, *range(26 * 256 + 1, 26 * 256 + 8)]
    assert example["instance"][1].max() == 0
    assert example["instance"][0].max() == 0


def test_kitti_errors(tmp_path):
    def message(root: Path, broken: str = "", array: np.ndarray | None = None) -> str:
        data = make_kitti(root) | {"instances": True}
        path = root / "training" / broken / "000004_10.png"
        if broken and array is None:
            path.unlink()
        elif broken:
            write(path, array)

        def read():
            return datasets.load(data, "validation")[0][0]

        return error_of(read)

    wide = np.zeros((6, 9), np.uint8)
    assert "000004_10.png: label map of 000004_10 is 6x9" in message(
        tmp_path / "a", "semantic", wide
    )
    assert "semantic/000004_10.png holds the value 40; expected label" in message(
        tmp_path / "b", "semantic", wide[:, :8] + np.uint8(40)
    )
    assert "instance/000004_10.png holds 8704; expected 16-bit values" in message(
        tmp_path / "c", "instance", np.full((6, 8), 34 * 256, np.uint16)
    )
    assert "first training/instance/000004_10.png; expected" in message(
        tmp_path / "d", "instance"
    )
    (tmp_path / "e").mkdir()
    data = {"name": "kitti_semantic", "root": str(tmp_path / "e")}
    assert "holds 0 images; expected training/{image_2" in error_of(
        datasets.load, data, "train"
    )
