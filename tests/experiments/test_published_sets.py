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
