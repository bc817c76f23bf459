"""Importing weights: formats of files, problems with them, images, values."""

import jax.numpy as jnp
import numpy as np
import pytest
from published import (
    bilinear_blob,
    caffe_input,
    make_config,
    picture,
    run_import,
    save_pth,
    torch_input,
)
from test_weights_keras_safetensors import NEW, write_keras
from test_weights_vgg import FCN, VGG, fcn_caffe, vgg_files

from experiments import import_weights
from segjax import weights
from segjax.errors import UserError
from segjax.image_stats import IMAGE_STATS
from segjax.ops import conv
from segjax.weights import checks, convert, sources
from segjax.weights.readers import caffe, safetensors_file

CAFFE_IMAGES = weights.Images(*IMAGE_STATS["caffe"])

# --- formats ---


def test_one_network_in_every_format(tmp_path):
    """VGG16 from files as published, through the program; the parameters are equal."""
    pytest.importorskip("h5py")
    pytest.importorskip("safetensors")
    in_caffe, in_torch, in_keras = vgg_files()
    caffe.write(tmp_path / "vgg.caffemodel", in_caffe)
    save_pth(tmp_path / "vgg.pth", in_torch)
    save_pth(tmp_path / "vgg.pt", in_torch, legacy=True)
    write_keras(tmp_path / "vgg.h5", in_keras, NEW, nested=True)
    safetensors_file.write(tmp_path / "vgg.safetensors", in_torch, {})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    found = {}
    for file in files:
        arrays = weights.read(file)
        program = {"caffemodel": in_caffe, "h5": in_keras}.get(
            file.suffix[1:], in_torch
        )
        assert arrays.keys() == program.keys()
        for name, array in program.items():
            assert arrays[name].tobytes() == array.tobytes()
        config = make_config("fcn", skips=32, image_stats="caffe", **VGG)
        output = tmp_path / "ours" / f"{file.name}.safetensors"
        imported = import_weights.import_weights(file, config, output=output)
        ours = weights.read(output)
        assert ours.keys() == imported.result.arrays.keys()
        found[file.suffix] = ours
    reference = found[".caffemodel"]
    assert len(reference) == 30
    for suffix, arrays in found.items():
        for name, array in arrays.items():
            if "conv1_1" not in name:  # which sees other images in torchvision
                assert array.tobytes() == reference[name].tobytes(), (suffix, name)
    # The same in Caffe and Keras: BGR, and one mean.
    first = "params/backbone/conv1_1/bias"
    np.testing.assert_array_equal(found[".h5"][first], reference[first])


# --- what does not fit ---


def test_all_problems_in_one_line():
    arrays = fcn_caffe(32)
    del arrays["conv3_2[0]"], arrays["fc7[1]"]
    arrays["conv2_1[0]"] = arrays["conv2_1[0]"][:, :1]
    arrays["score_fr[1]"] = arrays["score_fr[1]"].reshape(1, 3, 1, 1) * np.nan
    arrays["conv9[0]"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as error:
        run_import(arrays, "fcn", skips=32, **FCN)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "missing: conv3_2[0] (our backbone/conv3_2/kernel), "
        "fc7[1] (our backbone/fc7/bias)",
        "unexpected: conv9[0]",
        "conv2_1[0] has shape (2, 1, 3, 3), our backbone/conv2_1/kernel needs "
        "(2, 2, 3, 3)",
        "score_fr[1] holds NaN",
    ):
        assert part in text


def test_file_of_another_model():
    arrays = vgg_files()[0]
    expected = "are of VGG16 .Caffe., for model .* with backbone vgg16, not for model "
    with pytest.raises(UserError, match=f"{expected}'unet'$"):
        run_import(arrays, "unet", widths=(2, 2))
    with pytest.raises(UserError, match=f"{expected}'pspnet' with backbone 'resnet50'"):
        run_import(arrays, "pspnet", stage_sizes=(1, 1, 1, 1), width=2)
    with pytest.raises(UserError, match="arrays like a, b are of no known source"):
        run_import({"b": np.zeros(1), "a": np.zeros(1)}, "unet", widths=(2, 2))


def test_bilinear_kernels_are_recognized():
    assert checks.bilinear(bilinear_blob(3, 4)) == ""
    grouped = bilinear_blob(3, 4)[range(3), range(3)][:, None]
    assert checks.bilinear(grouped) == ""
    assert "square" in checks.bilinear(grouped[..., :2])
    # Caffe's own filler fills all pairs of channels, which sums them.
    dense = np.broadcast_to(bilinear_blob(1, 4), (3, 3, 4, 4))
    assert "learned" in checks.bilinear(dense)
    assert "learned" in checks.bilinear(bilinear_blob(3, 4) * 1.001)


# --- images ---


def test_other_image_statistics_are_folded():
    """Scale and mean of torchvision into the first layer of a "caffe" model."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 4))
    images = picture(9, 8)
    shapes = {"params/conv1/kernel": (3, 3, 3, 4)}
    arrays = {"w": kernel.astype(np.float32)}
    layers = {"conv1": convert.Conv("w", "b", "HWIO")}
    with_bias = dict(arrays, b=rng.normal(size=4).astype(np.float32))
    with_norm = dict(arrays, **{k: np.float32([1, 2, 3, 4]) for k in "gomv"})

    def convolved(x, kernel):
        return np.asarray(conv.conv2d(jnp.asarray(x), jnp.asarray(kernel)))

    y = convolved(torch_input(images).transpose(0, 2, 3, 1), kernel)
    seen = caffe_input(images)[:, ::-1].transpose(0, 2, 3, 1)

    table = convert.Table("a", layers, sources.TORCHVISION, "conv1")
    shapes = dict(shapes, **{"params/conv1/bias": (4,)})
    result = convert.convert(with_bias, shapes, table=table, images=CAFFE_IMAGES)
    ours = result.arrays
    got = convolved(seen, ours["params/conv1/kernel"]) + ours["params/conv1/bias"]
    np.testing.assert_allclose(got, y + with_bias["b"], atol=1e-4)
    assert [row.how for row in result.rows] == [
        "scale of the images folded in",
        "mean of the images folded in",
    ]

    # Without a bias the mean of the normalization takes it.
    del shapes["params/conv1/bias"]
    names = ("params/bn1/scale", "params/bn1/bias")
    names += ("batch_stats/bn1/mean", "batch_stats/bn1/var")
    shapes |= dict.fromkeys(names, (4,))
    layers = layers | {"bn1": convert.Norm("g", "o", "m", "v")}
    table = table._replace(layers=layers)
    ours = convert.convert(with_norm, shapes, table=table, images=CAFFE_IMAGES).arrays
    got = convolved(seen, ours["params/conv1/kernel"]) - ours["batch_stats/bn1/mean"]
    np.testing.assert_allclose(got, y - with_norm["m"], atol=1e-4)


# --- values that cannot be meant ---


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda a: a.astype(np.int8), r"w holds int8, expected real numbers"),
        (
            lambda a: a + 1e300,
            r"w \(conv1/kernel of .* too large for float32",
        ),
    ],
)
def test_values_that_no_layer_has(change, expected):
    layers = {"conv1": convert.Conv("w", "b", "HWIO")}
    table = convert.Table("a", layers, CAFFE_IMAGES)
    shapes = {"params/conv1/kernel": (1, 1, 2, 3)}
    with pytest.raises(UserError, match=expected):
        arrays = {"w": change(np.zeros((1, 1, 2, 3)))}
        convert.convert(arrays, shapes, table=table, images=CAFFE_IMAGES)


def test_a_negative_variance_is_refused():
    names = ("params/bn/scale", "params/bn/bias", "batch_stats/bn/mean")
    shapes = dict.fromkeys((*names, "batch_stats/bn/var"), (2,))
    arrays = {name: np.float32([1, 2]) for name in "somv"}
    table = convert.Table("a", {"bn": convert.Norm("s", "o", "m", "v")}, CAFFE_IMAGES)
    convert.convert(arrays, shapes, table=table, images=CAFFE_IMAGES)
    arrays["v"] = np.float32([1, -0.5])
    with pytest.raises(UserError, match=r"v \(bn/var of .* variance of -0.5"):
        convert.convert(arrays, shapes, table=table, images=CAFFE_IMAGES)
