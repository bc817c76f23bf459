"""``data.keep_classes``: some classes of a data set, the rest void."""

import numpy as np
import pytest
from image_folders import error_of, make_folder

from experiments.shared import training_run
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.data.source import KeptClasses
from segjax.errors import UserError

SCENES = {
    "name": "scenes",
    "scenes_size": (32, 40),
    "scenes_train": 4,
    "scenes_validation": 1,
    "scenes_seed": 0,
    "instances": True,
}


def test_classes_are_renumbered_in_the_given_order_and_the_rest_is_void(tmp_path):
    data = SCENES | {"data_dir": str(tmp_path)}
    whole, everything = datasets.load(data, "train")
    names = (everything.classes[4], everything.classes[0], everything.classes[2])
    data |= {"keep_classes": names}
    some, info = datasets.load(data, "train")
    assert info.classes == names == datasets.describe(data).classes
    np.testing.assert_array_equal(info.palette, everything.palette[[4, 0, 2]])
    np.testing.assert_array_equal(datasets.describe(data).palette, info.palette)
    assert info.mean == everything.mean and some.sizes == whole.sizes
    assert datasets.fingerprint(some) != datasets.fingerprint(whole)
    dropped = 0
    for i in range(4):
        before, after = whole[i], some[i]
        expected = np.full_like(before["label"], 255)
        for new, old in enumerate((4, 0, 2)):
            expected[before["label"] == old] = new
        np.testing.assert_array_equal(after["label"], expected)
        np.testing.assert_array_equal(after["image"], before["image"])
        assert after["id"] == before["id"] and after["label"].dtype == np.uint8
        kept = (expected < 255) | (before["label"] == 255)
        np.testing.assert_array_equal(
            after["instance"], np.where(kept, before["instance"], 0)
        )
        assert after["instance"].dtype == np.uint16
        dropped += ((before["instance"] > 0) & ~kept).sum()
    assert dropped > 0


def test_images_are_resized_after_classes_are_dropped(tmp_path):
    data = SCENES | {"data_dir": str(tmp_path)}
    names = datasets.describe(data).classes[1:3]
    data |= {"keep_classes": names, "resize": (16, 20)}
    source, info = datasets.load(data, "train")
    assert source.sizes == [(16, 20)] * 4 and info.size == (16, 20)
    assert set(np.unique([source[i]["label"] for i in range(4)])) == {0, 1, 255}


def test_own_folders(tmp_path, capsys):
    label = np.arange(48, dtype=np.uint8).reshape(6, 8) // 16
    data = make_folder(tmp_path, {stem: label for stem in "abcdef"})
    config = config_lib.make(
        model_name="unet", data=data | {"keep_classes": ("class2", "class0")}
    )
    source, info = training_run.load_data(config)
    assert info.classes == ("class2", "class0")
    np.testing.assert_array_equal(source[0]["label"], np.array([1, 255, 0])[label])
    assert "note: only class2, class0 are kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, message",
    [
        (("Sky", "Rood"), "keep_classes: unknown value 'Rood'; did you mean 'Road'?"),
        (("Sky", "Road", "Sky"), "found Sky, Road, Sky; expected two or more classes"),
        (("Sky",), "found Sky; expected two or more classes of camvid, each once"),
    ],
)
def test_names_that_are_no_subset(names, message):
    data = {"name": "camvid", "keep_classes": names}
    assert message in error_of(datasets.describe, data)
    with pytest.raises(UserError, match="data.keep_classes is .*expected names of cl"):
        config_lib.check(
            config_lib.make(model_name="unet", data={"keep_classes": (3,)})
        )


def test_a_run_remembers_its_classes(tmp_path):
    """The description of a workdir is that of what was kept: others do not fit."""
    kept = datasets.describe({"name": "camvid", "keep_classes": ("Sky", "Road")})
    workdir_lib.write_dataset(tmp_path, kept)
    trained = workdir_lib.read_dataset(tmp_path)
    assert trained.classes == ("Sky", "Road")
    workdir_lib.check_same_classes(trained, kept)
    other = datasets.describe({"name": "camvid", "keep_classes": ("Road", "Sky")})
    for info in (datasets.describe({"name": "camvid"}), other):
        with pytest.raises(UserError, match="was trained"):
            workdir_lib.check_same_classes(trained, info)


def test_repr_says_what_is_kept():
    assert repr(KeptClasses([], [3, 1])) == "KeptClasses([], (3, 1))"


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--config.data.keep_classes=cat,traffic light"], "('cat', 'traffic light')"),
        (["--config.data.keep_classes", "cat, dog"], "('cat', 'dog')"),
        (["--config.data.keep_classes=('a,b', 'c')"], "('a,b', 'c')"),
        (["--config.data.keep_classes=()"], "()"),
        (["--config.data.keep_classes="], "()"),
    ],
)
def test_names_are_joined_by_commas(words, expected):
    found = config_lib.normalize_flags(["train", *words, "--x"])
    assert found == ["train", f"--config.data.keep_classes={expected}", "--x"]
