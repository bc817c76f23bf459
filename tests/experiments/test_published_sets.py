"""Train, evaluate and predict on published data sets, from trees in miniature.

Both trees have images of one size, and Cityscapes keeps two classes, so that all
programs are compiled once.
"""

import json
import signal

import cv2
import numpy as np
import pytest
from PIL import Image
from published_sets import make_cityscapes, make_dsb2018
from set_trees import (
    make_ade20k,
    make_camvid720,
    make_isbi,
    make_kitti,
    make_sequence,
)

from experiments import evaluate, predict, train
from segjax import config as config_lib
from segjax.data import datasets
from segjax.errors import UserError

SIZE = (32, 48)
TREES = {
    "cityscapes": (make_cityscapes, {"train": 4}, {"keep_classes": ("road", "car")}),
    "dsb2018": (make_dsb2018, {"images": 10}, {}),
}


@pytest.fixture(autouse=True)
def signals():
    """Training takes SIGINT and SIGTERM over; give them back to pytest."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


@pytest.mark.parametrize("name", TREES)
def test_train_evaluate_predict(name, tmp_path):
    make, count, more = TREES[name]
    data = make(tmp_path / "raw", SIZE, **count) | more
    config = config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4, 8)},
        data=data | {"data_dir": str(tmp_path / "records")},
        augment={"crop": (32, 32), "flip": 0.5},
        batch_size=4,
        eval_batch_size=4,
        total_steps=2,
        eval_every=2,
        save_every=2,
        eval_images=1,
        threads=1,
    )
    workdir = tmp_path / "run"
    assert train.train(config, workdir) == 0
    results = evaluate.evaluate(config, workdir, output=tmp_path / "evaluation")
    source, dataset = datasets.load(config.data, "validation")
    examples = [source[i] for i in range(len(source))]
    assert results["images"] == len(examples) == 2
    described = json.loads((workdir / "dataset.json").read_text())
    assert described["classes"] == list(dataset.classes)

    paths = {e["id"]: tmp_path / f"{e['id']}.png" for e in examples}
    for example in examples:
        bgr = cv2.cvtColor(example["image"], cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(paths[example["id"]]), bgr)
    summary = predict.predict(
        config, workdir, paths=[str(p) for p in paths.values()], output=tmp_path
    )
    assert (summary["written"], summary["failures"]) == (2, {})
    # The score counts what the written files show, where the labels are not void.
    confusion = np.zeros((2, 2), np.int64)
    for example in examples:
        ids = np.asarray(Image.open(tmp_path / "labels" / f"{example['id']}.png"))
        known = example["label"] < 255
        np.add.at(confusion, (example["label"][known], ids[known]), 1)
    assert results["confusion"] == confusion.tolist()
    assert 0 < confusion.sum() <= 2 * SIZE[0] * SIZE[1]
    if name == "cityscapes":  # whose test labels were never released
        with pytest.raises(UserError, match="no pixel of the split 'test' of city"):
            evaluate.evaluate(config, workdir, split="test", output=tmp_path / "test")
        assert not (tmp_path / "test" / "test.json").exists()


def make_cells(root):
    """Two sequences, of which the first one trains."""
    make_sequence(root, "01", {1: 2}, silver=True)
    return make_sequence(root, "02", {0: 1, 3: 2}, silver=True)


def make_stack(root):
    make_isbi(root, "tiff")
    return {"name": "isbi2012", "root": str(root)}


OTHERS = {  # two classes of each, so that all of as many channels share programs
    "ade20k": (make_ade20k, ("wall", "flag")),
    "kitti_semantic": (make_kitti, ("building", "car")),
    "camvid720": (make_camvid720, ("Building", "Road")),
    "cell_tracking": (make_cells, ()),
    "isbi2012": (make_stack, ()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_program_reads_the_other_sets(name, tmp_path):
    """Their images are tiny, and enlarged for the network."""
    make, kept = OTHERS[name]
    data = make(tmp_path / "raw") | {"keep_classes": kept, "resize": SIZE}
    config = config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4, 8)},
        data=data | {"data_dir": str(tmp_path / "records")},
        augment={"crop": (32, 32), "flip": 0.5},
        batch_size=4,
        eval_batch_size=4,
        total_steps=1,
        eval_every=1,
        save_every=1,
        eval_images=0,
        threads=1,
    )
    workdir = tmp_path / "run"
    assert train.train(config, workdir) == 0
    results = evaluate.evaluate(config, workdir, output=tmp_path / "evaluation")
    source, dataset = datasets.load(config.data, "validation")
    labels = [source[i]["label"] for i in range(len(source))]
    counted = np.array(results["confusion"]).sum(1)
    known = np.concatenate([label[label < 255] for label in labels])
    assert counted.tolist() == np.bincount(known, minlength=2).tolist()
    summary = predict.predict(
        config, workdir, paths=(), split="validation", output=tmp_path / "out"
    )
    assert (summary["written"], summary["failures"]) == (len(source), {})
    for i in range(len(source)):
        path = tmp_path / "out" / "labels" / f"{source[i]['id'].split('/')[-1]}.png"
        assert set(np.unique(Image.open(path))) <= {0, 1}
    assert len(dataset.classes) == 2
