"""Published weights: files made here with the published names, layouts and orders.

What a converted network computes is compared with numpy (and PyTorch, where it is
installed) running the network as it was published, on the arrays of the file.
"""

import functools
import json
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import import_weights
from segjax import config as config_lib
from segjax import models, weights
from segjax.errors import UserError
from segjax.models import resnet
from segjax.models.classifier import Classifier
from segjax.ops import conv, image
from segjax.weights import caffe, convert, names, safetensors_file, torch_file
from segjax.weights import keras as keras_file

OURS = convert.Images(*image.IMAGE_STATS["caffe"])


class Maker:
    """Random arrays under the names a program gives them, in order."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.arrays = {}

    def add(self, name, *shape, low=None):
        """Normal, or uniform from `low` up."""
        draw = self.rng.normal(size=shape) * 0.5
        if low is not None:
            draw = self.rng.uniform(low, low + 1, size=shape)
        self.arrays[name] = draw.astype(np.float32)

    def caffe(self, name, *shape, bias=True):
        self.add(f"{name}[0]", *shape)
        if bias:
            self.add(f"{name}[1]", shape[0])

    def caffe_norm(self, norm, scale, n):
        self.add(f"{norm}[0]", n)
        self.add(f"{norm}[1]", n, low=1.0)
        self.arrays[f"{norm}[2]"] = np.float32([2.5])
        self.add(f"{scale}[0]", n)
        self.add(f"{scale}[1]", n)

    def psp_norm(self, name, n):
        for index, low in enumerate((None, None, None, 1.0)):
            self.add(f"{name}[{index}]", 1, n, 1, 1, low=low)

    def torch(self, name, *shape, bias=False):
        self.add(f"{name}.weight", *shape)
        if bias:
            self.add(f"{name}.bias", shape[0])

    def torch_norm(self, name, n):
        for kind in ("weight", "bias", "running_mean"):
            self.add(f"{name}.{kind}", n)
        self.add(f"{name}.running_var", n, low=1.0)
        self.arrays[f"{name}.num_batches_tracked"] = np.array(7)

    def keras(self, name, *shape):
        self.add(f"{name}/kernel", *shape)
        self.add(f"{name}/bias", shape[-1])

    def keras_norm(self, name, n):
        for kind in ("gamma", "beta", "moving_mean"):
            self.add(f"{name}/{kind}", n)
        self.add(f"{name}/moving_variance", n, low=0.01)


# --- the published operators, NCHW ---


def np_conv(x, kernel, bias=None, stride=1, pad=0, dilation=1):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    reach = dilation * (kernel.shape[2] - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), (2, 3))
    windows = windows[:, :, ::stride, ::stride, ::dilation, ::dilation]
    y = np.einsum("nihwab,oiab->nohw", windows, kernel, optimize=True)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def np_deconv(x, kernel, stride):
    n, _, h, w = x.shape
    size = kernel.shape[2]
    y = np.zeros((n, kernel.shape[1], stride * (h - 1) + size, stride * (w - 1) + size))
    for i in range(h):
        for j in range(w):
            part = np.einsum("ni,ioab->noab", x[:, :, i, j], kernel)
            a, b = stride * i, stride * j
            y[:, :, a : a + size, b : b + size] += part
    return y


def np_norm(x, scale, bias, mean, var, epsilon=1e-5):
    scale, bias, mean, var = (a.reshape(-1, 1, 1) for a in (scale, bias, mean, var))
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def np_max_pool(x, size, stride, pad=0):
    """Ceil-mode without padding, floor with."""
    low = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    high = [-(-(n + 2 * pad - size) // stride) * stride + size for n in x.shape[2:]]
    if pad:
        high = [(n + 2 * pad - size) // stride * stride + size for n in x.shape[2:]]
    x = np.pad(x, low, constant_values=-np.inf)
    more = [(0, max(0, h - n)) for h, n in zip(high, x.shape[2:])]
    x = np.pad(x, ((0, 0), (0, 0), *more), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    return windows[:, :, ::stride, ::stride].max((4, 5))


def np_resize(x, size):
    """Bilinear, aligned corners."""
    for axis in (2, 3):
        position = np.linspace(0, x.shape[axis] - 1, size[axis - 2])
        matrix = np.maximum(1 - np.abs(position[:, None] - np.arange(x.shape[axis])), 0)
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def relu(x):
    return np.maximum(x, 0)


def picture(height, width):
    return np.random.default_rng(5).integers(0, 256, (1, height, width, 3), np.uint8)


def caffe_input(images):
    """BGR planes minus the mean that our "caffe" images subtract."""
    x = images[..., ::-1].astype(float) - [104.00699, 116.66877, 122.67892]
    return x.transpose(0, 3, 1, 2)


def torch_input(images):
    x = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return x.transpose(0, 3, 1, 2)


# --- converting ---


def make_config(model, **fields):
    return config_lib.make(model_name=model, model=fields)


@functools.cache
def _known(model, fields):
    """All fields of a model, and its shapes: tracing takes most of the time here."""
    config = make_config(model, **dict(fields))
    shapes_of = functools.cache(import_weights.shapes_of(config))
    return config_lib.json_like(config.model), shapes_of


def run_import(arrays, model, images=OURS, **fields):
    """Import for `model` with these fields; the whole way but for the files."""
    known, shapes_of = _known(model, tuple(fields.items()))
    return weights.import_arrays(arrays, model, known, shapes_of, images)


def variables(imported, model):
    """The whole tree of `model`, random where the file had nothing."""
    abstract = import_weights.abstract_variables(model)
    flat = weights.flatten(abstract)
    rng = np.random.default_rng(1)
    filled = {
        name: imported.result.arrays.get(name, rng.uniform(1, 2, leaf.shape))
        for name, leaf in flat.items()
    }
    return weights.replace(abstract, filled)


def check_complete(arrays, imported, ignored=(), fresh=()):
    """Every array of the file is used exactly once, every one of ours filled once."""
    result = imported.result
    used = [source for row in result.rows for source in row.sources]
    used += [*result.checked, *result.ignored]
    assert sorted(used) == sorted(arrays)
    assert sorted(result.ignored) == sorted(ignored)
    assert sorted(result.fresh) == sorted(fresh)
    assert len({row.target for row in result.rows}) == len(result.rows)
    assert all(a.dtype == np.float32 for a in result.arrays.values())
    assert list(weights.describe(imported))


# --- Caffe's file format ---


def schema(packed):
    """Caffe's messages as Google's protobuf knows them; None without it."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name=f"caffe_{packed}.proto", package=f"caffe_{packed}", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields):
        proto = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            item = proto.field.add(name=field, number=number)
            item.label = 3 if repeated else 1
            if isinstance(kind, str):
                item.type, item.type_name = (
                    kinds.TYPE_MESSAGE,
                    f".{file.package}.{kind}",
                )
            else:
                item.type = kind
                if repeated:
                    item.options.packed = packed

    message("BlobShape", ("dim", 1, kinds.TYPE_INT64, True))
    message(
        "BlobProto",
        *((n, i, kinds.TYPE_INT32, False) for i, n in enumerate(LEGACY, start=1)),
        ("data", 5, kinds.TYPE_FLOAT, True),
        ("diff", 6, kinds.TYPE_FLOAT, True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, kinds.TYPE_DOUBLE, True),
    )
    message(
        "LayerParameter",
        ("name", 1, kinds.TYPE_STRING, False),
        ("type", 2, kinds.TYPE_STRING, False),
        ("loss_weight", 5, kinds.TYPE_FLOAT, True),
        ("blobs", 7, "BlobProto", True),
    )
    message(
        "V1LayerParameter",
        ("type", 5, kinds.TYPE_INT32, False),
        ("name", 4, kinds.TYPE_STRING, False),
        ("blobs", 6, "BlobProto", True),
    )
    message(
        "NetParameter",
        ("name", 1, kinds.TYPE_STRING, False),
        ("layers", 2, "V1LayerParameter", True),
        ("layer", 100, "LayerParameter", True),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(
        file.SerializeToString()
    )
    found = pool.FindMessageTypeByName(f"{file.package}.NetParameter")
    return message_factory.GetMessageClass(found)


LEGACY = ("num", "channels", "height", "width")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("field", ["layer", "layers"])
@pytest.mark.parametrize("double", [True, False])
def test_reads_what_protobuf_writes(tmp_path, packed, field, double):
    rng = np.random.default_rng(0)
    blobs = {
        "conv[0]": rng.normal(size=(3, 2, 1, 2)),
        "conv[1]": rng.normal(size=(1, 1, 1, 3)),
    }
    net = schema(packed)(name="a net")
    getattr(net, field).add(name="data")  # no arrays
    layer = getattr(net, field).add(name="conv")
    for array in blobs.values():
        blob = layer.blobs.add()
        if field == "layer":
            blob.shape.dim.extend(array.shape)
        else:
            for name, side in zip(LEGACY, array.shape):
                setattr(blob, name, side)
        (blob.double_data if double else blob.data).extend(array.ravel())
        blob.diff.extend([1.0] * 5)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net.SerializeToString())
    found = caffe.read(path)
    assert list(found) == list(blobs)
    for name, array in blobs.items():
        kind = np.float64 if double else np.float32
        assert found[name].dtype == kind
        np.testing.assert_array_equal(found[name], array.astype(kind))


def test_caffemodel_round_trip(tmp_path):
    maker = Maker()
    maker.caffe("inception_3a/1x1", 300, 2, 1, 1)
    maker.caffe_norm("bn", "scale", 4)
    maker.arrays["wide[0]"] = np.float64([[1 / 3]])
    maker.arrays["scalar[0]"] = np.float32(3.0)
    path = tmp_path / "a.caffemodel"
    caffe.write(path, maker.arrays)
    found = caffe.read(path)
    assert list(found) == list(maker.arrays)
    for name, array in maker.arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    net = schema(True)()
    net.ParseFromString(path.read_bytes())
    assert [layer.name for layer in net.layer] == [
        *("inception_3a/1x1", "bn", "scale", "wide", "scalar")
    ]
    with pytest.raises(ValueError, match="comes after"):
        caffe.write(path, {"conv[1]": np.zeros(1, np.float32)})


def test_damaged_caffemodel(tmp_path):
    maker = Maker()
    maker.caffe("first", 2, 3, 1, 1)
    maker.caffe("second", 2, 2, 1, 1)
    path = tmp_path / "a.caffemodel"
    caffe.write(path, maker.arrays)
    data = path.read_bytes()
    complete = 0
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            found = caffe.read(path)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:  # cut between two layers
            complete += 1
            assert list(found) == ["first[0]", "first[1]"]
    assert complete == 1
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:  # anything but another exception
            caffe.read(path)
        except UserError as error:
            assert str(path) in str(error)
    path.write_bytes(data + data)
    with pytest.raises(UserError, match="two layers with arrays are called 'first'"):
        caffe.read(path)
    with pytest.raises(UserError, match="not found"):
        caffe.read(tmp_path / "none.caffemodel")
    with pytest.raises(UserError, match=r"'.npz'; known: .caffemodel, .pth"):
        weights.read(tmp_path / "a.npz")


# --- FCN ---

FCN = dict(widths=(2, 2, 3, 3, 2), fc_channels=4)
VGG_CONVS = (2, 2, 3, 3, 3)


def vgg_layers(widths):
    """(name, out, in) of the 13 convolutions."""
    inputs = 3
    for stage, (count, width) in enumerate(zip(VGG_CONVS, widths), start=1):
        for index in range(1, count + 1):
            yield f"conv{stage}_{index}", width, inputs
            inputs = width


def vgg_caffe(maker, widths, fc=0, fc_kernel=7):
    for name, out, inputs in vgg_layers(widths):
        maker.caffe(name, out, inputs, 3, 3)
    if fc:
        maker.caffe("fc6", fc, widths[-1], fc_kernel, fc_kernel)
        maker.caffe("fc7", fc, fc, 1, 1)


def bilinear_blob(channels, size):
    """As FCN's surgery fills it: dense, the interpolation on the diagonal."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    taps = 1 - abs(np.arange(size) - centre) / factor
    blob = np.zeros((channels, channels, size, size), np.float32)
    blob[range(channels), range(channels)] = np.outer(taps, taps)
    return blob


def fcn_caffe(skips, classes=3, at_once=False):
    maker = Maker()
    vgg_caffe(maker, FCN["widths"], FCN["fc_channels"])
    maker.caffe("score_fr", classes, 4, 1, 1)
    if skips < 32:
        maker.arrays["upscore2[0]"] = bilinear_blob(classes, 4)
        maker.caffe("score_pool4", classes, 3, 1, 1)
    if skips < 16:
        maker.arrays["upscore_pool4[0]"] = bilinear_blob(classes, 4)
        maker.caffe("score_pool3", classes, 3, 1, 1)
    last = {32: "upscore", 16: "upscore16", 8: "upscore8"}[skips]
    maker.arrays[f"{last}[0]"] = bilinear_blob(classes, 2 * skips)
    if at_once:
        maker.arrays["scale_pool4[0]"] = np.full(3, 0.01, np.float32)
        maker.arrays["scale_pool3[0]"] = np.full(3, 0.0001, np.float32)
    return maker.arrays


def np_fcn8s(arrays, images, name):
    """FCN-8s as its Caffe nets define it; `name` maps the head's layers."""

    def layer(x, which, **kwargs):
        return np_conv(x, arrays[f"{which}[0]"], arrays[f"{which}[1]"], **kwargs)

    def up(x, which, stride):
        bias = arrays.get(f"{which}[1]", np.zeros(1)).reshape(-1, 1, 1)
        return np_deconv(x, arrays[f"{which}[0]"], stride) + bias

    x, pools = caffe_input(images), []
    pad = 100
    for stage, count in enumerate(VGG_CONVS, start=1):
        for index in range(1, count + 1):
            x = relu(layer(x, f"conv{stage}_{index}", pad=pad))
            pad = 1
        pools.append(x := np_max_pool(x, 2, 2))
    x = layer(relu(layer(relu(layer(x, "fc6")), "fc7")), name("score_fr"))
    for which, skip, pooled, offset in (
        ("upscore2", "score_pool4", pools[3], 5),
        ("upscore_pool4", "score_pool3", pools[2], 9),
    ):
        x = up(x, name(which), 2)
        scale = arrays.get(skip.replace("score", "scale") + "[0]", np.ones(1))
        skipped = layer(pooled * scale.reshape(-1, 1, 1), name(skip))
        h, w = x.shape[2:]
        x = x + skipped[:, :, offset : offset + h, offset : offset + w]
    x = up(x, name("upscore8"), 8)
    h, w = images.shape[1:3]
    return x[:, :, 31 : 31 + h, 31 : 31 + w].transpose(0, 2, 3, 1)


def forward(model, imported, images):
    run = jax.jit(functools.partial(model.apply, train=False))
    return np.asarray(run(variables(imported, model), images)[0])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_fcn8s_at_once_agrees():
    arrays, images = fcn_caffe(8, at_once=True), picture(20, 27)
    # Larger, or the scaled skips would not be seen.
    arrays["score_pool4[0]"] *= 100
    arrays["score_pool3[0]"] *= 10000
    imported = run_import(arrays, "fcn", skips=8, at_once=True, **FCN)
    check_complete(arrays, imported)
    assert imported.num_classes == 3
    model = models.MODELS["fcn"](num_classes=3, skips=8, at_once=True, **FCN)
    expected = np_fcn8s(arrays, images, name=lambda layer: layer)
    assert_close(forward(model, imported, images), expected)


def test_cvpr_fcn8s_agrees():
    """Learned upsampling kernels, the first with a bias."""
    theirs = {
        "score_fr": "score-fr",
        "upscore2": "score2",
        "score_pool4": "score-pool4",
        "upscore_pool4": "score4",
        "score_pool3": "score-pool3",
        "upscore8": "upsample",
    }
    maker, images = Maker(), picture(20, 27)
    vgg_caffe(maker, FCN["widths"], FCN["fc_channels"])
    for name, channels in (("score-fr", 4), ("score-pool4", 3), ("score-pool3", 3)):
        maker.caffe(name, 3, channels, 1, 1)
    maker.caffe("score2", 3, 3, 4, 4)
    maker.caffe("score4", 3, 3, 4, 4, bias=False)
    maker.arrays["upsample[0]"] = bilinear_blob(3, 16)
    fields = dict(skips=8, learn_upsampling=True, **FCN)
    imported = run_import(maker.arrays, "fcn", **fields)
    check_complete(maker.arrays, imported)
    model = models.MODELS["fcn"](num_classes=3, **fields)
    expected = np_fcn8s(maker.arrays, images, name=theirs.get)
    assert_close(forward(model, imported, images), expected)
    with pytest.raises(UserError, match="set model.learn_upsampling to True"):
        run_import(maker.arrays, "fcn", skips=8, **FCN)


@pytest.mark.parametrize("skips", [32, 16])
def test_fcn_stages(skips):
    arrays = fcn_caffe(skips, classes=5)
    imported = run_import(arrays, "fcn", skips=skips, **FCN)
    check_complete(arrays, imported)
    assert imported.num_classes == 5
    heads = {"score_fr", "score_pool4"} if skips == 16 else {"score_fr"}
    assert {name.split("/")[1] for name in imported.heads} == heads
    # V1 files, 4-dimensional all over, give the same.
    old = {name: a.reshape((1,) * (4 - a.ndim) + a.shape) for name, a in arrays.items()}
    again = run_import(old, "fcn", skips=skips, **FCN)
    for name, array in imported.result.arrays.items():
        np.testing.assert_array_equal(array, again.result.arrays[name])
    with pytest.raises(UserError, match=f"set model.skips to {skips}"):
        run_import(arrays, "fcn", skips=8, **FCN)


def test_fixed_upsampling_is_checked():
    arrays = fcn_caffe(8)
    arrays["upscore2[0]"] += 0.01
    with pytest.raises(UserError, match=r"upscore2\[0\] is not the fixed bilinear"):
        run_import(arrays, "fcn", skips=8, **FCN)
    arrays = fcn_caffe(8, at_once=True)
    with pytest.raises(UserError, match="set model.at_once to True"):
        run_import(arrays, "fcn", skips=8, **FCN)
    arrays["scale_pool3[0]"][1] = 0.01
    arrays["scale_pool4[0]"][2] = 0.02
    with pytest.raises(UserError) as error:
        run_import(arrays, "fcn", skips=8, at_once=True, **FCN)
    assert "scale_pool3[0] is not 0.0001 everywhere" in str(error.value)
    assert "scale_pool4[0] is not 0.01 everywhere" in str(error.value)
    grouped = bilinear_blob(3, 4)[range(3), range(3)][:, None]
    assert convert.bilinear(grouped) == ""
    assert "square" in convert.bilinear(grouped[..., :2])


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


# --- classifiers on VGG16, AlexNet, GoogLeNet ---


def test_vgg16_of_three_programs():
    """One network as Caffe, torchvision and Keras store it, read element by element."""
    widths, fc, rng = (2, 2, 3, 3, 2), 4, np.random.default_rng(3)
    base = Maker()
    vgg_caffe(base, widths)
    base.add("fc6[0]", fc, 2 * 49)
    base.add("fc6[1]", fc)
    base.caffe("fc7", fc, fc)
    base.caffe("fc8", 10, fc)
    convs = [name for name, _, _ in vgg_layers(widths)]
    features = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    in_torch = [f"features.{i}" for i in features] + [
        f"classifier.{i}" for i in (0, 3, 6)
    ]
    in_keras = ["block{}_conv{}".format(*name[4:].split("_")) for name in convs]
    in_keras += ["fc1", "fc2", "predictions"]
    torch, keras = {}, {}
    for name, torch_name, keras_name in zip(
        [*convs, "fc6", "fc7", "fc8"], in_torch, in_keras, strict=True
    ):
        kernel, bias = base.arrays[f"{name}[0]"], base.arrays[f"{name}[1]"]
        torch[f"{torch_name}.weight"], torch[f"{torch_name}.bias"] = kernel, bias
        if kernel.ndim == 4:
            kernel = np.moveaxis(kernel, (0, 1), (3, 2))
        elif name == "fc6":  # the map is flattened channels last
            kernel = np.moveaxis(kernel.reshape(fc, 2, 7, 7), 1, 3).reshape(fc, -1).T
        else:
            kernel = kernel.T
        keras[f"{keras_name}/kernel"], keras[f"{keras_name}/bias"] = kernel, bias
    # As published: Caffe and Keras see BGR, torchvision RGB.
    torch["features.0.weight"] = torch["features.0.weight"][:, ::-1]
    notop = {k: v for k, v in keras.items() if k.startswith("block")}

    old = dict(base.arrays)  # a V1 file
    for name in ("fc6[0]", "fc7[0]", "fc8[0]"):
        old[name] = old[name][None, None]
    fields = dict(skips=32, image_stats="imagenet", widths=widths, fc_channels=fc)
    for arrays, images, ignored in (
        (base.arrays, names.VGG, ["fc8[0]", "fc8[1]"]),
        (old, names.VGG, ["fc8[0]", "fc8[1]"]),
        (torch, names.TORCHVISION, ["classifier.6.bias", "classifier.6.weight"]),
        (keras, names.VGG, ["predictions/bias", "predictions/kernel"]),
        (notop, names.VGG, []),
    ):
        imported = run_import(arrays, "fcn", images, **fields)
        top = arrays is not notop
        fresh = ["score_fr"] if top else ["score_fr", "backbone/fc6", "backbone/fc7"]
        check_complete(arrays, imported, ignored, fresh)
        assert imported.num_classes == 0
        ours = imported.result.arrays
        for _ in range(50):
            y, x, o = rng.integers(3), rng.integers(3), rng.integers(2)
            for channel in range(3):
                assert (
                    ours["params/backbone/conv1_1/kernel"][y, x, channel, o]
                    == base.arrays["conv1_1[0]"][o, 2 - channel, y, x]
                )
                assert (
                    ours["params/backbone/conv4_1/kernel"][y, x, channel, o]
                    == base.arrays["conv4_1[0]"][o, channel, y, x]
                )
            if top:
                y, x, o, c = *rng.integers(7, size=2), rng.integers(4), o
                assert (
                    ours["params/backbone/fc6/kernel"][y, x, c, o]
                    == base.arrays["fc6[0]"][o, c * 49 + y * 7 + x]
                )
        np.testing.assert_array_equal(
            ours["params/backbone/conv5_3/bias"], base.arrays["conv5_3[1]"]
        )
    with pytest.raises(UserError, match="set model.norm to 'none'"):
        run_import(base.arrays, "fcn", norm="batch", **fields)
    with pytest.raises(UserError, match="of no known source for model 'unet'"):
        run_import(base.arrays, "unet", widths=(2, 2))


def test_other_image_statistics_are_folded():
    """Scale and mean of torchvision into the first layer of a "caffe" model."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 4))
    images = picture(9, 8).astype(np.float64)
    shapes = {"params/conv1/kernel": (3, 3, 3, 4)}
    arrays = {"w": kernel.astype(np.float32)}
    layers = {"conv1": convert.Conv("w", "b", "HWIO")}
    with_bias = dict(arrays, b=rng.normal(size=4).astype(np.float32))
    with_norm = dict(arrays, **{k: np.float32([1, 2, 3, 4]) for k in "gomv"})
    x = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    y = conv.conv2d(jnp.asarray(x), jnp.asarray(kernel))
    seen = jnp.asarray(image.normalize(jnp.asarray(images), "caffe"))

    table = convert.Table("a", layers, names.TORCHVISION, "conv1")
    shapes = dict(shapes, **{"params/conv1/bias": (4,)})
    ours = convert.convert(with_bias, shapes, table, OURS).arrays
    got = conv.conv2d(seen, ours["params/conv1/kernel"]) + ours["params/conv1/bias"]
    np.testing.assert_allclose(got, y + with_bias["b"], atol=1e-4)

    # Without a bias the mean of the normalisation takes it.
    del shapes["params/conv1/bias"]
    for key in ("params/bn1/scale", "params/bn1/bias"):
        shapes[key] = (4,)
    for key in ("batch_stats/bn1/mean", "batch_stats/bn1/var"):
        shapes[key] = (4,)
    layers = layers | {"bn1": convert.Norm("g", "o", "m", "v")}
    table = table._replace(layers=layers)
    ours = convert.convert(with_norm, shapes, table, OURS).arrays
    got = conv.conv2d(seen, ours["params/conv1/kernel"])
    got = got - ours["batch_stats/bn1/mean"]
    np.testing.assert_allclose(got, y - with_norm["m"], atol=1e-4)


def test_alexnet():
    widths, fc = (4, 4, 4, 4, 2), 3
    maker = Maker()
    for name, out, inputs, size in (
        ("conv1", 4, 3, 11),
        ("conv2", 4, 2, 5),  # two groups: half the input channels
        ("conv3", 4, 4, 3),
        ("conv4", 4, 2, 3),
        ("conv5", 2, 2, 3),
    ):
        maker.caffe(name, out, inputs, size, size)
    fields = dict(backbone="alexnet", skips=32, widths=widths, fc_channels=fc)
    classifier = Maker(1)
    classifier.arrays = dict(maker.arrays)
    for name, shape in (("fc6", (fc, 72)), ("fc7", (fc, fc)), ("fc8", (1000, fc))):
        classifier.caffe(name, *shape)
    imported = run_import(classifier.arrays, "fcn", **fields)
    check_complete(classifier.arrays, imported, ["fc8[0]", "fc8[1]"], ["score_fr"])
    grouped = imported.result.arrays["params/backbone/conv2/kernel"]
    np.testing.assert_array_equal(
        grouped.transpose(3, 2, 0, 1), maker.arrays["conv2[0]"]
    )
    maker.caffe("fc6", fc, 2, 6, 6)
    maker.caffe("fc7", fc, fc, 1, 1)
    maker.caffe("score_fr", 21, fc, 1, 1)
    maker.arrays["upscore[0]"] = bilinear_blob(21, 63)
    imported = run_import(maker.arrays, "fcn", **fields)
    check_complete(maker.arrays, imported)
    assert imported.num_classes == 21


def classifier_import(arrays, images=OURS, **fields):
    """Like `run_import` for the classifier, whose head keeps its class count."""
    known = {f: getattr(Classifier(1, **fields), f) for f in Classifier.__annotations__}

    @functools.cache
    def shapes_of(classes):
        model = Classifier(classes, **fields)

        def init():
            key = jax.random.key(0)
            images = np.zeros((1, 224, 224, 3), np.uint8)
            return model.init({"params": key, "dropout": key}, images, train=True)

        flat = weights.flatten(jax.eval_shape(init))
        return {name: tuple(leaf.shape) for name, leaf in flat.items()}

    return weights.import_arrays(arrays, "classifier", known, shapes_of, images)


def test_googlenet_with_auxiliary_heads():
    maker = Maker()

    def add(name, out, inputs, size):
        maker.caffe(name, out, inputs, size, size)

    add("conv1/7x7_s2", 8, 3, 7)
    add("conv2/3x3_reduce", 8, 8, 1)
    add("conv2/3x3", 24, 8, 3)
    inputs = 24
    for block, channels in {
        "3a": (64, 96, 128, 16, 32, 32),
        "3b": (128, 128, 192, 32, 96, 64),
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
        "5a": (256, 160, 320, 32, 128, 128),
        "5b": (384, 192, 384, 48, 128, 128),
    }.items():
        one, reduce3, three, reduce5, five, proj = (c // 8 for c in channels)
        add(f"inception_{block}/1x1", one, inputs, 1)
        add(f"inception_{block}/3x3_reduce", reduce3, inputs, 1)
        add(f"inception_{block}/3x3", three, reduce3, 3)
        add(f"inception_{block}/5x5_reduce", reduce5, inputs, 1)
        add(f"inception_{block}/5x5", five, reduce5, 5)
        add(f"inception_{block}/pool_proj", proj, inputs, 1)
        inputs = one + three + five + proj
        if block in ("4a", "4d"):
            loss = "loss1" if block == "4a" else "loss2"
            maker.caffe(f"{loss}/conv", 16, inputs, 1, 1)
            maker.caffe(f"{loss}/fc", 128, 16 * 16)
            maker.caffe(f"{loss}/classifier", 3, 128)
    maker.caffe("loss3/classifier", 3, inputs)
    imported = classifier_import(
        maker.arrays, backbone="googlenet", widths=(8,), aux=True
    )
    check_complete(maker.arrays, imported)
    assert imported.num_classes == 3
    fc = imported.result.arrays["params/loss1_fc/kernel"]
    assert fc[2, 3, 5, 7] == maker.arrays["loss1/fc[0]"][7, 5 * 16 + 2 * 4 + 3]
    imported = run_import(
        maker.arrays, "fcn", backbone="googlenet", skips=32, widths=(8,)
    )
    losses = [name for name in maker.arrays if name.startswith("loss")]
    check_complete(maker.arrays, imported, losses, ["score_fr"])


# --- ResNets and PSPNet ---

STAGES = (2, 1, 1, 1)
TINY_RESNET = dict(stage_sizes=STAGES, width=2)


def resnet_units(inputs=2, stages=STAGES):
    """(stage, block, index, out, in, size): index 0 is the shortcut."""
    for stage, count in enumerate(stages, start=1):
        width = 2 ** (stage - 1) * 2
        for block in range(1, count + 1):
            if block == 1:
                yield stage, block, 0, 4 * width, inputs, 1
            yield stage, block, 1, width, inputs, 1
            yield stage, block, 2, width, width, 3
            yield stage, block, 3, 4 * width, width, 1
            inputs = 4 * width


def np_resnet(x, unit, stem, stride_in_1x1, dilate=False):
    """`unit(x, stage, block, index, **conv)` is convolution and normalisation."""
    for index, options in enumerate(stem):
        x = relu(unit(x, 0, 0, index, **options))
    x = np_max_pool(x, 3, 2, pad=1)
    outputs = []
    for stage, count in enumerate(STAGES, start=1):
        rate = {3: 2, 4: 4}.get(stage, 1) if dilate else 1
        for block in range(1, count + 1):
            stride = 2 if stage > 1 and block == 1 and rate == 1 else 1
            strides = (stride, 1) if stride_in_1x1 else (1, stride)
            y = relu(unit(x, stage, block, 1, stride=strides[0]))
            options = dict(stride=strides[1], pad=rate, dilation=rate)
            y = relu(unit(y, stage, block, 2, **options))
            y = unit(y, stage, block, 3)
            if block == 1:
                x = unit(x, stage, block, 0, stride=stride)
            x = relu(x + y)
        outputs.append(x)
    return outputs


PLAIN_STEM = (dict(stride=2, pad=3),)
DEEP_STEM = (dict(stride=2, pad=1), dict(pad=1), dict(pad=1))


@functools.cache
def resnet_forward(stride_in_1x1):
    """Normalised images, variables -> block4 of the tiny plain ResNet."""
    model = resnet.ResNet(stride_in_1x1=stride_in_1x1, **TINY_RESNET)
    return model, jax.jit(lambda v, x: model.apply(v, x, train=False)["block4"])


def check_resnet(arrays, unit, source_images, x, stride_in_1x1):
    """Imports into PSPNet's backbone; what it computes of `x` [N, 3, h, w]."""
    fields = dict(stem="plain", stride_in_1x1=stride_in_1x1, bins=(1,), **TINY_RESNET)
    fields.update(pyramid_channels=2, head_channels=2)
    imported = run_import(arrays, "pspnet", source_images, **fields)
    assert not imported.result.notes
    fresh = {layer.split("/")[0] for layer in imported.result.fresh}
    assert "backbone" not in fresh and "conv6" in fresh
    kept = [n for n in imported.result.ignored if not n.endswith("batches_tracked")]
    check_complete(arrays, imported, imported.result.ignored, imported.result.fresh)

    tree = {}
    for name, array in imported.result.arrays.items():
        *path, last = name.replace("/backbone", "").split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = array
    _, run = resnet_forward(stride_in_1x1)
    seen = x[:, ::-1] if source_images.bgr else x  # our first layer takes RGB
    got = run(tree, jnp.asarray(seen.transpose(0, 2, 3, 1), jnp.float32))
    expected = np_resnet(x, unit, PLAIN_STEM, stride_in_1x1)[-1]
    assert_close(np.asarray(got), expected.transpose(0, 2, 3, 1))
    return kept


def torchvision_resnet():
    maker = Maker()
    maker.torch("conv1", 2, 3, 7, 7)
    maker.torch_norm("bn1", 2)
    for stage, block, index, out, inputs, size in resnet_units():
        name = f"layer{stage}.{block - 1}."
        conv_name = f"{name}conv{index}" if index else f"{name}downsample.0"
        norm_name = f"{name}bn{index}" if index else f"{name}downsample.1"
        maker.torch(conv_name, out, inputs, size, size)
        maker.torch_norm(norm_name, out)
    maker.torch("fc", 10, 64, bias=True)
    return maker.arrays


def torch_names(stage, block, index):
    if stage == 0:
        return "conv1", "bn1"
    name = f"layer{stage}.{block - 1}."
    if index == 0:
        return f"{name}downsample.0", f"{name}downsample.1"
    return f"{name}conv{index}", f"{name}bn{index}"


def test_torchvision_resnet_agrees():
    arrays = torchvision_resnet()

    def unit(x, stage, block, index, **options):
        conv_name, norm = torch_names(stage, block, index)
        kinds = ("weight", "bias", "running_mean", "running_var")
        x = np_conv(x, arrays[f"{conv_name}.weight"], **options)
        return np_norm(x, *(arrays[f"{norm}.{kind}"] for kind in kinds))

    x = torch_input(picture(33, 40))
    kept = check_resnet(arrays, unit, names.TORCHVISION, x, stride_in_1x1=False)
    assert kept == ["fc.bias", "fc.weight"]


def msra_name(stage, block, index):
    branch = "1" if index == 0 else "2" + "abc"[index - 1]
    return f"{stage + 1}{'abc'[block - 1]}_branch{branch}"


def test_msra_resnet_agrees():
    """BatchNorm with its factor, Scale, and the bias of ResNet-50's conv1."""
    maker = Maker()
    maker.caffe("conv1", 2, 3, 7, 7)
    maker.caffe_norm("bn_conv1", "scale_conv1", 2)
    for stage, block, index, out, inputs, size in resnet_units():
        name = msra_name(stage, block, index)
        maker.caffe(f"res{name}", out, inputs, size, size, bias=False)
        maker.caffe_norm(f"bn{name}", f"scale{name}", out)
    maker.caffe("fc1000", 10, 64)
    arrays = maker.arrays

    def unit(x, stage, block, index, **options):
        name = msra_name(stage, block, index) if stage else "_conv1"
        first = f"res{name}" if stage else "conv1"
        x = np_conv(x, arrays[f"{first}[0]"], arrays.get(f"{first}[1]"), **options)
        mean, var, factor = (arrays[f"bn{name}[{i}]"] for i in range(3))
        scale, bias = (arrays[f"scale{name}[{i}]"] for i in range(2))
        return np_norm(x, scale, bias, mean / factor, var / factor)

    x = caffe_input(picture(33, 40))
    kept = check_resnet(arrays, unit, names.ILSVRC, x, stride_in_1x1=True)
    assert kept == ["fc1000[0]", "fc1000[1]"]


@pytest.mark.parametrize("old", [False, True])
def test_keras_resnet_agrees(old):
    """Biases in front of the normalisation, and its epsilons."""
    maker = Maker()

    def layer_names(stage, block, index):
        if stage == 0:
            return ("conv1", "bn_conv1") if old else ("conv1_conv", "conv1_bn")
        if old:
            name = msra_name(stage, block, index)
            return f"res{name}", f"bn{name}"
        name = f"conv{stage + 1}_block{block}_{index}"
        return f"{name}_conv", f"{name}_bn"

    for unit in ((0, 0, 0, 2, 3, 7), *resnet_units()):
        *which, out, inputs, size = unit
        conv_name, norm = layer_names(*which)
        maker.keras(conv_name, size, size, inputs, out)
        maker.keras_norm(norm, out)
    maker.keras("fc1000" if old else "predictions", 64, 10)
    arrays = maker.arrays

    def unit(x, stage, block, index, **options):
        conv_name, norm = layer_names(stage, block, index)
        kernel = arrays[f"{conv_name}/kernel"].transpose(3, 2, 0, 1)
        x = np_conv(x, kernel, arrays[f"{conv_name}/bias"], **options)
        kinds = ("gamma", "beta", "moving_mean", "moving_variance")
        epsilon = 1e-3 if old else 1.001e-5
        return np_norm(x, *(arrays[f"{norm}/{kind}"] for kind in kinds), epsilon)

    x = caffe_input(picture(33, 40))
    check_resnet(arrays, unit, names.VGG, x, stride_in_1x1=True)


def test_resnet101_block_names():
    """a, b, c in the short stages and a, b1, b2, .. in the long ones."""
    stages = (3, 4, 12, 3)
    maker = Maker()
    maker.caffe("conv1", 2, 3, 7, 7, bias=False)
    maker.caffe_norm("bn_conv1", "scale_conv1", 2)
    for stage, block, index, out, inputs, size in resnet_units(stages=stages):
        letter = "abc"[block - 1] if stage in (1, 4) else f"b{block - 1}"
        letter = "a" if block == 1 else letter
        branch = "1" if index == 0 else "2" + "abc"[index - 1]
        name = f"{stage + 1}{letter}_branch{branch}"
        maker.caffe(f"res{name}", out, inputs, size, size, bias=False)
        maker.caffe_norm(f"bn{name}", f"scale{name}", out)
    assert {"res2c_branch2a[0]", "res4b11_branch2c[0]"} < maker.arrays.keys()
    for branch in range(4):
        maker.caffe(f"fc1_voc12_c{branch}", 3, 64, 3, 3)
    # The copies for the other scales, as the training net stores them.
    copies = ["conv1_res075[0]", "bn4b3_branch2a_res05[2]"]
    for name in copies:
        maker.arrays[name] = np.zeros(1, np.float32)
    fields = dict(backbone="resnet101", stage_sizes=stages, width=2)
    imported = run_import(maker.arrays, "deeplab", **fields)
    check_complete(maker.arrays, imported, copies)
    assert imported.num_classes == 3
    np.testing.assert_array_equal(
        imported.result.arrays["params/head/fc1_3/kernel"],
        maker.arrays["fc1_voc12_c2[0]"].transpose(2, 3, 1, 0),
    )
    del maker.arrays["bn3b1_branch2a[1]"]
    with pytest.raises(UserError, match=r"missing: bn3b1_branch2a\[1\]"):
        run_import(maker.arrays, "deeplab", **fields)


PSP = dict(stage_sizes=STAGES, width=2, pyramid_channels=3, head_channels=4)


@functools.cache
def psp_model():
    model = models.MODELS["pspnet"](num_classes=3, image_stats="caffe", **PSP)
    return model, jax.jit(functools.partial(model.apply, train=False))


def np_psp_head(x, unit, levels, classify, size):
    """`levels` in the order of the concatenation."""
    parts = [x]
    for bins in levels:
        pooled = np.zeros((*x.shape[:2], bins, bins))
        edges = [
            [(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)]
            for n in x.shape[2:]
        ]
        for i, (a, b) in enumerate(edges[0]):
            for j, (c, d) in enumerate(edges[1]):
                pooled[:, :, i, j] = x[:, :, a:b, c:d].mean((2, 3))
        parts.append(np_resize(relu(unit(pooled, f"pyramid{bins}")), x.shape[2:]))
    x = relu(unit(np.concatenate(parts, 1), "conv5_4", pad=1))
    return np_resize(classify(x), size).transpose(0, 2, 3, 1)


def test_pspnet_caffe_agrees():
    """Four-array BN, the coarse-to-fine order of the pyramid, deep stem."""
    maker = Maker()

    def add(name, *shape):
        maker.caffe(name, *shape, bias=False)
        maker.psp_norm(f"{name}/bn", shape[0])

    stem = ("conv1_1_3x3_s2", "conv1_2_3x3", "conv1_3_3x3")
    for name, out, inputs in zip(stem, (2, 2, 4), (3, 2, 2)):
        add(name, out, inputs, 3, 3)
    ends = ("1x1_proj", "1x1_reduce", "3x3", "1x1_increase")
    for stage, block, index, out, inputs, size in resnet_units(inputs=4):
        add(f"conv{stage + 1}_{block}_{ends[index]}", out, inputs, size, size)
    for bins in (1, 2, 3, 6):
        add(f"conv5_3_pool{bins}_conv", 3, 64, 1, 1)
    add("conv5_4", 4, 64 + 4 * 3, 3, 3)
    maker.caffe("conv6", 3, 4, 1, 1)
    arrays = maker.arrays

    def apply(x, name, **options):
        x = np_conv(x, arrays[f"{name}[0]"], **options)
        return np_norm(x, *(arrays[f"{name}/bn[{i}]"] for i in range(4)))

    def unit(x, stage, block, index, **options):
        name = f"conv{stage + 1}_{block}_{ends[index]}" if stage else stem[index]
        return apply(x, name, **options)

    def head_unit(x, name, **options):
        name = name.replace("pyramid", "conv5_3_pool")
        return apply(x, name if name == "conv5_4" else f"{name}_conv", **options)

    images = picture(33, 41)
    x = caffe_input(images)
    x = np_resnet(x, unit, DEEP_STEM, stride_in_1x1=False, dilate=True)
    expected = np_psp_head(
        x[-1],
        head_unit,
        (6, 3, 2, 1),
        lambda x: np_conv(x, arrays["conv6[0]"], arrays["conv6[1]"]),
        (33, 41),
    )
    # Published with another mean; taken as ours here, so that borders agree too.
    imported = run_import(arrays, "pspnet", names.VGG, **PSP)
    aux = ["aux_conv", "aux_conv_bn", "aux_score"]
    check_complete(arrays, imported, fresh=aux)
    model, run = psp_model()
    assert_close(np.asarray(run(variables(imported, model), images)[0]), expected)


def test_pspnet_semseg_agrees():
    maker = Maker()
    for index, (out, inputs) in enumerate(((2, 3), (2, 2), (4, 2))):
        maker.torch(f"layer0.{3 * index}", out, inputs, 3, 3)
        maker.torch_norm(f"layer0.{3 * index + 1}", out)
    for stage, block, index, out, inputs, size in resnet_units(inputs=4):
        conv_name, norm = torch_names(stage, block, index)
        maker.torch(conv_name, out, inputs, size, size)
        maker.torch_norm(norm, out)
    for index in range(4):
        maker.torch(f"ppm.features.{index}.1", 3, 64, 1, 1)
        maker.torch_norm(f"ppm.features.{index}.2", 3)
    for head, out, inputs in (("cls", 4, 64 + 4 * 3), ("aux", 8, 32)):
        maker.torch(f"{head}.0", out, inputs, 3, 3)
        maker.torch_norm(f"{head}.1", out)
        maker.torch(f"{head}.4", 3, out, 1, 1, bias=True)
    arrays = maker.arrays

    def apply(x, conv_name, norm, **options):
        kinds = ("weight", "bias", "running_mean", "running_var")
        x = np_conv(x, arrays[f"{conv_name}.weight"], **options)
        return np_norm(x, *(arrays[f"{norm}.{kind}"] for kind in kinds))

    def unit(x, stage, block, index, **options):
        stem = f"layer0.{3 * index}", f"layer0.{3 * index + 1}"
        return apply(
            x, *(torch_names(stage, block, index) if stage else stem), **options
        )

    def head_unit(x, name, **options):
        if name == "conv5_4":
            return apply(x, "cls.0", "cls.1", **options)
        name = f"ppm.features.{(1, 2, 3, 6).index(int(name[7:]))}"
        return apply(x, f"{name}.1", f"{name}.2", **options)

    images = picture(33, 41)
    x = caffe_input(images)[:, ::-1]  # RGB planes
    x = np_resnet(x, unit, DEEP_STEM, stride_in_1x1=False, dilate=True)
    expected = np_psp_head(
        x[-1],
        head_unit,
        (1, 2, 3, 6),
        lambda x: np_conv(x, arrays["cls.4.weight"], arrays["cls.4.bias"]),
        (33, 41),
    )
    tracked = [name for name in arrays if name.endswith("num_batches_tracked")]
    imported = run_import(arrays, "pspnet", names.TORCHVISION, **PSP)
    check_complete(arrays, imported, tracked)
    assert imported.num_classes == 3
    model, run = psp_model()
    assert_close(np.asarray(run(variables(imported, model), images)[0]), expected)
    # Other strides: the same arrays, another network, which is said.
    imported = run_import(
        arrays, "pspnet", names.TORCHVISION, stride_in_1x1=True, **PSP
    )
    assert any("stride_in_1x1=False" in note for note in imported.result.notes)
    without = run_import(arrays, "pspnet", names.TORCHVISION, aux=False, **PSP)
    aux = [name for name in arrays if name.startswith("aux.")]
    check_complete(arrays, without, {*tracked, *aux})


# --- DeepLab, Dilation, DeconvNet ---


@pytest.mark.parametrize("old", [False, True])
def test_deeplab_pytorch(old):
    prefix, shortcut, stages = (
        ("scale.", "proj", "stages.") if old else ("base.", "shortcut", "")
    )
    maker = Maker()
    parts = (shortcut, "reduce", "conv3x3", "increase")
    for stage, block, index, out, inputs, size in ((0, 0, 0, 2, 3, 7), *resnet_units()):
        name = f"{prefix}layer{stage + 1}."
        name += f"block{block}.{parts[index]}" if stage else "conv1"
        maker.torch(f"{name}.conv", out, inputs, size, size)
        maker.torch_norm(f"{name}.bn", out)
    for branch in range(4):
        name = f"{prefix}aspp.{stages}c{branch}"
        maker.torch(name, 5, 64, 3, 3, bias=True)
    arrays = maker.arrays
    tracked = [name for name in arrays if name.endswith("num_batches_tracked")]
    imported = run_import(arrays, "deeplab", **TINY_RESNET)
    check_complete(arrays, imported, tracked)
    assert imported.num_classes == 5
    ours = imported.result.arrays
    np.testing.assert_array_equal(
        ours["params/backbone/block2_1/conv0/kernel"].transpose(3, 2, 0, 1),
        arrays[f"{prefix}layer3.block1.{shortcut}.conv.weight"],
    )


def test_deeplab_vgg16():
    widths = (2, 2, 2, 2, 2)
    for rates in ((12,), (6, 12, 18, 24)):
        maker = Maker()
        vgg_caffe(maker, widths)
        for branch in range(1, len(rates) + 1):
            end = f"_{branch}" if len(rates) > 1 else ""
            maker.caffe(f"fc6{end}", 4, 2, 3, 3)
            maker.caffe(f"fc7{end}", 4, 4, 1, 1)
            maker.caffe(f"fc8_voc12{end}", 7, 4, 1, 1)
        fields = dict(backbone="vgg16", rates=rates, fc6_channels=4, widths=widths)
        imported = run_import(maker.arrays, "deeplab", **fields)
        check_complete(maker.arrays, imported)
        assert imported.num_classes == 7


@pytest.mark.parametrize(
    "rates, voc, mean",
    [
        ((1, 1, 2, 4, 8, 16, 1), True, (116.52, 111.36, 102.93)),
        ((1, 1, 2, 4, 8, 16, 1), False, (105.41212523, 108.77808759, 110.70313206)),
        ((1, 1, 2, 4, 8, 1), False, (91.34692262, 95.55136972, 96.19429688)),
        ((1, 1, 2, 4, 8, 16, 32, 64, 1), False, (73.16, 82.91, 72.39)),
    ],
)
def test_dilation(rates, voc, mean):
    widths, classes = (2, 2, 2, 2, 2), 3
    prefix = "ct" if voc else "ctx"
    maker = Maker()
    vgg_caffe(maker, widths, fc=4)
    maker.caffe("fc-final" if voc else "final", classes, 4, 1, 1)
    theirs = ["conv1_1", "conv1_2"]
    theirs += [f"conv{i}_1" for i in range(2, len(rates) - 1)] + ["fc1"]
    channels = [classes] * (len(rates) + 1)
    if voc:
        channels[1:] = [2 * classes * max(rates[:i]) for i in range(1, len(rates) + 1)]
    for name, inputs, out in zip(theirs, channels[:-1], channels[1:], strict=True):
        maker.caffe(f"{prefix}_{name}", out, inputs, 3, 3)
    maker.caffe(f"{prefix}_final", classes, channels[-1], 1, 1)
    if len(rates) == 9:
        grouped = bilinear_blob(classes, 16)[range(classes), range(classes)][:, None]
        maker.arrays["ctx_upsample[0]"] = grouped
    imported = run_import(
        maker.arrays,
        "dilation",
        convert.Images(1.0, mean),
        widths=widths,
        fc_channels=4,
        context="large" if voc else "basic",
        context_rates=rates,
    )
    check_complete(maker.arrays, imported)
    assert imported.num_classes == classes
    ours = imported.result.arrays
    # With the mean of the data set nothing is folded in.
    np.testing.assert_array_equal(
        ours["params/backbone/conv1_1/bias"], maker.arrays["conv1_1[1]"]
    )
    np.testing.assert_array_equal(
        ours["params/context/conv3/bias"], maker.arrays[f"{prefix}_conv2_1[1]"]
    )


def test_deconvnet():
    """Normalisations with folded statistics, transposed kernels."""
    widths, fc = (2, 3, 3, 4, 4), 5
    maker = Maker()
    vgg_caffe(maker, widths, fc, fc_kernel=2)
    norms = [f"bn{name[4:]}" for name, _, _ in vgg_layers(widths)]
    sizes = [out for _, out, _ in vgg_layers(widths)]
    maker.caffe("fc6-deconv", fc, 4, 2, 2, bias=False)
    maker.add("fc6-deconv[1]", 4)
    norms, sizes = [*norms, "bnfc6", "bnfc7", "fc6-deconv-bn"], [*sizes, fc, fc, 4]
    inputs = 4
    for stage in (5, 4, 3, 2, 1):
        for index in range(1, VGG_CONVS[stage - 1] + 1):
            last = index == VGG_CONVS[stage - 1]
            out = widths[max(stage - 2, 0)] if last else widths[stage - 1]
            maker.add(f"deconv{stage}_{index}[0]", inputs, out, 3, 3)
            maker.add(f"deconv{stage}_{index}[1]", out)
            norms.append(f"debn{stage}_{index}")
            sizes.append(out)
            inputs = out
    for name, size in zip(norms, sizes, strict=True):
        maker.add(f"{name}[0]", 1, size, 1, 1)
        maker.add(f"{name}[1]", 1, size, 1, 1)
    maker.caffe("seg-score-voc", 21, 2, 1, 1)
    # With an epsilon that can be seen: variance and epsilon make 1.
    fields = dict(widths=widths, fc_channels=fc, fc6_kernel=2, bn_epsilon=0.25)
    imported = run_import(maker.arrays, "deconvnet", **fields)
    check_complete(maker.arrays, imported)
    assert imported.num_classes == 21
    ours = imported.result.arrays
    assert set(ours["batch_stats/deconv1_2_bn/var"]) == {0.75}
    assert set(ours["batch_stats/deconv1_2_bn/mean"]) == {0.0}
    x = np.random.default_rng(2).normal(size=(1, 3, 4, 4)).astype(np.float32)
    expected = np_deconv(x, maker.arrays["deconv2_2[0]"], stride=1)
    got = conv.conv_transpose(
        jnp.asarray(x.transpose(0, 2, 3, 1)), ours["params/deconv2_2/kernel"], stride=1
    )
    assert_close(np.asarray(got), expected.transpose(0, 2, 3, 1))
    # From an ImageNet VGG16 only the encoder's convolutions are filled.
    vgg = Maker()
    vgg_caffe(vgg, widths, fc, fc_kernel=2)
    imported = run_import(vgg.arrays, "deconvnet", **fields)
    assert {row.target.split("/")[1] for row in imported.result.rows} == {
        *(name for name, _, _ in vgg_layers(widths)),
        *("fc6", "fc7"),
    }


def test_published_networks_exist():
    for name in names.PUBLISHED:
        model, fields = names.published(name, ())
        config = config_lib.make(model_name=model, model=fields)
        models.build(config, 2)
    assert names.published("unet", ("unet",)) == ("unet", {})
    with pytest.raises(UserError, match="did you mean 'fcn16s'"):
        names.published("fcn16", ("fcn",))


# --- PyTorch ---


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_code_is_refused(tmp_path, monkeypatch):
    file, hit = tmp_path / "evil.pth", tmp_path / "hit"
    contents = [pickle.dumps({"conv1.weight": Evil(str(hit))}, protocol=2)]
    if has_torch := "torch" in sys.modules or _installed("torch"):
        import torch

        torch.save({"conv1.weight": Evil(str(hit))}, file)
        contents.append(file.read_bytes())
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            weights.read(file)
        assert not hit.exists() and "\n" not in str(error.value)
        assert "weights_only=False" not in str(error.value)
    if has_torch:
        assert "refused: it holds Python code" in str(error.value)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch, or convert"):
        torch_file.read(file)
    assert not hit.exists()


def _installed(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_torch_file_agrees(tmp_path):
    """A state dict through a file, and PyTorch's own forward."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    arrays = torchvision_resnet()
    state = {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    path = tmp_path / "resnet.pth"
    nested = {f"module.{name}": value for name, value in state.items()}
    for content, legacy in (
        (state, True),
        ({"epoch": 3, "state_dict": nested, "optimizer": {"lr": 0.1}}, False),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        found = weights.read(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].tobytes() == array.tobytes()

    def unit(x, stage, block, index, stride=1, pad=0, dilation=1):
        conv_name, norm = torch_names(stage, block, index)
        kinds = ("running_mean", "running_var", "weight", "bias")
        y = functional.conv2d(
            torch.from_numpy(np.asarray(x, np.float32)),
            state[f"{conv_name}.weight"],
            None,
            stride,
            pad,
            dilation,
        )
        y = functional.batch_norm(y, *(state[f"{norm}.{kind}"] for kind in kinds))
        return y.numpy()

    x = torch_input(picture(33, 40))
    check_resnet(found, unit, names.TORCHVISION, x, stride_in_1x1=False)

    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read"):
        weights.read(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="no state dict"):
        weights.read(path)
    torch.save({"lr": 0.1}, path)
    with pytest.raises(UserError, match="lr is a float"):
        weights.read(path)


# --- Keras ---


def write_keras(path, arrays, kinds, nested):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        layers = list(dict.fromkeys(name.split("/")[0] for name in arrays))
        file.attrs["layer_names"] = [name.encode() for name in ["input_1", *layers]]
        file.create_group("input_1").attrs["weight_names"] = np.array([], "S1")
        for layer in layers:
            group, stored = file.create_group(layer), []
            for name, array in arrays.items():
                if name.split("/")[0] == layer:
                    kind = kinds[name.split("/")[1]]
                    stored.append(
                        f"{layer}/{kind}:0" if nested else f"{layer}_{kind}:0"
                    )
                    group.create_dataset(stored[-1], data=array)
            group.attrs["weight_names"] = [name.encode() for name in stored]


def test_keras_file(tmp_path):
    maker = Maker()
    maker.keras("res2a_branch2a", 1, 1, 2, 3)
    maker.keras_norm("bn2a_branch2a", 3)
    path = tmp_path / "a.h5"
    new = {n.split("/")[1]: n.split("/")[1] for n in maker.arrays}
    old = {"kernel": "W_1", "bias": "b_1", "gamma": "gamma", "beta": "beta"}
    old |= {"moving_mean": "running_mean", "moving_variance": "running_std"}
    for kinds, nested in ((new, True), (old, False)):
        write_keras(path, maker.arrays, kinds, nested)
        found = weights.read(path)
        assert found.keys() == maker.arrays.keys()
        for name, array in maker.arrays.items():
            np.testing.assert_array_equal(found[name], array)
    write_keras(path, maker.arrays, dict(new, kernel="depthwise"), nested=True)
    with pytest.raises(UserError, match="unknown array 'res2a_branch2a/depthwise:0'"):
        keras_file.read(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        keras_file.read(path)


def test_readers_without_their_packages(tmp_path, monkeypatch):
    for suffix, package in ((".h5", "h5py"), (".safetensors", "safetensors")):
        path = tmp_path / f"a{suffix}"
        path.touch()
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=r"pip install 'segjax\[weights\]'"):
            weights.read(path)


# --- our files ---


@pytest.fixture
def fcn_file(tmp_path):
    """A tiny FCN-16s of 5 classes, through the program."""
    pytest.importorskip("safetensors")
    source, output = tmp_path / "fcn.caffemodel", tmp_path / "new" / "fcn.safetensors"
    caffe.write(source, fcn_caffe(16, classes=5))
    config = make_config("fcn", skips=16, **FCN)
    imported = import_weights.import_weights(source, config, output)
    return output, imported


def fcn_variables(**fields):
    model = models.MODELS["fcn"](**(FCN | fields))
    abstract = import_weights.abstract_variables(model)
    filled = {
        name: np.full(leaf.shape, 7, np.float32)
        for name, leaf in weights.flatten(abstract).items()
    }
    return weights.replace(abstract, filled)


def test_saved_and_loaded(fcn_file):
    path, imported = fcn_file
    model = models.MODELS["fcn"](num_classes=5, skips=16, **FCN)
    tree = weights.load(path, import_weights.abstract_variables(model))
    flat = weights.flatten(tree)
    assert flat.keys() == imported.result.arrays.keys()
    for name, array in imported.result.arrays.items():
        assert flat[name].tobytes() == array.tobytes()
    _, metadata = safetensors_file.read(path)
    assert (metadata["model"], metadata["num_classes"]) == ("fcn", "5")
    assert json.loads(metadata["fields"])["skips"] == 16

    abstract = fcn_variables(num_classes=4, skips=8)
    with pytest.raises(UserError) as error:
        weights.load(path, abstract)
    assert "missing: params/score_pool3/bias, params/score_pool3/kernel" in str(
        error.value
    )
    assert "params/score_fr/bias has shape (5,), the model needs (4,)" in str(
        error.value
    )


def test_model_starts_from_file(fcn_file):
    path, imported = fcn_file
    arrays = imported.result.arrays

    def start(**fields):
        tree = fcn_variables(**fields)
        params, stats, report = weights.init_from(path, *tree.values())
        new = weights.flatten({"params": params, "batch_stats": stats})
        assert new.keys() == weights.flatten(tree).keys()
        for name, leaf in new.items():
            layer = name.partition("/")[2].rpartition("/")[0]
            if layer in report.fresh:
                assert np.all(leaf == 7)
            else:
                assert layer in report.loaded
                np.testing.assert_array_equal(leaf, arrays[name])
        return report

    report = start(num_classes=5, skips=16)
    assert report.fresh == {} and report.unused == ()
    # Other classes: scores are new, the rest is loaded.
    report = start(num_classes=4, skips=16)
    why = "the file has 5 classes"
    assert report.fresh == {"score_fr": why, "score_pool4": why}
    assert len(report.loaded) == 15
    # The next stage adds a layer, the one before lacks one.
    assert start(num_classes=5, skips=8).fresh == {"score_pool3": "not in the file"}
    report = start(num_classes=5, skips=32)
    assert report.unused == ("score_pool4",)
    assert "  not used: score_pool4" in report.lines()


def test_wrong_network_does_not_start(fcn_file):
    path, _ = fcn_file
    tree = fcn_variables(num_classes=5, skips=16, fc_channels=6)
    with pytest.raises(UserError, match=r"params/backbone/fc7/kernel has shape"):
        weights.init_from(path, *tree.values())
    tree = fcn_variables(num_classes=5, skips=16, norm="batch")
    with pytest.raises(UserError) as error:
        weights.init_from(path, *tree.values())
    assert "missing: params/backbone/conv1_1_bn/bias" in str(error.value)
    assert "unexpected: params/backbone/conv1_1/bias" in str(error.value)
    other = {"enc0": {"kernel": np.zeros((3, 3, 3, 2), np.float32)}}
    with pytest.raises(UserError, match="unexpected: params/backbone/conv1_1/bias"):
        weights.init_from(path, other, {})
    safetensors_file.write(path, {"a": np.zeros(2)}, {})
    with pytest.raises(UserError, match="was not written by experiments"):
        weights.init_from(path, other, {})
    path.write_bytes(b"\x10" + b"\0" * 20)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        weights.read(path)


def test_program_names_the_file(tmp_path):
    source = tmp_path / "fcn.caffemodel"
    arrays = fcn_caffe(16)
    del arrays["conv1_1[0]"]
    caffe.write(source, {k: v for k, v in arrays.items() if k != "conv1_1[1]"})
    config = make_config("fcn", skips=16, **FCN)
    with pytest.raises(UserError, match=r"fcn.caffemodel: .* missing: conv1_1\[0\]"):
        import_weights.import_weights(source, config, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="ending in .safetensors"):
        import_weights.import_weights(source, config, tmp_path / "a.npz")
