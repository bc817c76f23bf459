"""What every backbone promises to the networks that are built on it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from segjax.errors import UserError
from segjax.models import backbones, squeezenet
from segjax.models.classifier import Classifier
from segjax.models.deeplab import DeepLab
from segjax.models.fcn import FCN
from segjax.models.pspnet import PSPNet
from segjax.ops import geometry

NEW = ("resnet18", "resnet34", "squeezenet")
TINY = {
    "resnet18": dict(width=4, stage_sizes=(1, 1, 2, 2)),
    "resnet50": dict(width=2, stage_sizes=(1, 1, 2, 2)),
    "squeezenet": dict(width=8),
}
# Compiles in half the time; nothing here runs for long.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def abstract_variables(model, side=224):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jnp.zeros((1, side, side, 3), jnp.uint8)
    return jax.eval_shape(lambda: model.init(keys, images, train=True))


def outputs(model, shape):
    def run(variables):
        return model.apply(variables, jnp.zeros(shape, jnp.uint8), train=False)

    return jax.eval_shape(run, abstract_variables(model))


def values(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_variables(model, symmetric=False):
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = (2 / math.prod(leaf.shape[:-1])) ** 0.5
            kernel = rng.normal(size=leaf.shape, scale=deviation)
            if symmetric:
                kernel = kernel + kernel[::-1] + kernel[:, ::-1] + kernel[::-1, ::-1]
                kernel /= 2
            return kernel.astype(np.float32)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.uniform(0, 0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, abstract_variables(model))


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def predict(model, symmetric=False):
    variables = random_variables(model, symmetric)
    return jit(lambda x: model.apply(variables, x, train=False)), variables


# --- published sizes ------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone, total, trunk",
    [
        ("resnet18", 11_689_512, 11_689_512 - 513_000),
        ("resnet34", 21_797_672, 21_797_672 - 513_000),
        ("squeezenet", 722_496 + 513_000, 722_496),
    ],
)
def test_parameter_counts(backbone, total, trunk):
    params = abstract_variables(Classifier(1000, backbone))["params"]
    assert values(params) == total
    assert values(params["backbone"]) == trunk


def test_basic_blocks_are_those_of_torchvision():
    """Kernels of torchvision's layer1 and layer2, in the order of its state dict."""
    trunk = abstract_variables(Classifier(1000, "resnet18"))["params"]["backbone"]
    blocks = {
        block: {n: leaf["kernel"].shape for n, leaf in layers.items() if "conv" in n}
        for block, layers in trunk.items()
        if block.startswith(("block1", "block2"))
    }
    assert blocks == {
        "block1_1": {"conv1": (3, 3, 64, 64), "conv2": (3, 3, 64, 64)},
        "block1_2": {"conv1": (3, 3, 64, 64), "conv2": (3, 3, 64, 64)},
        "block2_1": {
            "conv1": (3, 3, 64, 128),
            "conv2": (3, 3, 128, 128),
            "conv0": (1, 1, 64, 128),
        },
        "block2_2": {"conv1": (3, 3, 128, 128), "conv2": (3, 3, 128, 128)},
    }


@pytest.mark.parametrize(
    "backbone, maps",
    [
        ("resnet18", dict(conv1=112, pool1=56, block1=56, block2=28, block4=7)),
        ("squeezenet", dict(conv1=111, pool1=55, pool3=27, pool5=13, fire9=13)),
    ],
)
def test_sizes_of_the_training_crop(backbone, maps):
    """224 pixels: torchvision's sizes of the maps, and one location of scores."""
    logits, ends = outputs(Classifier(5, backbone), (2, 224, 224, 3))
    assert logits.shape == (2, 1, 1, 5)
    assert {name: ends[name].shape[1] for name in maps} == maps
    logits, ends = outputs(Classifier(5, backbone), (2, 256, 224, 3))
    assert logits.shape == (2, 2 + (backbone == "squeezenet"), 1, 5)


# --- values by another program --------------------------------------------------------


def convolve(x, layer, stride=1, padding=0, dilation=1):
    """Convolution of `x` [H, W, C] in float64, by SciPy."""
    kernel = np.float64(layer["kernel"])
    sides = (dilation * (side - 1) + 1 for side in kernel.shape[:2])
    wide = np.zeros((*sides, *kernel.shape[2:]))
    wide[::dilation, ::dilation] = kernel
    x = np.pad(np.float64(x), ((padding, padding), (padding, padding), (0, 0)))
    maps = [
        sum(
            signal.correlate(x[..., i], wide[..., i, o], mode="valid")
            for i in range(x.shape[-1])
        )
        for o in range(kernel.shape[3])
    ]
    y = np.stack(maps, axis=-1)[::stride, ::stride]
    return y + layer.get("bias", 0)


def maxima(x, padding):
    """3x3 windows of stride 2; without padding the last one may be incomplete."""
    more = ((padding, padding + 1), (padding, padding + 1), (0, 0))
    if padding:
        more = ((padding, padding), (padding, padding), (0, 0))
    x = np.pad(x, more, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
    return windows[::2, ::2].max((3, 4))


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("padding", [0, 1], ids=["published", "padded"])
def test_squeezenet(padding):
    """All layers by SciPy; sides where ceil-mode keeps an incomplete window."""
    model = squeezenet.SqueezeNet(
        width=8, pad_first=padding, pool_padding=padding, parent=None
    )
    x = np.random.default_rng(1).normal(size=(1, 46, 38, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, False))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: np.float32(rng.normal(size=leaf.shape, scale=0.4)), shapes
    )
    ends = jit(lambda x: model.apply(variables, x, False))(x)
    params = variables["params"]
    y = relu(convolve(x[0], params["conv1"], 2, padding))
    for name in squeezenet.FIRES:
        if name in ("fire2", "fire4", "fire6"):
            y = maxima(y, padding)
        y = relu(convolve(y, params[f"{name}_squeeze1x1"]))
        wide = convolve(y, params[f"{name}_expand3x3"], padding=1)
        y = relu(np.concatenate([convolve(y, params[f"{name}_expand1x1"]), wide], -1))
        assert np.std(y) > 1e-3
        np.testing.assert_allclose(ends[name][0], y, rtol=1e-3, atol=1e-4 * y.max())


@pytest.mark.parametrize("first_block_dilation", [False, True])
def test_basic_block(first_block_dilation):
    """The dilated stages of a ResNet-18 at output stride 8, by SciPy."""
    model = PSPNet(
        2,
        backbone="resnet18",
        width=2,
        stage_sizes=(1, 1, 1, 2),
        stem="plain",
        first_block_dilation=first_block_dilation,
        bins=(),
    )
    run, variables = predict(model)
    _, ends = run(images(1, 65, 49, 3))
    params = variables["params"]["backbone"]
    stats = variables["batch_stats"]["backbone"]

    def norm(x, block, index):
        layer, running = params[block][f"bn{index}"], stats[block][f"bn{index}"]
        x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5)
        return x * layer["scale"] + layer["bias"]

    def block(x, name, rates):
        layers = params[name]
        first, second = (dict(padding=rate, dilation=rate) for rate in rates)
        y = relu(norm(convolve(x, layers["conv1"], **first), name, 1))
        y = norm(convolve(y, layers["conv2"], **second), name, 2)
        if "conv0" in layers:
            x = norm(convolve(x, layers["conv0"]), name, 0)
        return relu(x + y)

    new = first_block_dilation
    y = block(ends["block2"][0], "block3_1", (2 if new else 1, 2))
    np.testing.assert_allclose(ends["block3"][0], y, rtol=1e-3, atol=1e-4)
    y = block(y, "block4_1", (4 if new else 2, 4))
    y = block(y, "block4_2", (4, 4))
    assert np.std(y) > 1e-2
    np.testing.assert_allclose(ends["block4"][0], y, rtol=1e-3, atol=1e-4 * y.max())


# --- dilation -------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet"])
def test_atrous_consistency(backbone):
    """Dilated networks compute the strided network's features, and more between them.

    DeepLab's head, whose rate is in map pixels, is covered too.
    """
    strides = backbones.BACKBONES[backbone].dilated.output_strides
    coarsest = max(strides)

    def features(stride):
        fields = dict(output_stride=stride, backbone=backbone, **TINY[backbone])
        fields.update(first_block_dilation=False, stem="plain")
        model = DeepLab(2, rates=(2 * coarsest // stride,), **fields)
        ends = predict(model)[0](images(1, 161, 129, 3))[1]
        return [ends[name] for name in (backbones.features(model), "scores")]

    coarse, *finer = (features(stride) for stride in sorted(strides)[::-1])
    assert len(finer) == len(strides) - 1
    for index, reference in enumerate(coarse):
        spread = np.std(reference)
        assert spread > 1e-3
        assert reference.shape[1:3] == (160 // coarsest + 1, 128 // coarsest + 1)
        for step, fine in zip((2, 4), finer):
            shared = fine[index][:, ::step, ::step]
            np.testing.assert_allclose(shared, reference, atol=1e-3 * spread, rtol=0)


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet"])
def test_dilated_forms_fit_all_heads(backbone):
    few = {} if backbone == "squeezenet" else {"stage_sizes": (1, 1, 1, 1)}
    for stride in backbones.BACKBONES[backbone].dilated.output_strides:
        fields = dict(backbone=backbone, output_stride=stride, **few)
        for model in (
            PSPNet(3, **fields),
            DeepLab(3, **fields),
            DeepLab(3, fc6_channels=8, norm="batch", scales=(1.0, 0.5), **fields),
        ):
            logits, ends = outputs(model, (1, 97, 130, 3))
            assert logits.shape == (1, 97, 130, 3)
            scores = ends["conv6" if isinstance(model, PSPNet) else "scores"]
            assert scores.shape[1] == 96 // stride + 1


def test_auxiliary_head_and_norm_reach_squeezenet():
    def layers(**fields):
        return abstract_variables(PSPNet(2, backbone="squeezenet", **fields))["params"]

    assert layers()["aux_conv"]["kernel"].shape == (3, 3, 384, 96)
    assert "conv1_bn" not in layers()["backbone"]
    assert "conv1_bn" in layers(norm="batch")["backbone"]
    assert "conv5_4_bn" in layers() and "conv5_4_bn" in layers(norm="batch")


# --- FCN ------------------------------------------------------------------------------


def tiny_fcn(backbone, skips, **fields):
    tiny = dict(TINY[backbone])
    tiny["widths"] = (tiny.pop("width"),)
    return FCN(2, backbone=backbone, skips=skips, **tiny, **fields)


STRIDES = [("resnet18", s) for s in (32, 16, 8)] + [("squeezenet", s) for s in (16, 8)]


@pytest.mark.parametrize("backbone, skips", STRIDES)
def test_fcn_takes_any_size(backbone, skips):
    for pad, learned, sides in (
        (3, False, (*range(64, 97, 5), 65)),
        (100, True, (64, 79)),
    ):
        model = tiny_fcn(backbone, skips, pad=pad, learn_upsampling=learned)
        for side in sides:
            logits, _ = outputs(model, (1, side, 161 - side, 3))
            assert logits.shape == (1, side, 161 - side, 2)


@pytest.mark.parametrize("backbone, skips", STRIDES)
def test_fcn_alignment(backbone, skips):
    """With mirror-symmetric kernels the mirrored image gives the mirrored logits.

    The side makes every window symmetric: a skip or a crop one pixel off breaks it.
    """
    model = tiny_fcn(backbone, skips, pad=99)
    side = 57 if backbone == "squeezenet" else 65
    run, _ = predict(model, symmetric=True)
    x = images(1, side, side, 3)
    logits, ends = run(np.concatenate([x, x[:, ::-1, ::-1]]))
    assert min(np.std(end) for name, end in ends.items() if "score" in name) > 1e-3
    spread = np.std(logits[0], axis=(0, 1)).min()
    assert spread > 1e-3
    error = np.abs(logits[1, ::-1, ::-1] - logits[0]).max()
    assert error < 1e-3 * spread


def test_fcn_skips_sit_where_their_scores_do():
    """Positions by the grids, of the endpoints that are added."""
    for backbone in NEW:
        grids = backbones.BACKBONES[backbone].grids(100)
        entry = backbones.BACKBONES[backbone]
        assert grids[entry.top].step == entry.stride
        for stride, name in entry.skips.items():
            assert grids[name].step == stride
            distance = (grids[entry.top].start - grids[name].start) / stride
            assert distance.denominator == 1
    # 3 - 100 behind a 7x7 of stride 2; (1 + 2 + 4) - 100, + 8 behind unpadded 3x3.
    assert backbones.BACKBONES["resnet18"].grids(100)["block4"].start == 3 - 100
    assert backbones.BACKBONES["squeezenet"].grids(100)["fire9"].start == 15 - 100
    assert backbones.BACKBONES["squeezenet"].grids(1)["fire5"] == geometry.Grid(8, 6)


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: PSPNet(2, backbone="squeezenet", output_stride=32),
            r"model.output_stride \(PSPNet\) is 32, expected 16 or 8 .*'squeezenet'",
        ),
        (
            lambda: FCN(2, backbone="squeezenet", skips=32),
            r"model.skips \(FCN\) is 32, expected 16 or 8 with .*'squeezenet'",
        ),
        (lambda: FCN(2, backbone="alexnet", skips=16), "expected 32 with .*'alexnet'"),
        (
            lambda: PSPNet(2, backbone="vgg16"),
            r"model.backbone \(PSPNet\): unknown value 'vgg16'",
        ),
        (
            lambda: DeepLab(2, backbone="alexnet"),
            r"model.backbone \(DeepLab\): .*known: .*squeezenet",
        ),
        (lambda: DeepLab(2, backbone="resnet81"), "did you mean 'resnet18'"),
        (lambda: DeepLab(2, average_pool=True), "average_pool .* is for .*'vgg16'"),
        (
            lambda: FCN(2, backbone="resnet18", skips=32, stage_sizes=(1, 1, 0, 1)),
            r"model.stage_sizes \(FCN\) is .* expected 4 values",
        ),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(UserError, match=message):
        make()
