"""COCO: outlines drawn as label and instance maps; COCO-Stuff: maps of raw ids."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import photo_sets as sets
import pytest
from image_folders import cut, error_of
from skimage.draw import polygon

from segjax.data import datasets, frames, prepare
from segjax.data.datasets import coco, coco_index
from segjax.errors import UserError

H, W = sets.H, sets.W
JSON = "annotations/instances_train2017.json"
STUFF = "stuffthingmaps/train2017/000000000007.png"


def config(root: Path, name: str = "coco", **more) -> dict:
    return {"name": name, "root": str(root), "data_dir": str(root / "d")} | more


def test_categories():
    """Ids and names at the ends and around the gaps of COCO's numbering."""
    known = {1: "person", 11: "fire hydrant", 13: "stop sign", 17: "cat", 25: "giraffe"}
    known |= {27: "backpack", 31: "handbag", 44: "bottle", 46: "wine glass"}
    known |= {65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 82: "refrigerator"}
    known |= {84: "book", 90: "toothbrush"}
    assert {k: coco.CATEGORIES[k] for k in known} == known
    assert len(coco.CATEGORIES) == len(set(coco.CATEGORIES.values())) == 80
    classes = datasets.describe({"name": "coco_stuff"}).classes
    assert len(set(classes)) == 171 and classes[80] == "banner"
    assert classes[79] == "toothbrush" and classes[170] == "wood"


def test_smaller_objects_lie_on_larger_ones_and_crowds_are_void(tmp_path):
    sets.make_coco(tmp_path)
    source, info = datasets.load(config(tmp_path, instances=True), "train")
    assert len(info.classes) == 81 and info.instances
    example = source[0]
    assert example["id"] == "000000000007"
    names = np.array([*info.classes] + [""] * 174 + ["void"])
    label = np.full((H, W), "background", object)
    label[20:, 16:] = "void"
    label[4:28, 4:20] = label[0:4, 30:36] = "person"
    label[8:16, 8:16] = "cat"
    np.testing.assert_array_equal(names[example["label"]], label)
    instance = np.zeros((H, W), int)
    instance[4:28, 4:20] = instance[0:4, 30:36] = 2
    instance[8:16, 8:16] = 1
    np.testing.assert_array_equal(example["instance"], instance)
    other = pickle.loads(pickle.dumps(source))[1]
    assert (other["label"] == 80).all() and (other["instance"] == 1).all()
    validation, _ = datasets.load(config(tmp_path, instances=True), "validation")
    assert validation[0]["label"].max() == validation[0]["instance"].max() == 0


def test_outlines_are_filled(tmp_path):
    """A triangle and a hexagon against scikit-image, but for pixels of the outline."""
    sets.make_coco(tmp_path)
    shapes = {
        18: [(3, 2), (28, 6), (12, 25)],
        62: [(26, 20), (32, 16), (38, 20), (38, 27), (32, 30), (26, 26)],
    }
    some = [
        {"image_id": 7, "category_id": k, "segmentation": [np.ravel(p).tolist()]}
        for k, p in shapes.items()
    ]
    content = sets.coco_json({7: "000000000007.jpg"}, some)
    (tmp_path / JSON).write_text(json.dumps(content))
    label = datasets.load(config(tmp_path), "train")[0][0]["label"]
    for k, corners in shapes.items():
        x, y = np.array(corners, float).T
        inside = np.zeros((H, W), bool)
        inside[polygon(y - 0.5, x - 0.5, (H, W))] = True
        found = label == coco.IDS[k]
        assert inside.sum() > 60
        assert (found != inside).sum() <= 0.12 * inside.sum()


def test_the_order_of_annotations_does_not_decide(tmp_path):
    sets.make_coco(tmp_path)
    expected = datasets.load(config(tmp_path), "train")[0][0]["label"]
    content = json.loads((tmp_path / JSON).read_text())
    content["annotations"].reverse()
    (tmp_path / JSON).write_text(json.dumps(content))
    found = datasets.load(config(tmp_path), "train")[0][0]["label"]
    np.testing.assert_array_equal(found, expected)


def test_the_json_file_is_read_once(tmp_path, monkeypatch):
    """Another time of the file means other lines."""
    sets.make_coco(tmp_path)
    datasets.load(config(tmp_path), "train")
    with monkeypatch.context() as patch:
        patch.setattr(coco_index, "_read", None)  # calling it would raise
        source, _ = datasets.load(config(tmp_path), "train")
    assert len(pickle.dumps(source)) < 3000
    content = json.loads((tmp_path / JSON).read_text())
    content["annotations"][0]["category_id"] = 18
    stat = (tmp_path / JSON).stat()
    (tmp_path / JSON).write_text(json.dumps(content))
    os.utime(tmp_path / JSON, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    source, info = datasets.load(config(tmp_path), "train")
    assert info.classes[source[0]["label"][10, 10]] == "dog"


def test_records_hold_what_is_drawn(tmp_path):
    data = config(sets.make_coco(tmp_path), instances=True)
    in_place = datasets.load(data, "train")[0]
    prepare.prepare(datasets.recipe(data), data)
    records, _ = datasets.load(data, "train")
    assert not isinstance(records, frames.FrameSource)
    for i in range(2):
        for name in in_place[i]:
            np.testing.assert_array_equal(records[i][name], in_place[i][name])


def test_images_may_lie_in_a_folder_images(tmp_path):
    sets.make_coco(tmp_path)
    (tmp_path / "images").mkdir()
    for part in ("train2017", "val2017"):
        (tmp_path / part).rename(tmp_path / "images" / part)
    for name in ("coco", "coco_stuff"):
        assert datasets.load(config(tmp_path, name), "train")[0].sizes == [(H, W)] * 2


def test_without_pycocotools(tmp_path, monkeypatch):
    sets.make_coco(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    message = error_of(datasets.load, config(tmp_path), "train")
    assert message == (
        "coco: its outlines need pycocotools; pip install 'segjax[coco]'"
    )
    datasets.load(config(tmp_path, "coco_stuff"), "train")


def change(**values) -> Callable[[Path], None]:
    """Changes the first annotation."""

    def break_it(root: Path) -> None:
        content = json.loads((root / JSON).read_text())
        content["annotations"][0] |= values
        (root / JSON).write_text(json.dumps(content))

    return break_it


@pytest.mark.parametrize("outline", [[], [[1, 2, 30, 31]]])
def test_outlines_of_two_corners_enclose_nothing(tmp_path, caplog, outline):
    sets.make_coco(tmp_path)
    change(segmentation=outline)(tmp_path)
    source, info = datasets.load(config(tmp_path, instances=True), "train")
    assert "1 objects are left out, whose outlines have fewer than" in caplog.text
    label, instance = source[0]["label"], source[0]["instance"]
    assert set(np.unique(label)) == {0, 1, 255}  # the cat is left out
    np.testing.assert_array_equal(instance == 1, label == 1)


def rename_category(root: Path) -> None:
    content = json.loads((root / JSON).read_text())
    content["categories"][0]["name"] = "pedestrian"
    (root / JSON).write_text(json.dumps(content))


def claim_width(root: Path) -> None:
    content = json.loads((root / JSON).read_text())
    for image in content["images"]:
        image["width"] = 8
    content["annotations"] = []
    (root / JSON).write_text(json.dumps(content))


OUTLINE = "the annotation 100 has no outline"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (
        lambda root: (root / JSON).unlink(),
        "files are missing, first annotations/instances_train2017.json; expected ROOT/",
    ),
    "cut JSON": (lambda root: cut(root / JSON), "instances_train2017.json: is not val"),
    "another JSON": (
        lambda root: (root / JSON).write_text('{"a": 1}'),
        "instances_train2017.json is not in the form of COCO",
    ),
    "no image": (
        lambda root: (root / "train2017/000000000005.jpg").unlink(),
        "train2017: 1 of 2 files are missing, first 000000000005.jpg",
    ),
    "empty image": (
        lambda root: (root / "train2017/000000000005.jpg").write_bytes(b""),
        "train2017: 1 of 2 files are empty, first 000000000005.jpg",
    ),
    "cut image": (
        lambda root: cut(root / "train2017/000000000007.jpg"),
        "000000000007.jpg: cannot be decoded",
    ),
    "categories": (rename_category, "category 1 is 'pedestrian', in COCO 'person'"),
    "category": (
        change(category_id=12),
        "annotation 100 is of category 12 and image 7",
    ),
    "image": (change(image_id=8), "annotation 100 is of category 17 and image 8"),
    "no outline": (change(segmentation=None), OUTLINE),
    "odd": (change(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), OUTLINE),
    "text": (change(segmentation=["123456"]), OUTLINE),
    "runs": (change(segmentation={"size": [H, W], "counts": [5]}), OUTLINE),
    "runs' size": (change(segmentation={"size": [2, 2], "counts": [4]}), OUTLINE),
    "size": (claim_width, "label map of 000000000007 is 32x8, its image .* 32x40"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_coco(tmp_path, fault):
    sets.make_coco(tmp_path)
    break_it, message = FAULTS[fault]
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        datasets.load(config(tmp_path), "train")[0][0]
    assert "\n" not in str(caught.value)


def test_damaged_lines(tmp_path):
    sets.make_coco(tmp_path)
    source, _ = datasets.load(config(tmp_path), "train")
    for path in (tmp_path / "d/coco_objects").glob("*.lines"):
        cut(path)
    assert "remove this file: the next start writes it again" in error_of(
        source.__getitem__, 0
    )


# --- COCO-Stuff


@pytest.mark.parametrize("folder", ["stuffthingmaps", "annotations"])
def test_raw_values_of_coco_stuff(tmp_path, folder):
    sets.make_coco(tmp_path)
    for part in ("train2017", "val2017"):
        labels = tmp_path / folder / part
        (tmp_path / "stuffthingmaps" / part).rename(labels)
        sets.gray_png(labels / "000000000007_labelTrainIds.png", np.zeros((2, 2)))
    source, info = datasets.load(config(tmp_path, "coco_stuff"), "train")
    assert [source[i]["id"] for i in range(2)] == ["000000000005", "000000000007"]
    label = source[0]["label"]
    shown = [info.classes[k] for k in label[:24:8, 0]]
    assert shown == ["person", "cat", "wood"] and (label[24:] == 255).all()


def test_every_raw_value_of_coco_stuff(tmp_path):
    """In order; the values that do not occur are errors."""
    sets.make_coco(tmp_path)
    absent = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    for value in range(256):
        sets.gray_png(tmp_path / STUFF, np.full((H, W), value, np.uint8))
        frame = frames.Frame("x", tmp_path / "x.jpg", tmp_path / STUFF)
        if value in absent or 182 <= value < 255:
            message = error_of(coco.read_stuff, frame)
            assert f"000000000007.png holds the value {value}; expected" in message
        else:
            smaller = value - sum(each < value for each in absent)
            expected = 255 if value == 255 else smaller
            assert (coco.read_stuff(frame) == expected).all()


STUFF_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no maps": (
        lambda root: (root / "stuffthingmaps").rename(root / "maps"),
        "2 of 2 files are missing, first 000000000005.png; expected",
    ),
    "no map": (
        lambda root: (root / STUFF).unlink(),
        "1 of 2 files are missing, first 000000000007.png; expected ROOT/",
    ),
    "no image": (
        lambda root: (root / "train2017/000000000007.jpg").unlink(),
        "1 of 2 files are missing, first 000000000007.jpg",
    ),
    "cut map": (lambda root: cut(root / STUFF), "000000000007.png: cannot be decoded"),
    "colors": (
        lambda root: sets.photo(root / STUFF, 0),
        "000000000007.png is a color image; expected ids of COCO-Stuff",
    ),
    "size": (
        lambda root: sets.gray_png(root / STUFF, np.zeros((H, 3), np.uint8)),
        "label map of 000000000007 is 32x3",
    ),
}


@pytest.mark.parametrize("fault", STUFF_FAULTS)
def test_faults_of_coco_stuff(tmp_path, fault):
    sets.make_coco(tmp_path)
    break_it, message = STUFF_FAULTS[fault]
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        datasets.load(config(tmp_path, "coco_stuff"), "train")[0][1]
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    message = error_of(datasets.load, config(tmp_path / "empty", "coco_stuff"), "train")
    assert "no image there; expected ROOT/{train,val}2017/ID.jpg" in message
