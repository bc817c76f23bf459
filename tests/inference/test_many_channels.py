"""Models of many channels, and of a range of values, in every kind of prediction."""

import numpy as np
import pytest
import tifffile
from workdirs import make_run

from experiments import export, predict
from experiments.shared import exported_loader
from segjax import config as config_lib
from segjax import inference, models
from segjax.data import images
from segjax.errors import UserError
from segjax.models.network import abstract_variables
from segjax.ops import mean_field

LOW, HIGH, CHANNELS = 100, 4000, 5
SIZE = 24, 20


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, its config, and images of it as files and as the network gets them."""
    root = tmp_path_factory.mktemp("channels")
    config, *_ = make_run(
        root / "run",
        "unet",
        {"padding": "same", "widths": (2, 3), "image_stats": "unit"},
        channels=CHANNELS,
        data={"name": "folder", "channels": CHANNELS, "value_range": (LOW, HIGH)},
    )
    rng = np.random.default_rng(0)
    paths, stored, pixels = [], [], []
    for i in range(2):
        values = rng.integers(0, 4096, (*SIZE, CHANNELS)).astype(np.uint16)
        paths.append(str(root / f"{i}.tif"))
        data = np.moveaxis(values, 2, 0) if i else values
        planar = "separate" if i else "contig"
        tifffile.imwrite(paths[-1], data, photometric="minisblack", planarconfig=planar)
        exact = 255 * (values.astype(float).clip(LOW, HIGH) - LOW) / (HIGH - LOW)
        stored.append(values)
        pixels.append(np.floor(exact + 0.5).astype(np.uint8))
    return root, config, paths, stored, pixels


@pytest.fixture(scope="module")
def segmenter(run):
    return inference.load(run[0] / "run")


@pytest.fixture(scope="module")
def expected(run, segmenter):
    """Labels of the pixels as the network gets them."""
    whole = segmenter._replace(value_range=(0, 0))
    return whole.predict(run[4])


def test_files_and_arrays_are_read_as_in_training(run, segmenter, expected):
    _, _, paths, stored, _ = run
    assert segmenter.value_range == (LOW, HIGH)
    for labels in (segmenter.predict(paths), segmenter.predict(stored)):
        np.testing.assert_array_equal(labels, expected)
    unlike = segmenter._replace(value_range=(0, 0)).predict(paths)
    assert (np.array(unlike) != expected).any()


def test_images_in_parts(run, segmenter):
    _, _, paths, stored, pixels = run
    options = inference.PredictOptions(window=(16,))
    windows = segmenter._replace(options=options, executables={})
    parts = windows.predict(paths, max_pixels=300)
    np.testing.assert_array_equal(parts, windows.predict(stored, max_pixels=300))
    direct = windows._replace(value_range=(0, 0)).predict(pixels, max_pixels=300)
    np.testing.assert_array_equal(parts, direct)


def test_images_of_other_channels_are_named(segmenter, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(images.encode_png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(UserError, match="a.png: is a PNG of 3 channels, expected 5"):
        segmenter.predict([path])
    with pytest.raises(UserError, match=r"images\[0\]: has shape .* \[H, W, 5\]"):
        segmenter.predict([np.zeros((8, 8, 3), np.uint8)])


def test_programs_predict_and_export(run, expected, tmp_path):
    root, config, paths, stored, _ = run
    output = tmp_path / "out"
    kinds = ("ids", "overlays")
    predict.predict(config, root / "run", paths=paths, output=output, outputs=kinds)
    for i, label in enumerate(expected):
        found = images.decode_mask(output / "ids" / f"{i}.png")[0]
        np.testing.assert_array_equal(found, label)
        assert images.decode_image(output / "overlays" / f"{i}.jpg").shape[2] == 3
    other = config.copy_and_resolve_references()
    other.data.value_range = (0, 0)
    with pytest.raises(UserError, match=r"value_range = \[100, 4000\]"):
        predict.predict(other, root / "run", paths=paths, output=output)
    export.export(config, root / "run", output=tmp_path / "model", sizes=[SIZE])
    loaded = exported_loader.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded(stored), expected)


def test_members_of_an_ensemble_read_images_alike(run, tmp_path):
    root, config, *_ = run
    fields = config.model.to_dict()
    data = {"name": "folder", "channels": CHANNELS}
    make_run(tmp_path / "b", "unet", fields, channels=CHANNELS, data=data)
    with pytest.raises(UserError, match="value_range=.* ensemble need the same"):
        inference.load(root / "run", tmp_path / "b")


def test_a_crf_needs_colors(run):
    with pytest.raises(UserError, match="a CRF compares colors, which images of 5"):
        inference.load(run[0] / "run", crf=mean_field.Settings())


def test_crf_rnn_needs_colors_too():
    fields = {"base": "fcn", "base_options": ("image_stats=unit",)}
    model = models.build(config_lib.make(model_name="crfrnn", model=fields), 3)
    abstract_variables(model, 1)
    with pytest.raises(UserError, match="a CRF compares colors, which images of 5"):
        abstract_variables(model, 5)


@pytest.mark.parametrize("name", ["fcn", "pspnet", "deeplab", "dilation", "deconvnet"])
def test_statistics_of_rgb_images_are_refused_before_any_work(name):
    model = models.build(config_lib.make(model_name=name), 3)
    with pytest.raises(UserError, match="for 3 channels, .* 5; set it to 'unit'"):
        abstract_variables(model, 5)
