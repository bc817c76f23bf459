"""Tests of published data sets: tiny trees, and both ways to read them."""

import pickle
from pathlib import Path

import numpy as np
import tifffile
from image_folders import rgb, write

from segjax.data import datasets, frames, pipeline, prepare, transforms


def write_tiff(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, metadata=None)


def assert_readable(data: dict, expected: dict[str, list[str]]) -> dict[str, list]:
    """Reads all splits in place and from records, which must be equal; the examples.

    A batch of training and one of evaluation are made, too.
    """
    dataset = datasets.describe(data)
    data = data | {"instances": dataset.instances}
    layout = dataset.layout
    _, splits = layout.find(data)
    assert {k: [f.id for f in frames_] for k, frames_ in splits.items()} == expected
    examples = {}
    for split, some in splits.items():
        source = frames.FrameSource(layout, some, instances=dataset.instances)
        source = pickle.loads(pickle.dumps(source))
        examples[split] = [source[i] for i in range(len(source))]
        shapes = [e["image"].shape for e in examples[split]]
        assert source.sizes == [shape[:2] for shape in shapes]
        assert {shape[2] for shape in shapes} == {dataset.channels}
        assert len(set(source.identities)) == len(some)
        for example in examples[split]:
            used = set(np.unique(example["label"])) - {255}
            assert used <= set(range(len(dataset.classes)))
    prepare.prepare(datasets.recipe(data), data)
    for split, some in examples.items():
        records, _ = datasets.load(data, split)
        assert not isinstance(records, frames.FrameSource)
        assert len(records) == len(some)
        for i, example in enumerate(some):
            record = records[i]
            assert record.keys() == example.keys()
            for name in example:
                np.testing.assert_array_equal(record[name], example[name])
    source, _ = datasets.load(data, "train")
    options = transforms.options({"crop": (4, 6), "flip": 0.5}, dataset.mean)
    batches = pipeline.train_batches(source, options, batch_size=2, seed=0, threads=1)
    batch = next(batches)
    assert batch["image"].shape == (2, 4, 6, dataset.channels)
    assert batch["label"].shape == (2, 4, 6)
    assert ("instance" in batch) == dataset.instances
    batches.close()
    return examples


def make_cityscapes(
    root: Path, size: tuple[int, int] = (6, 8), *, train: int = 2
) -> dict:
    """Cityscapes as unpacked; the ``data`` section."""
    h, w = size
    names = {
        "train": [("aachen", f"aachen_00000{i}_000019") for i in range(train)],
        "val": [("lindau", "lindau_000000_000019"), ("ulm", "ulm_000000_000019")],
        "test": [("berlin", "berlin_000000_000019")],
    }
    for split, some in names.items():
        for i, (city, name) in enumerate(some):
            write(
                root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png",
                rgb(i, h, w),
            )
            ids = np.full((h, w), 7, np.uint8)  # road
            ids[0] = 3  # out of roi
            ids[1, :4] = 26  # car
            ids[2] = 29  # caravan
            instances = ids.astype(np.uint16)
            instances[1, :2] = 26000
            instances[2] = 29001
            stem = root / f"gtFine/{split}/{city}/{name}_gtFine"
            if split != "test":
                write(stem.with_name(f"{stem.name}_labelIds.png"), ids)
                write(stem.with_name(f"{stem.name}_instanceIds.png"), instances)
    return {"name": "cityscapes", "root": str(root)}


def make_dsb2018(
    root: Path, size: tuple[int, int] = (6, 8), *, images: int = 5
) -> dict:
    """The competition's stage1_train, images with alpha; the ``data`` section."""
    h, w = size
    for i in range(images):
        name = f"n{i}"
        image = np.dstack([rgb(i, h, w), np.full((h, w), 255, np.uint8)])
        write(root / f"stage1_train/{name}/images/{name}.png", image)
        for k, rows in enumerate((slice(0, 2), slice(3, 5))):
            mask = np.zeros((h, w), np.uint8)
            mask[rows, k : k + 3] = 255
            write(root / f"stage1_train/{name}/masks/{k}.png", mask)
    return {"name": "dsb2018", "root": str(root)}
