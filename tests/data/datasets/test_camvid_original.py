"""CamVid as published, with colored labels, on tiny frames."""

from pathlib import Path

import numpy as np
import pytest
from image_folders import error_of, rgb, write
from published_sets import assert_readable
from set_trees import CAMVID_FRAMES, CAMVID_LABEL, make_camvid720

from segjax.data import datasets
from segjax.data.datasets import camvid, camvid_original


def test_every_original_class_is_in_one_group():
    members = [m for some in camvid_original.GROUPS.values() for m in some]
    assert sorted(members) == sorted(camvid_original.COLORS)
    assert len(set(camvid_original.COLORS.values())) == 31
    assert tuple(camvid_original.GROUPS) == tuple(camvid.CLASSES)
    for name in ("camvid720", "camvid32"):
        dataset = datasets.describe({"name": name})
        assert dataset.size == (720, 960) and sum(dataset.counts.values()) == 701


def test_examples(tmp_path):
    data = make_camvid720(tmp_path / "raw") | {"data_dir": str(tmp_path / "records")}
    label = assert_readable(data, CAMVID_FRAMES)["validation"][0]["label"]
    assert label[:, 0].tolist() == [k for _, k, _ in CAMVID_LABEL.values()]
    data["name"] = "camvid32"
    label = assert_readable(data, CAMVID_FRAMES)["train"][0]["label"]
    names = datasets.describe(data).classes
    assert [names[k] for k in label[1:, 0]] == [n for _, _, n in CAMVID_LABEL.values()][
        1:
    ]
    assert label[0, 0] == 255 and len(names) == 31


def test_lists(tmp_path):
    data = make_camvid720(tmp_path)
    (tmp_path / "train.txt").write_text(
        "/SegNet/CamVid/train/0016E5_08159.png /SegNet/CamVid/trainannot/x.png\n"
    )
    assert "val.txt is missing; expected 701_StillsRaw_full" in error_of(
        datasets.load, data, "train"
    )
    (tmp_path / "val.txt").write_text("0001TP_006690\n")
    train, validation = (datasets.load(data, s)[0] for s in ("train", "validation"))
    assert [train[0]["id"], validation[0]["id"]] == ["0016E5_08159", "0001TP_006690"]
    assert len(train) == len(validation) == 1
    (tmp_path / "val.txt").write_text("0016E5_08159.png\n")
    assert "0016E5_08159 is in the lists of train and of validation" in error_of(
        datasets.load, data, "train"
    )
    (tmp_path / "val.txt").write_text("0016E5_1\n")
    assert "first 701_StillsRaw_full/0016E5_1.png; expected" in error_of(
        datasets.load, data, "train"
    )


def stray(path: Path, count: int, size: int) -> None:
    """A label of sky, in which the first pixels have another color."""
    colors = np.full((size, size, 3), 128, np.uint8)
    colors.reshape(-1, 3)[:count] = (1, 2, 3)
    write(path, colors)


def test_stray_colors_are_void(tmp_path):
    data = make_camvid720(tmp_path)
    name = "0001TP_006690"
    write(tmp_path / f"701_StillsRaw_full/{name}.png", rgb(0, 20, 20))
    path = tmp_path / f"LabeledApproved_full/{name}_L.png"
    stray(path, 4, 20)  # one in a hundred
    label = datasets.load(data, "train")[0][0]["label"].ravel()
    assert (label[:4] == 255).all() and label[4:].max() == 0
    stray(path, 5, 20)
    source, _ = datasets.load(data, "train")
    message = error_of(source.__getitem__, 0)
    assert f"{name}_L.png: 1.2% of the pixels have a color of no class" in message
    assert "first (1, 2, 3)" in message


@pytest.mark.parametrize(
    "how, expected",
    [
        ("ids", "_L.png is no RGB image; expected the colors of CamVid's 32 classes"),
        ("size", "0001TP_006690_L.png: label map of 0001TP_006690 is 6x9, its image"),
        ("missing", "first LabeledApproved_full/0001TP_006690_L.png; expected 701_"),
        ("sequence", "other.png is of no sequence of CamVid"),
        ("nothing", "701_StillsRaw_full: no frames; expected 701_StillsRaw_full/ID"),
    ],
)
def test_errors(tmp_path, how, expected):
    data = make_camvid720(tmp_path)
    label = tmp_path / "LabeledApproved_full/0001TP_006690_L.png"
    if how == "ids":
        write(label, np.zeros((6, 8), np.uint8))
    elif how == "size":
        write(label, np.zeros((6, 9, 3), np.uint8))
    elif how == "missing":
        label.unlink()
    elif how == "sequence":
        write(tmp_path / "701_StillsRaw_full/other.png", rgb(0))
    elif how == "nothing":
        (tmp_path / "701_StillsRaw_full").rename(tmp_path / "images")

    def read():
        return datasets.load(data, "train")[0][0]

    assert expected in error_of(read)


def test_the_form_of_segnet_is_told_from_the_original(tmp_path):
    data = make_camvid720(tmp_path) | {"name": "camvid"}
    message = error_of(datasets.load, data, "train")
    assert "holds the original frames of 720x960" in message
    assert "--config.data.name=camvid720" in message
