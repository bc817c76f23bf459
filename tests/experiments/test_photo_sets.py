"""train, evaluate and predict on the official folders of photographs, in miniature."""

import json
import signal
from pathlib import Path

import numpy as np
import photo_sets as sets
import pytest
from PIL import Image

from experiments import evaluate, predict, train
from segjax import config as config_lib
from segjax.data import datasets
from segjax.errors import UserError

MAKERS = {
    "voc2012_aug": lambda root: [sets.make_voc(root), sets.make_sbd(root)],
    "pascal_context": lambda root: [sets.make_context(root, "mat")],
    "coco": lambda root: [sets.make_coco(root)],
    "coco_stuff": lambda root: [sets.make_coco(root)],
}
KEPT = {
    "voc2012_aug": ("person", "background"),
    "pascal_context": ("bicycle", "bag"),
    "coco": ("cat", "background"),
    "coco_stuff": ("wood", "person"),
}
"""Two classes of each, so that all share one compiled network."""


@pytest.fixture(autouse=True)
def signals():
    """Training takes SIGINT and SIGTERM over; give them back to pytest."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


def count(data: dict, split: str) -> tuple[np.ndarray, int]:
    """Pixels of each class of a split, and its images."""
    source, info = datasets.load(data, split)
    labels = np.concatenate([source[i]["label"].ravel() for i in range(len(source))])
    return np.bincount(labels, minlength=256)[: len(info.classes)], len(source)


@pytest.mark.parametrize("name", MAKERS)
def test_photographs_through_the_programs(tmp_path, name):
    MAKERS[name](tmp_path / "raw")
    config = config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4, 8)},
        data={
            "name": name,
            "root": str(tmp_path / "raw"),
            "data_dir": str(tmp_path / "data"),
            "keep_classes": KEPT[name],
        },
        augment={"crop": (32, 32)},
        batch_size=4,
        eval_batch_size=4,
        total_steps=1,
        eval_images=1,
        threads=1,
    )
    run = tmp_path / "run"
    assert train.train(config, run) == 0
    described = json.loads((run / "dataset.json").read_text())
    assert (described["name"], *described["classes"]) == (name, *KEPT[name])
    counts, images = count(config.data.to_dict(), "train")
    saved = config_lib.load(run / "config.json")
    results = evaluate.evaluate(saved, run, split="train")
    assert results["dataset"] == name and results["images"] == images
    # The majority baseline knows how often each class is there, in which order.
    baseline = results["majority_baseline"]["pixel_accuracy"]
    assert baseline == pytest.approx(counts.max() / counts.sum())
    photo = next(Path(tmp_path / "raw").rglob("*.jpg"))
    out = tmp_path / "out"
    done = predict.predict(saved, run, paths=[str(photo)], output=out)
    assert done["written"] == 1 and not done["failures"]
    with Image.open(out / "labels" / f"{photo.stem}.png") as mask:
        ids, palette = np.asarray(mask), np.array(mask.getpalette()).reshape(-1, 3)
    assert ids.shape == (sets.H, sets.W) and ids.max() < 2
    np.testing.assert_array_equal(palette[:2], described["palette"])
    config.data.keep_classes = KEPT[name][::-1]
    config.total_steps = 2
    message = f"was trained with class 0 named {KEPT[name][0]!r}"
    with pytest.raises(UserError, match=message):
        train.train(config, run)
