"""CamVid in the form of SegNet, on a tiny folder; records of a data set on disk."""

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_folders import H, W, cut, error_of, rgb, write

from segjax.data import datasets, frames


def make_camvid(root: Path, test: bool = False) -> Path:
    """Lists in an order that is not the sorted one; train is JPEG, the others PNG."""
    home = root / "CamVid"
    ids = {"train": ["c", "a", "b"], "val": ["z", "y"]} | (
        {"test": ["t"]} if test else {}
    )
    for name, stems in ids.items():
        for i, stem in enumerate(stems):
            suffix = ".jpg" if name == "train" else ".png"
            write(home / name / f"{stem}{suffix}", rgb(ord(stem)))
            label = np.full((H, W), i, np.uint8)
            label[0] = 11
            label[1] = 10
            write(home / f"{name}annot" / f"{stem}.png", label)
        lines = [
            f"/SegNet/CamVid/{name}/{s}.png /SegNet/CamVid/{name}annot/{s}.png\n"
            for s in stems
        ]
        (home / f"{name}.txt").write_text("".join(lines))
    return home


def camvid_data(root, tmp_path, **more) -> dict:
    return {"name": "camvid", "root": str(root), "data_dir": str(tmp_path / "d")} | more


def test_camvid(tmp_path, capsys, caplog):
    home = make_camvid(tmp_path)
    for root in (tmp_path, home):
        source, dataset = datasets.load(camvid_data(root, tmp_path), "train")
        assert len(dataset.classes) == 11
        assert [source[i]["id"] for i in range(len(source))] == ["c", "a", "b"]
    example = source[1]
    bgr = cv2.imread(str(home / "train" / "a.jpg"))
    np.testing.assert_array_equal(example["image"], bgr[:, :, ::-1])
    expected = np.full((H, W), 1, np.uint8)
    expected[0], expected[1] = 255, 10
    np.testing.assert_array_equal(example["label"], expected)
    assert example["image"].dtype == example["label"].dtype == np.uint8
    assert isinstance(example["id"], str)
    validation, _ = datasets.load(camvid_data(home, tmp_path), "validation")
    assert [validation[i]["id"] for i in range(2)] == ["z", "y"]
    np.testing.assert_array_equal(validation[0]["image"], rgb(ord("z")))
    assert source.sizes == [(H, W)] * 3
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""  # TFDS would print and draw bars
    assert {record.message for record in caplog.records} == {
        "note: camvid/train has 3 images, the whole data set has 367",
        "note: camvid/validation has 2 images, the whole data set has 101",
    }


def test_camvid_test_split_is_optional(tmp_path):
    make_camvid(tmp_path / "without")
    message = error_of(
        datasets.load, camvid_data(tmp_path / "without", tmp_path), "test"
    )
    assert "no split 'test'; it has train, validation" in message
    make_camvid(tmp_path / "with", test=True)
    source, _ = datasets.load(camvid_data(tmp_path / "with", tmp_path), "test")
    assert source[0]["id"] == "t"


def test_resize_and_pickle(tmp_path):
    make_camvid(tmp_path)
    plain, _ = datasets.load(camvid_data(tmp_path, tmp_path), "validation")
    data = camvid_data(tmp_path, tmp_path, resize=(3, 4))
    half, _ = datasets.load(data, "validation")
    image, label = plain[0]["image"], plain[0]["label"]
    # INTER_AREA at one half is the mean of 2 x 2 pixels.
    blocks = image.reshape(3, 2, 4, 2, 3).astype(float).mean((1, 3))
    assert np.abs(half[0]["image"] - blocks).max() <= 0.5
    assert half[0]["label"].shape == (3, 4)
    assert set(np.unique(half[0]["label"])) <= set(np.unique(label))
    assert half.sizes == [(3, 4)] * 2
    for source in (plain, half):
        packed = pickle.dumps(source)
        assert len(packed) < 2000  # a path, not a builder
        again = pickle.loads(packed)
        assert len(again) == 2 and repr(again) == repr(source)
        np.testing.assert_array_equal(again[1]["image"], source[1]["image"])


def break_camvid(home: Path, how: str) -> None:
    annotation = home / "valannot" / "y.png"
    if how == "annotation missing":
        annotation.unlink()
    elif how == "image missing":
        (home / "train" / "a.jpg").unlink()
        (home / "train" / "b.jpg").unlink()
    elif how == "list missing":
        (home / "val.txt").unlink()
    elif how == "in two lists":
        (home / "val.txt").write_text("val/z.png\nval/c.png\n")
        for part, suffix in (("", ".jpg"), ("annot", ".png")):
            data = (home / f"train{part}" / f"c{suffix}").read_bytes()
            (home / f"val{part}" / f"c{suffix}").write_bytes(data)
    elif how == "listed twice":
        (home / "train.txt").write_text("train/a.png\ntrain/b.png\ntrain/a.png\n")
    elif how == "two images":
        write(home / "train" / "a.png", rgb(0))
    elif how == "not UTF-8":
        (home / "val.txt").write_bytes("val/z\xfc.png\n".encode("latin-1"))
    elif how == "list empty":
        (home / "val.txt").write_text("\n")
    elif how == "value":
        write(annotation, np.full((H, W), 12, np.uint8))
    elif how == "color":
        write(annotation, rgb(0))
    elif how == "size":
        write(annotation, np.zeros((H, W + 1), np.uint8))
    elif how == "image cut":
        cut(home / "train" / "a.jpg")
    elif how == "annotation cut":
        cut(annotation)
    elif how == "nothing there":
        for path in sorted(home.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize(
    "how, expected",
    [
        (
            "annotation missing",
            ["1 of 2 files of valannot/", "valannot/y.png", "CamVid/{"],
        ),
        ("image missing", ["2 of 3 files of train/", "first train/a.png", "CamVid/{"]),
        ("list missing", ["val.txt is missing", "CamVid/{"]),
        ("list empty", ["val.txt lists no frame"]),
        ("in two lists", ["train.txt and val.txt both list c (1 frames"]),
        ("listed twice", ["train.txt lists a more than once"]),
        ("two images", ["both train/a.jpg and train/a.png"]),
        ("not UTF-8", ["val.txt: byte 5 is not UTF-8"]),
        ("value", ["valannot/y.png holds the value 12", "0..10"]),
        ("color", ["valannot/y.png is a color image"]),
        ("size", ["valannot/y.png: label map of y is 6x9", "val/y.png 6x8"]),
        ("image cut", ["train/a.jpg: cannot be decoded"]),
        ("annotation cut", ["valannot/y.png: cannot be decoded"]),
        ("nothing there", ["train.txt is missing", "CamVid/{"]),
    ],
)
def test_camvid_errors(tmp_path, how, expected):
    break_camvid(make_camvid(tmp_path), how)
    message = error_of(datasets.load, camvid_data(tmp_path, tmp_path), "train")
    for part in expected:
        assert part in message
    assert not list((tmp_path / "d").glob("camvid/*/1.0.0"))  # no whole records


def test_camvid_without_root(tmp_path):
    message = error_of(datasets.load, camvid_data("", tmp_path), "train")
    assert message.startswith("--config.data.root: '' is empty")
    message = error_of(datasets.load, camvid_data(tmp_path / "no", tmp_path), "train")
    assert "no' is not a folder" in message and "{train,val}annot" in message


def test_preparing_once_per_content(tmp_path, monkeypatch):
    home = make_camvid(tmp_path)
    data = camvid_data(tmp_path, tmp_path)
    datasets.load(data, "train")
    with monkeypatch.context() as patch:
        patch.setattr(frames, "record_of", None)  # calling it would raise
        datasets.load(data, "validation")
    # Another content of the same length under the same name, only newer.
    image = home / "val" / "z.png"
    before = image.stat()
    write(image, rgb(99))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    source, _ = datasets.load(data, "validation")
    np.testing.assert_array_equal(source[0]["image"], rgb(99))
    # Another root.
    write(make_camvid(tmp_path / "other") / "val" / "z.png", rgb(7))
    source, _ = datasets.load(camvid_data(tmp_path / "other", tmp_path), "validation")
    np.testing.assert_array_equal(source[0]["image"], rgb(7))
    assert len(list((tmp_path / "d" / "camvid").glob("*/1.0.0"))) == 3


def test_killed_and_overtaken_preparations(tmp_path, monkeypatch):
    make_camvid(tmp_path)
    data = camvid_data(tmp_path, tmp_path)
    original = frames.record_of

    def killed(layout, frame):
        if frame.id == "a":
            raise KeyboardInterrupt
        return original(layout, frame)

    def overtaken(layout, frame):
        monkeypatch.setattr(frames, "record_of", original)
        datasets.load(data, "train")  # another process, faster
        return original(layout, frame)

    monkeypatch.setattr(frames, "record_of", killed)
    with pytest.raises(KeyboardInterrupt):
        datasets.load(data, "train")
    monkeypatch.setattr(frames, "record_of", overtaken)
    source, _ = datasets.load(data, "train")
    assert [source[i]["id"] for i in range(3)] == ["c", "a", "b"]
    (whole,) = (tmp_path / "d" / "camvid").glob("*/*.0.0")
    assert whole.name == "1.0.0"  # and nothing that is incomplete


def test_data_dir_that_cannot_be_written(tmp_path):
    make_camvid(tmp_path)
    (tmp_path / "file").write_text("")
    data = camvid_data(tmp_path, tmp_path, data_dir=str(tmp_path / "file"))
    message = error_of(datasets.load, data, "train")
    assert (
        message.startswith("--config.data.data_dir: ") and "Not a directory" in message
    )
