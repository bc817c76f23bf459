"""The table of data sets, palettes, and scenes as a data set."""

import numpy as np
import pytest
from image_folders import error_of

from segjax.data import datasets, images
from segjax.errors import UserError

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


# --- Tables and palettes


@pytest.mark.parametrize(
    "data, message",
    [
        ({"name": "scenes", "root": "/photos"}, "data.root is '/photos', but .*scenes"),
        ({"name": "camvid", "classes": "a.txt"}, "data.classes is 'a.txt', but camvid"),
    ],
)
def test_files_that_would_not_be_read_are_refused(data, message):
    with pytest.raises(UserError, match=message):
        datasets.describe(data)


def test_voc_palette_is_the_published_one():
    assert datasets.voc_palette(22).tolist() == [list(c) for c in VOC_COLORS]
    everything = datasets.voc_palette(256)
    assert tuple(everything[255]) == images.VOID_COLOR == (224, 224, 192)
    assert len(np.unique(everything, axis=0)) == 256


def test_table_of_datasets():
    for name in set(datasets.NAMES) - {"folder"}:
        dataset = datasets.describe({"name": name})
        k = len(dataset.classes)
        assert dataset.name == name
        assert dataset.palette.shape == (k, 3) and dataset.palette.dtype == np.uint8
        assert len(np.unique(dataset.palette, axis=0)) == k
        assert len(dataset.mean) == dataset.channels
    camvid_classes = datasets.describe({"name": "camvid"}).classes
    assert camvid_classes[:3] == ("Sky", "Building", "Pole")
    assert camvid_classes[10] == "Bicyclist" and len(camvid_classes) == 11
    assert datasets.describe({"name": "camvid"}).palette[4].tolist() == [60, 40, 222]
    assert datasets.describe({"name": "camvid"}).mean == (105.033, 108.409, 110.331)
    assert datasets.describe({"name": "isbi2012"}).classes == ("membrane", "interior")


def test_unknown_name_and_bad_resize():
    message = error_of(datasets.load, {"name": "camvit"}, "train")
    assert message.startswith("--config.data.name: ") and "'camvid'?" in message
    for size in ((0, 4), (4,), 4, (4.0, 4.0), (-4, 4)):
        message = error_of(datasets.load, {"name": "camvid", "resize": size}, "train")
        assert message.startswith("--config.data.resize: found")


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
    message = error_of(datasets.load, data, "test")
    assert "no split 'test'; it has train, validation" in message
