"""Procedural scenes as array_record, so that they are read like any other data set."""

from collections.abc import Iterator

import cv2
import numpy as np

from segjax.data.images import encode_png
from segjax.data.layout import DataConfig, Format
from segjax.data.prepare import Record, prepare
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
    return RecordSource(draw(data), split, 3, instances=bool(data.get("instances")))


def draw(data: DataConfig) -> str:
    """Draws the scenes unless they are there; returns the folder of their records.

    Its key reads ``HEIGHTxWIDTH-TRAIN-VALIDATION-sSEED``, e.g. ``96x96-800-100-s0``.
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
    return prepare(
        FORMAT,
        key=f"{height}x{width}-{counts['train']}-{counts['validation']}-s{seed}",
        read=lambda: {
            split: _records(2 * seed + STREAMS[split], size, split=split, count=count)
            for split, count in counts.items()
        },
        data=data,
    )


def _records(
    seed: int, size: tuple[int, int], *, split: str, count: int
) -> Iterator[Record]:
    for index in range(count):
        made = scene(seed, index, size=size)
        yield {
            "image": encode_png(made["image"]),
            "label": encode_png(made["label"]),
            "instance": cv2.imencode(".png", made["instance"])[1].tobytes(),
            "id": f"{split}_{index:05d}",
        }
