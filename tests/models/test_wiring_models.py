"""Which field reaches which layer of every network: dropout, statistics, rates.

A network runs once in training while what goes into its dropouts and normalizations
and what comes out of them is recorded; both are then computed again in NumPy.
"""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
import scipy.signal

from segjax import models
from segjax.models import alexnet, classifier, deeplab, layers, vgg
from segjax.models.dropout import Dropout

# Unlike the defaults, so that a default in place of the field shows.
RATE, MOMENTUM = 0.3, 0.75
DROPOUT, NORM = {"dropout": RATE}, {"bn_momentum": MOMENTUM}
BATCH = {"norm": "batch"} | NORM
TINY_VGG = {"widths": (2, 2, 2, 2, 2)}
TINY_RESNET = {"stage_sizes": (1, 1, 1, 1), "width": 2}

# Each: the network, the side of its images, the names of its dropouts.
NETWORKS = {
    "alexnet": (
        alexnet.AlexNet(
            pad_first=20, widths=(4,) * 5, fc_channels=200, **DROPOUT, **BATCH
        ),
        195,
        ("Dropout_0", "Dropout_1"),
    ),
    "vgg16": (
        # The framed form normalizes in a layer of its own: test_framed.py.
        vgg.VGG16(
            **dict(pad_first=100, framed=False, fc_channels=200),
            **TINY_VGG,
            **DROPOUT,
            **BATCH,
        ),
        33,
        ("Dropout_0", "Dropout_1"),
    ),
    "unet": (
        models.UNet(3, widths=(2, 8, 16), padding="same", **DROPOUT, **BATCH),
        16,
        ("Dropout_0", "Dropout_1"),
    ),
    "fusionnet": (
        models.FusionNet(3, widths=(4, 8), residual_depth=2, **DROPOUT, **BATCH),
        16,
        ("Dropout_0", "Dropout_1", "Dropout_2"),
    ),
    "fusionnet_released": (
        models.FusionNet(
            3,
            widths=(4, 8),
            residual_depth=2,
            layout="released",
            **DROPOUT,
            **BATCH,
        ),
        16,
        ("Dropout_0", "Dropout_1", "Dropout_2"),
    ),
    "pspnet": (
        models.PSPNet(
            3,
            **TINY_RESNET,
            bins=(1, 2),
            pyramid_channels=2,
            head_channels=16,
            **DROPOUT,
            **NORM,
        ),
        65,
        ("Dropout_0", "Dropout_1"),
    ),
    "deeplab_vgg16": (
        models.DeepLab(
            3,
            backbone="vgg16",
            **TINY_VGG,
            rates=(1, 2),
            fc6_channels=16,
            side_branches=True,
            side_channels=2,
            **DROPOUT,
            **BATCH,
        ),
        33,
        tuple(f"head/Dropout_{i}" for i in range(4)),
    ),
    "deeplab_resnet": (
        models.DeepLab(
            3, **TINY_RESNET, rates=(1,), fc6_channels=16, **DROPOUT, **BATCH
        ),
        33,
        ("head/Dropout_0", "head/Dropout_1"),
    ),
    "dilation": (
        models.Dilation(
            3,
            **TINY_VGG,
            fc_channels=64,
            context="none",
            fc6_rate=1,
            **DROPOUT,
            **BATCH,
        ),
        40,
        ("Dropout_0", "Dropout_1"),
    ),
    "contextual": (
        models.DeepContextual(
            3, widths=(2, 2), convs=(1, 1), taps=(1, 2), branch_channels=2, **BATCH
        ),
        8,
        (),
    ),
    "deconvnet": (
        models.DeconvNet(3, **TINY_VGG, fc_channels=2, fc6_kernel=1, **NORM),
        32,
        (),
    ),
    "frrn": (
        models.FRRN(
            3,
            stage_units=(1,),
            stage_channels=(2,),
            stage_scales=(2,),
            width=2,
            residual_channels=2,
            first_units=1,
            last_units=1,
            **NORM,
        ),
        8,
        (),
    ),
}


@functools.cache
def observed(name, frozen=False):
    """Runs a network of NETWORKS in training, with frozen statistics if `frozen`.

    Returns:
      Records {module path: (input, output)} of dropouts (with key 1 and with key 2)
      and of normalizations; variables before and statistics after.
    """
    model, side, _ = NETWORKS[name]
    model = model.clone(frozen_bn=True) if frozen else model
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (2, side, side, 3)).astype(np.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}

    def start():
        return model.init(keys, images, train=True)

    def fill(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            spread = (2 / math.prod(leaf.shape[:-1])) ** 0.5
            return rng.normal(0, spread, leaf.shape).astype(np.float32)
        low, high = (0.5, 1.5) if kind in ("scale", "var") else (0.0, 0.5)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(start))

    @jax.jit
    def run(variables, key):
        records = {Dropout: {}, nn.BatchNorm: {}}

        def record(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if type(context.module) in records and context.method_name == "__call__":
                path = "/".join(context.module.path)
                records[type(context.module)][path] = args[0], out
            return out

        with nn.intercept_methods(record):
            _, updated = model.apply(
                variables,
                images,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
        stats = updated.get("batch_stats", variables["batch_stats"])
        return records[Dropout], records[nn.BatchNorm], stats

    drops, norms, stats = run(variables, jax.random.key(1))
    others = run(variables, jax.random.key(2))[0] if drops else {}
    return jax.device_get((drops, others, norms, variables, stats))


@pytest.mark.parametrize("name", [n for n in NETWORKS if NETWORKS[n][2] != ()])
def test_dropout_is_on_in_training_only(name):
    """Drops a share of about `dropout`, by the key, and scales what is left."""
    model, side, expected = NETWORKS[name]
    drops, others, _, variables, _ = observed(name)
    assert set(drops) == set(expected)
    kept = {}
    for path, (before, after) in drops.items():
        live = before != 0  # a ReLU makes zeros, too
        assert live.sum() > 150, (path, live.sum())
        kept[path] = after[live] != 0
        spread = 4 * (RATE * (1 - RATE) / live.sum()) ** 0.5
        assert abs(kept[path].mean() - (1 - RATE)) < spread, path
        scaled = before[live] / (1 - RATE)
        np.testing.assert_allclose(after[live][kept[path]], scaled[kept[path]], 1e-5)
    for path, (_, after) in others.items():
        assert ((after != 0) != (drops[path][1] != 0)).mean() > 0.05, path

    # Evaluated, a dropout that is on would ask for a key.
    images = np.zeros((2, side, side, 3), np.float32)
    jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)


@pytest.mark.parametrize(
    "model, rates",
    [
        (models.FCN(3, skips=32, backbone="googlenet", dropout=0.3), [0.3]),
        (models.FCN(3, skips=16, backbone="squeezenet", dropout=0.3), [0.3]),
        (classifier.Classifier(3, "googlenet", aux=True, dropout=0.3), [0.3, 0.7, 0.7]),
        (classifier.Classifier(3, "squeezenet", dropout=0.3), [0.3]),
        (classifier.Classifier(3, "vgg16", fc_channels=2, dropout=0.3), [0.3, 0.3]),
        (classifier.Classifier(3, "resnet18", dropout=0.3), []),
    ],
    ids=lambda value: getattr(value, "backbone", ""),
)
def test_dropout_in_front_of_the_scores(model, rates):
    """As traced: some backbones have it in their trunk, others in front of the head."""
    found = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            found.append((context.module.rate, context.module.deterministic))
        return call(*args, **kwargs)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.uint8)
    for train in (True, False):
        found.clear()
        with nn.intercept_methods(record):
            jax.eval_shape(functools.partial(model.init, keys, train=train), image)
        assert [off for _, off in found] == [not train] * len(rates)
        assert sorted(rate for rate, _ in found) == rates


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_keep_bn_momentum_of_the_old_value(name):
    """And the output is normalized by the batch's own."""
    _, _, norms, variables, stats = observed(name)
    assert norms
    unseen = {path for path, _ in by_path(stats)} - set(norms)
    assert not unseen
    for path, (x, y) in norms.items():
        old, new = at(variables["batch_stats"], path), at(stats, path)
        params = at(variables["params"], path)
        x = np.float64(x)
        batch = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
        for key, value in batch.items():
            expected = MOMENTUM * old[key] + (1 - MOMENTUM) * value
            np.testing.assert_allclose(
                new[key], expected, rtol=2e-3, atol=1e-3, err_msg=f"{path}/{key}"
            )
        assert_normalized(x, y, batch, params, path)


def assert_normalized(x, y, stats, params, path, epsilon=1e-5):
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + epsilon)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=5e-3, atol=5e-3, err_msg=path)


def at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def by_path(stats, prefix=""):
    """(path, {"mean", "var"}) of every normalization of a tree of statistics."""
    if "mean" in stats:
        yield prefix.removesuffix("/"), stats
        return
    for key, value in stats.items():
        yield from by_path(value, f"{prefix}{key}/")


@pytest.mark.parametrize("name", ["deeplab_vgg16", "deeplab_resnet"])
def test_frozen_statistics_are_used_and_kept_in_every_layer(name):
    """In the backbone, the head and the side branches; dropout stays on."""
    drops, _, norms, variables, stats = observed(name, frozen=True)
    assert any(path.startswith("head/fc6") for path in norms)
    assert any(path.startswith("backbone/") for path in norms)
    assert ("sides/pool1_ms1_bn" in norms) == (name == "deeplab_vgg16")
    for path, (x, y) in norms.items():
        old = at(variables["batch_stats"], path)
        for key, value in at(stats, path).items():
            np.testing.assert_array_equal(value, old[key], err_msg=path)
        assert_normalized(x, y, old, at(variables["params"], path), path)
    for before, after in drops.values():
        assert (after[before != 0] == 0).mean() > RATE / 2


# --- networks too large to run here: what their layers are told -----------------------


def told(model, side, train):
    """{path: rate} of the dropouts that are on, {path: momentum} of normalizations
    that update their statistics; nothing is computed."""
    rates, momenta = {}, {}

    def record(call, args, kwargs, context):
        module, path = context.module, "/".join(context.module.path)
        if context.method_name == "__call__":
            if isinstance(module, nn.Dropout) and not module.deterministic:
                rates[path] = module.rate
            if isinstance(module, nn.BatchNorm) and not module.use_running_average:
                momenta[path] = module.momentum
        return call(*args, **kwargs)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    images = np.zeros((2, side, side, 3), np.uint8)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda: model.init(keys, images, train=train))
    return rates, momenta


LARGE = {
    "fcn": (models.FCN(3, **DROPOUT, **BATCH), 33, 2, ()),
    "fcn_alexnet": (
        models.FCN(3, skips=32, backbone="alexnet", **DROPOUT, **BATCH),
        33,
        2,
        (),
    ),
    "fcn_googlenet": (
        models.FCN(3, skips=32, backbone="googlenet", **DROPOUT, **BATCH),
        33,
        1,
        (),
    ),
    "hypercolumn": (models.Hypercolumn(3, **DROPOUT, **BATCH), 33, 2, ()),
    "googlenet": (
        classifier.Classifier(3, backbone="googlenet", aux=True, **DROPOUT, **BATCH),
        224,
        1,
        (0.7, 0.7),  # of the auxiliary heads: Szegedy et al., section 5
    ),
    "vgg16": (classifier.Classifier(3, **DROPOUT, **BATCH), 224, 2, ()),
    "alexnet": (
        classifier.Classifier(3, backbone="alexnet", **DROPOUT, **BATCH),
        227,
        2,
        (),
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_rate_and_momentum_reach_every_layer(name):
    model, side, count, fixed = LARGE[name]
    rates, momenta = told(model, side, train=True)
    assert sorted(rates.values()) == [RATE] * count + list(fixed)
    assert len(momenta) >= 7 and set(momenta.values()) == {MOMENTUM}
    assert told(model, side, train=False) == ({}, {})


COLOR = np.array([10, 120, 250], np.uint8)
IMAGENET = (COLOR / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
CAFFE = COLOR - np.array([122.67892, 116.66877, 104.00699])
WITH_IMAGES = {
    name: (model, side)
    for name, (model, side, *_) in (NETWORKS | LARGE).items()
    if hasattr(model, "image_stats") and not name.endswith(("_released", "_resnet"))
}


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_image_stats_reach_the_first_layer(name):
    """What the first convolution gets of an image of one color."""
    model, side = WITH_IMAGES[name]
    if model.image_stats == "imagenet":
        model, expected = model.clone(image_stats="caffe"), CAFFE
    else:
        model, expected = model.clone(image_stats="imagenet"), IMAGENET
    images = np.broadcast_to(COLOR, (2, side, side, 3))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}

    @jax.jit  # everything but that input is left out of the program
    def first_input(images):
        inputs = []

        def record(call, args, kwargs, context):
            if isinstance(context.module, layers.Conv) and not inputs:
                inputs.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            model.init(keys, images, train=False)
        return inputs[0]

    found = first_input(images)
    assert found.shape[-1] == 3
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-3)


def test_defaults_of_dropout_are_the_papers():
    """And the deviations of their text that the docstrings tell: U-Net, FusionNet."""
    rates = {
        "fcn": 0.5,  # Simonyan and Zisserman, section 3.1, kept by FCN
        "deeplab": 0.5,
        "dilation": 0.5,
        "pspnet": 0.1,  # the authors' networks
        "unet": 0.5,
        "fusionnet": 0.0,
        "hypercolumn": 0.5,  # VGG16's own
        "zoomout": 0.5,
        "cfm": 0.5,
    }
    found = {name: models.model_fields(name).get("dropout") for name in models.MODELS}
    assert {name: rate for name, rate in found.items() if rate is not None} == rates


# --- atrous branches on maps that their taps reach ------------------------------------


def atrous(x, layer, rate):
    """A convolution with holes of [h, w, C], zeros outside, in float64 by SciPy.

    Centerd where the kernel is odd; an even one of side k starts rate * (k - 1) / 2
    before the cell.
    """
    kernel = np.asarray(layer["kernel"], np.float64)
    size = rate * (len(kernel) - 1) + 1
    holes = np.zeros((size, size, *kernel.shape[2:]))
    holes[::rate, ::rate] = kernel
    padded = np.pad(x, (((size - 1) // 2,) * 2,) * 2 + ((0, 0),))
    out = [
        sum(
            scipy.signal.fftconvolve(
                padded[..., i], holes[::-1, ::-1, i, o], mode="valid"
            )
            for i in range(x.shape[-1])
        )
        for o in range(kernel.shape[3])
    ]
    return np.stack(out, -1) + np.asarray(layer["bias"], np.float64)


def branch_scores(x, params, rates):
    """Scores of a head of DeepLab: the sum over its branches."""
    scores = 0
    for index, rate in enumerate(rates, start=1):
        suffix = f"_{index}" if len(rates) > 1 else ""
        if f"fc1{suffix}" in params:
            scores = scores + atrous(x, params[f"fc1{suffix}"], rate)
            continue
        y = np.maximum(atrous(x, params[f"fc6{suffix}"], rate), 0)
        y = np.maximum(atrous(y, params[f"fc7{suffix}"], 1), 0)
        scores = scores + atrous(y, params[f"fc8{suffix}"], 1)
    return scores


@pytest.mark.parametrize(
    "rates, kernel, channels",
    [
        ((6, 12, 18, 24), 3, 0),  # ASPP-L of the ResNet
        ((6, 12, 18, 24), 3, 3),  # ASPP-L of VGG16
        ((2, 4, 8, 12), 3, 3),  # ASPP-S
        ((12,), 3, 3),  # LargeFOV
        ((4,), 7, 3),  # v1's field-of-view table
        ((8,), 4, 3),
    ],
)
def test_atrous_branches_see_as_far_as_their_rates(rates, kernel, channels):
    """On a map wide enough that the outermost taps of its middle are inside."""
    head = deeplab.Head(
        num_classes=2,
        rates=rates,
        kernel=kernel,
        channels=channels,
        dropout=0.5,
        norm="none",
        bn_momentum=0.9,
        bn_unbiased=False,
        dtype="float32",
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 53, 58, 2)).astype(np.float32)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), x, False, False))
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"]
    )
    found = head.apply({"params": params}, x, False, False)[0]
    expected = branch_scores(np.float64(x[0]), params, rates)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_deeplab_gives_its_head_the_map_and_the_rates():
    """Scores of the whole network from its last map, for ASPP-L's rates."""
    rates = (6, 12, 18, 24)
    model = models.DeepLab(2, **TINY_RESNET, rates=rates)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 201, 209, 3)).astype(np.uint8)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    variables = jax.jit(lambda: model.init(keys, images[:, :33, :33], train=True))()
    head = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        variables["params"]["head"],
    )
    variables = {**variables, "params": {**variables["params"], "head": head}}
    ends = jax.jit(lambda v: model.apply(v, images, train=False)[1])(variables)
    features = np.float64(ends["block4"][0])
    assert features.shape[:2] == (26, 27) and features.std() > 1e-3
    expected = branch_scores(features, head, rates)
    tolerance = 1e-3 * expected.std()
    np.testing.assert_allclose(ends["scores"][0], expected, rtol=0, atol=tolerance)
