"""Instance maps of own folders."""

import numpy as np
import pytest
from image_folders import H, W, error_of, make_folder, rgb, write
from PIL import Image

from segjax.data import datasets, images, pipeline, transforms


def classes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (H, W)).astype(np.uint8)


def numbers(seed: int, highest: int = 700) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, highest, (H, W)).astype(np.uint16)
    values[0, 0], values[0, 1] = 0, highest
    return values


@pytest.fixture
def data(tmp_path) -> dict:
    found = make_folder(tmp_path, {str(i): classes(i) for i in range(5)})
    for i in range(5):
        write(tmp_path / "instances" / f"{i}.png", numbers(i))
    return found | {"instances": True}


def every(data) -> dict[str, dict]:
    splits = ("train", "validation")
    sources = [datasets.load(data, split)[0] for split in splits]
    return {
        source[i]["id"]: source[i] for source in sources for i in range(len(source))
    }


def test_instances_travel_with_the_labels(data, tmp_path):
    found = every(data)
    assert datasets.describe(data).instances
    for i in range(5):
        example = found[str(i)]
        assert example["instance"].dtype == np.uint16
        np.testing.assert_array_equal(example["instance"], numbers(i))
        np.testing.assert_array_equal(example["label"], classes(i))
    without = every(data | {"instances": False})
    assert all("instance" not in example for example in without.values())
    small = every(data | {"resize": (3, 4)})["0"]
    assert small["instance"].shape == (3, 4)
    source, info = datasets.load(data, "train")
    options = transforms.options({"flip": 1.0}, info.mean)
    batch = next(pipeline.train_batches(source, options, batch_size=2, seed=0))
    for image_id, instance in zip(batch["id"], batch["instance"]):
        np.testing.assert_array_equal(instance, numbers(int(image_id))[:, ::-1])


def test_objects_of_pascal_voc(tmp_path):
    values = numbers(0, 200).astype(np.uint8)
    values[2] = 255  # borders
    for i in range(3):
        write(tmp_path / "JPEGImages" / f"{i}.png", rgb(i))
        for name, array in (("Class", classes(i)), ("Object", values)):
            path = tmp_path / f"Segmentation{name}" / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            images.write_palette_png(path, array, images.voc_palette(255))
    found = every({"name": "folder", "root": str(tmp_path), "instances": True})
    expected = np.where(values == 255, 0, values)
    np.testing.assert_array_equal(found["1"]["instance"], expected)


def test_folders_of_splits(tmp_path):
    for split in ("train", "val"):
        for i in range(2):
            write(tmp_path / "images" / split / f"{i}.png", rgb(i))
            write(tmp_path / "masks" / split / f"{i}.png", classes(i))
            write(tmp_path / "instances" / split / f"{i}.png", numbers(i))
    found = every({"name": "folder", "root": str(tmp_path), "instances": True})
    np.testing.assert_array_equal(found["val/1"]["instance"], numbers(1))


def test_instance_maps_that_do_not_fit(data, tmp_path):
    path = tmp_path / "instances" / "3.png"
    for wrong, expected in (
        (numbers(0)[:, :-1], f"the instance map is {H}x{W - 1}, but"),
        (rgb(0), "is a PNG of colors, expected a gray or palette PNG"),
    ):
        write(path, wrong)
        message = error_of(datasets.describe, data)
        assert message.startswith(str(path)) and expected in message
        every(data | {"instances": False})
    Image.fromarray(classes(0)).save(path, "JPEG")
    assert "is a JPEG, expected a gray" in error_of(datasets.describe, data)
    path.write_bytes(b"x")
    assert "instances/3.png: cannot be decoded" in error_of(datasets.describe, data)
    path.unlink()
    message = error_of(datasets.describe, data)
    assert "1 of 5 images have no instance map, first images/3.png" in message
    assert "expected " + str(path) in message
    write(path, numbers(3))
    source, _ = datasets.load(data, "train")
    write(path, numbers(3)[:, :-1])
    message = error_of(lambda: [source[i] for i in range(len(source))])
    assert "3.png: not the instance map that was checked at the start" in message


def test_a_changed_instance_map_is_scanned_again(data, tmp_path):
    datasets.describe(data)
    write(tmp_path / "instances" / "2.png", numbers(2)[:-1])
    assert "the instance map is" in error_of(datasets.describe, data)
