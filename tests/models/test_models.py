"""The networks: published counts and sizes, alignment, and what their geometry implies.

Counts and sizes are traced without computing; networks that run have a few channels.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from segjax import models
from segjax.errors import UserError
from segjax.models import resnet, unet, vgg
from segjax.models.deeplab import DeepLab
from segjax.models.fcn import FCN
from segjax.models.pspnet import PSPNet
from segjax.models.unet import UNet
from segjax.ops import geometry

TINY_FCN = dict(widths=(2, 2, 2, 2, 2), fc_channels=3)
TINY_PSP = dict(
    stage_sizes=(1, 1, 1, 1), width=2, pyramid_channels=3, head_channels=4, stem="plain"
)


def init(model, shape, train=True):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return model.init(keys, jnp.zeros(shape, jnp.uint8), train=train)


@functools.cache
def abstract_variables(model, shape=(1, 32, 32, 3)):
    return jax.eval_shape(lambda: init(model, shape))


def abstract_outputs(model, shape, train=False):
    # Parameters depend on the channels only, so any size the model takes will do.
    if isinstance(model, UNet):
        variables = abstract_variables(model, shape)
    else:
        variables = abstract_variables(model)

    def run(variables):
        images = jnp.zeros(shape, jnp.uint8)
        if not train:
            return model.apply(variables, images, train=False)
        keys, mutable = {"dropout": jax.random.key(1)}, ["batch_stats"]
        return model.apply(variables, images, train=True, rngs=keys, mutable=mutable)[0]

    return jax.eval_shape(run, variables)


def values(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_variables(model, shape, scale=1.0):
    """Random parameters and batch statistics of reasonable sizes, without init."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(
                size=leaf.shape, scale=scale / math.prod(leaf.shape[:-1]) ** 0.5
            ).astype(np.float32)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, abstract_variables(model, shape))


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def predict(model):
    return jax.jit(lambda variables, x: model.apply(variables, x, train=False))


def quick_predict(model):
    """Compiles in half the time, for what does not run for long."""
    return jax.jit(
        lambda variables, x: model.apply(variables, x, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )


# --- all ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, shape, expected",
    [
        (FCN(21, skips=32), (1, 32, 32, 3), 134_346_581),
        (FCN(40, skips=32), (1, 32, 32, 3), 134_424_424),
        (FCN(60, skips=32), (1, 32, 32, 3), 134_506_364),
        (FCN(21, skips=16), (1, 32, 32, 3), 134_357_354),
        (FCN(40, skips=16), (1, 32, 32, 3), 134_444_944),
        (FCN(60, skips=16), (1, 32, 32, 3), 134_537_144),
        (FCN(21, skips=8), (1, 32, 32, 3), 134_362_751),
        (FCN(40, skips=8), (1, 32, 32, 3), 134_455_224),
        (FCN(60, skips=8), (1, 32, 32, 3), 134_552_564),
        # Two dense 4x4 kernels more.
        (FCN(21, learn_upsampling=True), (1, 32, 32, 3), 134_362_751 + 2 * 7056),
        (PSPNet(150, aux=False), (1, 33, 33, 3), 46_782_550),
        (PSPNet(150, stem="plain"), (1, 33, 33, 3), 49_180_908 - 123_776),
        # Baseline without pyramid: conv5_4 reads 2048 channels only.
        (
            PSPNet(21, bins=(), aux=False),
            (1, 33, 33, 3),
            46_716_373 - 4_198_400 - 9 * 2048 * 512,
        ),
        (UNet(2), (1, 188, 188, 1), 31_030_658),
        (UNet(1), (1, 188, 188, 1), 31_030_593),
        (UNet(2), (1, 188, 188, 3), 31_031_810),
        (UNet(1), (1, 188, 188, 3), 31_031_745),
        (UNet(21, padding="same"), (1, 16, 16, 3), 31_033_045),
        (UNet(2, padding="same", norm="batch"), (1, 16, 16, 3), 31_037_698),
        (UNet(2, norm="batch"), (1, 188, 188, 1), 31_036_546),
    ],
)
def test_parameter_counts(model, shape, expected):
    assert values(abstract_variables(model, shape)["params"]) == expected


@pytest.mark.parametrize(
    "backbone, classes, trunk, head, aux, inference, train",
    [
        ("50", 150, 23_631_808, 18_952_342, 2_398_358, 46_782_550, 49_180_908),
        ("50", 21, 23_631_808, 18_886_165, 2_365_205, 46_716_373, 49_081_578),
        ("50", 19, 23_631_808, 18_885_139, 2_364_691, 46_715_347, 49_080_038),
        ("101", 21, 42_623_936, 18_886_165, 2_365_205, 65_708_501, 68_073_706),
        ("101", 19, 42_623_936, 18_885_139, 2_364_691, 65_707_475, 68_072_166),
        ("101", 150, 42_623_936, 18_952_342, 2_398_358, 65_774_678, 68_173_036),
    ],
)
def test_pspnet_counts(backbone, classes, trunk, head, aux, inference, train):
    model = PSPNet(classes, backbone=f"resnet{backbone}")
    params = abstract_variables(model, (1, 33, 33, 3))["params"]

    def of(*prefixes):
        return values({n: x for n, x in params.items() if n.startswith(prefixes)})

    assert of("backbone") == trunk
    assert of("pyramid") == 4_198_400
    assert (of("conv5_4", "conv6"), of("aux_")) == (head, aux)
    assert (values(params) - aux, values(params)) == (inference, train)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "model_of, shape",
    [
        (lambda **k: FCN(5, **TINY_FCN, norm="batch", **k), (2, 40, 33, 3)),
        (lambda **k: PSPNet(5, **TINY_PSP, **k), (2, 40, 33, 3)),
        (lambda **k: UNet(5, widths=(2, 3), norm="batch", **k), (2, 22, 30, 3)),
    ],
    ids=["fcn", "pspnet", "unet"],
)
def test_contract(model_of, shape, dtype):
    model = model_of(dtype=dtype)
    margin = model.tiling.margin
    size = tuple(side - 2 * margin for side in shape[1:3])
    variables = abstract_variables(model, shape)
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.float32.dtype}
    for train in (True, False):
        logits, endpoints = abstract_outputs(model, shape, train)
        assert logits.shape == (2, *size, 5)
        assert logits.dtype == jnp.float32
        trunk = [endpoints[k] for k in ("fc7", "block4", "enc1") if k in endpoints]
        assert [x.dtype for x in trunk] == [jnp.dtype(dtype)]
        assert ("aux_logits" in endpoints) == (train and isinstance(model, PSPNet))
        if "aux_logits" in endpoints:
            assert endpoints["aux_logits"].shape == logits.shape
            assert endpoints["aux_logits"].dtype == jnp.float32


def test_build():
    config = ConfigDict({"model_name": "unet", "model": {"widths": [4, 8]}})
    assert models.build(config, 3) == UNet(3, widths=(4, 8))
    config.model = models.model_fields("pspnet")
    config.model_name = "pspnet"
    assert models.build(config, 3) == PSPNet(3)
    assert config.model.bins == (1, 2, 3, 6)
    assert "num_classes" not in config.model and "parent" not in config.model
    for name in models.MODELS:  # the defaults can be overridden, so none is None
        assert None not in models.model_fields(name).values()

    config.model_name = "pspnett"
    with pytest.raises(UserError, match="did you mean 'pspnet'.*fcn.*pspnet, unet"):
        models.build(config, 3)
    config.model_name = "fcn"
    config.model = {"skip": 8}
    with pytest.raises(
        UserError, match=r"--config.model \(fcn\): .*'skip'; did you mean 'skips'"
    ):
        models.build(config, 3)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: FCN(2, skips=4),
            r"--config.model.skips \(FCN\): unknown value '4'; known: 8, 16, 32",
        ),
        (
            lambda: FCN(2, widths=(2, 2)),
            r"model.widths \(FCN\) is \(2, 2\), expected 5 values",
        ),
        (lambda: FCN(2, norm="bach"), "did you mean 'batch'"),
        (lambda: PSPNet(2, backbone="resnet10"), "did you mean 'resnet101'"),
        (
            lambda: PSPNet(2, bins=(1, 0)),
            r"model.bins \(PSPNet\) is .* positive integers",
        ),
        (
            lambda: PSPNet(2, bins=(2, 2)),
            r"model.bins \(PSPNet\) is .* different values",
        ),
        (lambda: UNet(2, widths=()), r"model.widths \(UNet\) is .*at least 1 value"),
        (lambda: UNet(2, upsampling="bilinar"), "did you mean 'bilinear'"),
        (lambda: UNet(2, image_stats="cafe"), "did you mean 'caffe'"),
        (
            lambda: UNet(2, widths=64),
            r"model.widths \(UNet\) is 64, expected positive integers",
        ),
        (
            lambda: FCN(2, pad=-1),
            r"model.pad \(FCN\) is -1, expected an integer of at least 0",
        ),
        (
            lambda: FCN(2, fc_channels=0),
            r"model.fc_channels \(FCN\) is 0, expected an integer of",
        ),
        (
            lambda: PSPNet(2, width=0),
            r"model.width \(PSPNet\) is 0, expected an integer of at",
        ),
        (lambda: FCN(2, only="pool2"), "did you mean 'pool"),
        (
            lambda: FCN(2, only="pool4"),
            r"model.skips \(FCN\) is 8, expected 16, the stride of only='pool4'",
        ),
        (
            lambda: FCN(2, only="pool4", skips=16, backbone="resnet50"),
            r"is 'pool4', which is a layer of 'vgg16', not of 'resnet50'",
        ),
        (lambda: PSPNet(2, stage_sizes=(3, 4)), r"is \(3, 4\), expected 4 values"),
        (lambda: PSPNet(2, stage_sizes=(1, 0, 1, 1)), "0 only for stages that do not"),
        (
            lambda: PSPNet(2, head_channels=2.5),
            r"model.head_channels \(PSPNet\) is 2.5, expected",
        ),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("name", models.MODELS)
def test_bad_values_of_common_fields(name):
    fields = models.model_fields(name)
    for field, bad, expected in (
        ("norm", "bn", "unknown value 'bn'; known: batch, none"),
        ("dropout", 1.0, "is 1.0, expected a number from 0 to 0.99"),
        ("dropout", -0.5, "is -0.5, expected a number from 0 to 0.99"),
        ("bn_momentum", 1.5, "is 1.5, expected a number from 0 to 1"),
        ("dtype", "bfloat", "did you mean 'bfloat16'"),
        ("image_stats", "cafe", "did you mean 'caffe'"),
    ):
        if field in fields:
            with pytest.raises(
                UserError, match=rf"--config.model.{field}.*{re.escape(expected)}"
            ):
                models.MODELS[name](2, **{field: bad})


# --- FCN ------------------------------------------------------------------------------


def test_fcn_crops():
    grids = vgg.grids(100)
    pixel = geometry.Grid()
    up2 = geometry.deconv(grids["fc7"], 4, stride=2)
    up4 = geometry.deconv(up2, 4, stride=2)
    for source, target, expected in (
        (geometry.deconv(grids["fc7"], 64, stride=32), pixel, 19),
        (geometry.deconv(up2, 32, stride=16), pixel, 27),
        (geometry.deconv(up4, 16, stride=8), pixel, 31),
        (grids["pool4"], up2, 5),
        (grids["pool3"], up4, 9),
    ):
        assert geometry.crop_offset(source, target) == expected


@pytest.mark.parametrize("only, skips", [("pool4", 16), ("pool3", 8)])
def test_fcn_of_one_layer_is_one_whose_coarser_scores_are_zero(only, skips):
    small = dict(widths=(2, 2, 3, 2, 2), fc_channels=2, skips=skips)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 37, 50, 3)).astype(np.uint8)
    whole, alone = FCN(2, **small), FCN(2, only=only, **small)
    variables = jax.device_get(jax.jit(lambda: init(whole, images.shape))())
    params = variables["params"]
    assert not np.any(params["score_fr"]["kernel"])  # scores start at zero
    score = params[f"score_{only}"]
    score["kernel"] = rng.normal(size=score["kernel"].shape).astype(np.float32)
    expected, _ = quick_predict(whole)(variables, images)
    backbone = dict(params["backbone"])
    del backbone["fc6"], backbone["fc7"]
    kept = {"backbone": backbone, f"score_{only}": score}
    shapes = abstract_variables(alone)
    assert jax.tree.structure(shapes["params"]) == jax.tree.structure(kept)
    found, endpoints = quick_predict(alone)({"params": kept}, images)
    assert np.ptp(expected) > 0 and f"score_{only}" in endpoints
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.ptp(expected))


def test_fcn_of_pool5_lies_three_cells_before_fc6():
    scores = geometry.deconv(vgg.grids(100)["pool5"], 64, stride=32)
    assert geometry.crop_offset(scores, geometry.Grid()) == 19 + 3 * 32
    model = FCN(2, skips=32, only="pool5", widths=(1, 1, 1, 1, 1))
    images = jax.ShapeDtypeStruct((1, 41, 33, 3), jnp.uint8)
    keys = jax.random.key(0)
    (logits, _), variables = jax.eval_shape(
        lambda x: model.init_with_output(keys, x, train=False), images
    )
    assert logits.shape == (1, 41, 33, 2)
    assert variables["params"].keys() == {"backbone", "score_pool5"}


# Side of the image; of pool1 .. pool5, fc6; 32x; upscore2, 16x; upscore_pool4, 8x.
FCN_SIZES = """
1    100  50  25 13  7  1  64  4  80 10  88
32   115  58  29 15  8  2  96  6 112 14 120
224  211 106  53 27 14  8 288 18 304 38 312
256  227 114  57 29 15  9 320 20 336 42 344
333  266 133  67 34 17 11 384 24 400 50 408
366  282 141  71 36 18 12 416 26 432 54 440
375  287 144  72 36 18 12 416 26 432 54 440
480  339 170  85 43 22 16 544 34 560 70 568
500  349 175  88 44 22 16 544 34 560 70 568
640  419 210 105 53 27 21 704 44 720 90 728
"""


@pytest.mark.parametrize("line", FCN_SIZES.split("\n")[1:-1])
def test_fcn_sizes(line):
    side, *pools, fc6, up32, upscore2, up16, upscore_pool4, up8 = map(int, line.split())
    logits, ends = abstract_outputs(FCN(2, **TINY_FCN), (1, side, side, 3))
    assert logits.shape == (1, side, side, 2)
    assert [ends[f"pool{i}"].shape[1] for i in range(1, 6)] == pools
    assert ends["fc6"].shape[1] == ends["score_fr"].shape[1] == fc6
    assert ends["upscore2"].shape[1] == ends["fuse_pool4"].shape[1] == upscore2
    assert ends["upscore_pool4"].shape[1] == upscore_pool4
    for name, stride, expected in (
        ("score_fr", 32, up32),
        ("fuse_pool4", 16, up16),
        ("fuse_pool3", 8, up8),
    ):
        scores = ends[name].shape[1]
        assert geometry.deconv_size(scores, 2 * stride, stride=stride) == expected


def test_fcn_any_size():
    """Sides of every remainder modulo 32, the largest stride."""
    for side in range(1, 17):
        logits, _ = abstract_outputs(FCN(2, **TINY_FCN), (1, side, 33 - side, 3))
        assert logits.shape == (1, side, 33 - side, 2)


def test_fcn_padding_errors():
    with pytest.raises(UserError, match="crop the logits to the image.* is -68 "):
        abstract_variables(FCN(2, pad=1, **TINY_FCN), (1, 224, 224, 3))
    with pytest.raises(
        UserError, match="too small for fc7; increase --config.model.pad"
    ):
        abstract_variables(FCN(2, pad=81, **TINY_FCN), (1, 1, 1, 3))


def test_fcn_alignment():
    """With mirror-symmetric kernels the mirrored image gives the mirrored logits.

    A side of 58 makes every pooling window of the padded image symmetric, so a crop
    one cell off anywhere breaks it.
    """
    model = FCN(2, **TINY_FCN)
    variables = random_variables(model, (1, 58, 58, 3), scale=2)
    symmetric = jax.tree.map(
        lambda x: (x + x[::-1] + x[:, ::-1] + x[::-1, ::-1]) / 4 if x.ndim == 4 else x,
        variables,
    )
    x = images(1, 58, 58, 3)
    run = predict(model)
    logits, ends = run(symmetric, x)
    mirrored, _ = run(symmetric, x[:, ::-1, ::-1])
    for name in ("score_fr", "fuse_pool4", "fuse_pool3"):  # every branch contributes
        assert np.std(ends[name], axis=(1, 2)).min() > 1e-2
    spread = float(jnp.std(logits))
    np.testing.assert_allclose(
        mirrored[:, ::-1, ::-1], logits, atol=1e-4 * spread, rtol=0
    )

    # All at once: the skips scaled by 0.01 and 0.0001 cancel score kernels 100 and
    # 10000 times as large; learned upsampling starts as the fixed bilinear one.
    once = FCN(2, at_once=True, learn_upsampling=True, **TINY_FCN)
    names = "score_fr", "upscore2", "upscore_pool4"
    fresh = jax.jit(lambda: {n: init(once, (1, 8, 8, 3))["params"][n] for n in names})()
    assert not any(map(np.any, jax.tree.leaves(fresh["score_fr"])))
    params = {**symmetric["params"]}
    for name, scale in (("score_pool4", 100), ("score_pool3", 10_000)):
        score = params[name]
        params[name] = {"kernel": score["kernel"] * scale, "bias": score["bias"]}
    for name in ("upscore2", "upscore_pool4"):
        params[name] = fresh[name]
    scaled, _ = predict(once)({"params": params}, x)
    np.testing.assert_allclose(scaled, logits, atol=1e-4 * spread, rtol=0)


# --- ResNet ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, stem, expected",
    [
        ("resnet50", "plain", 23_508_032),
        ("resnet101", "plain", 42_500_160),
        # torchvision's 60,192,808 without its 2,049,000 class scores.
        ("resnet152", "plain", 58_143_808),
        # 3 (3 + 30 + 48 + 8) + 2 layers, counted from the list of layers.
        ("resnet269", "plain", 100_024_384),
        ("resnet50", "deep", 23_631_808),
        ("resnet101", "deep", 42_623_936),
    ],
)
def test_resnet_counts(name, stem, expected):
    sizes = resnet.STAGE_SIZES[name]
    assert 3 * sum(sizes) + 2 == int(name.removeprefix("resnet"))
    model = resnet.ResNet(stage_sizes=sizes, stem=stem)
    variables = abstract_variables(model)
    assert values(variables["params"]) == expected
    if stem == "plain":
        expected = {
            "resnet50": 53_120,
            "resnet101": 105_344,
            "resnet152": 151_424,
            "resnet269": 252_800,
        }[name]
        assert values(variables["batch_stats"]) == expected


def test_strides_become_rates():
    def rates(output_stride):
        return [tuple(stage) for stage in resnet.stage_plan(output_stride)]

    # Stride, rate before, rate. A dilated stage of DeepLab and PSPNet is 2 / 2, 4 / 4;
    # of torchvision 1 / 2, 2 / 4.
    assert rates(32) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]
    assert rates(16) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]
    assert rates(8) == [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]


@pytest.mark.parametrize(
    "side, conv1, pool1, last",
    [
        (224, 112, 56, {8: 28, 16: 14, 32: 7}),
        (321, 161, 81, {8: 41, 16: 21, 32: 11}),
        (473, 237, 119, {8: 60, 16: 30, 32: 15}),
        (513, 257, 129, {8: 65, 16: 33, 32: 17}),
        (520, 260, 130, {8: 65, 16: 33, 32: 17}),
        (713, 357, 179, {8: 90, 16: 45, 32: 23}),
        (769, 385, 193, {8: 97, 16: 49, 32: 25}),
    ],
)
def test_resnet_sizes(side, conv1, pool1, last):
    for output_stride, expected in last.items():
        model = resnet.ResNet((1, 1, 1, 1), width=2, output_stride=output_stride)
        ends = abstract_outputs(model, (1, side, side, 3))
        assert ends["conv1"].shape[1] == conv1
        assert ends["pool1"].shape[1] == pool1
        assert ends["block4"].shape[1:] == (expected, expected, 64)


@pytest.mark.parametrize(
    "model_of, stride_in_1x1",
    [
        (lambda **k: PSPNet(2, bins=(), stem="plain", **k), False),
        (lambda **k: DeepLab(2, rates=(32 // k["output_stride"],), **k), True),
    ],
    ids=["pspnet", "deeplab"],
)
def test_atrous_consistency(model_of, stride_in_1x1):
    """Dilated networks compute the strided network's features, and more between them.

    Exact where the first block's 3x3 convolution keeps seeing what it saw: the new
    rate behind a strided 1x1 convolution, the old rate where it carried the stride. The
    other pairs have the same parameters and other features. DeepLab's head, whose rate
    is in cells, is covered too. The height is odd and the width even.
    """
    shape = (1, 65, 96, 3)
    x = images(*shape)
    fields = dict(stage_sizes=(1, 1, 2, 2), width=2, stride_in_1x1=stride_in_1x1)

    def features(output_stride, first_block_dilation=stride_in_1x1):
        model = model_of(
            output_stride=output_stride,
            first_block_dilation=first_block_dilation,
            **fields,
        )
        variables = random_variables(model, shape, scale=1.5)
        _, ends = quick_predict(model)(variables, x)
        return [ends[name] for name in ("block4", "scores") if name in ends]

    for coarse, *finer, other in zip(
        features(32), features(16), features(8), features(8, not stride_in_1x1)
    ):
        rows, columns = coarse.shape[1:3]
        assert (rows, columns) in ((3, 3), (3, 4))  # DeepLab fills up to 97 columns
        spread = float(coarse.std())
        assert spread > 1e-3
        for fine, step in zip(finer, (2, 4)):
            shared = fine[:, ::step, ::step]
            np.testing.assert_allclose(shared, coarse, atol=1e-4 * spread, rtol=0)
        assert np.abs(other[:, ::4, ::4] - coarse).max() > 0.1 * spread


def test_resnet_blocks_reduce_to_their_shortcuts():
    """With a last normalization of zero, nothing but shortcuts is left of a stage."""
    model = resnet.ResNet((1, 2, 1, 1), width=2)
    shape = (1, 40, 33, 3)
    variables = random_variables(model, shape)
    for name, block in variables["params"].items():
        if name.startswith("block"):
            block["bn3"] = jax.tree.map(np.zeros_like, block["bn3"])
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ends = quick_predict(model)(variables, x)
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, 2)):
        name = f"block{stage}_1"
        norm, running = variables["params"][name]["bn0"], variables["batch_stats"][name]
        y = ends["pool1" if stage == 1 else f"block{stage - 1}"]
        y = np.asarray(y)[:, ::stride, ::stride]
        y = y @ variables["params"][name]["conv0"]["kernel"][0, 0]
        y = (y - running["bn0"]["mean"]) / np.sqrt(running["bn0"]["var"] + 1e-5)
        y = np.maximum(y * norm["scale"] + norm["bias"], 0)
        assert np.std(y) > 1e-3
        np.testing.assert_allclose(ends[f"block{stage}"], y, rtol=1e-4, atol=1e-5)


# --- PSPNet ---------------------------------------------------------------------------


def test_pspnet_sizes_and_pyramid():
    for side, cells in ((473, 60), (7, 1)):
        logits, ends = abstract_outputs(PSPNet(2, **TINY_PSP), (1, side, 50, 3))
        assert logits.shape == (1, side, 50, 2)
        assert ends["conv6"].shape == (1, cells, 7, 2)
    for fields, channels in (
        (dict(), 64 + 4 * 3),
        (dict(bins=(1,)), 64 + 3),
        (dict(bins=(1, 2), pool="max", reduce=False), 3 * 64),
        (dict(bins=()), 64),
    ):
        _, ends = abstract_outputs(PSPNet(2, **TINY_PSP, **fields), (1, 17, 17, 3))
        assert ends["pyramid"].shape == (1, 3, 3, channels)


@pytest.mark.parametrize("kind, reduced", [("avg", np.mean), ("max", np.max)])
def test_pspnet_levels_without_reduction(kind, reduced):
    model = PSPNet(2, bins=(1, 3), pool=kind, reduce=False, **TINY_PSP)
    shape = (2, 41, 41, 3)
    ends = quick_predict(model)(random_variables(model, shape), images(*shape))[1]
    features = np.asarray(ends["block4"])
    assert features.shape == (2, 6, 6, 64)  # bins of 6 x 6 and of 2 x 2 cells
    whole = reduced(features, (1, 2), keepdims=True)
    thirds = reduced(features.reshape(2, 3, 2, 3, 2, 64), (2, 4))
    pyramid = np.asarray(ends["pyramid"])
    assert pyramid.shape == (2, 6, 6, 3 * 64)
    np.testing.assert_array_equal(pyramid[..., :64], features)
    np.testing.assert_allclose(
        pyramid[..., 64:128], np.broadcast_to(whole, features.shape), rtol=1e-4
    )
    # Aligned corners: those of the level are those of the map.
    np.testing.assert_allclose(
        pyramid[:, ::5, ::5, 128:], thirds[:, ::2, ::2], rtol=1e-4, atol=1e-6
    )
    assert np.abs(thirds - whole).max() > 0.01


def test_pspnet_constant_map_and_single_image():
    model = PSPNet(2, bins=(1, 3), **TINY_PSP)
    shape = (1, 60, 75, 3)
    variables = random_variables(model, shape)
    # Backbone features that are the same in every cell: only biases survive.
    last = variables["params"]["backbone"]["block4_1"]
    for name in ("bn0", "bn3"):
        last[name]["scale"] *= 0
    features = np.maximum(last["bn0"]["bias"] + last["bn3"]["bias"], 0)

    x = images(*shape)
    pyramid = jax.jit(
        lambda variables, x: model.apply(variables, x, train=False)[1]["pyramid"]
    )(variables, x)
    assert pyramid.shape == (1, 8, 10, 64 + 2 * 3)  # 3 divides neither 8 nor 10
    expected = [features]
    params, stats = variables["params"], variables["batch_stats"]
    for bins in (1, 3):
        y = features @ params[f"pyramid{bins}"]["kernel"][0, 0]
        norm, running = params[f"pyramid{bins}_bn"], stats[f"pyramid{bins}_bn"]
        y = (y - running["mean"]) / np.sqrt(running["var"] + 1e-5)
        expected.append(np.maximum(y * norm["scale"] + norm["bias"], 0))
    np.testing.assert_allclose(
        pyramid, np.broadcast_to(np.concatenate(expected), pyramid.shape), atol=1e-5
    )

    # One image in training: a single value has no variance, so the 1x1 level keeps
    # its running statistics; the other updates its own.
    @jax.jit
    def train(variables, x):
        (_, ends), updated = model.apply(
            variables,
            x,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        stats = updated["batch_stats"]
        return ends["pyramid"], {n: stats[n] for n in ("pyramid1_bn", "pyramid3_bn")}

    pyramid, after = train(variables, x)
    assert np.isfinite(pyramid).all()
    for bins, changed in ((1, False), (3, True)):
        before = stats[f"pyramid{bins}_bn"]["var"]
        assert np.any(after[f"pyramid{bins}_bn"]["var"] != before) == changed


# --- U-Net ----------------------------------------------------------------------------


def test_unet_plan_of_the_paper():
    plan = unet.plan(5, "valid", "transposed")
    assert plan.crops == (88, 40, 16, 4)
    assert plan.tiling == geometry.Tiling(step=16, offset=12, margin=92, minimum=188)
    valid = [n for n in range(150, 600) if geometry.is_valid_side(plan.tiling, n)]
    assert valid[:8] == [188, 204, 220, 236, 252, 268, 284, 300]
    assert {444, 508, 556, 572, 588} <= set(valid)
    assert not {570, 571, 573, 576, 172} & set(valid)
    # In general 12 * 2^(L-1) - 8 pixels are lost, and the smallest output is 4 (2 for
    # two levels, where 16 -> 0 is followed by 18 -> 2).
    for levels, smallest, lost in (
        (2, 18, 16),
        (3, 44, 40),
        (4, 92, 88),
        (5, 188, 184),
    ):
        tiling = unet.plan(levels, "valid", "transposed").tiling
        assert (tiling.minimum, 2 * tiling.margin) == (smallest, lost)
        assert tiling.step == 2 ** (levels - 1)
    for upsampling in ("transposed", "nearest", "bilinear"):
        same = unet.plan(4, "same", upsampling)
        assert same == unet.Plan((0, 0, 0), geometry.Tiling(8, 0, 0, 8))


def test_unet_sizes_of_the_paper():
    logits, ends = abstract_outputs(UNet(2, widths=(2, 3, 4, 5, 6)), (1, 572, 572, 1))
    assert logits.shape == (1, 388, 388, 2)
    sides = {name: x.shape[1] for name, x in ends.items()}
    assert sides == dict(
        enc0=568,
        enc1=280,
        enc2=136,
        enc3=64,
        enc4=28,
        dec3=52,
        dec2=100,
        dec1=196,
        dec0=388,
    )


def test_unet_initialization():
    """Gaussian of deviation sqrt(2 / N): 0.05893 for 3x3 kernels over 64 channels."""
    model = UNet(2, widths=(64, 64), padding="same")
    names = "enc0_conv2", "dec0_up"

    @jax.jit
    def fresh():
        params = init(model, (1, 2, 2, 1))["params"]
        return [params[name] for name in names]

    conv, up = fresh()
    assert conv["kernel"].shape == (3, 3, 64, 64)
    assert float(conv["kernel"].std()) == pytest.approx(0.05893, rel=0.02)
    # Behind the transposed convolution one cell of 64 channels reaches an output.
    assert float(up["kernel"].std()) == pytest.approx((2 / 64) ** 0.5, rel=0.02)
    assert not np.any(conv["bias"]) and not np.any(up["bias"])


def test_unet_invalid_sizes():
    model = UNet(2)
    with pytest.raises(UserError, match="height is 570.*nearest valid value is 556 or"):
        abstract_outputs(model, (1, 570, 572, 1))
    with pytest.raises(UserError, match="width is 100.*nearest valid value is 188"):
        abstract_outputs(model, (1, 572, 100, 1))
    with pytest.raises(UserError, match="height is 100.* 96 or 112"):
        abstract_outputs(UNet(2, padding="same"), (1, 100, 96, 1))


@pytest.mark.parametrize(
    "upsampling, levels", [("transposed", 3), ("nearest", 2), ("bilinear", 2)]
)
def test_unet_tiles(upsampling, levels):
    """A valid network's output on a crop is the crop of its output on the image."""
    model = UNet(2, widths=(2, 3, 4)[:levels], upsampling=upsampling)
    step, _, margin, minimum = model.tiling
    tile = minimum + step
    height, width = tile + 2 * step, tile + 3 * step
    variables = random_variables(model, (1, tile, tile, 3), scale=1.5)
    run = predict(model)
    x = images(1, height, width, 3)
    whole, _ = run(variables, x)
    assert whole.shape == (1, height - 2 * margin, width - 2 * margin, 2)
    spread = float(whole.std())
    assert spread > 0.01
    side = tile - 2 * margin
    for top, left in ((0, 0), (step, 3 * step), (2 * step, 2 * step)):
        part, _ = run(variables, x[:, top : top + tile, left : left + tile])
        np.testing.assert_allclose(
            part,
            whole[:, top : top + side, left : left + side],
            atol=1e-4 * spread,
            rtol=0,
        )


def test_unet_bfloat16_and_dropout():
    shape = (1, 22, 22, 1)
    fields = dict(widths=(3, 4), norm="batch")
    variables = random_variables(UNet(2, **fields), shape)
    x = images(*shape)
    exact, _ = predict(UNet(2, **fields))(variables, x)
    rough, _ = predict(UNet(2, dtype="bfloat16", **fields))(variables, x)
    assert np.any(exact != rough)
    np.testing.assert_allclose(rough, exact, atol=0.1 * float(exact.std()), rtol=0)

    model = UNet(2, widths=(3, 4), dropout=0.5)
    variables = random_variables(model, shape)
    run = jax.jit(
        lambda key: model.apply(variables, x, train=True, rngs={"dropout": key})[0]
    )
    assert np.any(run(jax.random.key(0)) != run(jax.random.key(1)))
