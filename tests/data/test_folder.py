"""Folders of own images and masks: layout, lists, classes, counts."""

import pickle

import numpy as np
import pytest
from image_folders import (
    H,
    W,
    both_train,
    cut,
    error_of,
    lists,
    make_folder,
    rgb,
    two_masks,
    write,
)

from segjax.data import datasets, folder, images


def test_folder(tmp_path):
    data = both_train(tmp_path)
    source, dataset = datasets.load(data, "train")
    assert dataset.name == "folder" and dataset.channels == 3
    assert dataset.classes == ("class0", "class1", "class2")
    np.testing.assert_array_equal(dataset.palette, images.voc_palette(3))
    assert len(dataset.mean) == 3
    assert [source[i]["id"] for i in range(len(source))] == ["a", "b"]
    np.testing.assert_array_equal(source[0]["label"], two_masks()["a"])
    np.testing.assert_array_equal(source[1]["image"], rgb(1))
    assert source[0]["label"].dtype == np.uint8
    assert source.sizes == [(H, W)] * 2
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1]["label"], source[1]["label"])
    assert repr(again) == repr(source)
    small, _ = datasets.load(data | {"resize": (3, 4)}, "validation")
    assert small[0]["image"].shape == (3, 4, 3)
    message = error_of(datasets.load, data, "test")
    assert "no split 'test'; it has train, validation" in message


def test_counts_frequencies_and_weights(tmp_path):
    data = both_train(tmp_path)
    found = datasets.scan_folder(data)
    assert found.pixels["train"].tolist() == [64, 16, 8]
    assert found.pixels["validation"].tolist() == [48, 0, 0]
    assert found.void == {"train": 8, "validation": 0}
    assert found.occurs.tolist() == [2, 1, 1]
    np.testing.assert_allclose(found.frequencies, [64 / 88, 16 / 88, 8 / 88])
    # Over all pixels of the images with the class: 64 / 96, 16 / 48, 8 / 48.
    np.testing.assert_allclose(found.weights, [1 / 2, 1, 2])
    text = folder.report(found)
    assert "2 training and 1 validation images" in text
    assert "0.72727" in text and "(0.5, 1, 2)" in text and "8.33%" in text


def test_median_weights_leave_out_absent_classes():
    pixels = np.array([[30, 0, 10], [0, 0, 20]])
    weights = folder.median_weights(pixels, np.array([50, 50]))
    # 30 / 50 and 30 / 100: the median is 0.45.
    np.testing.assert_allclose(weights, [0.75, 0, 1.5])


def test_a_scan_is_repeated_only_for_changed_files(tmp_path, monkeypatch):
    data = both_train(tmp_path)
    first = datasets.scan_folder(data)
    assert datasets.scan_folder(data) is first
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    second = datasets.scan_folder(data)
    assert second.classes == ("sky", "road", "car")
    other = tmp_path / "names.txt"
    other.write_text("x\ny\nz\n")
    assert datasets.scan_folder(data | {"classes": str(other)}).classes[0] == "x"


def test_split_by_hash_does_not_reshuffle(tmp_path):
    mask = np.zeros((2, 2), np.uint8)
    mask[0] = 1
    stems = [f"img{i}" for i in range(200)]
    make_folder(tmp_path, dict.fromkeys(stems[:100], mask))
    held = folder.scan(str(tmp_path))
    before = {held.stems[i] for i in held.splits["validation"]}
    assert 10 <= len(before) <= 32  # 20 expected, standard deviation 4
    assert len(before) + len(held.splits["train"]) == 100
    make_folder(tmp_path, dict.fromkeys(stems[100:], mask))
    held = folder.scan(str(tmp_path))
    after = {held.stems[i] for i in held.splits["validation"]}
    assert after & set(stems[:100]) == before


def test_split_of_two_images_and_of_one(tmp_path):
    make_folder(tmp_path / "two", two_masks())
    found = folder.scan(str(tmp_path / "two"))
    assert sorted(len(at) for at in found.splits.values()) == [1, 1]
    make_folder(tmp_path / "one", {"a": two_masks()["a"]})
    assert "no image is left" in error_of(folder.scan, str(tmp_path / "one"))


def test_split_lists(tmp_path):
    labels = {stem: two_masks()["a"] for stem in ("a", "b", "c.d", "e f")}
    make_folder(tmp_path, labels)
    lists(tmp_path, "/x/y/c.d\nb.jpg\r\n\n", "e f.png\n")
    found = folder.scan(str(tmp_path))
    assert [found.stems[i] for i in found.splits["train"]] == ["c.d", "b"]
    assert [found.stems[i] for i in found.splits["validation"]] == ["e f"]
    (tmp_path / "val.txt").rename(tmp_path / "validation.txt")
    assert folder.scan(str(tmp_path)).splits == found.splits
    (tmp_path / "train.txt").unlink()
    found = folder.scan(str(tmp_path))
    assert [found.stems[i] for i in found.splits["train"]] == ["a", "b", "c.d"]

    (tmp_path / "train.txt").write_text("a\ne f\n")
    message = error_of(folder.scan, str(tmp_path))
    assert "1 images are in both train.txt and validation.txt" in message
    (tmp_path / "train.txt").write_text("a\nq\nr\n")
    message = error_of(folder.scan, str(tmp_path))
    assert "2 of 3 entries" in message and "'q'" in message
    (tmp_path / "train.txt").write_text("a\na.png\n")
    assert "lists 'a.png' twice" in error_of(folder.scan, str(tmp_path))
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("b\n")
    assert "keep one" in error_of(folder.scan, str(tmp_path))
    (tmp_path / "val.txt").unlink()
    (tmp_path / "validation.txt").unlink()
    (tmp_path / "train.txt").write_text("a\nb\nc.d\ne f\n")
    assert "validation split" in error_of(folder.scan, str(tmp_path))


def test_palette_and_16_bit_masks(tmp_path):
    data = both_train(tmp_path)
    label = two_masks()["a"]
    # A palette that is not in the order of its gray levels: only indices count.
    palette = np.arange(30, dtype=np.uint8).reshape(10, 3)[::-1]
    images.write_palette_png(tmp_path / "masks" / "a.png", label, palette)
    write(tmp_path / "masks" / "b.png", two_masks()["b"].astype(np.uint16))
    source, _ = datasets.load(data, "train")
    np.testing.assert_array_equal(source[0]["label"], label)
    np.testing.assert_array_equal(source[1]["label"], two_masks()["b"])


def test_void_values(tmp_path):
    a = np.zeros((H, W), np.uint16)
    a[0], a[1], a[2], a[3] = 40000, 7, 1, 2
    data = make_folder(tmp_path, {"a": a, "v": a})
    lists(tmp_path, "a", "v")
    source, dataset = datasets.load(data | {"void_values": (40000, 7)}, "train")
    assert len(dataset.classes) == 3
    np.testing.assert_array_equal(source[0]["label"][:5, 0], [255, 255, 1, 2, 0])
    # Ids are not shifted where 0 is void.
    source, dataset = datasets.load(data | {"void_values": (40000, 7, 0)}, "train")
    assert len(dataset.classes) == 3
    np.testing.assert_array_equal(source[0]["label"][:5, 0], [255, 255, 1, 2, 255])
    message = error_of(datasets.load, data | {"void_values": (-1,)}, "train")
    assert message.startswith("--config.data.void_values: found -1")


def test_values_that_are_no_class(tmp_path):
    data = both_train(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    message = error_of(datasets.load, data, "train")
    for part in (
        "masks/b.png",
        "value 2",
        "0..1",
        "add 2 to --config.data.void_values",
    ):
        assert part in message
    (tmp_path / "classes.txt").unlink()

    write(tmp_path / "masks" / "b.png", np.full((H, W), 9, np.uint8))
    message = error_of(datasets.load, data, "train")
    assert "value 9 but never 2 (7 of 0..9 do not occur)" in message
    write(tmp_path / "masks" / "b.png", np.full((H, W), 3, np.uint8))
    assert len(datasets.load(data, "train")[1].classes) == 4  # 2 may be rare
    write(tmp_path / "masks" / "b.png", np.full((H, W), 300, np.uint16))
    message = error_of(datasets.load, data, "train")
    assert "masks/b.png: holds the value 300, which makes 301 classes" in message


def test_binary_masks_of_0_and_255(tmp_path):
    mask = np.zeros((H, W), np.uint8)
    mask[0] = 255
    data = make_folder(tmp_path, {"a": mask, "v": mask})
    lists(tmp_path, "a", "v")
    message = error_of(datasets.load, data, "train")
    assert "'background 0 0 0', 'foreground 255 255 255'" in message
    # What the message proposes works, though 255 is void by default.
    (tmp_path / "classes.txt").write_text("background 0 0 0\nforeground 255 255 255\n")
    source, dataset = datasets.load(data, "train")
    np.testing.assert_array_equal(source[0]["label"], mask == 255)
    np.testing.assert_array_equal(dataset.palette, [[0, 0, 0], [255, 255, 255]])
    # Indices of a palette mask stay ids.
    index = (mask == 255).astype(np.uint8)
    images.write_palette_png(tmp_path / "masks" / "a.png", index, dataset.palette)
    source, _ = datasets.load(data, "train")
    np.testing.assert_array_equal(source[0]["label"], index)


def test_color_masks(tmp_path):
    colors = np.array([(10, 20, 30), (0, 0, 200), (128, 0, 0), (1, 2, 3)], np.uint8)
    ids = np.random.default_rng(0).integers(0, 4, (H, W))
    data = make_folder(tmp_path, {"a": colors[ids], "v": colors[ids]})
    lists(tmp_path, "a", "v")
    file = tmp_path / "classes.txt"
    message = error_of(datasets.load, data, "train")
    assert "masks/a.png: an RGB mask" in message and "classes.txt" in message
    file.write_text("sky\nroad\n")
    assert "'name r g b' on every line" in error_of(datasets.load, data, "train")
    file.write_text("sky 10 20 30\ntraffic light 0 0 200\ncar 128 0 0\n")
    message = error_of(datasets.load, data, "train")
    assert "holds the color 1 2 3" in message and "'void 1 2 3'" in message
    with file.open("a") as stream:
        stream.write("void 1 2 3\n")
    source, dataset = datasets.load(data, "train")
    assert dataset.classes == ("sky", "traffic light", "car")
    np.testing.assert_array_equal(dataset.palette, colors[:3])
    np.testing.assert_array_equal(source[0]["label"], np.where(ids == 3, 255, ids))


def test_a_last_line_void_makes_its_id_void(tmp_path):
    data = both_train(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\nvoid\n")
    source, dataset = datasets.load(data, "train")
    assert dataset.classes == ("sky", "road")
    np.testing.assert_array_equal(source[1]["label"][5], 255)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a\n\nb\n", "line 2: is empty"),
        ("a\nb\na\n", "line 3: repeats the name 'a'"),
        ("a 1 2 3\nb 1 2 3\n", "line 2: repeats the color"),
        ("a 1 2 3\nb\n", "line 2: lacks the color"),
        ("a\nb 1 2 3\n", "line 2: has a color"),
        ("a 1 2 256\nb 1 2 3\n", "line 1: color (1, 2, 256) is out of range"),
        ("a\nvoid\nb\n", "line 3: follows 'void', which is allowed on the last line"),
        ("a\n", "names 1 classes"),
        ("", "names 0 classes"),
        ("\n".join(f"c{i}" for i in range(256)), "names 256 classes"),
    ],
)
def test_classes_file_errors(tmp_path, text, expected):
    data = both_train(tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    message = error_of(datasets.load, data, "train")
    assert expected in message and "classes.txt" in message


def test_folder_layout_errors(tmp_path):
    def message(**more) -> str:
        return error_of(datasets.load, {"name": "folder"} | more, "train")

    assert "--config.data.root: '' is empty" in message()
    assert "is not a folder" in message(root=str(tmp_path / "nowhere"))
    assert "images is missing" in message(root=str(tmp_path))
    data = both_train(tmp_path)
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")  # as some systems leave
    datasets.load(data, "train")

    (tmp_path / "masks" / "b.png").rename(tmp_path / "masks" / "b_mask.png")
    text = message(**data)
    assert "1 of 3 images have no mask, first images/b.png" in text
    assert str(tmp_path / "masks" / "b.png") in text
    assert "masks/b_mask.png is there" in text and "rename it to b.png" in text
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).unlink()
    write(tmp_path / "images" / "b_mask.png", rgb(0))
    (tmp_path / "images" / "b.png").unlink()
    write(tmp_path / "masks" / "w.png", two_masks()["a"])
    text = message(**data)
    assert "1 of 4 masks have no image, first masks/w.png" in text
    write(tmp_path / "images" / "w.jpg", rgb(0))
    write(tmp_path / "images" / "w.bmp", rgb(0))
    assert "holds both w.bmp and w.jpg" in message(**data)
    (tmp_path / "images" / "w.bmp").unlink()
    assert "data.classes" in message(root=str(tmp_path), classes=str(tmp_path / "no"))


def test_folder_size_mismatch(tmp_path):
    data = both_train(tmp_path)
    write(tmp_path / "images" / "b.png", rgb(0, H, W + 1))
    message = error_of(datasets.load, data, "train")
    assert "masks/b.png: 6x8" in message and "images/b.png is 6x9" in message


def test_damaged_files_are_named(tmp_path):
    data = both_train(tmp_path)
    image = tmp_path / "images" / "a.png"
    good = image.read_bytes()
    for end in (12, -60, -1):  # found by the scan
        image.write_bytes(good[:end])
        message = error_of(datasets.load, data, "train")
        assert "images/a.png: cannot be decoded" in message
    at = good.index(b"IDAT") + 20
    image.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    source, _ = datasets.load(data, "train")  # found when it is read
    message = error_of(source.__getitem__, 0)
    assert "images/a.png: cannot be decoded" in message
    assert "the checksum of its IDAT chunk is wrong" in message
    image.write_bytes(good)
    write(tmp_path / "masks" / "a.png", np.full((H, W), 200, np.uint8))
    assert "masks/a.png: not the mask" in error_of(source.__getitem__, 0)
    cut(tmp_path / "masks" / "a.png")
    assert "masks/a.png: cannot be" in error_of(datasets.load, data, "train")


def test_gray_folders_have_one_channel(tmp_path):
    data = make_folder(tmp_path, two_masks(), gray=True)
    source, dataset = datasets.load(data, "train")
    assert dataset.channels == 1 and len(dataset.mean) == 1
    assert source[0]["image"].shape == (H, W, 1)
    write(tmp_path / "images" / "a.png", rgb(0))  # one color image among them
    for split in ("train", "validation"):
        source, dataset = datasets.load(data, split)
        assert dataset.channels == 3 and source[0]["image"].shape == (H, W, 3)
