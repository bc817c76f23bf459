"""The crops of DeconvNet's two stages, on drawn objects."""

import pickle

import cv2
import numpy as np
import pytest

from segjax import config as config_lib
from segjax.data import datasets, object_crops, pipeline, transforms
from segjax.data.object_crops import Crop, Object
from segjax.errors import UserError
from segjax.proposals import boxes, stored

SIDE = 24
BOXES = {1: (4, 6, 23, 15), 2: (20, 12, 39, 31), 3: (0, 20, 9, 29), 4: (42, 2, 44, 4)}
"""Of the objects: 1 and 3 are of class 1, 2 and 4 of class 2; 2 covers a part of 1."""
CLASSES = {1: 1, 2: 2, 3: 1, 4: 2}
NAMES = ("background", "a", "b")
INFO = datasets.Dataset("drawn", NAMES, np.zeros((3, 3)), (0, 0, 0), 3)


class Drawn:
    """Two images; the second one has no objects."""

    def __init__(self, instances=True):
        self.instances = instances

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(1, 256, (36, 48, 3), np.uint8)
        image = cv2.GaussianBlur(image, (0, 0), 2)
        label, instance = np.zeros((36, 48), np.uint8), np.zeros((36, 48), np.uint16)
        for number, (left, top, right, bottom) in BOXES.items() if not index else ():
            place = slice(top, bottom + 1), slice(left, right + 1)
            label[place], instance[place] = CLASSES[number], number
        label[30:, 40:] = 255
        label[12, 22] = 255  # inside object 2
        example = {"image": image, "label": label, "id": f"image{index}"}
        return example | ({"instance": instance} if self.instances else {})

    @property
    def sizes(self):
        return [(36, 48)] * 2

    @property
    def identities(self):
        return ["image0", "image1"]


def data(**fields):
    values = {"objects": "stage1", "object_side": SIDE, "object_least": 5}
    return config_lib.make(data=values | fields).data


def resized(array, box, fill, interpolation):
    left, top, right, bottom = (side + 60 for side in box)
    around = [(60, 60), (60, 60)] + [(0, 0)] * (array.ndim - 2)
    padded = np.pad(array, around, constant_values=fill)
    cut = padded[top : bottom + 1, left : right + 1]
    return cv2.resize(cut, (SIDE, SIDE), interpolation=interpolation)


def test_stage1_shows_each_object_and_background_around_it():
    source, example = Drawn(), Drawn()[0]
    crops = object_crops.wrap(source, INFO, data())
    assert len(crops) == 3  # object 4 is too small
    # Box 1 is 20x10 and becomes 24x12; what of it lies under object 2 is cut off.
    expected = [(2, 5, 25, 16), (18, 10, 41, 33), (-1, 19, 10, 30)]
    for i, (number, box) in enumerate(zip((1, 2, 3), expected)):
        found = crops[i]
        label = np.where(example["label"] == 255, 255, 0)
        own = (example["instance"] == number) & (label != 255)
        label[own] = CLASSES[number]
        label = label.astype(np.uint8)
        image = resized(example["image"], box, 0, cv2.INTER_LINEAR)
        np.testing.assert_array_equal(found["image"], image)
        expected_label = resized(label, box, 255, cv2.INTER_NEAREST_EXACT)
        np.testing.assert_array_equal(found["label"], expected_label)
        assert set(np.unique(found["label"])) <= {0, CLASSES[number], 255}
        assert found["id"] == f"image0@{','.join(map(str, box))}"
        assert found["instance"].shape == (SIDE, SIDE)
    outside = crops[2]
    assert (outside["label"][:, 0] == 255).all() and not outside["image"][:, 0].any()


def test_without_instance_maps_objects_are_connected_parts():
    example = Drawn(instances=False)[0]
    found = object_crops.object_map(example)
    classes = {n: set(example["label"][found == n]) for n in range(1, found.max() + 1)}
    assert sorted(map(tuple, classes.values())) == [(1,), (1,), (2,), (2,)]
    assert ((found > 0) == np.isin(example["label"], (1, 2))).all()
    crops = object_crops.wrap(Drawn(False), INFO, data())
    assert sorted(crop.class_id for crop in crops._crops) == [1, 1, 2]
    # Diagonal neighbors are connected.
    label = np.eye(4, dtype=np.uint8)
    assert object_crops.object_map({"label": label}).max() == 1


def test_objects_are_of_the_class_of_most_of_their_pixels():
    label = np.array([[1, 1, 2, 255, 255, 255, 0, 0, 0, 1]], np.uint8)
    instance = np.array([[1, 1, 1, 1, 1, 2, 3, 3, 3, 3]], np.uint16)
    example = {"image": None, "label": label, "id": "", "instance": instance}
    found = object_crops.objects(example, least=1, background=True)
    assert found == [Object(1, (0, 0, 4, 0), 1)]  # 2 is void, 3 background
    found = object_crops.objects(example, least=1, background=False)
    assert found[1:] == [Object(3, (6, 0, 9, 0), 0)]


def test_stage2_takes_proposals_that_overlap_by_half():
    found = [[Object(1, (0, 0, 9, 9), 1), Object(2, (20, 0, 29, 9), 2)], []]
    proposed = np.array(
        [
            (0, 0, 9, 4),  # 50 of 100 pixels
            (0, 0, 9, 3),  # 40
            (21, 0, 30, 9),  # 90 of 110, with object 2
            (0, 0, 29, 9),  # 100 of 300
        ]
    )
    crops = object_crops.stage2(found, [proposed, proposed])
    assert [(c.image, c.object, c.class_id) for c in crops] == [(0, 1, 1), (0, 2, 2)]
    assert [c.box for c in crops] == [(-1, -1, 10, 5), (20, -1, 31, 10)]


def test_stage2_keeps_the_labels_of_all_classes(tmp_path):
    fields = {"objects": "stage2", "data_dir": str(tmp_path)}
    source = Drawn()
    crops = object_crops.wrap(source, INFO, data(**fields), threads=2)
    proposed = stored.boxes(
        source[0]["image"],
        object_crops.settings(data()),
        stored.folder_of(fields["data_dir"]),
    )
    true = np.array([BOXES[number] for number in (1, 2, 3)])  # the visible part of 1
    best = boxes.iou(proposed, true).max(1)
    expected = [tuple(boxes.enlarge(b, 1.2)) for b in proposed[best >= 0.5]]
    assert len(expected) > 3
    assert [crop.box for crop in crops._crops] == expected
    example = source[0]
    label = resized(example["label"], expected[0], 255, cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(crops[0]["label"], label)
    # The second time, boxes come from the files; the crops are the same.
    again = object_crops.wrap(source, INFO, data(**fields))
    assert datasets.fingerprint(again) == datasets.fingerprint(crops)


def test_rare_classes_are_repeated():
    classes = [1] * 10 + [2] * 3 + [4]
    crops = [Crop(i, (0, 0, 1, 1), 1, k) for i, k in enumerate(classes)]
    for share, expected in (
        (0, {1: 10, 2: 3, 4: 1}),
        (0.5, {1: 10, 2: 6, 4: 5}),
        (1, {1: 10, 2: 12, 4: 10}),
    ):
        found = [crop.class_id for crop in object_crops.balance(crops, share)]
        assert {k: found.count(k) for k in set(found)} == expected
    repeated = [crop.image for crop in object_crops.balance(crops, 0.5)]
    assert repeated == [*range(10), 10, 10, 11, 11, 12, 12, *[13] * 5]


def test_crops_are_a_source():
    source = Drawn()
    assert object_crops.wrap(source, INFO, data(objects="none")) is source
    crops = object_crops.wrap(source, INFO, data())
    assert crops.sizes == [(SIDE, SIDE)] * 3
    assert len(set(crops.identities)) == 3
    others = [data(object_side=25), data(object_least=11), data(object_least=1)]
    prints = {datasets.fingerprint(object_crops.wrap(source, INFO, d)) for d in others}
    assert len(prints | {datasets.fingerprint(crops)}) == 4
    copy = pickle.loads(pickle.dumps(crops))
    np.testing.assert_array_equal(copy[1]["image"], crops[1]["image"])
    # Batch k is a function of the seed and k, as of every source.
    options = transforms.options({"crop": (16, 16), "flip": 0.5}, (0, 0, 0))
    streams = [
        pipeline.train_batches(crops, options, batch_size=2, seed=1, start=start)
        for start in (0, 2)
    ]
    batches = [next(streams[0]) for _ in range(3)]
    later = next(streams[1])
    assert batches[2]["image"].shape == (2, 16, 16, 3)
    for key in ("image", "label", "id"):
        np.testing.assert_array_equal(batches[2][key], later[key])


def test_what_cannot_be_cropped_is_said():
    streets = INFO._replace(classes=("sky", "a", "b"))
    with pytest.raises(UserError, match="class 0 of drawn is 'sky'; expected 'stage2'"):
        object_crops.wrap(Drawn(), streets, data())
    with pytest.raises(UserError, match="the 2 images have no objects of .*least=40 p"):
        object_crops.wrap(Drawn(), INFO, data(object_least=40))
    fields = {"objects": "stage2", "edge_model": "/no/model.yml"}
    with pytest.raises(UserError, match="edge_model: /no/model.yml not found"):
        object_crops.wrap(Drawn(), INFO, data(**fields))
    for field, value in (("objects", "stage3"), ("proposals", "x")):
        config = config_lib.make(data={field: value})
        with pytest.raises(UserError, match=f"config.data.{field}: unknown value"):
            config_lib.check(config)
