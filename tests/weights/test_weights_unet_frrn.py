"""U-Net and FRRN: milesial's PyTorch files, the authors' Caffe and Lasagne arrays."""

import functools

import numpy as np
import pytest
from published import (
    Maker,
    assert_close,
    check_complete,
    each_library,
    logits,
    make_config,
    operators,
    picture,
    run_import,
)

from experiments import import_weights
from segjax import weights
from segjax.errors import UserError
from segjax.weights import sources
from segjax.weights.readers import caffe

# Images from 0 to 1, in RGB.
UNIT = weights.Images(1 / 127.5, (1.0,), (1.0,))  # of image_stats "unit"


def tracked(arrays):
    return [name for name in arrays if name.endswith("num_batches_tracked")]


# --- milesial/Pytorch-UNet ---

MILESIAL = dict(widths=(2, 3, 4), padding="same", norm="batch")


def milesial(channels=3, classes=4):
    maker = Maker()

    def double(name, out, inputs):
        for index in (0, 3):
            maker.torch(f"{name}.double_conv.{index}", out, inputs, 3, 3)
            maker.torch_norm(f"{name}.double_conv.{index + 1}", out)
            inputs = out

    double("inc", 2, channels)
    double("down1.maxpool_conv.1", 3, 2)
    double("down2.maxpool_conv.1", 4, 3)
    for index, inputs, out in ((1, 4, 3), (2, 3, 2)):
        maker.torch(f"up{index}.up", inputs, out, 2, 2)
        maker.add(f"up{index}.up.bias", out)
        double(f"up{index}.conv", out, 2 * out)
    maker.torch("outc.conv", classes, 2, 1, 1, bias=True)
    return maker.arrays


@functools.cache
def milesial_case():
    arrays, images = milesial(), picture(20, 28)
    imported = run_import(arrays, "unet", sources.GRAY_OR_RGB, **MILESIAL)
    check_complete(arrays, imported, tracked(arrays))
    assert imported.num_classes == 4
    # Nothing is folded: both networks are run on images from -1 to 1 below.
    return arrays, images, imported


@each_library
def test_unet_of_pytorch(library):
    ops = operators(library)
    arrays, images, imported = milesial_case()
    found = logits(imported, images, "unet", **MILESIAL)
    x = images.transpose(0, 3, 1, 2) / 127.5 - 1

    def double(x, name):
        for index in (0, 3):
            x = ops.conv(x, arrays[f"{name}.double_conv.{index}.weight"], padding=1)
            norm = f"{name}.double_conv.{index + 1}"
            kinds = ("weight", "bias", "running_mean", "running_var")
            x = ops.relu(ops.norm(x, *(arrays[f"{norm}.{kind}"] for kind in kinds)))
        return x

    skips = [double(x, "inc")]
    for name in ("down1", "down2"):
        pooled = ops.max_pool(skips[-1], 2, 2)
        skips.append(double(pooled, f"{name}.maxpool_conv.1"))
    x = skips.pop()
    for name in ("up1", "up2"):
        x = ops.deconv(
            x, arrays[f"{name}.up.weight"], arrays[f"{name}.up.bias"], stride=2
        )
        x = double(np.concatenate([skips.pop(), x], 1), f"{name}.conv")
    x = ops.conv(x, arrays["outc.conv.weight"], arrays["outc.conv.bias"])
    assert_close(found, x)


def test_images_from_0_to_1_become_those_from_minus_1_to_1():
    """Away from the border, the imported network of images from -1 to 1 is the same."""
    arrays = milesial()
    same = run_import(arrays, "unet", UNIT, **MILESIAL).result.arrays
    other = run_import(arrays, "unet", sources.GRAY_OR_RGB, **MILESIAL).result.arrays
    kernel = "params/enc0_conv1/kernel"
    np.testing.assert_allclose(same[kernel], other[kernel] / 2, rtol=1e-6)
    mean = "batch_stats/enc0_bn1/mean"
    # (x + 1) / 2 for x from -1 to 1: the kernel over halves is subtracted.
    shift = other[kernel].sum((0, 1, 2)) / 2
    np.testing.assert_allclose(same[mean], other[mean] - shift, rtol=1e-5, atol=1e-6)


def test_unet_of_gray_images_and_of_other_fields(tmp_path):
    pytest.importorskip("safetensors")
    arrays = milesial(channels=1)
    imported = run_import(arrays, "unet", UNIT, **MILESIAL)
    assert imported.result.arrays["params/enc0_conv1/kernel"].shape == (3, 3, 1, 2)
    with pytest.raises(UserError, match="set --config.model.padding to 'same'"):
        run_import(arrays, "unet", UNIT, **{**MILESIAL, "padding": "valid"})
    with pytest.raises(UserError, match="set --config.model.norm to 'batch'"):
        run_import(arrays, "unet", UNIT, **{**MILESIAL, "norm": "none"})
    bilinear = {n: a for n, a in arrays.items() if ".up." not in n}
    with pytest.raises(UserError, match="milesial/Pytorch-UNet with bilinear"):
        run_import(bilinear, "unet", UNIT, **MILESIAL)


# --- the U-Net that its authors released ---

RELEASED = dict(widths=(2, 3, 4), layout="released")


def phseg_v5(channels=1, classes=2):
    maker = Maker()
    for level, (out, inputs) in enumerate(((2, channels), (3, 2), (4, 3))):
        maker.caffe(f"conv_d{level}a-b", out, inputs, 3, 3)
        maker.caffe(f"conv_d{level}b-c", out, out, 3, 3)
    # The last up-convolution keeps the channels of the level below.
    for below, level, inputs, up, out in (("d2c", 1, 4, 3, 3), ("u1d", 0, 3, 3, 2)):
        name = f"upconv_{below}_u{level}a"
        maker.add(f"{name}[0]", inputs, up, 2, 2)
        maker.add(f"{name}[1]", up)
        maker.caffe(f"conv_u{level}b-c", out, up + out, 3, 3)
        maker.caffe(f"conv_u{level}c-d", out, out, 3, 3)
    maker.caffe("conv_u0d-score", classes, 2, 1, 1)
    return maker.arrays


@functools.cache
def released_case():
    arrays, images = phseg_v5(), picture(44, 52)[..., :1]
    imported = run_import(arrays, "unet", sources.GRAY_OR_RGB, **RELEASED)
    check_complete(arrays, imported)
    assert imported.num_classes == 2 and not imported.result.notes
    return arrays, images, logits(imported, images, "unet", **RELEASED)


@each_library
def test_unet_as_released(library):
    """A ReLU behind the up-convolutions, and their maps in front of the skips."""
    ops = operators(library)
    arrays, images, found = released_case()

    def blobs(name):
        return arrays[f"{name}[0]"], arrays[f"{name}[1]"]

    def conv(x, name):
        return ops.relu(ops.conv(x, *blobs(f"conv_{name}")))

    x, skips = images.transpose(0, 3, 1, 2) / 127.5 - 1, []
    for level in range(3):
        x = ops.max_pool(x, 2, 2) if level else x
        x = conv(conv(x, f"d{level}a-b"), f"d{level}b-c")
        skips.append(x)
    for below, level in (("d2c", 1), ("u1d", 0)):
        x = ops.deconv(x, *blobs(f"upconv_{below}_u{level}a"), stride=2)
        assert x.min() < 0
        skip = skips[level]
        top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:]))
        skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        x = np.concatenate([ops.relu(x), skip], 1)
        x = conv(conv(x, f"u{level}b-c"), f"u{level}c-d")
    x = ops.conv(x, *blobs("conv_u0d-score"))
    assert x.shape[2:] == (4, 12)
    assert_close(found, x)


def test_released_unet_of_other_fields(tmp_path):
    """The program sets the layout; another one is another network."""
    pytest.importorskip("safetensors")
    arrays = phseg_v5()
    with pytest.raises(UserError, match="set --config.model.layout to 'released'"):
        run_import(arrays, "unet", UNIT, widths=(2, 3, 4))
    with pytest.raises(
        UserError, match="set --config.model.upsampling to 'transposed'"
    ):
        run_import(arrays, "unet", UNIT, **RELEASED, upsampling="nearest")
    path, output = tmp_path / "phseg_v5.caffemodel", tmp_path / "unet.safetensors"
    caffe.write(path, arrays)
    config, chosen = make_config("unet", widths=(2, 3, 4)), {"widths": (2, 3, 4)}
    imported = import_weights.import_weights(path, config, output=output, chosen=chosen)
    assert imported.info.fields["layout"] == "released"
    # Images from 0 to 1 at the authors, from -1 to 1 here; nothing is padded.
    raw = run_import(arrays, "unet", sources.GRAY_OR_RGB, **RELEASED).result.arrays
    raw["params/enc0_conv1/bias"] = (
        raw["params/enc0_conv1/bias"]
        + raw["params/enc0_conv1/kernel"].sum((0, 1, 2)) / 2
    )
    raw["params/enc0_conv1/kernel"] = raw["params/enc0_conv1/kernel"] / 2
    for name, array in imported.result.arrays.items():
        np.testing.assert_allclose(array, raw[name], rtol=1e-5, atol=1e-6)


# --- FRRN ---

FRRN = dict(
    stage_units=(2, 1),
    stage_channels=(3, 4),
    stage_scales=(2, 4),
    width=2,
    residual_channels=2,
    first_units=1,
    last_units=2,
)


class Lasagne:
    """Arrays in the order in which np.savez numbers them."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.arrays = {}

    def add(self, array):
        self.arrays[f"arr_{len(self.arrays)}"] = np.float32(array)

    def conv(self, out, inputs, size, norm=True, bias=False):
        scale = np.sqrt(2 / (inputs * size * size))
        self.add(self.rng.normal(size=(out, inputs, size, size)) * scale)
        if bias:
            self.add(self.rng.normal(size=out))
        if norm:  # beta, gamma, mean, inverse deviation
            for _ in range(3):
                self.add(self.rng.normal(size=out))
            self.add(self.rng.uniform(0.5, 2, size=out))


def frrn_arrays():
    """The units of FRRN above, as the authors' builder makes them."""
    maker = Lasagne()

    def unit(inputs, out, residual):
        maker.conv(out, inputs, 3)
        maker.conv(out, out, 3)
        if residual:
            maker.conv(2, out, 1, norm=False, bias=True)
        elif inputs != out:
            maker.conv(out, inputs, 1, norm=False)

    maker.conv(2, 3, 5)
    unit(2, 2, residual=False)
    maker.conv(2, 2, 1)
    for inputs, out in ((2, 3), (3, 3), (3, 4)):
        unit(inputs + 2, out, residual=True)
    unit(4 + 2, 2, residual=False)
    unit(2, 2, residual=False)
    maker.conv(3, 2, 1, norm=False, bias=True)
    return maker.arrays


@functools.cache
def frrn_case():
    arrays, images = frrn_arrays(), picture(8, 12)
    imported = run_import(arrays, "frrn", sources.GRAY_OR_RGB, **FRRN)
    check_complete(arrays, imported)
    assert imported.num_classes == 3
    return arrays, images, logits(imported, images, "frrn", **FRRN)


@each_library
def test_frrn(library):
    """Lasagne's convolutions turn their kernels; epsilon is within the deviation."""
    ops = operators(library)
    arrays, images, found = frrn_case()
    left = iter(arrays.values())

    def conv(x, norm=True, bias=False, relu=False):
        kernel = next(left)
        size = kernel.shape[2]
        x = ops.conv(x, kernel[:, :, ::-1, ::-1].copy(), padding=size // 2)
        column = (-1, 1, 1)
        if bias:
            x = x + next(left).reshape(column)
        if norm:
            beta, gamma, mean, inverse = (next(left).reshape(column) for _ in range(4))
            x = (x - mean) * gamma * inverse + beta
        return ops.relu(x) if relu else x

    def unit(x):
        y = conv(conv(x, relu=True))
        return y + (x if x.shape[1] == y.shape[1] else conv(x, norm=False))

    def nearest(x, ratio):
        return x.repeat(ratio, 2).repeat(ratio, 3)

    def bilinear(x, ratio):  # Theano's: cell i on pixel ratio * i
        for axis in (2, 3):
            side = x.shape[axis]
            position = np.minimum(np.arange(side * ratio) / ratio, side - 1)[:, None]
            matrix = np.maximum(1 - np.abs(position - np.arange(side)), 0)
            x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
        return x

    y = unit(conv(images.transpose(0, 3, 1, 2) / 127.5 - 1, relu=True))
    z, scale = conv(y), 1
    for target in (2, 2, 4):
        if target != scale:
            y, scale = ops.max_pool(y, target // scale, target // scale), target
        y = np.concatenate([y, ops.max_pool(z, scale, scale)], 1)
        y = conv(conv(y, relu=True), relu=True)
        z = z + nearest(conv(y, norm=False, bias=True), scale)
    x = np.concatenate([bilinear(y, 4), z], 1)
    x = unit(unit(x))
    x = conv(x, norm=False, bias=True)
    assert not list(left)
    assert_close(found, x)


def test_frrn_file(tmp_path):
    """An .npz through the program, and one that is too short."""
    pytest.importorskip("safetensors")
    path, arrays = tmp_path / "frrn.npz", frrn_arrays()
    np.savez(path, *arrays.values())
    found = weights.read(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].tobytes() == array.tobytes()
    output = tmp_path / "frrn.safetensors"
    config = make_config("frrn", **FRRN)
    imported = import_weights.import_weights(path, config, output=output)
    assert imported.source == "FRRN (Lasagne)"
    np.savez(path, *list(arrays.values())[:-1])
    with pytest.raises(UserError, match=r"missing: arr_\d+ \(our classifier/bias\)"):
        import_weights.import_weights(path, config, output=output)
    arrays["arr_4"][0] = 0.0
    np.savez(path, *arrays.values())
    with pytest.raises(UserError, match="arr_4 holds no inverse deviations"):
        import_weights.import_weights(path, config, output=output)


def test_other_npz_files(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{"b": 1}], object))
    with pytest.raises(UserError, match=r"a\.npz.*Python objects"):
        weights.read(path)
    np.savez_compressed(path, a=np.zeros(10**6, np.float32))
    with pytest.raises(UserError, match="larger than the file"):
        weights.read(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match="cannot be read") as error:
        weights.read(path)
    assert "\n" not in str(error.value)
