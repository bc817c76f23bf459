"""2-D sets of the Cell Tracking Challenge, on tiny sequences."""

import numpy as np
import pytest
from image_folders import cut, error_of, rgb
from published_sets import assert_readable, write_tiff
from set_trees import cell_frame, cell_markers, cell_masks, make_sequence

from segjax.data import datasets


def test_silver_truth_trains_and_gold_truth_validates(tmp_path):
    root = tmp_path / "raw"
    make_sequence(root, "01", {1: 2}, silver=True, count=3)
    data = make_sequence(root, "02", {0: 1, 3: 2}, silver=True)
    data |= {"data_dir": str(tmp_path / "records")}
    expected = {
        "train": ["01_t000", "01_t001", "01_t002"],
        "validation": ["02_t000", "02_t003"],
    }
    examples = assert_readable(data, expected)
    example = examples["train"][1]
    np.testing.assert_array_equal(example["image"][:, :, 0], cell_frame(11))
    np.testing.assert_array_equal(example["label"], cell_masks(2) > 0)
    np.testing.assert_array_equal(example["instance"], cell_masks(2))
    # Of two cells the first gold frame shows one: what is no cell there is not known.
    part, whole = (e["label"] for e in examples["validation"])
    np.testing.assert_array_equal(part, np.where(cell_masks(1) > 0, 1, 255))
    np.testing.assert_array_equal(whole, cell_masks(2) > 0)
    assert examples["validation"][0]["instance"].max() == 5


def test_a_marker_is_inside_if_half_of_it_is(tmp_path):
    make_sequence(tmp_path, "01", {0: 2, 1: 2})
    moved = np.roll(cell_markers(2), 1, axis=0)  # half of each marker
    write_tiff(tmp_path / "01_GT/TRA/man_track000.tif", moved)
    write_tiff(
        tmp_path / "01_GT/TRA/man_track001.tif", np.roll(moved, 1, axis=1)
    )  # 3/4
    data = {"name": "cell_tracking", "root": str(tmp_path)}
    data |= {"data_dir": str(tmp_path / "records")}
    assert datasets.load(data, "train")[0][0]["label"].max() == 1
    assert datasets.load(data, "validation")[0][0]["label"].max() == 255


def test_one_sequence_is_split_by_time(tmp_path):
    data = make_sequence(tmp_path / "a", "01", dict.fromkeys(range(5), 2))
    data |= {"data_dir": str(tmp_path / "records")}
    train, validation = (datasets.load(data, s)[0] for s in ("train", "validation"))
    assert [train[i]["id"] for i in range(4)] == [f"01_t00{t}" for t in range(4)]
    assert validation[0]["id"] == "01_t004" and len(validation) == 1
    # Frames of silver truth behind the first validation frame do not train.
    data = make_sequence(tmp_path / "b", "02", {1: 2, 3: 2}, silver=True)
    data |= {"data_dir": str(tmp_path / "records")}
    train, validation = (datasets.load(data, s)[0] for s in ("train", "validation"))
    assert [train[i]["id"] for i in range(len(train))] == [
        "02_t000",
        "02_t001",
        "02_t002",
    ]
    assert [validation[i]["id"] for i in range(len(validation))] == ["02_t003"]


def test_frames_of_16_bits_need_a_range_of_values(tmp_path):
    data = make_sequence(tmp_path, "01", {0: 2, 1: 2})
    raw = 300 + 10 * np.arange(48, dtype=np.uint16).reshape(6, 8)
    for t in range(5):
        write_tiff(tmp_path / f"01/t00{t}.tif", raw)
    data |= {"data_dir": str(tmp_path / "records")}
    message = error_of(datasets.load, data, "train")
    assert "have 16 bits, of which they use 300..770" in message
    assert message.endswith("--config.data.value_range=300,770")
    for low, high in ((300, 770), (400, 500)):  # each has records of its own
        data["value_range"] = (low, high)
        image = datasets.load(data, "train")[0][0]["image"]
        assert image.shape == (6, 8, 1) and image.dtype == np.uint8
        expected = np.clip((raw - float(low)) / (high - low), 0, 1) * 255
        assert np.abs(image[:, :, 0] - expected).max() <= 0.5
    # Records do not say which range is theirs.
    message = error_of(datasets.load, data | {"root": ""}, "train")
    assert message.startswith("--config.data.root: '' is empty")


@pytest.mark.parametrize(
    "how, expected",
    [
        ("image missing", "files are missing, first 01/t001.tif; expected the folder"),
        ("markers missing", "missing, first 01_GT/TRA/man_track001.tif; expected the"),
        ("mask empty", "files are empty, first 01_GT/SEG/man_seg001.tif"),
        ("mask cut", "man_seg001.tif: cannot be decoded"),
        ("size", "man_seg001.tif: label map of 01_t001 is 6x9, its image"),
        ("marker size", "man_track001.tif is 6x9, "),
        ("color", "man_seg001.tif is a color image; expected numbers of cells"),
        ("slices", "man_seg_000_001.tif is of a 3-D set; expected the folder of a 2-D"),
        ("pages", "01/t000.tif is of a 3-D set; expected the folder of a 2-D set"),
        ("no TIFF", "01/t000.tif is damaged or not a TIFF"),
        ("one frame", "has one frame with masks, at least 2 are needed"),
        ("no masks", "has no masks; expected the folder of a 2-D set"),
    ],
)
def test_errors(tmp_path, how, expected):
    root = tmp_path / "raw"
    data = make_sequence(root, "01", {0: 2, 1: 2}, count=2)
    data |= {"data_dir": str(tmp_path / "records")}
    mask, marker = (
        root / "01_GT/SEG/man_seg001.tif",
        root / "01_GT/TRA/man_track001.tif",
    )
    wide = np.zeros((6, 9), np.uint16)
    if how == "image missing":
        (root / "01/t001.tif").unlink()
    elif how == "markers missing":
        marker.unlink()
    elif how == "mask empty":
        mask.write_bytes(b"")
    elif how == "mask cut":
        cut(mask)
    elif how == "size":
        write_tiff(mask, wide)
        write_tiff(marker, wide)
    elif how == "marker size":
        write_tiff(marker, wide)
    elif how == "color":
        write_tiff(mask, rgb(0))
    elif how == "slices":
        write_tiff(mask.with_name("man_seg_000_001.tif"), cell_masks(2))
    elif how == "pages":
        write_tiff(root / "01/t000.tif", np.stack([cell_frame(0)] * 5))
    elif how == "no TIFF":
        (root / "01/t000.tif").write_bytes(b"text")
    elif how == "one frame":
        mask.unlink()
    elif how == "no masks":
        mask.unlink()
        mask.with_name("man_seg000.tif").unlink()
    assert expected in error_of(datasets.load, data, "train")
