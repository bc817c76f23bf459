"""Classification networks and FCN on them: published counts and sizes, brute force.

Counts and sizes are traced without computing; networks that run have a few channels.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import UserError
from segjax.models import alexnet, backbones, classifier, fcn, googlenet, vgg
from segjax.models.classifier import Classifier
from segjax.models.fcn import FCN
from segjax.ops import conv, geometry, norm, pool

TINY = {
    "alexnet": dict(widths=(2, 4, 2, 4, 2), fc_channels=3),
    "vgg16": dict(widths=(2, 2, 2, 2, 2), fc_channels=3),
    "googlenet": dict(widths=(4,)),
    "resnet50": dict(widths=(2,), stage_sizes=(1, 1, 1, 1)),
}


def tiny(backbone, **fields):
    return Classifier(5, backbone=backbone, **TINY[backbone], **fields)


def tiny_fcn(backbone, **fields):
    return FCN(2, backbone=backbone, skips=32, **TINY[backbone], **fields)


def init(model, shape):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return model.init(keys, jnp.zeros(shape, jnp.uint8), train=True)


@functools.cache
def abstract_variables(model, side=227):
    return jax.eval_shape(lambda: init(model, (1, side, side, 3)))


def abstract_outputs(model, shape, train=False):
    def run(variables):
        keys, mutable = {"dropout": jax.random.key(1)}, ["batch_stats"]
        images = jnp.zeros(shape, jnp.uint8)
        return model.apply(variables, images, train=train, rngs=keys, mutable=mutable)

    return jax.eval_shape(run, abstract_variables(model))[0]


def values(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_variables(model, scale=1.4):
    """Random parameters and batch statistics of reasonable sizes, without init."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = scale / math.prod(leaf.shape[:-1]) ** 0.5
            return rng.normal(size=leaf.shape, scale=deviation).astype(np.float32)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, abstract_variables(model))


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def integers(*shape, seed=0):
    """Small whole numbers: float32 sums of their products are exact in any order."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def predict(model):
    return jax.jit(lambda variables, x: model.apply(variables, x, train=False))


def brute_windows(x, size, stride):
    """[H, W, C] -> [h, w, C, size, size]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))
    return windows[::stride, ::stride]


def brute_conv(x, layer, stride=1, padding=0, groups=1):
    """ReLU of a convolution of `x` [H, W, C], in float64."""
    kernel, bias = (np.float64(layer[name]) for name in ("kernel", "bias"))
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    windows = brute_windows(x, kernel.shape[0], stride)
    reads, makes = windows.shape[2] // groups, kernel.shape[3] // groups
    outputs = [
        np.einsum(
            "hwiab,abio->hwo",
            windows[:, :, g * reads : (g + 1) * reads],
            kernel[..., g * makes : (g + 1) * makes],
        )
        for g in range(groups)
    ]
    return np.maximum(np.concatenate(outputs, axis=-1) + bias, 0)


def brute_pool(x):
    """Caffe's 3x3 pooling of stride 2: windows start at 0, 2, .. and are clipped."""
    x = np.pad(x, ((0, 2), (0, 2), (0, 0)), constant_values=-np.inf)
    y = brute_windows(x, 3, 2).max((3, 4))
    # The last window is the first that reaches the end of the map.
    return y[: math.ceil((len(x) - 5) / 2) + 1, : math.ceil((x.shape[1] - 5) / 2) + 1]


def brute_lrn(x):
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        near = x[..., max(c - 2, 0) : c + 3]
        y[..., c] = x[..., c] / (1 + 1e-4 / 5 * (near**2).sum(-1)) ** 0.75
    return y


# --- operators ------------------------------------------------------------------------


def test_local_response_norm():
    x = np.arange(10, 81, 10, dtype=np.float32).reshape(1, 1, 1, 8)
    expected = "9.79502 19.14479 27.74144 35.33039 41.79432 47.12398 55.95393 65.78607"
    y = norm.local_response_norm(x)
    np.testing.assert_allclose(y.ravel(), np.float64(expected.split()), rtol=1e-6)

    x = np.random.default_rng(0).normal(0, 100, (1, 4, 5, 7)).astype(np.float32)
    y = norm.local_response_norm(x)
    np.testing.assert_allclose(y[0], brute_lrn(x[0].astype(np.float64)), rtol=1e-5)
    # One channel alone, and every field: x / sqrt(2 + 3 x^2).
    y = norm.local_response_norm(x, size=1, alpha=3, beta=0.5, k=2)
    np.testing.assert_allclose(y, x / np.sqrt(2 + 3 * x**2), rtol=1e-5)

    half = norm.local_response_norm(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="size is 4, expected an odd number"):
        norm.local_response_norm(x, size=4)


@pytest.mark.parametrize("size, padding, stride", [(3, 1, 1), (5, 2, 2), (1, 0, 2)])
def test_grouped_convolution(size, padding, stride):
    x = integers(1, 9, 8, 6)
    kernel = integers(size, size, 2, 9, seed=1)  # three groups of 2 -> 3 channels
    y = conv.conv2d(x, kernel, stride=stride, padding=padding, groups=3)
    layer = {"kernel": kernel, "bias": np.zeros(9)}
    expected = brute_conv(x[0], layer, stride, padding, groups=3)
    np.testing.assert_array_equal(np.maximum(y[0], 0), expected)
    assert np.min(y) < 0
    with pytest.raises(ValueError):
        conv.conv2d(x, kernel, groups=4)


# --- classifiers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, total, trunk",
    [
        (Classifier(1000, "alexnet"), 60_965_224, 60_965_224 - 4_097_000),
        (Classifier(1000, "vgg16"), 138_357_544, 138_357_544 - 4_097_000),
        (Classifier(1000, "googlenet"), 6_998_552, 5_973_552),
        (Classifier(1000, "googlenet", aux=True), 13_378_280, 5_973_552),
        (Classifier(1000, "resnet50"), 25_557_032, 23_508_032),
        (Classifier(1000, "resnet101"), 44_549_160, 42_500_160),
        (Classifier(1000, "resnet50", stem="deep"), 25_680_808, 23_631_808),
        (Classifier(1000, "resnet101", stem="deep"), 44_672_936, 42_623_936),
        (FCN(21, backbone="alexnet", skips=32), 56_954_261, 60_965_224 - 4_097_000),
        (FCN(21, backbone="googlenet", skips=32), 5_995_077, 5_973_552),
    ],
)
def test_parameter_counts(model, total, trunk):
    params = abstract_variables(model)["params"]
    assert values(params) == total
    assert values(params["backbone"]) == trunk


def test_layer_counts():
    params = abstract_variables(Classifier(1000, "alexnet"))["params"]["backbone"]
    assert {name: values(layer) for name, layer in params.items()} == {
        "conv1": 34_944,
        "conv2": 307_456,
        "conv3": 885_120,
        "conv4": 663_936,
        "conv5": 442_624,
        "fc6": 37_752_832,
        "fc7": 16_781_312,
    }
    params = abstract_variables(Classifier(1000, "googlenet", aux=True))["params"]
    trunk = {name: values(layer) for name, layer in params["backbone"].items()}
    blocks = {
        block: sum(n for name, n in trunk.items() if f"inception_{block}_" in name)
        for block in googlenet.BLOCKS
    }
    assert blocks == {
        "3a": 163_696,
        "3b": 388_736,
        "4a": 376_176,
        "4b": 449_160,
        "4c": 510_104,
        "4d": 605_376,
        "4e": 868_352,
        "5a": 1_043_456,
        "5b": 1_444_080,
    }
    stem = "conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3"
    assert [trunk[name] for name in stem] == [9_472, 4_160, 110_784]
    assert {name.removeprefix("inception_3a_") for name in trunk if "_3a_" in name} == {
        "1x1",
        "3x3_reduce",
        "3x3",
        "5x5_reduce",
        "5x5",
        "pool_proj",
    }
    heads = {
        loss: sum(values(layer) for name, layer in params.items() if loss in name)
        for loss in ("loss1", "loss2", "loss3")
    }
    assert heads == {"loss1": 3_188_840, "loss2": 3_190_888, "loss3": 1_025_000}


def test_sizes_of_the_training_crop():
    """The tables' output sizes, from the crop to a single cell of scores."""
    for backbone, side, expected in (
        (
            "alexnet",
            227,
            dict(conv1=55, pool1=27, conv2=27, pool2=13, conv5=13, pool5=6, fc6=1),
        ),
        ("vgg16", 224, dict(pool1=112, pool2=56, pool3=28, pool4=14, pool5=7, fc6=1)),
        (
            "googlenet",
            224,
            dict(conv1=112, pool1=56, conv2=56, pool2=28, pool3=14, pool4=7, pool5=1),
        ),
        ("resnet50", 224, dict(conv1=112, pool1=56, block4=7, pool5=1)),
    ):
        assert tiny(backbone).tiling.minimum == side
        logits, ends = abstract_outputs(tiny(backbone), (2, side, side, 3))
        assert logits.shape == (2, 1, 1, 5)
        assert {name: ends[name].shape[1] for name in expected} == expected
        assert ends[backbones.BACKBONES[backbone].score].shape == logits.shape


@pytest.mark.parametrize(
    "backbone, sizes",
    [
        ("alexnet", {227: 1, 231: 2, 259: 2, 291: 3, 451: 8, 500: 10}),
        ("vgg16", {224: 1, 225: 2, 256: 2, 257: 3, 384: 6, 448: 8, 500: 10, 512: 10}),
        ("googlenet", {224: 1, 256: 2, 288: 3, 448: 8, 512: 10}),
        ("resnet50", {224: 1, 256: 2, 448: 8}),
    ],
)
def test_heat_map_sizes(backbone, sizes):
    for side, cells in sizes.items():
        logits, _ = abstract_outputs(tiny(backbone), (1, side, side, 3))
        assert logits.shape == (1, cells, cells, 5)


def test_grids():
    grids = alexnet.grids()
    names = "conv1", "pool1", "conv2", "pool2", "conv3", "conv5", "pool5", "fc6", "fc7"
    assert [grids[name].step for name in names] == [4, 8, 8, 16, 16, 16, 32, 32, 32]
    # A cell of scores is in the middle of its window where no layer is lopsided.
    assert grids["fc7"].start == (227 - 1) / 2
    assert vgg.grids(1)["fc7"].start == (224 - 1) / 2
    grids = googlenet.grids()
    names = "conv1", "pool1", "pool2", "inception_3a", "pool3", "inception_4e", "pool4"
    assert [grids[name].step for name in names] == [2, 4, 8, 8, 16, 16, 32]
    # Unpadded 3x3 windows of stride 2 move the map by a cell each.
    assert grids["conv1"].start == 0 and grids["inception_5b"].start == 2 + 4 + 8 + 16


@pytest.mark.parametrize("lrn_first", [False, True], ids=["caffenet", "alexnet"])
def test_alexnet(lrn_first):
    model = tiny("alexnet", lrn_first=lrn_first)
    variables = random_variables(model)
    params = {**variables["params"]["backbone"], "fc8": variables["params"]["fc8"]}
    x = images(1, 227, 227, 3)
    logits, ends = predict(model)(variables, x)

    y = np.float64(x[0]) - (122.67892, 116.66877, 104.00699)
    after = (brute_lrn, brute_pool) if lrn_first else (brute_pool, brute_lrn)
    y = brute_conv(y, params["conv1"], stride=4)
    y = after[1](after[0](y))
    y = brute_conv(y, params["conv2"], padding=2, groups=2)
    y = after[1](after[0](y))
    stage2 = y
    y = brute_conv(y, params["conv3"], padding=1)
    y = brute_conv(y, params["conv4"], padding=1, groups=2)
    y = brute_pool(brute_conv(y, params["conv5"], padding=1, groups=2))
    y = brute_conv(brute_conv(y, params["fc6"]), params["fc7"])
    np.testing.assert_allclose(
        ends["pool2" if lrn_first else "norm2"][0], stage2, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(ends["fc7"][0], y, rtol=1e-4, atol=1e-4)
    assert np.std(y) > 1e-2
    scores = y[0, 0] @ params["fc8"]["kernel"][0, 0] + params["fc8"]["bias"]
    np.testing.assert_allclose(logits[0, 0, 0], scores, rtol=1e-4, atol=1e-4)

    # The same from the dense layers as they are stored, for this single cell.
    features = np.asarray(ends["pool5"][0])
    for layout in ("caffe", "keras"):
        dense = classifier.conv_to_dense(params["fc6"]["kernel"], layout)
        if layout == "caffe":
            fc6 = dense @ features.transpose(2, 0, 1).ravel()
        else:
            fc6 = features.ravel() @ dense
        fc6 = np.maximum(fc6 + params["fc6"]["bias"], 0)
        np.testing.assert_allclose(ends["fc6"][0, 0, 0], fc6, rtol=1e-4, atol=1e-4)


def test_googlenet():
    """Stem and first block, and the head, by brute force."""
    model = tiny("googlenet")
    variables = random_variables(model)
    x = images(1, 256, 224, 3)
    logits, ends = predict(model)(variables, x)
    got = {name: np.float64(end[0]) for name, end in ends.items()}
    trunk = variables["params"]["backbone"]

    def check(name, expected):
        np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-4)

    y = np.float64(x[0]) - (122.67892, 116.66877, 104.00699)
    check("conv1", brute_conv(y, trunk["conv1_7x7_s2"], stride=2, padding=3))
    check("pool1", brute_pool(got["conv1"]))
    check("norm1", brute_lrn(got["pool1"]))
    y = brute_conv(got["norm1"], trunk["conv2_3x3_reduce"])
    check("conv2", brute_conv(y, trunk["conv2_3x3"], padding=1))
    check("norm2", brute_lrn(got["conv2"]))
    y = got["pool2"]
    check("pool2", brute_pool(got["norm2"]))

    def unit(x, name, padding=0):
        return brute_conv(x, trunk[f"inception_3a_{name}"], padding=padding)

    around = ((1, 1), (1, 1), (0, 0))
    pooled = brute_windows(np.pad(y, around, constant_values=-np.inf), 3, 1)
    branches = [
        unit(y, "1x1"),
        unit(unit(y, "3x3_reduce"), "3x3", padding=1),
        unit(unit(y, "5x5_reduce"), "5x5", padding=2),
        unit(pooled.max((3, 4)), "pool_proj"),
    ]
    check("inception_3a", np.concatenate(branches, axis=-1))
    for block, name in (("3b", "pool3"), ("4e", "pool4")):
        check(name, brute_pool(got[f"inception_{block}"]))
    assert np.std(got["pool4"]) > 1e-2
    check("pool5", brute_windows(got["inception_5b"], 7, 1).mean((3, 4)))
    head = variables["params"]["loss3_classifier"]
    scores = got["pool5"] @ head["kernel"][0, 0] + head["bias"]
    assert logits.shape == (1, 2, 1, 5)
    np.testing.assert_allclose(logits[0], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", list(TINY))
def test_classifier_contract(backbone):
    model = tiny(backbone, dtype="bfloat16", norm="batch", aux=True)
    variables = abstract_variables(model)
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.float32.dtype}
    top = backbones.BACKBONES[backbone].top
    for train in (True, False):
        logits, ends = abstract_outputs(model, (2, 256, 230, 3), train)
        assert logits.shape[:1] + logits.shape[3:] == (2, 5)
        assert logits.dtype == jnp.float32 and ends[top].dtype == jnp.bfloat16
        aux = {name for name in ends if name[:5] in ("loss1", "loss2")}
        both = {"loss1_classifier", "loss2_classifier"}
        assert aux == (both if train and backbone == "googlenet" else set())
    # Batch normalization takes the place of biases and of the LRN.
    assert "norm1" not in ends
    assert "bias" not in next(iter(variables["params"]["backbone"].values()))


def test_auxiliary_heads():
    logits, ends = abstract_outputs(tiny("googlenet", aux=True), (2, 224, 224, 3), True)
    for name in ("loss1_classifier", "loss2_classifier"):
        assert ends[name].shape == logits.shape == (2, 1, 1, 5)
        assert ends[name].dtype == jnp.float32


@pytest.mark.parametrize("backbone", ["alexnet", "vgg16", "googlenet"])
def test_fcn_takes_the_trunk_of_the_classifier(backbone):
    def trunk(model):
        variables = abstract_variables(model)
        return {name: tree["backbone"] for name, tree in variables.items()}

    def shapes(tree):
        return jax.tree.map(lambda leaf: leaf.shape, tree)

    one, other = tiny(backbone, norm="batch"), tiny_fcn(backbone, norm="batch")
    assert set(trunk(one)) == {"params", "batch_stats"}
    assert shapes(trunk(one)) == shapes(trunk(other))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Classifier(2, "resnet10l"), "did you mean 'resnet101'"),
        (lambda: Classifier(2, widths=(8,)), r"widths .* is \(8,\), expected 5 values"),
        (lambda: Classifier(2, "resnet50", widths=(8, 8)), "expected 1 value"),
        (lambda: Classifier(2, norm="bach"), "did you mean 'batch'"),
        (
            lambda: Classifier(2, fc_channels=0),
            r"model.fc_channels \(Classifier\) is 0, expected",
        ),
        (lambda: Classifier(2, stage_sizes=(1, 0, 1, 1)), "expected 4 values, 0 only"),
        (lambda: alexnet.AlexNet(widths=(2, 2, 3, 2, 2)), "expected even numbers"),
        (
            lambda: FCN(2, backbone="alexnet"),
            r"model.skips \(FCN\) is 8, expected 32 with",
        ),
        (lambda: FCN(2, backbone="googlenet", skips=16), "set skips to 32"),
        (lambda: FCN(2, backbone="vgg19"), "did you mean 'vgg16'"),
        (lambda: tiny_fcn("alexnet", image_stats="cafe"), "did you mean 'caffe'"),
        (
            lambda: abstract_outputs(tiny("vgg16"), (1, 300, 192, 3)),
            "300 x 192 is too small for 'vgg16'; resize it to 224 x 224",
        ),
        (
            lambda: abstract_outputs(tiny("googlenet"), (1, 150, 300, 3)),
            "150 x 300 is too small for 'googlenet'",
        ),
        (
            lambda: abstract_outputs(tiny("alexnet"), (1, 12, 12, 3)),
            "pool1 gets a map of 1 x 1 locations",
        ),
        (
            lambda: abstract_outputs(tiny_fcn("googlenet", pad=3), (1, 8, 40, 3)),
            "pool3 gets a map of 1 x 5 locations",
        ),
        (
            lambda: abstract_outputs(tiny_fcn("alexnet", pad=81), (1, 300, 300, 3)),
            "crop the logits to the image: the offset is -1 ",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- convolutionalisation -------------------------------------------------------------


@pytest.mark.parametrize("layout", ["caffe", "keras"])
def test_dense_and_convolution_kernels(layout):
    kernel = integers(3, 2, 4, 5)
    dense = classifier.conv_to_dense(kernel, layout)
    x = integers(3, 2, 4, seed=1)
    if layout == "caffe":
        assert dense.shape == (5, 24)
        scores = dense @ np.moveaxis(x, 2, 0).ravel()
    else:
        assert dense.shape == (24, 5)
        scores = x.ravel() @ dense
    np.testing.assert_array_equal(scores, np.einsum("hwi,hwio->o", x, kernel))
    back = classifier.dense_to_conv(dense, (3, 2), layout)
    np.testing.assert_array_equal(back, kernel)

    with pytest.raises(UserError, match="24 inputs, expected a multiple of 5 x 2"):
        classifier.dense_to_conv(dense, (5, 2), layout)
    with pytest.raises(UserError, match="unknown kernel layout 'torch'"):
        classifier.dense_to_conv(dense, (3, 2), "torch")
    with pytest.raises(UserError, match="unknown kernel layout 'torch'"):
        classifier.conv_to_dense(kernel, "torch")


def test_caffenet_kernels():
    """The shapes of Caffe's own conversion of CaffeNet, here HWIO."""
    for dense, size, expected in (
        ((4096, 9216), (6, 6), (6, 6, 256, 4096)),
        ((4096, 4096), (1, 1), (1, 1, 4096, 4096)),
        ((1000, 4096), (1, 1), (1, 1, 4096, 1000)),
    ):
        kernel = np.broadcast_to(np.float32(0), dense)
        assert classifier.dense_to_conv(kernel, size, "caffe").shape == expected


@pytest.mark.parametrize("layout", ["caffe", "keras"])
def test_dense_evaluation_is_that_of_every_window(layout):
    """Without padding, exactly: a network of stride 4 with windows of 16 x 12."""
    kernels = integers(3, 3, 2, 3, seed=1), integers(3, 3, 3, 4, seed=2)
    dense = integers(*((5, 24) if layout == "caffe" else (24, 5)), seed=3)

    def features(x):
        x = jax.nn.relu(conv.conv2d(x, kernels[0]))
        x = pool.max_pool(x, 2, stride=2)
        return jax.nn.relu(conv.conv2d(x, kernels[1], stride=2))

    x = integers(1, 29, 25, 2)
    kernel = classifier.dense_to_conv(dense, (3, 2), layout)
    heat_map = conv.conv2d(features(x), kernel)
    assert heat_map.shape == (1, 4, 4, 5)
    for i in range(4):
        for j in range(4):
            window = x[:, 4 * i : 4 * i + 16, 4 * j : 4 * j + 12]
            cell = np.asarray(features(window)[0])
            assert cell.shape == (3, 2, 4)
            if layout == "caffe":
                scores = dense @ cell.transpose(2, 0, 1).ravel()
            else:
                scores = cell.ravel() @ dense
            np.testing.assert_array_equal(heat_map[0, i, j], scores)
    assert np.std(heat_map) > 1


@pytest.mark.parametrize("jit", [False, True])
def test_shift_and_stitch(jit):
    """Interlaced outputs of shifted images are those of the dilated network."""
    first, second = integers(3, 3, 2, 3, seed=1), integers(3, 3, 3, 4, seed=2)
    last = integers(2, 2, 4, 5, seed=3)

    def network(x, dense):
        """Strides 2 and 2 or, dense, none: what follows dilated by 2 and 4."""
        x = jax.nn.relu(conv.conv2d(x, first))
        x = pool.max_pool(x, 2, stride=1 if dense else 2)
        if dense:
            x = jax.nn.relu(conv.conv2d(x, second, stride=1, dilation=2))
            return conv.conv2d(x, last, dilation=4)
        return conv.conv2d(jax.nn.relu(conv.conv2d(x, second, stride=2)), last)

    x = integers(2, 23, 26, 2)
    dilated = network(x, dense=True)
    assert dilated.shape == (2, 12, 15, 5)
    stitch = classifier.shift_and_stitch(lambda x: network(x, dense=False), 4)
    stitched = (jax.jit(stitch) if jit else stitch)(x)
    # Whole strides only: of 15 columns 12.
    np.testing.assert_array_equal(stitched, dilated[:, :, :12])
    assert np.std(stitched) > 1


def test_shift_and_stitch_errors():
    with pytest.raises(UserError, match="stride is 0, expected 1 or more"):
        classifier.shift_and_stitch(lambda x: x, 0)
    with pytest.raises(UserError, match="3 x 9 is smaller than the stride 4"):
        classifier.shift_and_stitch(lambda x: x, 4)(np.zeros((1, 3, 9, 1)))


# --- FCN ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid, size, crop",
    [
        (alexnet.grids(100)["fc7"], 63, 18),
        (googlenet.grids(100)["inception_5b"], 63, 98),
        (googlenet.grids(3)["inception_5b"], 63, 1),
        (vgg.grids(100)["fc7"], 64, 19),
    ],
)
def test_fcn_crops(grid, size, crop):
    assert fcn.upsampling_size(grid, 32) == size
    up = geometry.deconv(grid, size, stride=32)
    assert geometry.crop_offset(up, geometry.Grid()) == crop


# Backbone; side of the image; of conv1, the poolings and fc6; of the upsampled scores.
FCN_SIZES = """
alexnet   500 173  86 43 21    16 543
alexnet   375 142  71 35 17    12 415
alexnet   224 104  52 26 13     8 287
googlenet 500 347 173 86 43 21    703
googlenet 375 285 142 71 35 17    575
"""


@pytest.mark.parametrize("line", FCN_SIZES.split("\n")[1:-1])
def test_fcn_sizes(line):
    backbone, side, *maps, up = line.split()
    side = int(side)
    logits, ends = abstract_outputs(tiny_fcn(backbone), (1, side, side, 3))
    assert logits.shape == (1, side, side, 2)
    names = {
        "alexnet": ("conv1", "pool1", "pool2", "pool5", "fc6"),
        "googlenet": ("conv1", "pool1", "pool2", "pool3", "pool4"),
    }
    assert [ends[name].shape[1] for name in names[backbone]] == list(map(int, maps))
    assert ends["score_fr"].shape[1] == int(maps[-1])
    assert geometry.deconv_size(int(maps[-1]), 63, stride=32) == int(up)


def test_fcn_any_size():
    """Sides of every remainder modulo 32, the largest stride; fewer of GoogLeNet."""
    for backbone, step in (("alexnet", 1), ("googlenet", 8)):
        for side in range(1, 17, step):
            shape = (1, side, 33 - side)
            logits, _ = abstract_outputs(tiny_fcn(backbone), (*shape, 3))
            assert logits.shape == (*shape, 2)


@pytest.mark.parametrize("backbone", ["alexnet", "googlenet"])
def test_fcn_alignment(backbone):
    """With mirror-symmetric kernels the mirrored image gives the mirrored logits.

    A side of 59 makes every window of the padded image symmetric, so that a crop one
    cell off, or an upsampling by 64, would break it.
    """
    model = tiny_fcn(backbone)
    if backbone == "alexnet":  # with fewer channels none survives the ReLUs
        model = model.clone(widths=(4, 8, 8, 8, 8), fc_channels=16)
    symmetric = jax.tree.map(
        lambda x: (x + x[::-1] + x[:, ::-1] + x[::-1, ::-1]) / 4 if x.ndim == 4 else x,
        random_variables(model, scale=2),
    )
    x = images(1, 59, 59, 3)
    both = np.concatenate([x, x[:, ::-1, ::-1]])
    logits, ends = predict(model)(symmetric, both)
    assert np.std(ends["score_fr"], axis=(1, 2)).min() > 1e-3
    spread = float(jnp.std(logits))
    np.testing.assert_allclose(
        logits[1, ::-1, ::-1], logits[0], atol=1e-4 * spread, rtol=0
    )


def brute_upsample(x, size, stride):
    """Transposed convolution of [h, w, K] with the bilinear kernel, cell by cell."""
    h, w, k = x.shape
    ramp = 1 - np.abs(np.arange(size) - (size - 1) / 2) / (size / 2)
    kernel = (ramp[:, None] * ramp)[..., None]
    y = np.zeros((stride * (h - 1) + size, stride * (w - 1) + size, k))
    for i in range(h):
        for j in range(w):
            y[stride * i :, stride * j :][:size, :size] += x[i, j] * kernel
    return y


def test_staged_initialization():
    """A new stage starts as the coarser network, upsampled in one step more."""
    fields = dict(learn_upsampling=True, **TINY["vgg16"])
    nets = {skips: FCN(2, skips=skips, **fields) for skips in (32, 16, 8)}
    # As initialized; the backbone is replaced, zeros will do.
    empty = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape), abstract_variables(nets[8])["params"]
    )
    heads = [name for name in empty if name != "backbone"]
    made = jax.jit(lambda: {n: init(nets[8], (1, 8, 8, 3))["params"][n] for n in heads})
    fresh = {8: {**empty, **made()}}
    later = "score_pool3", "upscore_pool4"
    fresh[16] = {name: fresh[8][name] for name in fresh[8] if name not in later}
    run = {skips: predict(net) for skips, net in nets.items()}
    x = images(1, 40, 33, 3)

    for coarse, fine, last, stride, crop in (
        (32, 16, "score_fr", 16, 27),
        (16, 8, "fuse_pool4", 8, 31),
    ):
        params = random_variables(nets[coarse], scale=2)["params"]
        staged = fcn.stage_from(params, fresh[fine])
        assert jax.tree.structure(staged) == jax.tree.structure(fresh[fine])
        for name, layer in params.items():  # every coarse layer, as it is
            same = jax.tree.map(np.array_equal, staged[name], layer)
            assert all(jax.tree.leaves(same)), name
        _, ends = run[coarse]({"params": params}, x)
        logits, _ = run[fine]({"params": staged}, x)
        scores = np.float64(ends[last][0])
        assert np.std(scores, axis=(0, 1)).min() > 1e-2
        full = brute_upsample(brute_upsample(scores, 4, 2), 2 * stride, stride)
        expected = full[crop : crop + 40, crop : crop + 33]
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(logits[0], expected, rtol=0, atol=atol)

    assert not any(map(np.any, jax.tree.leaves(staged["score_pool3"])))
    with pytest.raises(UserError, match=r"score_pool3/\w+ .* and missing in the fine"):
        fcn.stage_from(fresh[8], fresh[16])
    other = {"score_fr": {"bias": np.zeros(7)}}
    with pytest.raises(UserError, match=r"score_fr/bias is \(7,\) .* and \(2,\) in"):
        fcn.stage_from(other, fresh[16])
