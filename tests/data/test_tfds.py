"""Data sets that TFDS has prepared: what is read, what is refused."""

import pickle
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_builders
from image_folders import error_of
from tfds_builders import H, W, mask, noise, png

from segjax import config as config_lib
from segjax import workdir
from segjax.data import datasets
from segjax.errors import UserError

GRAY = tfds.features.Image(shape=(None, None, 1))


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    tfds_builders.pets(root)
    return {"name": "tfds:oxford_iiit_pet", "root": str(root)}


def make(root, features, name="mine", examples=(), **options):
    """A data set of one split; the ``data`` section."""
    splits = {"train": list(examples)}
    tfds_builders.prepare(root, name, features=features, splits=splits, **options)
    return {"name": f"tfds:{name}", "root": str(root)}


def pair(i: int = 0, low: int = 0, high: int = 2) -> dict:
    return {"image": png(noise(i)), "map": png(mask(i, low, high))}


# --- What is read


def test_pets(pets):
    """Trimaps of 1 to 3; images as OpenCV decodes them; no TensorFlow."""
    found = {}
    for split, count in (("train", 10), ("test", 2)):
        source, dataset = datasets.load(pets, split)
        source = pickle.loads(pickle.dumps(source))
        assert len(source) == count
        found |= {source[i]["id"]: source[i] for i in range(count)}
        assert source.sizes == [(H, W)] * count
        assert len(set(source.identities)) == count
    assert dataset.classes == ("pet", "background", "border")
    assert dataset.channels == 3 and dataset.palette.shape == (3, 3)
    numbers = [*range(10), 100, 101]
    assert found.keys() == {f"Abyssinian_{i}" for i in numbers}
    for i in numbers:
        example = found[f"Abyssinian_{i}"]
        np.testing.assert_array_equal(example["label"], mask(i, 1, 3) - 1)
        encoded = np.frombuffer(tfds_builders.pet(i)["image"], np.uint8)
        expected = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(example["image"], expected)
    assert "tensorflow" not in sys.modules


def test_parts_of_splits(pets, caplog):
    whole, _ = datasets.load(pets, "train")
    ids = [whole[i]["id"] for i in range(10)]
    for split, expected in (
        ("train[:80%]", ids[:8]),
        ("train[80%:]", ids[8:]),
        ("train[2:5]", ids[2:5]),
        ("train[:1]+train[-1:]", [ids[0], ids[-1]]),
    ):
        source, _ = datasets.load(pets, split)
        assert [source[i]["id"] for i in range(len(source))] == expected
    assert not caplog.messages
    for train, evaluate, shared in (
        ("train[:80%]", "train[80%:]", 0),
        ("train[:90%]", "train[80%:]", 1),
        ("train", "train[80%:]", 2),
        ("train", "test", 0),
    ):
        caplog.clear()
        data = pets | {"train_split": train, "eval_split": evaluate}
        for split in (train, evaluate):
            datasets.load(data, split)
        text = f"{shared} images of --config.data.eval_split={evaluate} are also in"
        assert [text in m for m in caplog.messages] == [True] * bool(shared)


def test_cityscapes_has_its_label_ids(tmp_path):
    features = {
        "image_id": tfds.features.Text(),
        "image_left": tfds.features.Image(shape=(H, W, 3), encoding_format="png"),
        "image_right": tfds.features.Image(shape=(H, W, 3), encoding_format="png"),
        "segmentation_label": tfds.features.Image(shape=(H, W, 1)),
    }
    label = np.full((H, W), 7, np.uint8)  # road
    label[0], label[1] = 26, 4  # car, static
    example = {
        "image_id": "aachen_000000_000019",
        "image_left": png(noise(0)),
        "image_right": png(noise(1)),
        "segmentation_label": png(label),
    }
    config = "semantic_segmentation"
    make(tmp_path, features, "cityscapes", [example], config=config)
    data = {"name": f"tfds:cityscapes/{config}", "root": str(tmp_path)}
    for name in (data["name"], f"{data['name']}:1.0.0", "tfds:cityscapes"):
        source, dataset = datasets.load(data | {"name": name}, "train")
        assert source[0]["id"] == "aachen_000000_000019"
        np.testing.assert_array_equal(source[0]["image"], noise(0)[..., ::-1])
        assert (source[0]["label"][0] == 13).all()
        assert (source[0]["label"][1] == 255).all()
        assert (source[0]["label"][2:] == 0).all()
    assert dataset.classes[13] == "car" and len(dataset.classes) == 19
    assert dataset.size == (H, W) and source.sizes == [(H, W)]
    data["image_feature"] = "image_right"
    source, _ = datasets.load(data, "train")
    np.testing.assert_array_equal(source[0]["image"], noise(1)[..., ::-1])


def test_label_maps_with_names(tmp_path):
    features = {
        "scan": GRAY,
        "map": tfds.features.LabeledImage(labels=["sky", "sea", "sand"]),
        "other": GRAY,
    }
    gray = noise(3)[..., 0]
    examples = [{"scan": png(gray), "map": png(mask(0, 0, 2)), "other": png(gray)}]
    data = make(tmp_path, features, examples=examples) | {"image_feature": "scan"}
    source, dataset = datasets.load(data, "train")
    assert dataset.classes == ("sky", "sea", "sand")
    assert dataset.channels == 1 and dataset.mean == (127.5,)
    np.testing.assert_array_equal(source[0]["image"][..., 0], gray)
    np.testing.assert_array_equal(source[0]["label"], mask(0, 0, 2))
    assert source[0]["id"] == "train_00000"


def test_the_user_says_what_the_values_mean(tmp_path):
    features = {"image": tfds.features.Image(), "map": GRAY}
    label = np.full((H, W), 3, np.uint8)
    label[0], label[1], label[2] = 4, 0, 77
    examples = [{"image": png(noise(0)), "map": png(label)}]
    data = make(tmp_path, features, examples=examples)
    assert "does not say which classes" in error_of(datasets.describe, data)
    classes = tmp_path / "classes.txt"
    classes.write_text("a 1 2 3\nb 4 5 6\n")
    data |= {"classes": str(classes), "label_offset": 3, "void_values": (0, 77)}
    source, dataset = datasets.load(data, "train")
    assert dataset.classes == ("a", "b")
    assert dataset.palette.tolist() == [[1, 2, 3], [4, 5, 6]]
    expected = np.where(label < 3, 255, label.astype(int) - 3)
    expected[2] = 255
    np.testing.assert_array_equal(source[0]["label"], expected)
    source, _ = datasets.load(data | {"void_values": (0,)}, "train")
    message = error_of(source.__getitem__, 0)
    assert "train_00000 holds the value 77; expected values from 3 to 4" in message
    source, dataset = datasets.load(data | {"keep_classes": ("b", "a")}, "train")
    assert dataset.classes == ("b", "a") and (source[0]["label"][0] == 0).all()
    classes.write_text("a\nb\nvoid\n")  # 5 is void
    data |= {"void_values": (0, 77)}
    source, _ = datasets.load(data, "train")
    np.testing.assert_array_equal(source[0]["label"], expected)
    assert (source[0]["label"] == 255).any()


# --- What is refused


@pytest.mark.parametrize("name", ["voc", "coco", "scene_parse150"])
def test_sets_that_have_no_label_maps_in_tfds(name):
    message = error_of(datasets.describe, {"name": f"tfds:{name}/2007"})
    assert "no label maps" in message and "--config.data.name=" in message


def test_features_that_do_not_fit(tmp_path):
    sound = {"das": {"dB": tfds.features.Tensor(shape=(None,), dtype=np.float32)}}
    wave = {"das": {"dB": np.zeros(3, np.float32)}}
    data = make(tmp_path, sound, "duke_ultrasound", [wave])
    message = error_of(datasets.load, data, "train")
    assert message == (
        "tfds:duke_ultrasound has no label map: none of its features is an image of "
        "one channel with 8 or 16 bits"
    )
    several = {"image": tfds.features.Image(), "map": GRAY, "depth": GRAY}
    example = pair() | {"depth": png(mask(1, 0, 9))}
    data = make(tmp_path, several, examples=[example])
    message = error_of(datasets.load, data, "train")
    assert "may be the label: depth, map; name one in --config.data.label_" in message
    message = error_of(datasets.load, data | {"label_feature": "mpa"}, "train")
    assert "--config.data.label_feature: unknown value 'mpa'; did you mean" in message
    data |= {"label_feature": "map", "image_feature": "map"}
    assert "image_feature: unknown value 'map'" in error_of(
        datasets.load, data, "train"
    )
    data = make(tmp_path, {"map": GRAY}, "alone", [{"map": png(mask(0, 0, 1))}])
    assert "no images besides" in error_of(datasets.load, data, "train")


def test_names_folders_and_splits(pets, tmp_path):
    def message(**changes) -> str:
        return error_of(datasets.load, pets | changes, "train")

    assert "expected tfds:NAME" in message(name="tfds:a/b/c")
    assert "expected tfds:NAME" in message(name="tfds:")
    text = message(name="tfds:nope")
    assert "no such records" in text and "tfds build nope" in text
    assert "it holds 4.0.0; " in message(name="tfds:oxford_iiit_pet:9.0.0")
    assert "is not a folder" in message(root=str(tmp_path / "none"))
    assert "classes of tfds:oxford_iiit_pet are known" in message(classes="a.txt")
    assert "label_offset is 2, but" in message(label_offset=2)
    assert "instance maps" in message(instances=True)
    assert "no records" in error_of(datasets.recipe, pets)
    for split, part in (
        ("validation", "it has test (2), train (10), and parts of them"),
        ("train[200%:]", "has no split 'train[200%:]'"),
        ("train[:0%]", "is empty"),
    ):
        assert part in error_of(datasets.load, pets, split)
    for field, value in (("label_offset", 1), ("label_feature", "x")):
        data = {"name": "camvid", field: value}
        assert f"data.{field} is {value!r}, but" in error_of(datasets.load, data, "x")


def test_two_configs_are_ambiguous(tmp_path):
    features = {"image": tfds.features.Image(), "map": GRAY}
    for config in ("a", "b"):
        make(tmp_path, features, examples=[pair()], config=config)
    data = {"name": "tfds:mine", "root": str(tmp_path)}
    assert error_of(datasets.describe, data).endswith("with one of a, b")


def test_the_newest_version_is_read(tmp_path):
    features = {
        "image": tfds.features.Image(),
        "map": tfds.features.LabeledImage(labels=["a", "b", "c"]),
    }
    for i, version in enumerate(("9.0.0", "10.0.0")):
        data = make(tmp_path, features, examples=[pair(i)], version=version)
    source, _ = datasets.load(data, "train")
    np.testing.assert_array_equal(source[0]["label"], mask(1, 0, 2))
    source, _ = datasets.load(data | {"name": "tfds:mine:9.0.0"}, "train")
    np.testing.assert_array_equal(source[0]["label"], mask(0, 0, 2))


def test_files_that_cannot_be_read(tmp_path):
    data = {"name": "tfds:oxford_iiit_pet", "root": str(tmp_path)}
    folder = tfds_builders.pets(tmp_path)
    info = folder / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace("array_record", "tfrecord"))
    message = error_of(datasets.describe, data)
    assert "holds tfrecord files" in message and "file_format=array_record" in message
    info.write_text(text[:100])
    assert "cannot be read" in error_of(datasets.describe, data)
    info.write_text(text)
    (file,) = folder.glob("*-train.array_record*")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=r"records of TFDS cannot be read .*prepare them"
    ):
        source, _ = datasets.load(data, "train")
        source[0]


def test_damaged_and_unequal_examples(tmp_path):
    small = png(mask(0, 1, 3)[1:])
    for i, (change, part) in enumerate(
        (
            ({"segmentation_mask": small}, "label map is 19x24, its image 20x24"),
            ({"segmentation_mask": png(mask(0, 1, 4))}, "holds the value 4; expected"),
            ({"segmentation_mask": png(noise(0))}, "is a color image"),
            ({"image": b"no image"}, "cannot be decoded"),
        )
    ):
        example = tfds_builders.pet(5) | change
        root = tmp_path / str(i)
        data = make(root, tfds_builders.PETS, "oxford_iiit_pet", [example])
        source, _ = datasets.load(data, "train")
        message = error_of(source.__getitem__, 0)
        assert part in message and "Abyssinian_5" in message


# --- In configs and workdirs


def test_names_in_configs():
    for name in ("tfds:mnist", "tfds:a/b:1.0.0", "folder"):
        config_lib.check(config_lib.make(data={"name": name}))
    message = error_of(config_lib.check, config_lib.make(data={"name": "fodler"}))
    assert "did you mean 'folder'" in message


def test_the_description_is_kept_in_the_workdir(pets, tmp_path):
    dataset = datasets.describe(pets)
    workdir.write_dataset(tmp_path, dataset)
    read = workdir.read_dataset(tmp_path)
    assert read.classes == dataset.classes and read.name == dataset.name
