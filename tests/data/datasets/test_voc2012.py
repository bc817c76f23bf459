"""VOC 2012, alone and with SBD, in the folders of the downloads."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import photo_sets as sets
import pytest
from image_folders import cut, error_of
from PIL import Image
from scipy.io import savemat

from segjax.data import datasets, frames, prepare
from segjax.errors import UserError

CLASS = "VOCdevkit/VOC2012/SegmentationClass"
LISTS = "VOCdevkit/VOC2012/ImageSets/Segmentation"


def config(root: Path, name: str = "voc2012", **more) -> dict:
    return {"name": name, "root": str(root), "data_dir": str(root / "d")} | more


def read_all(source) -> dict:
    return {source[i]["id"]: source[i] for i in range(len(source))}


@pytest.mark.parametrize("above", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_root_is_any_folder_above_or_the_folder_itself(tmp_path, above):
    home = sets.make_voc(tmp_path)
    source, info = datasets.load(config(tmp_path / above), "train")
    assert isinstance(source, frames.FrameSource)
    assert [source[i]["id"] for i in range(3)] == ["2007_b", "2007_a", "2007_e"]
    assert info.classes[0] == "background" and len(info.classes) == 21
    assert info.classes[8] == "cat" and info.classes[20] == "tvmonitor"
    np.testing.assert_array_equal(source[1]["label"], sets.voc_mask(8))
    with Image.open(home / "JPEGImages/2007_a.jpg") as image:
        shown = np.asarray(image).astype(int)
    assert np.abs(source[1]["image"].astype(int) - shown).max() <= 2  # JPEG decoders
    validation, _ = datasets.load(config(tmp_path / above), "validation")
    assert list(read_all(pickle.loads(pickle.dumps(validation)))) == list(
        sets.VOC["val"]
    )
    assert "no split 'test'" in error_of(datasets.load, config(tmp_path), "test")


def test_images_of_the_test_set_have_no_labels(tmp_path):
    sets.make_voc(tmp_path, test=True)
    source, _ = datasets.load(config(tmp_path, instances=True), "test")
    assert source[0]["id"] == "2008_t" and (source[0]["label"] == 255).all()
    assert source[0]["instance"].max() == 0


def test_instances_are_numbered_and_contours_are_none(tmp_path):
    sets.make_voc(tmp_path)
    source, info = datasets.load(config(tmp_path, instances=True), "train")
    assert info.instances
    expected = sets.objects(sets.voc_mask(8))
    expected[expected == 255] = 0
    assert expected.max() == 2
    np.testing.assert_array_equal(source[1]["instance"], expected)
    assert source[1]["instance"].dtype == np.uint16
    for path in (tmp_path / "VOCdevkit/VOC2012/SegmentationObject").iterdir():
        path.unlink()
    datasets.load(config(tmp_path), "train")  # not asked for, not needed
    message = error_of(datasets.load, config(tmp_path, instances=True), "train")
    assert "5 of 15 files are missing, first SegmentationObject/2007_b.png" in message


def test_records_with_and_without_instances_are_kept_apart(tmp_path):
    sets.make_voc(tmp_path)
    for instances in (False, True):
        data = config(tmp_path, instances=instances)
        in_place = datasets.load(data, "train")[0]
        assert isinstance(in_place, frames.FrameSource)
        prepare.prepare(datasets.recipe(data), data)
        for root in (str(tmp_path), ""):
            records, _ = datasets.load(data | {"root": root}, "train")
            assert not isinstance(records, frames.FrameSource)
            for i in range(3):
                assert records[i].keys() == in_place[i].keys()
                for name in records[i]:
                    np.testing.assert_array_equal(records[i][name], in_place[i][name])


def test_masks_that_were_saved_without_palette_are_read(tmp_path):
    sets.make_voc(tmp_path)
    sets.gray_png(tmp_path / CLASS / "2007_b.png", sets.voc_mask(9))
    source, _ = datasets.load(config(tmp_path), "train")
    np.testing.assert_array_equal(source[0]["label"], sets.voc_mask(9))


def reordered(path: Path) -> None:
    """As programs that sort the palette by use: the colors stay, the ids do not."""
    with Image.open(path) as image:
        Image.fromarray(np.asarray(image.convert("RGB"))).quantize(8).save(path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (
        lambda root: (root / "VOCdevkit").rename(root / "other"),
        r"VOC2012/ImageSets/Segmentation is missing; expected VOCdevkit/VOC2012/{JPEG",
    ),
    "no list": (lambda root: (root / LISTS / "val.txt").unlink(), "val.txt is missing"),
    "unknown image": (
        lambda root: sets.lines(root / LISTS / "val.txt", ["2007_c", "2009_z"]),
        "2 of 10 files are missing, first JPEGImages/2009_z.jpg",
    ),
    "both lists": (
        lambda root: sets.lines(root / LISTS / "val.txt", ["2007_c", "2007_a"]),
        "2007_a is in the lists of train and of validation",
    ),
    "no mask": (
        lambda root: (root / CLASS / "2007_c.png").unlink(),
        "1 of 10 files are missing, first SegmentationClass/2007_c.png",
    ),
    "empty mask": (
        lambda root: (root / CLASS / "2007_c.png").write_bytes(b""),
        "1 of 10 files are empty, first SegmentationClass/2007_c.png",
    ),
    "cut mask": (
        lambda root: cut(root / CLASS / "2007_b.png"),
        "2007_b.png: cannot be decoded",
    ),
    "value": (
        lambda root: sets.palette_png(root / CLASS / "2007_b.png", sets.voc_mask(21)),
        "2007_b.png holds the value 21; expected a palette PNG of the ids 0..20",
    ),
    "palette": (
        lambda root: reordered(root / CLASS / "2007_b.png"),
        "2007_b.png shows the id . in the color .*, VOC in .*; expected the palette",
    ),
    "colors": (
        lambda root: sets.photo(root / CLASS / "2007_b.png", 0),
        "2007_b.png is a color image; expected a palette PNG",
    ),
    "size": (
        lambda root: sets.palette_png(
            root / CLASS / "2007_b.png", sets.voc_mask(8)[:, 1:]
        ),
        "2007_b.png: label map of 2007_b is 32x39, its image .*2007_b.jpg 32x40",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_voc(tmp_path, fault):
    sets.make_voc(tmp_path)
    break_it, message = FAULTS[fault]
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        datasets.load(config(tmp_path), "train")[0][0]
    assert "\n" not in str(caught.value)


def test_the_mask_is_named_once_it_is_read(tmp_path):
    """Only files that are read are opened."""
    sets.make_voc(tmp_path)
    cut(tmp_path / CLASS / "2007_a.png")
    source, _ = datasets.load(config(tmp_path), "train")
    source[0]
    assert "2007_a.png: cannot be decoded" in error_of(source.__getitem__, 1)


# --- SBD


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_training_images_are_those_of_both_but_validation(tmp_path, place):
    sets.make_voc(tmp_path)
    sets.make_sbd(tmp_path)
    (tmp_path / "benchmark_RELEASE").rename(tmp_path / place / "benchmark_RELEASE")
    for above in ("", "VOCdevkit/VOC2012"):
        data = config(tmp_path / above, "voc2012_aug", instances=True)
        source, info = datasets.load(data, "train")
        examples = read_all(source)
        expected = ["2007_b", "2007_a", "2007_e", "2008_x", "2008_y"]
        assert list(examples) == expected
        # Images of VOC keep the masks of VOC, with their contours.
        np.testing.assert_array_equal(examples["2007_a"]["label"], sets.voc_mask(8))
        for stem in ("2008_x", "2008_y"):
            mask = sets.sbd_mask(stem)
            np.testing.assert_array_equal(examples[stem]["label"], mask)
            np.testing.assert_array_equal(
                examples[stem]["instance"], sets.objects(mask)
            )
            assert examples[stem]["label"].dtype == np.uint8
        validation, _ = datasets.load(data, "validation")
        assert list(read_all(validation)) == list(sets.VOC["val"])
        assert info.counts["train"] == 10582 and info.classes[20] == "tvmonitor"


@pytest.mark.parametrize(
    "file, text",
    [
        ("trainaug.txt", "2007_b\n2007_a\n2007_e\n2008_x\n2007_c\n"),
        ("aug.txt", "2008_x\n"),
        ("train_aug.txt", "/JPEGImages/2008_x.jpg /SegmentationClassAug/2008_x.png\n"),
    ],
)
def test_masks_of_sbd_as_png(tmp_path, file, text):
    home = sets.make_voc(tmp_path)
    sets.photo(home / "JPEGImages/2008_x.jpg", 50)
    sets.gray_png(home / "SegmentationClassAug/2008_x.png", sets.sbd_mask("2008_x"))
    (tmp_path / LISTS / file).write_text(text)
    source, _ = datasets.load(config(tmp_path, "voc2012_aug"), "train")
    examples = read_all(source)
    assert list(examples) == ["2007_b", "2007_a", "2007_e", "2008_x"]
    np.testing.assert_array_equal(examples["2008_x"]["label"], sets.sbd_mask("2008_x"))
    message = error_of(
        datasets.load, config(tmp_path, "voc2012_aug", instances=True), "train"
    )
    assert "instances need benchmark_RELEASE/dataset/inst/ID.mat" in message


def test_faults_of_sbd(tmp_path):
    data = config(tmp_path, "voc2012_aug")
    home = sets.make_voc(tmp_path)
    assert "the masks of SBD are missing; expected" in error_of(
        datasets.load, data, "train"
    )
    sbd = sets.make_sbd(tmp_path)
    (home / "JPEGImages/2008_x.jpg").rename(tmp_path / "x.jpg")
    message = error_of(datasets.load, data, "train")
    assert "1 of 2 files are missing, first img/2008_x.jpg" in message
    (tmp_path / "x.jpg").rename(home / "JPEGImages/2008_x.jpg")
    mat = sbd / "cls/2008_x.mat"
    good = mat.read_bytes()

    def message_of_reading() -> str:
        return error_of(datasets.load(data, "train")[0].__getitem__, 3)

    mat.write_bytes(good[: len(good) // 2])
    assert f"{mat} cannot be read" in message_of_reading()
    savemat(mat, {"GTcls": {"Boundaries": np.zeros((3, 3))}})
    assert f"{mat} holds no map of ids GTcls.Segmentation" in message_of_reading()
    savemat(mat, {"other": np.zeros((3, 3))})
    assert f"{mat} holds no map of ids GTcls.Segmentation" in message_of_reading()
    savemat(mat, {"GTcls": {"Segmentation": np.full((sets.H, sets.W), 21)}})
    message = message_of_reading()
    assert f"{mat} holds the value 21; expected the ids 0..20" in message
    savemat(mat, {"GTcls": {"Segmentation": np.full((sets.H, sets.W), 0.5)}})
    assert "holds no map of ids" in message_of_reading()
    savemat(mat, {"GTcls": {"Segmentation": np.full((sets.H, 3), 1)}})
    assert "2008_x.mat: label map of 2008_x is 32x3" in message_of_reading()
    mat.write_bytes(b"")
    message = error_of(datasets.load, data, "train")
    assert "1 of 2 files are empty, first 2008_x.mat" in message
