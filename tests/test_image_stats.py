"""Means of data sets as image statistics, and whether networks and weights use them."""

import jax
import numpy as np
import pytest

from experiments.shared import initialization
from segjax import config as config_lib
from segjax import image_stats, models, weights
from segjax.errors import UserError
from segjax.ops import image

MEAN = "105.5,108.25,110.75"


def test_means_are_subtracted_and_nothing_else():
    images = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 3)).astype(np.uint8)
    found = image.normalize(images, MEAN)
    np.testing.assert_array_equal(found, images - np.float32([105.5, 108.25, 110.75]))
    gray = image.normalize(images[..., :1], "100")
    np.testing.assert_array_equal(gray, images[..., :1] - np.float32(100))
    with pytest.raises(UserError, match="is for 3 channels, the images have 1"):
        image.normalize(images[..., :1], MEAN)


@pytest.mark.parametrize("text", ["1,2,256", "-1,2,3", "nan,1,2", "1e999,0,0"])
def test_means_out_of_range_are_refused(text):
    with pytest.raises(UserError, match="expected means of channels from 0 to 255"):
        image_stats.find(text)


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'caffe'.*; or the mean of each"):
        models.MODELS["unet"](num_classes=2, image_stats="cafe")
    with pytest.raises(UserError, match="unknown value '1,,2'"):
        image_stats.find("1,,2")


def test_a_network_starts_from_weights_for_another_mean():
    """Folded into its first layer, which pads nothing: the same scores."""
    fields = {"widths": (2, 3), "padding": "valid"}
    config = config_lib.make(model_name="unet", model=fields | {"image_stats": MEAN})
    other = config_lib.make(model_name="unet", model=fields | {"image_stats": "caffe"})
    images = np.random.default_rng(1).integers(0, 256, (1, 20, 20, 3)).astype(np.uint8)
    model = models.build(config, 2)
    variables = jax.device_get(
        jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    )
    source = weights.Weights(
        weights.flatten(variables), initialization.model_info(config), "a run", 2, ()
    )
    started, report = weights.start(
        "here", source, info=initialization.model_info(other), variables=variables
    )
    assert any("folded into its weights" in note for note in report.notes)
    expected, _ = model.apply(variables, images, train=False)
    found, _ = models.build(other, 2).apply(started, images, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
