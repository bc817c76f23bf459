"""Data sets, builders, own folders and image files, on tiny synthetic folders."""

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.data import datasets, folder, images, prepare
from segjax.data.datasets import camvid, isbi2012
from segjax.errors import UserError

H, W = 6, 8

# PASCAL VOC development kit, ids 0..21.
VOC_COLORS = [
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
    (128, 0, 128),
    (0, 128, 128),
    (128, 128, 128),
    (64, 0, 0),
    (192, 0, 0),
    (64, 128, 0),
    (192, 128, 0),
    (64, 0, 128),
    (192, 0, 128),
    (64, 128, 128),
    (192, 128, 128),
    (0, 64, 0),
    (128, 64, 0),
    (0, 192, 0),
    (128, 192, 0),
    (0, 64, 128),
    (128, 64, 128),
]


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, array: np.ndarray) -> None:
    """An image file of RGB, RGBA or gray values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def rgb(seed: int, h: int = H, w: int = W) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def cut(path: Path) -> None:
    """Leaves the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


# --- Tables and palettes


def test_voc_palette_is_the_published_one():
    assert datasets.voc_palette(22).tolist() == [list(c) for c in VOC_COLORS]
    everything = datasets.voc_palette(256)
    assert tuple(everything[255]) == images.VOID_COLOR == (224, 224, 192)
    assert len(np.unique(everything, axis=0)) == 256


def test_table_of_datasets():
    for name, dataset in datasets.DATASETS.items():
        k = len(dataset.classes)
        assert dataset.name == name
        assert dataset.palette.shape == (k, 3) and dataset.palette.dtype == np.uint8
        assert len(np.unique(dataset.palette, axis=0)) == k
        assert len(dataset.mean) == dataset.channels
    camvid_classes = datasets.DATASETS["camvid"].classes
    assert camvid_classes[:3] == ("Sky", "Building", "Pole")
    assert camvid_classes[10] == "Bicyclist" and len(camvid_classes) == 11
    assert datasets.DATASETS["camvid"].palette[4].tolist() == [60, 40, 222]
    assert datasets.DATASETS["camvid"].mean == (105.033, 108.409, 110.331)
    assert datasets.DATASETS["isbi2012"].classes == ("membrane", "interior")


def test_unknown_name_and_bad_resize():
    message = error_of(datasets.load, {"name": "camvit"}, "train")
    assert "data.name" in message and "did you mean camvid?" in message
    for size in ((0, 4), (4,), 4, (4.0, 4.0), (-4, 4)):
        message = error_of(datasets.load, {"name": "camvid", "resize": size}, "train")
        assert message.startswith("data.resize: found")


def test_scenes_are_read_like_the_others(tmp_path):
    data = {
        "name": "scenes",
        "data_dir": str(tmp_path),
        "scenes_size": (32, 40),
        "scenes_train": 3,
        "scenes_validation": 2,
        "scenes_seed": 0,
    }
    for split, count in (("train", 3), ("validation", 2)):
        source, dataset = datasets.load(data, split)
        assert len(source) == count and source.sizes == [(32, 40)] * count
        example = source[count - 1]
        assert example.keys() == {"image", "label", "id"}
        assert example["image"].shape == (32, 40, 3)
        assert set(np.unique(example["label"])) <= {*range(len(dataset.classes)), 255}
    assert "it has train, validation" in error_of(datasets.load, data, "test")


# --- CamVid


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
        assert dataset is datasets.DATASETS["camvid"]
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
    assert not caplog.records


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
        ("value", ["valannot/y.png holds the value 12", "0..10"]),
        ("color", ["valannot/y.png is a color image"]),
        ("size", ["valannot/y.png 6x9", "6x8", "val/y.png"]),
        ("image cut", ["train/a.jpg: cannot be decoded"]),
        ("annotation cut", ["valannot/y.png: mask cannot be decoded"]),
        ("nothing there", ["train.txt is missing", "CamVid/{"]),
    ],
)
def test_camvid_errors(tmp_path, how, expected):
    break_camvid(make_camvid(tmp_path), how)
    message = error_of(datasets.load, camvid_data(tmp_path, tmp_path), "train")
    for part in expected:
        assert part in message
    assert not list((tmp_path / "d").rglob("*.array_record*"))  # nothing was written


def test_camvid_without_root(tmp_path):
    assert "data.root is empty" in error_of(camvid.build, str(tmp_path), "")
    message = error_of(camvid.build, str(tmp_path), str(tmp_path / "nowhere"))
    assert "nowhere is not a folder" in message and "{train,val}annot" in message


def test_preparing_once_per_content(tmp_path, monkeypatch):
    home = make_camvid(tmp_path)
    data = camvid_data(tmp_path, tmp_path)
    datasets.load(data, "train")
    with monkeypatch.context() as patch:
        patch.setattr(camvid, "check_each", None)  # calling it would raise
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
    assert len(list((tmp_path / "d" / "camvid").iterdir())) == 3


def test_killed_and_overtaken_preparations(tmp_path, monkeypatch):
    make_camvid(tmp_path)
    data = camvid_data(tmp_path, tmp_path)
    original = prepare.Pairs._generate_examples

    def killed(self, made):
        yield 0, next(iter(made))
        raise KeyboardInterrupt

    def overtaken(self, made):
        monkeypatch.setattr(prepare.Pairs, "_generate_examples", original)
        datasets.load(data, "train")  # another process, faster
        return original(self, made)

    monkeypatch.setattr(prepare.Pairs, "_generate_examples", killed)
    with pytest.raises(KeyboardInterrupt):
        datasets.load(data, "train")
    monkeypatch.setattr(prepare.Pairs, "_generate_examples", overtaken)
    source, _ = datasets.load(data, "train")
    assert [source[i]["id"] for i in range(3)] == ["c", "a", "b"]
    (key,) = (tmp_path / "d" / "camvid").iterdir()
    assert [path.name for path in key.iterdir()] == ["1.0.0"]


def test_data_dir_that_cannot_be_written(tmp_path):
    make_camvid(tmp_path)
    (tmp_path / "file").write_text("")
    data = camvid_data(tmp_path, tmp_path, data_dir=str(tmp_path / "file"))
    message = error_of(datasets.load, data, "train")
    assert message.startswith("data.data_dir: ") and "Not a directory" in message


# --- ISBI 2012


def slices(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, H, W), np.uint8)


def make_isbi(root: Path, form: str, n: int = 11, test: int = 2) -> None:
    volume, unlabeled = slices(n, 0), slices(test, 2)
    labels = np.where(slices(n, 1) > 100, 255, 0).astype(np.uint8)
    stacks = {"image": volume, "label": labels}
    if form == "tiff":
        root.mkdir(parents=True)
        cv2.imwritemulti(str(root / "train-volume.tif"), list(volume))
        cv2.imwritemulti(str(root / "train-labels.tif"), list(labels))
        cv2.imwritemulti(str(root / "test-volume.tif"), list(unlabeled))
        return
    for name, stack in stacks.items():
        for z, page in enumerate(stack):
            write(root / "membrane" / "train" / name / f"{z}.png", page)
    for z, page in enumerate(unlabeled):
        write(root / "membrane" / "test" / f"{z}.png", page)
        write(root / "membrane" / "test" / f"{z}_predict.png", page)  # not a slice


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_isbi2012(tmp_path, form):
    make_isbi(tmp_path / "raw", form)
    data = {
        "name": "isbi2012",
        "root": str(tmp_path / "raw"),
        "data_dir": str(tmp_path),
    }
    train, dataset = datasets.load(data, "train")
    validation, _ = datasets.load(data, "validation")
    test, _ = datasets.load(data, "test")
    assert dataset.channels == 1
    assert (len(train), len(validation), len(test)) == (8, 3, 2)  # floor(0.8 * 11)
    examples = [train[i] for i in range(8)] + [validation[i] for i in range(3)]
    assert [e["id"] for e in examples] == [f"train_{z:02d}" for z in range(11)]
    np.testing.assert_array_equal(
        [e["image"][:, :, 0] for e in examples], slices(11, 0)
    )
    np.testing.assert_array_equal([e["label"] for e in examples], slices(11, 1) > 100)
    assert test[1]["id"] == "test_01" and (test[1]["label"] == 255).all()
    np.testing.assert_array_equal(test[1]["image"][:, :, 0], slices(2, 2)[1])
    assert test[1]["image"].shape == (H, W, 1)


def test_isbi2012_errors(tmp_path):
    def message(root) -> str:
        return error_of(isbi2012.build, str(tmp_path / "d"), str(root))

    assert "data.root is empty" in message("")
    (tmp_path / "empty").mkdir()
    assert "membrane/train/image/N.png" in message(tmp_path / "empty")

    make_isbi(tmp_path / "a", "png")
    label = tmp_path / "a" / "membrane" / "train" / "label" / "10.png"
    write(label, np.full((H, W), 254, np.uint8))
    assert "label of slice 10" in message(tmp_path / "a")
    assert "value 254" in message(tmp_path / "a")
    write(label, np.zeros((H + 1, W), np.uint8))
    assert "image 6x8, label 7x8" in message(tmp_path / "a")
    label.unlink()
    assert "11 images and 10 labels" in message(tmp_path / "a")
    assert "slice 10" in message(tmp_path / "a")

    make_isbi(tmp_path / "b", "tiff")
    (tmp_path / "b" / "train-labels.tif").unlink()
    assert "11 images and 0 labels" in message(tmp_path / "b")
    (tmp_path / "b" / "train-labels.tif").write_bytes(b"not a tiff")
    assert "train-labels.tif is damaged" in message(tmp_path / "b")


# --- Own folders


def make_folder(root: Path, labels: dict[str, np.ndarray], gray: bool = False) -> dict:
    """Images and masks by stem; returns the ``data`` section."""
    for i, (stem, label) in enumerate(labels.items()):
        h, w = label.shape[:2]
        image = rgb(i, h, w)
        write(root / "images" / f"{stem}.png", image[:, :, 0] if gray else image)
        write(root / "masks" / f"{stem}.png", label)
    return {"name": "folder", "root": str(root)}


def lists(root: Path, train: str, validation: str) -> None:
    (root / "train.txt").write_text(train)
    (root / "val.txt").write_text(validation)


def two_masks() -> dict[str, np.ndarray]:
    """a: 24 pixels of 0, 16 of 1, 8 void; b: 40 of 0, 8 of 2."""
    a, b = np.zeros((2, H, W), np.uint8)
    a[:2], a[2] = 1, 255
    b[5] = 2
    return {"a": a, "b": b}


def both_train(root: Path) -> dict:
    data = make_folder(root, two_masks() | {"v": np.zeros((H, W), np.uint8)})
    lists(root, "a\nb\n", "v\n")
    return data


def test_folder(tmp_path):
    data = both_train(tmp_path)
    source, dataset = datasets.load(data, "train")
    assert dataset.name == "folder" and dataset.channels == 3
    assert dataset.classes == ("class0", "class1", "class2")
    np.testing.assert_array_equal(dataset.palette, VOC_COLORS[:3])
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
    a[0], a[1], a[2] = 40000, 7, 1
    data = make_folder(tmp_path, {"a": a, "v": a})
    lists(tmp_path, "a", "v")
    source, dataset = datasets.load(data | {"void_values": (40000, 7)}, "train")
    assert len(dataset.classes) == 2
    np.testing.assert_array_equal(source[0]["label"][:4, 0], [255, 255, 1, 0])
    # Ids are not shifted where 0 is void.
    source, dataset = datasets.load(data | {"void_values": (40000, 7, 0)}, "train")
    assert len(dataset.classes) == 2
    np.testing.assert_array_equal(source[0]["label"][:4, 0], [255, 255, 1, 255])
    message = error_of(datasets.load, data | {"void_values": (-1,)}, "train")
    assert message.startswith("data.void_values: found -1")


def test_values_that_are_no_class(tmp_path):
    data = both_train(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    message = error_of(datasets.load, data, "train")
    for part in ("masks/b.png", "value 2", "0..1", "add 2 to data.void_values"):
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
        ("a\nvoid\nb\n", "line 2: 'void' is allowed on the last line only"),
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

    assert "data.root is empty" in message()
    assert "is not a folder" in message(root=str(tmp_path / "nowhere"))
    assert "images is missing" in message(root=str(tmp_path))
    data = both_train(tmp_path)
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")  # as some systems leave
    datasets.load(data, "train")

    (tmp_path / "masks" / "b.png").rename(tmp_path / "masks" / "b_mask.png")
    text = message(**data)
    assert "1 of 3 images have no mask, first images/b.png" in text
    assert str(tmp_path / "masks" / "b.png") in text
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
    image.write_bytes(good[:12])  # no header left: found by the scan
    assert "images/a.png: not readable" in error_of(datasets.load, data, "train")
    image.write_bytes(good[:-60])  # found when it is read
    source, _ = datasets.load(data, "train")
    message = error_of(source.__getitem__, 0)
    assert "images/a.png: cannot be decoded" in message
    image.write_bytes(good)
    write(tmp_path / "masks" / "a.png", np.full((H, W), 200, np.uint8))
    assert "masks/a.png: not the mask" in error_of(source.__getitem__, 0)
    cut(tmp_path / "masks" / "a.png")
    assert "masks/a.png: mask cannot" in error_of(datasets.load, data, "train")


def test_gray_folders_have_one_channel(tmp_path):
    data = make_folder(tmp_path, two_masks(), gray=True)
    source, dataset = datasets.load(data, "train")
    assert dataset.channels == 1 and len(dataset.mean) == 1
    assert source[0]["image"].shape == (H, W, 1)
    write(tmp_path / "images" / "a.png", rgb(0))  # one color image among them
    for split in ("train", "validation"):
        source, dataset = datasets.load(data, split)
        assert dataset.channels == 3 and source[0]["image"].shape == (H, W, 3)


# --- Image files


def test_decode_image(tmp_path):
    path = tmp_path / "x.png"
    color = rgb(0)
    for suffix in (".png", ".bmp", ".tif"):
        write(path.with_suffix(suffix), color)
        found = images.decode_image(path.with_suffix(suffix))
        np.testing.assert_array_equal(found, color)
    luma = color @ np.array([0.299, 0.587, 0.114])
    gray = images.decode_image(path, 1)
    assert gray.shape == (H, W, 1) and np.abs(gray[:, :, 0] - luma).max() < 1
    alpha = np.dstack([color, np.zeros((H, W), np.uint8)])
    write(path, alpha)
    np.testing.assert_array_equal(images.decode_image(path), color)
    write(path, color[:, :, 0])
    expected = np.dstack([color[:, :, 0]] * 3)
    np.testing.assert_array_equal(images.decode_image(path.read_bytes()), expected)
    deep = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    write(path, deep)
    assert images.decode_image(path, 1).ravel().tolist() == [0, 0, 1, 1, 255]
    Image.fromarray(color).quantize(4).save(path)  # a palette image is color
    assert images.decode_image(path).shape == (H, W, 3)
    assert images.image_header(path) == ((H, W), False)


def test_decode_image_errors(tmp_path):
    assert "cannot be read (No such file" in error_of(
        images.decode_image, tmp_path / "none.png"
    )
    (tmp_path / "empty.png").write_bytes(b"")
    message = error_of(images.decode_image, tmp_path / "empty.png")
    assert "empty.png: cannot be decoded (0 bytes)" in message
    assert error_of(images.decode_image, b"junk", name="page 3").startswith("page 3:")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    assert "holds float32" in error_of(images.decode_image, tmp_path / "f.tif")
    Image.fromarray(rgb(0)).convert("CMYK").save(tmp_path / "m.tif")
    assert "mode CMYK" in error_of(images.decode_mask, tmp_path / "m.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    smooth = cv2.resize(rgb(0, 3, 4), (32, 24), interpolation=cv2.INTER_CUBIC)
    for orientation, turns in ((1, 0), (3, 2), (6, -1), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(smooth).save(path, exif=exif, quality=100)
        turned = np.rot90(smooth, turns).astype(int)
        found = images.decode_image(path)
        assert images.image_header(path) == (turned.shape[:2], False)
        assert found.shape == turned.shape and np.abs(found - turned).mean() < 8


def test_palette_png(tmp_path):
    label = np.arange(12, dtype=np.int64).reshape(3, 4)
    label[0, 0] = 255
    palette = datasets.voc_palette(12)
    images.write_palette_png(tmp_path / "l.png", label, palette)
    values, kind = images.decode_mask(tmp_path / "l.png")
    assert kind == "index"
    np.testing.assert_array_equal(values, label)
    shown = cv2.imread(str(tmp_path / "l.png"))[:, :, ::-1]
    np.testing.assert_array_equal(shown[2], palette[8:12])
    assert tuple(shown[0, 0]) == images.VOID_COLOR
    assert os.listdir(tmp_path) == ["l.png"]  # no temporary file stays


def test_a_killed_program_leaves_no_half_png(tmp_path, monkeypatch):
    def killed(self, path, **options):
        assert Path(path) != tmp_path / "l.png"
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        images.write_palette_png(
            tmp_path / "l.png", np.zeros((2, 2)), datasets.voc_palette(2)
        )
    assert not os.listdir(tmp_path)


def test_png_round_trip():
    for array in (rgb(0), rgb(0)[:, :, :1]):
        data = images.encode_png(array)
        found = images.decode_image(data, array.shape[2])
        np.testing.assert_array_equal(found, array)


def test_list_images(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", ".d.png", "sub/e.tif", "x[1].png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")

    def found(*paths) -> list[str]:
        listed = images.list_images(str(tmp_path / path) for path in paths)
        return [os.path.relpath(path, tmp_path) for path in listed]

    assert found(".") == ["a.JPG", "b.png", "x[1].png"]
    assert found("*.png") == ["b.png", "x[1].png"]
    assert found("**/*") == ["a.JPG", "b.png", "sub/e.tif", "x[1].png"]
    assert found("x[1].png") == ["x[1].png"]
    assert found("sub", "b.png", "*.png") == ["sub/e.tif", "b.png", "x[1].png"]
    for nothing in ("none.png", "*.bmp", "none"):
        assert nothing in error_of(found, nothing)
