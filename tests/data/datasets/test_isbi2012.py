"""ISBI 2012 as slices and as volumes, on tiny stacks."""

import numpy as np
import pytest
from image_folders import H, W, error_of, write
from set_trees import isbi_slices, make_isbi

from segjax.data import datasets


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
        [e["image"][:, :, 0] for e in examples], isbi_slices(11, 0)
    )
    np.testing.assert_array_equal(
        [e["label"] for e in examples], isbi_slices(11, 1) > 100
    )
    assert test[1]["id"] == "test_01" and (test[1]["label"] == 255).all()
    np.testing.assert_array_equal(test[1]["image"][:, :, 0], isbi_slices(2, 2)[1])
    assert test[1]["image"].shape == (H, W, 1)


def test_isbi2012_errors(tmp_path):
    def message(root) -> str:
        data = {"name": "isbi2012", "root": str(root), "data_dir": str(tmp_path / "d")}
        return error_of(datasets.load, data, "train")

    assert message("").startswith("--config.data.root: '' is empty")
    (tmp_path / "empty").mkdir()
    assert "membrane/train/image/N.png" in message(tmp_path / "empty")

    make_isbi(tmp_path / "a", "png")
    label = tmp_path / "a" / "membrane" / "train" / "label" / "10.png"
    write(label, np.full((H, W), 254, np.uint8))
    assert "label/10.png: label of train_10" in message(tmp_path / "a")
    assert "value 254" in message(tmp_path / "a")
    write(label, np.zeros((H + 1, W), np.uint8))
    assert "label map of train_10 is 7x8, its image" in message(tmp_path / "a")
    label.unlink()
    assert "11 images and 10 labels" in message(tmp_path / "a")
    assert "slice 10" in message(tmp_path / "a")

    make_isbi(tmp_path / "c", "png")
    write(
        tmp_path / "c" / "membrane" / "train" / "image" / "03.png", isbi_slices(1, 0)[0]
    )
    assert "holds both 03.png and 3.png" in message(tmp_path / "c")

    make_isbi(tmp_path / "b", "tiff")
    (tmp_path / "b" / "train-labels.tif").unlink()
    assert "11 images and 0 labels" in message(tmp_path / "b")
    (tmp_path / "b" / "train-labels.tif").write_bytes(b"not a tiff")
    assert "train-labels.tif is damaged" in message(tmp_path / "b")
