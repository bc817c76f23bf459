"""Layouts of own folders: PASCAL VOC, folders of splits, masks with a suffix."""

import builtins
import json
import shutil

import numpy as np
import pytest
from image_folders import H, W, error_of, lists, make_folder, rgb, write
from PIL import Image

from segjax.data import datasets, folder, images


def mask(seed: int = 0, size: tuple[int, int] = (H, W)) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, 3, size).astype(np.uint8)
    ids[0, :3] = 0, 1, 2
    return ids


def stems(found: folder.Scan) -> dict[str, list[str]]:
    return {s: [found.stems[i] for i in at] for s, at in found.splits.items()}


def voc(root, masked="abcd", unmasked="xyz") -> dict:
    """A tree as PASCAL VOC has it: most images have no mask."""
    for i, stem in enumerate(masked + unmasked):
        path = root / "JPEGImages" / f"{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb(i)).save(path)
    palette = images.voc_palette(21)
    for name in ("SegmentationClass", "SegmentationObject"):
        (root / name).mkdir()
        for i, stem in enumerate(masked):
            images.write_palette_png(root / name / f"{stem}.png", mask(i), palette)
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text("<a/>")
    where = root / "ImageSets" / "Segmentation"
    where.mkdir(parents=True)
    lists(where, "a\nb\n", "c\nd\n")
    (where / "trainval.txt").write_text("a\nb\nc\nd\n")
    return {"name": "folder", "root": str(root)}


def test_pascal_voc_as_it_is(tmp_path, monkeypatch):
    data = voc(tmp_path)
    opened: list[str] = []
    real = builtins.open

    def recording(path, *args, **kwargs):
        opened.append(str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", recording)
    found = datasets.scan_folder(data)
    assert stems(found) == {"train": ["a", "b"], "validation": ["c", "d"]}
    assert any(name.endswith("JPEGImages/a.jpg") for name in opened)
    assert not [name for name in opened if name[-5] in "xyz"]
    assert "3 images are in no list, first x: left out" in found.notes
    assert any("the layout is that of PASCAL VOC" in note for note in found.notes)
    assert "1 lists are not read, first trainval.txt: left out" in found.notes
    source, _ = datasets.load(data, "validation")
    np.testing.assert_array_equal(source[0]["label"], mask(2))
    # A list of the user's counts more than those of the tree.
    lists(tmp_path, "d\n", "a\n")
    assert stems(datasets.scan_folder(data)) == {"train": ["d"], "validation": ["a"]}
    # A changed list is seen at once.
    (tmp_path / "val.txt").write_text("b\n")
    assert stems(datasets.scan_folder(data))["validation"] == ["b"]


def test_pascal_voc_without_lists_needs_every_mask(tmp_path):
    data = voc(tmp_path)
    shutil.rmtree(tmp_path / "ImageSets")
    message = error_of(datasets.scan_folder, data)
    assert "3 of 7 images have no mask, first JPEGImages/x.jpg" in message
    for stem in "xyz":
        (tmp_path / "JPEGImages" / f"{stem}.jpg").unlink()
    assert "PASCAL VOC, without lists" in datasets.scan_folder(data).notes[0]
    Image.fromarray(rgb(0)).save(tmp_path / "JPEGImages" / "x.jpg")
    message = error_of(datasets.scan_folder, data)
    assert "expected " + str(tmp_path / "SegmentationClass/x.png") in message
    assert "list the images that have one in train.txt and val.txt" in message


def test_a_list_may_name_an_image_without_mask_only_to_test(tmp_path):
    data = voc(tmp_path)
    where = tmp_path / "ImageSets" / "Segmentation"
    (where / "test.txt").write_text("x\ny\n")
    found = datasets.scan_folder(data)
    assert stems(found) == {"train": ["a", "b"], "validation": ["c", "d"]}
    assert "2 images of the test split have no mask, first x: left out" in found.notes
    (where / "train.txt").write_text("a\nx\n")
    (where / "test.txt").unlink()
    message = error_of(datasets.scan_folder, data)
    assert "1 of 7 images have no mask, first JPEGImages/x.jpg" in message
    (where / "train.txt").write_text("a\nq\n")
    message = error_of(datasets.scan_folder, data)
    assert "1 of 2 entries name no image" in message and "'q'" in message


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("masks", ["masks", "labels"])
@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "valid", "")])
def test_splits_that_are_folders(tmp_path, outside, masks, names):
    def at(kind: str, name: str):
        return tmp_path / (f"{name}/{kind}" if outside else f"{kind}/{name}")

    for number, name in enumerate(filter(None, names)):
        for stem in ("0001", f"{number}"):  # the first one is in all of them
            write(at("images", name) / f"{stem}.png", rgb(number))
            write(at(masks, name) / f"{stem}.png", mask(number))
    data = {"name": "folder", "root": str(tmp_path)}
    found = datasets.scan_folder(data)
    splits = dict(zip(("train", "validation", "test"), names))
    assert stems(found) == {
        split: sorted([f"{name}/0001", f"{name}/{number}"])
        for number, (split, name) in enumerate(splits.items())
        if name
    }
    source, _ = datasets.load(data, "validation")
    for example in (source[0], source[1]):
        np.testing.assert_array_equal(example["label"], mask(1))
        np.testing.assert_array_equal(example["image"], rgb(1))
    assert found.notes[0].startswith("the splits are the folders ")
    (tmp_path / "val.txt").write_text("1\n")
    assert "holds both val.txt and" in error_of(datasets.scan_folder, data)
    (tmp_path / "val.txt").unlink()
    (at("images", names[0]) / "a_b.png").write_bytes(b"")
    message = error_of(datasets.scan_folder, data)
    assert "images have no mask" in message
    assert f"{at(masks, names[0]) / 'a_b.png'}" in message


def test_folders_of_splits_may_lack_validation_and_masks_to_test(tmp_path):
    for stem in "abcde":
        write(tmp_path / "images" / "train" / f"{stem}.png", rgb(0))
        write(tmp_path / "masks" / "train" / f"{stem}.png", mask())
    write(tmp_path / "images" / "test" / "t.png", rgb(0))
    found = folder.scan(str(tmp_path))
    assert {s: len(at) for s, at in found.splits.items()} == {
        "train": 4,
        "validation": 1,
    }
    assert not [stem for stem in found.stems if stem.startswith("test")]
    (tmp_path / "images" / "training").mkdir()
    message = error_of(folder.scan, str(tmp_path))
    assert "both images/train and images/training" in message
    (tmp_path / "images" / "training").rmdir()
    (tmp_path / "images" / "train").rename(tmp_path / "images" / "val")
    message = error_of(folder.scan, str(tmp_path))
    assert "masks/val is missing" in message
    (tmp_path / "masks" / "train").rename(tmp_path / "masks" / "val")
    message = error_of(folder.scan, str(tmp_path))
    assert "no folder of that kind for training" in message


def test_folders_of_images_that_are_not_read_are_said(tmp_path):
    for part in ("images", "masks"):
        array = rgb(0) if part == "images" else mask()
        for name in ("train", "val", "test2"):
            write(tmp_path / "a" / part / name / "1.png", array)
            write(tmp_path / "b" / name / part / "1.png", array)
        for name in ("1.png", "2.png", "inner/3.png"):
            write(tmp_path / "c" / part / name, array)
    (tmp_path / "c" / "images" / ".thumbnails").mkdir()
    for root, unread in (("a", "images/test2"), ("b", "test2/images"), ("c", "inner")):
        notes = folder.scan(str(tmp_path / root)).notes
        (note,) = [note for note in notes if "folders of images" in note]
        assert note.startswith("1 folders of images are not read") and unread in note


def test_masks_with_a_suffix(tmp_path):
    data = make_folder(tmp_path, {stem: mask(i) for i, stem in enumerate("abc")})
    for stem in "abc":
        path = tmp_path / "masks" / f"{stem}.png"
        path.rename(path.with_name(f"{stem}_mask.png"))
    found = datasets.scan_folder(data)
    assert found.stems == ("a", "b", "c")
    assert "the masks are called STEM_mask.png" in found.notes
    source, _ = datasets.load(data, "train")
    assert source[0]["label"].shape == (H, W)
    # Not all of them: a mistake.
    write(tmp_path / "images" / "d.png", rgb(0))
    write(tmp_path / "masks" / "d.png", mask())
    assert "3 of 4 images have no mask" in error_of(datasets.scan_folder, data)


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("images/a.json", "{}", "polygons, as of Labelme, which are no masks"),
        ("a.json", "{}", "labelme2voc"),
        ("annotations/instances_train.json", "{}", "COCO.annToMask"),
        ("_annotations.coco.json", "{}", "COCO.annToMask"),
        ("labels/train/a.txt", "0 0.1 0.1", "polygons of YOLO"),
        ("labels/a.txt", "0 0.1 0.1", "an export of masks as PNG"),
        ("annotations.xml", "<a/>", "XML annotations"),
    ],
)
def test_labels_that_are_no_pixels_are_refused_with_a_cure(
    tmp_path, name, text, expected
):
    write(tmp_path / "images" / "a.png", rgb(0))
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(text))
    message = error_of(folder.scan, str(tmp_path))
    assert "masks is missing" in message and f"{name} holds" in message
    assert expected in message
