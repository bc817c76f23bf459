"""Variants of recipes for TPU slices, by hand."""

import runpy

import kill
import pytest


def read(name, variant):
    path = kill.ROOT / "configs" / f"{name}.py"
    return runpy.run_path(str(path))["get_config"](variant)


@pytest.mark.parametrize(
    "name, factor, rate",
    # Batch 16 to 128 by SGD: 8 times; 8 to 128 by Adam: the root of 16.
    [("pspnet50_camvid", 8, 8), ("unet_camvid", 16, 4)],
)
def test_variant_has_8_images_per_chip_and_as_many_epochs(name, factor, rate):
    one, pod = read(name, "gpu"), read(name, "v5e_16")
    assert pod.batch_size == 128 == factor * one.batch_size
    assert pod.eval_batch_size % 16 == 0
    assert pod.total_steps == one.total_steps / factor
    assert pod.optim.lr == pytest.approx(rate * one.optim.lr)
    assert pod.optim.warmup_steps >= 0.05 * pod.total_steps
    assert 0 < pod.save_every < one.save_every
    assert 0 < pod.eval_every < one.eval_every
    assert read(name, "") == one
    # Layers of 64 channels are on pairs of pixels.
    pairs = [config.model.get("packed", False) for config in (one, pod)]
    assert pairs == [False, True]
