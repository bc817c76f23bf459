"""Weights for RGB images in models for images of other channels."""

import functools

import numpy as np
import pytest
from published import make_config, picture

from experiments.shared import initialization
from segjax import models, weights
from segjax.errors import UserError
from segjax.models.network import abstract_variables
from segjax.weights import images

FIELDS = {"widths": (2, 3), "norm": "batch"}


def filled(model, channels: int = 3):
    """Random variables, as a tree and by name."""
    rng = np.random.default_rng(0)
    abstract = abstract_variables(model, channels)
    flat = {
        name: rng.uniform(0.1, 1, leaf.shape).astype(np.float32)
        for name, leaf in weights.flatten(abstract).items()
    }
    return weights.replace(abstract, flat), flat


def info(**more) -> weights.ModelInfo:
    config = make_config("unet", **FIELDS, **more)
    return initialization.model_info(config, tuple("abc"))


@functools.cache
def of_gray_rgb(image_stats: str):
    """Weights of a U-Net for RGB images, and its logits of a gray one."""
    model = models.MODELS["unet"](num_classes=3, image_stats=image_stats, **FIELDS)
    tree, flat = filled(model)
    gray = picture(24, 20)[..., :1]
    logits = np.asarray(model.apply(tree, gray.repeat(3, -1), train=False)[0])
    source = weights.Weights(flat, info(image_stats=image_stats), "a run", 3, ())
    return source, gray, logits


@pytest.mark.parametrize("image_stats", ["caffe", "unit"])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_a_gray_image_gives_what_it_gives_as_rgb(image_stats, channels):
    source, gray, expected = of_gray_rgb(image_stats)
    model = models.MODELS["unet"](num_classes=3, image_stats="unit", **FIELDS)
    tree, _ = filled(model, channels)
    new, report = weights.start(
        "here", source, info=info(image_stats="unit"), variables=tree
    )
    assert not report.new and not report.unused
    note = f"enc0_conv1 was for RGB images, these have {channels} channels"
    assert any(note in line and f"3 / {channels}" in line for line in report.lines())
    got = np.asarray(model.apply(new, gray.repeat(channels, -1), train=False)[0])
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


def test_the_first_three_channels_keep_their_kernels():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    wide = images.widen(kernel, 6)
    assert wide.shape == (3, 3, 6, 4) and wide.dtype == np.float32
    np.testing.assert_allclose(wide[:, :, :3], kernel / 2, rtol=1e-6)
    for extra in (3, 4, 5):
        np.testing.assert_allclose(
            wide[:, :, extra], kernel.mean(2) / 2, rtol=1e-5, atol=1e-7
        )


def test_other_numbers_of_channels_are_not_guessed():
    """Weights for four channels do not fit images of five."""
    model = models.MODELS["unet"](num_classes=3, image_stats="unit", **FIELDS)
    _, four = filled(model, 4)
    source = weights.Weights(four, info(image_stats="unit"), "a run", 3, ())
    five, _ = filled(model, 5)
    with pytest.raises(UserError, match="kernel has shape .*4, 2.* needs .*5, 2"):
        weights.start("here", source, info=source.info, variables=five)


def test_side_branches_of_the_image_are_first_layers_too():
    """Of DeepLab v1, whose branches see the image beside the backbone."""
    fields = {
        "backbone": "vgg16",
        "widths": (2,) * 5,
        "fc6_channels": 2,
        "side_branches": True,
        "side_channels": 2,
    }

    def described(image_stats: str) -> weights.ModelInfo:
        config = make_config("deeplab", **fields, image_stats=image_stats)
        return initialization.model_info(config, tuple("abc"))

    model = models.MODELS["deeplab"](num_classes=3, **fields)
    tree, flat = filled(model)
    source = weights.Weights(flat, described("caffe"), "a run", 3, ())
    new, report = weights.start("x", source, info=described("unit"), variables=tree)
    changed = {
        name
        for name, leaf in weights.flatten(new).items()
        if not np.allclose(leaf, flat[name])
    }
    expected = ("backbone/conv1_1", "sides/image_ms1")
    assert changed == {f"params/{n}/{a}" for n in expected for a in ("kernel", "bias")}
    for name in expected:
        kernel = weights.flatten(new)[f"params/{name}/kernel"]
        old = flat[f"params/{name}/kernel"]
        np.testing.assert_allclose(kernel, old * 127.5, rtol=1e-5)
        assert sum(f"{name} took images of scale 1" in n for n in report.notes) == 1
