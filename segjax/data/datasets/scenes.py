"""Procedural scenes as array_record, so that they are read like any other data set."""

from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data.images import encode_png
from segjax.data.prepare import Pairs, Record, prepare
from segjax.data.scenes import scene
from segjax.errors import UserError

STREAMS = {"train": 0, "validation": 1}
"""Split s of seed n holds the first scenes of the stream of seed 2 n + STREAMS[s], so
that no scene is in two splits, nor in the data of two seeds."""


class Scenes(Pairs):
    """Scenes with, beside ``image``, ``label`` and ``id``, the instance map.

    ``instance``: uint16 [h, w, 1], 1..n, 0 = background and void.  The config name
    reads ``HEIGHTxWIDTH-TRAIN-VALIDATION-sSEED``, e.g. ``96x96-800-100-s0``.
    """

    name = "scenes"
    # To be raised whenever scene() draws anything differently: prepared records of an
    # earlier version are then left alone.
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        gray = (None, None, 1)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.Image(shape=gray),
            "instance": tfds.features.Image(
                shape=gray, dtype=np.uint16, encoding_format="png"
            ),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # records keep the order of the indices
        )


def build(
    data_dir: str, size: tuple[int, int], train: int, validation: int, seed: int
) -> tfds.core.DatasetBuilder:
    """Draws the scenes unless they are there, and returns their builder.

    Args:
      data_dir: where prepared data sets live.
      size: (height, width) of every scene.
      train, validation: number of scenes in each split, 1 or more.
      seed: of the data set, >= 0.

    Raises:
      UserError: a size, count or seed out of range.
    """
    counts = {"train": train, "validation": validation}
    for split, count in counts.items():
        if count < 1:
            raise UserError(f"scenes: found {count} {split} scenes, expected 1 or more")
    scene(seed, 0, size)  # a bad seed or size is told before anything is written
    height, width = size
    return prepare(
        Scenes,
        f"{height}x{width}-{train}-{validation}-s{seed}",
        lambda: {
            split: _records(2 * seed + STREAMS[split], size, split, count)
            for split, count in counts.items()
        },
        data_dir,
    )


def _records(
    seed: int, size: tuple[int, int], split: str, count: int
) -> Iterator[Record]:
    for index in range(count):
        made = scene(seed, index, size)
        yield {
            "image": encode_png(made["image"]),
            "label": encode_png(made["label"]),
            "instance": cv2.imencode(".png", made["instance"])[1].tobytes(),
            "id": f"{split}_{index:05d}",
        }
