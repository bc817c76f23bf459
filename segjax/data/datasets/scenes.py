"""Procedural scenes as array_record, so that they are read like any other data set."""

import functools

import numpy as np

from segjax.data.images import encode_png
from segjax.data.layout import DataConfig, Format, Recipe, Record
from segjax.data.prepare import prepare
from segjax.data.records import RecordSource
from segjax.data.scenes import CLASSES, PALETTE, scene
from segjax.data.source import Dataset, Source
from segjax.errors import UserError

STREAMS = {"train": 0, "validation": 1}
"""Split s of seed n holds the first scenes of the stream of seed 2 n + STREAMS[s], so
that no scene is in two splits, nor in the data of two seeds."""


FORMAT = Format("scenes", "1.0.0", maps=("instance",))
"""With the instance map: 1..n, 0 = background and void.  The version is to be raised
whenever ``scene()`` draws anything differently: prepared records of an earlier version
are then left alone."""


def describe(data: DataConfig) -> Dataset:
    """All but the size is the same for every config."""
    return Dataset(
        name="scenes",
        classes=tuple(CLASSES),
        palette=np.array(PALETTE, np.uint8),
        mean=(122.7, 125.5, 108.0),  # of 256 scenes of 96 x 96, seed 0
        channels=3,
        size=tuple(data.get("scenes_size", (0, 0))),
        build=build,
        recipe=recipe,
        instances=True,
    )


def build(data: DataConfig, split: str) -> Source:
    """Draws the scenes unless they are there, and opens a split.

    Args:
      data: of the config: ``scenes_size``, (height, width) of every scene;
        ``scenes_train`` and ``scenes_validation``, their numbers, 1 or more;
        ``scenes_seed`` >= 0.
      split: "train" or "validation".

    Raises:
      UserError: a size, count or seed out of range; no such split.
    """
    directory = prepare(recipe(data), data)
    return RecordSource(directory, split, 3, instances=bool(data.get("instances")))


def recipe(data: DataConfig) -> Recipe:
    """How the records are drawn.

    Their key reads ``HEIGHTxWIDTH-TRAIN-VALIDATION-sSEED``, e.g. ``96x96-800-100-s0``.

    Raises:
      UserError: a size, count or seed out of range.
    """
    size, seed = tuple(data["scenes_size"]), data["scenes_seed"]
    counts = {split: data[f"scenes_{split}"] for split in STREAMS}
    for split, count in counts.items():
        if count < 1:
            raise UserError(
                f"--config.data.scenes_{split}: found {count}, expected 1 or more"
            )
    scene(seed, 0, size=size)  # a bad seed or size is told before anything is written
    height, width = size
    return Recipe(
        FORMAT,
        key=f"{height}x{width}-{counts['train']}-{counts['validation']}-s{seed}",
        splits={split: range(count) for split, count in counts.items()},
        record=functools.partial(_record, seed, size),
    )


def _record(seed: int, size: tuple[int, int], split: str, index: int) -> Record:
    made = scene(2 * seed + STREAMS[split], index, size=size)
    return {
        "image": encode_png(made["image"]),
        "label": encode_png(made["label"]),
        "instance": encode_png(made["instance"]),
        "id": f"{split}_{index:05d}",
    }
