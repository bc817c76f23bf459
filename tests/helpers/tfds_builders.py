"""Small data sets as TFDS prepares them, in array_record, without TensorFlow."""

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

H, W = 20, 24


def png(array: np.ndarray) -> bytes:
    """Encoded by OpenCV; blue first."""
    return cv2.imencode(".png", array)[1].tobytes()


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)


def mask(seed: int, low: int, high: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, (H, W), np.uint8)


def prepare(
    root: Path,
    name: str,
    *,
    features: dict,
    splits: dict[str, list[dict]],
    version: str = "1.0.0",
    config: str = "",
) -> Path:
    """Runs a builder of TFDS; the folder of its records."""

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {k: self._generate_examples(some) for k, some in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    Small.name = name
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder = Small(data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_dir)


PETS = {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "label": tfds.features.ClassLabel(names=["Abyssinian", "beagle"]),
    "species": tfds.features.ClassLabel(names=["Cat", "Dog"]),
    "file_name": tfds.features.Text(),
    "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
    "head_bbox": tfds.features.BBoxFeature(),
}
"""The features of oxford_iiit_pet 4.0.0."""


def pet(i: int) -> dict:
    """An example; the JPEG is one color, which it keeps."""
    image = np.full((H, W, 3), (10 * i, 20, 200), np.uint8)
    return {
        "image": cv2.imencode(".jpg", image)[1].tobytes(),
        "label": i % 2,
        "species": i % 2,
        "file_name": f"Abyssinian_{i}.jpg",
        "segmentation_mask": png(mask(i, 1, 3)),
        "head_bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5),
    }


def pets(root: Path, train: int = 10, test: int = 2) -> Path:
    """oxford_iiit_pet in small."""
    splits = {
        "train": [pet(i) for i in range(train)],
        "test": [pet(100 + i) for i in range(test)],
    }
    return prepare(
        *(root, "oxford_iiit_pet"), features=PETS, splits=splits, version="4.0.0"
    )
