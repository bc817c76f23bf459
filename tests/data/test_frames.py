"""Data sets on disk: read in place and from records alike."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_folders import error_of, rgb, write

from segjax.data import datasets, frames, inventory, pipeline, prepare, transforms
from segjax.data.images import decode_image, decode_mask
from segjax.data.layout import Format, Frame, Layout
from segjax.data.source import Dataset
from segjax.errors import UserError

H, W = 6, 8


def find(data):
    root = Path(data["root"]) if data.get("root") else None
    if root is None:
        raise UserError("--config.data.root: '' is empty")

    def frame(stem):
        return Frame(
            stem, root / f"{stem}.png", root / f"{stem}_l.png", root / f"{stem}_i.png"
        )

    unlabeled = Frame("t", root / "a.png")
    splits = {"train": [frame("b"), frame("a")], "validation": [frame("c")]}
    return root, splits | {"test": [unlabeled]}


def read_label(frame):
    return decode_mask(frame.label)[0].astype(np.uint8)


def read_instance(frame):
    return cv2.imread(str(frame.instance), cv2.IMREAD_UNCHANGED)


LAYOUT = Layout(
    Format("toy", "1.0.0", maps=("instance",)),
    find=find,
    read_label=read_label,
    read_instance=read_instance,
)


@pytest.fixture
def data(tmp_path, monkeypatch):
    for i, stem in enumerate("abc"):
        write(tmp_path / f"raw/{stem}.png", rgb(i))
        label = np.full((H, W), i, np.uint8)
        label[0] = 255
        write(tmp_path / f"raw/{stem}_l.png", label)
        instance = np.full((H, W), 1000 * i + 7, np.uint16)
        instance[:2] = 0
        write(tmp_path / f"raw/{stem}_i.png", instance)

    def describe(config):
        del config
        return Dataset(
            "toy",
            ("x", "y", "z"),
            np.eye(3, dtype=np.uint8),
            (0.0, 0.0, 0.0),
            3,
            layout=LAYOUT,
            instances=True,
        )

    monkeypatch.setitem(datasets.DATASETS, "toy", describe)
    root, prepared = str(tmp_path / "raw"), str(tmp_path / "records")
    return {"name": "toy", "root": root, "data_dir": prepared, "instances": True}


def test_records_hold_what_is_read_in_place(data):
    expected = {"train": ["b", "a"], "validation": ["c"], "test": ["t"]}
    sources = {split: datasets.load(data, split)[0] for split in expected}
    prepare.prepare(datasets.recipe(data), data)
    for split, ids in expected.items():
        assert isinstance(sources[split], frames.FrameSource)
        in_place = pickle.loads(pickle.dumps(sources[split]))
        assert [in_place[i]["id"] for i in range(len(in_place))] == ids
        assert in_place.sizes == [(H, W)] * len(ids)
        for root in (data["root"], ""):  # an empty root: the only records there
            records, _ = datasets.load(data | {"root": root}, split)
            assert not isinstance(records, frames.FrameSource)
            assert [example["id"] for example in records] == ids
            for i in range(len(ids)):
                one, other = in_place[i], records[i]
                assert one.keys() == {"image", "label", "id", "instance"}
                for name in one:
                    np.testing.assert_array_equal(one[name], other[name])
                assert one["instance"].dtype == other["instance"].dtype == np.uint16
        without, _ = datasets.load(data | {"instances": False}, split)
        assert without[0].keys() == {"image", "label", "id"}
    assert one["instance"].max() == 0 and one["label"].min() == 255  # unlabeled


def test_records_of_small_data_sets_are_not_compressed(data):
    write(Path(data["root"]) / "a.png", np.zeros((64, 64, 3), np.uint8))
    frame = find(data)[1]["test"][0]
    path = Path(frame.image)
    assert frames.record_of(LAYOUT, frame)["image"] == path.read_bytes()
    record = frames.record_of(LAYOUT._replace(small=True), frame)
    assert len(record["image"]) > 3 * 64 * 64 > len(path.read_bytes())
    assert len(record["label"]) > 64 * 64
    assert decode_image(record["image"]).shape == (64, 64, 3)


def test_records_of_two_folders_are_no_answer_to_an_empty_root(data, tmp_path):
    assert "is empty" in error_of(datasets.load, data | {"root": ""}, "train")
    for i in (0, 1):
        write(tmp_path / "raw/a.png", rgb(10 + i))
        prepare.prepare(datasets.recipe(data), data)
    message = error_of(datasets.load, data | {"root": ""}, "train")
    assert "--config.data.root is empty" in message and "several" in message


def test_records_are_recognized_as_the_files_they_were_made_of(data):
    """Or runs that began in place would not know their images any more."""
    splits = ("train", "validation", "test")
    before = [datasets.load(data, split)[0] for split in splits]
    prepare.prepare(datasets.recipe(data), data)
    after = [datasets.load(data, split)[0] for split in splits]
    for one, other in zip(before, after):
        assert type(one) is not type(other)
        assert one.identities == other.identities and one.sizes == other.sizes
        assert datasets.fingerprint(one) == datasets.fingerprint(other)
    assert before[0].identities[0].startswith("b (6, 8) ")


def test_the_key_changes_with_the_splits(data):
    root, splits = LAYOUT.find(data)
    moved = {"train": splits["train"][:1], "validation": splits["train"][1:]}
    keys = {frames.key_of(root, some) for some in (splits, moved, splits | moved)}
    assert len(keys) == 3


@pytest.mark.parametrize("suffix, what", [("l", "label map"), ("i", "instance map")])
def test_maps_of_another_size_are_refused(data, suffix, what):
    write(Path(data["root"]) / f"a_{suffix}.png", np.zeros((H, W + 1), np.uint8))
    source, _ = datasets.load(data, "train")
    source[0]
    with pytest.raises(UserError, match=f"{what} of a is 6x9, its image .*a.png 6x8"):
        source[1]


def test_instances_of_a_data_set_without_any_are_refused():
    message = error_of(datasets.load, {"name": "camvid", "instances": True}, "train")
    assert message.endswith("but --config.data.name=camvid has none")


def test_instances_are_resized_warped_and_batched_with_the_labels(data):
    source, _ = datasets.load(data | {"resize": (12, 16)}, "train")
    example = source[0]
    assert example["instance"].shape == (12, 16)
    assert (example["instance"][4:] == 1007).all() and (
        example["instance"][:4] == 0
    ).all()
    options = transforms.options({"crop": (12, 16), "flip": 1.0}, (0, 0, 0))
    batch = next(
        pipeline.train_batches(source, options, batch_size=2, seed=0, threads=1)
    )
    assert batch["instance"].shape == (2, 12, 16)
    for label, instance in zip(batch["label"], batch["instance"]):
        inside = instance > 0
        np.testing.assert_array_equal(
            instance[inside], 1000 * label[inside].astype(int) + 7
        )
        assert inside.sum() == 8 * 16
    batch = next(pipeline.eval_batches(source, batch_size=4, channels=3))
    assert batch["instance"].shape == (4, 12, 16)
    np.testing.assert_array_equal(batch["instance"][0], example["instance"])
    assert batch["instance"][2:].max() == 0


def test_files_of_a_download(tmp_path):
    write(tmp_path / "a/1.png", rgb(1))
    (tmp_path / "a/2.png").touch()
    rule = {"name": "toy", "expected": "a/N.png"}
    inventory.require(tmp_path, ["a/1.png"], **rule)
    with pytest.raises(UserError, match="1 of 2 files are missing, first b/1.png; exp"):
        inventory.require(tmp_path, ["a/1.png", "b/1.png"], **rule)
    with pytest.raises(UserError, match="1 of 2 files are empty, first a/2.png"):
        inventory.require(tmp_path, ["a/1.png", "a/2.png"], **rule)
    (tmp_path / "list.txt").write_text(" x \n\ny\n")
    assert inventory.read_list(tmp_path / "list.txt", **rule) == ["x", "y"]
    for text, message in (("", "lists no image"), ("x\nx\n", "lists x more than once")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            inventory.read_list(tmp_path / "list.txt", **rule)
    with pytest.raises(UserError, match="none.txt is missing; expected a/N.png"):
        inventory.read_list(tmp_path / "none.txt", **rule)
    inventory.check_disjoint({"a": ["1"], "b": ["2"]}, name="toy", folder=tmp_path)
    with pytest.raises(UserError, match="1 is in the lists of a and of b"):
        inventory.check_disjoint({"a": ["1"], "b": ["1"]}, name="toy", folder=tmp_path)
