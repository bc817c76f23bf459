"""The plain loop in Flax that experiments.benchmarks.predict compares with."""

import types

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments.benchmarks import flax_predict
from segjax import models
from segjax.errors import UserError

FIELDS = dict(backbone="resnet50", stage_sizes=(1, 2, 1, 1), width=4, rates=(2, 3))
PALETTE = np.arange(15, dtype=np.uint8).reshape(5, 3)


def segmenter(**fields):
    model = models.build(
        ConfigDict(dict(model_name="deeplab", model=FIELDS | fields)), 5
    )
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), np.zeros((1, 33, 33, 3)), train=False)
    )
    info = types.SimpleNamespace(palette=PALETTE)
    return types.SimpleNamespace(models=(model,), variables=(variables,), info=info)


def test_labels_and_overlays(tmp_path):
    sides = (30, 41), (33, 25)
    for index, side in enumerate(sides):
        pixels = np.random.default_rng(index).integers(0, 256, (*side, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"in{index}.png"), pixels)
    run = flax_predict.loop(segmenter())
    run([str(tmp_path / f"in{index}.png") for index in (0, 1)], tmp_path)
    for index, side in enumerate(sides):
        with Image.open(tmp_path / f"{index}.png") as label:
            assert label.mode == "P" and np.shape(label) == side
            np.testing.assert_array_equal(label.getpalette()[:15], PALETTE.ravel())
            assert np.asarray(label).max() < 5
        with Image.open(tmp_path / f"{index}.jpg") as overlay:
            assert np.shape(overlay) == (*side, 3)


def test_a_stride_of_eight():
    network = flax_predict.DeepLab(blocks=(1, 1, 1, 1), width=2, rates=(2,), classes=3)
    image = np.zeros((1, 33, 41, 3), np.float32)
    scores, found = jax.eval_shape(
        lambda: network.apply(
            network.init(jax.random.key(0), image), image, capture_intermediates=True
        )
    )
    assert scores.shape == (1, 33, 41, 3)
    assert found["intermediates"]["Conv_0"]["__call__"][0].shape == (1, 5, 6, 3)


def test_only_networks_of_the_same_layers():
    with pytest.raises(UserError, match="--flax: the network has .* parameters, its"):
        flax_predict.loop(segmenter(stem="deep"))
    with pytest.raises(UserError, match="--flax: only DeepLab v2 with a ResNet"):
        flax_predict.loop(segmenter(backbone="vgg16", stage_sizes=(), width=64))
