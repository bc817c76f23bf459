"""Nuclei of the Data Science Bowl, in the competition's folders and as flat files."""

from pathlib import Path

import numpy as np
import pytest
from image_folders import cut, error_of, rgb, write
from published_sets import assert_readable, make_dsb2018

from segjax.data import datasets, frames


def make_flat(root: Path) -> dict:
    """Image 0 is gray, the others in color, of two sizes."""
    for i in range(5):
        image = rgb(i, 6 + i % 2)
        write(root / f"images/n{i}.png", image if i else image[:, :, 0])
        numbers = np.zeros(image.shape[:2], np.uint16)
        numbers[1, :3], numbers[3] = 1, 40000
        write(root / f"instances/n{i}.png", numbers)
    return {"name": "dsb2018", "root": str(root)}


def test_masks_of_the_competition(tmp_path):
    data = make_dsb2018(tmp_path / "raw") | {"data_dir": str(tmp_path / "records")}
    write(tmp_path / "raw/stage1_test/t/images/t.png", rgb(9))
    # By SHA-256 of the ids, n2 comes first: computed with sha256sum.
    expected = {"train": ["n0", "n1", "n3", "n4"], "validation": ["n2"], "test": ["t"]}
    examples = assert_readable(data, expected)
    (example,) = examples["validation"]
    np.testing.assert_array_equal(example["image"], rgb(2))  # without alpha
    numbers = np.zeros((6, 8), np.uint16)
    numbers[0:2, 0:3], numbers[3:5, 1:4] = 1, 2
    np.testing.assert_array_equal(example["instance"], numbers)
    np.testing.assert_array_equal(example["label"], numbers > 0)
    assert (examples["test"][0]["label"] == 255).all()
    inner = data | {"root": str(tmp_path / "raw/stage1_train")}
    assert datasets.load(inner, "validation")[0][0]["id"] == "n2"


def test_a_mask_that_changes_is_another_data_set(tmp_path):
    data = make_dsb2018(tmp_path / "raw") | {"data_dir": str(tmp_path / "records")}
    data |= {"instances": True}
    before = datasets.load(data, "validation")[0]
    assert before[0]["instance"].max() == 2
    (tmp_path / "raw/stage1_train/n2/masks/1.png").unlink()
    after = datasets.load(data, "validation")[0]
    assert after[0]["instance"].max() == 1
    assert datasets.fingerprint(before) != datasets.fingerprint(after)


def test_every_mask_identifies_its_image(tmp_path):
    data = make_dsb2018(tmp_path)
    layout = datasets.describe(data).layout
    source = frames.FrameSource(layout, layout.find(data)[1]["validation"])
    before = source.identities
    mask = np.zeros((6, 8), np.uint8)
    mask[5, ::2] = 255
    write(tmp_path / "stage1_train/n2/masks/1.png", mask)
    assert source.identities != before


def test_flat_files(tmp_path):
    data = make_flat(tmp_path / "raw") | {"data_dir": str(tmp_path / "records")}
    expected = {"train": ["n0", "n1", "n3", "n4"], "validation": ["n2"]}
    examples = assert_readable(data, expected)
    gray = examples["train"][0]["image"]
    np.testing.assert_array_equal(gray, np.repeat(rgb(0)[:, :, :1], 3, axis=2))
    (example,) = examples["validation"]
    assert example["instance"].shape == (6, 8)
    assert example["instance"][[1, 3, 5], 0].tolist() == [1, 40000, 0]
    assert example["label"][[1, 3, 5], 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "how, expected",
    [
        ("no masks", "n3/masks holds no mask; expected stage1_train/ID/images"),
        ("mask size", "n3/masks/1.png: mask is 6x9, the first one of its image 6x8"),
        ("sizes", "n3/masks/0.png: label map of n3 is 6x9, its image"),
        ("mask cut", "n3/masks/1.png: cannot be decoded"),
        ("mask empty", "files are empty, first n3/masks/1.png"),
        ("image missing", "1 of 5 files are missing, first n3/images/n3.png"),
        ("nothing", "holds 0 images, at least 2 are needed; expected stage1_train/ID"),
    ],
)
def test_errors_of_masks(tmp_path, how, expected):
    data = make_dsb2018(tmp_path) | {"data_dir": str(tmp_path / "records")}
    home = tmp_path / "stage1_train/n3"
    wide = np.full((6, 9), 255, np.uint8)
    if how == "no masks":
        for path in (home / "masks").iterdir():
            path.unlink()
    elif how in ("mask size", "sizes"):
        for k in (1,) if how == "mask size" else (0, 1):
            write(home / f"masks/{k}.png", wide)
    elif how == "mask cut":
        cut(home / "masks/1.png")
    elif how == "mask empty":
        (home / "masks/1.png").write_bytes(b"")
    elif how == "image missing":
        (home / "images/n3.png").unlink()
    elif how == "nothing":
        data["root"] = str(tmp_path / "other")
        (tmp_path / "other").mkdir()
    assert expected in error_of(datasets.load, data, "train")


def test_errors_of_flat_files(tmp_path):
    data = make_flat(tmp_path) | {"data_dir": str(tmp_path / "records")}
    write(tmp_path / "instances/n3.png", rgb(0, 7))
    message = error_of(datasets.load, data, "train")
    assert "instances/n3.png is a color image; expected numbers of nuclei" in message
    (tmp_path / "instances/n3.png").unlink()
    message = error_of(datasets.load, data, "train")
    assert "1 of 10 files are missing, first instances/n3.png" in message
