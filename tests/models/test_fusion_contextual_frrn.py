"""FusionNet, Deep Contextual Network, FRRN: published counts and sizes, plain numpy.

Counts and sizes are traced without computing; networks that run have a few channels.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from scipy import ndimage

from segjax import losses, models
from segjax.errors import UserError
from segjax.models import frrn
from segjax.models.contextual import DeepContextual
from segjax.models.frrn import FRRN
from segjax.models.fusionnet import FusionNet
from segjax.ops import geometry, pool

RELEASED = dict(layout="released", residual_depth=2, dropout=0.25)
TINY_FRRN = dict(
    stage_units=(1, 2),
    stage_channels=(3, 2),
    stage_scales=(2, 4),
    width=3,
    residual_channels=2,
    first_units=1,
    last_units=1,
)
THREE_STAGES = dict(
    stage_units=(1, 1, 1), stage_channels=(1, 1, 1), stage_scales=(4, 2, 6)
)


@functools.cache
def abstract_variables(model, channels=3):
    side = model.tiling.step
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jnp.zeros((1, side, side, channels), jnp.uint8)
    return jax.eval_shape(lambda: model.init(keys, images, train=True))


def abstract_outputs(model, shape, train=False):
    def run(variables):
        keys, mutable = {"dropout": jax.random.key(1)}, ["batch_stats"]
        images = jnp.zeros(shape, jnp.uint8)
        return model.apply(variables, images, train, rngs=keys, mutable=mutable)[0]

    return jax.eval_shape(run, abstract_variables(model, shape[-1]))


def values(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_like(tree):
    """Random parameters and batch statistics of reasonable sizes."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            scale = 1.5 / math.prod(leaf.shape[:-1]) ** 0.5
            return rng.normal(size=leaf.shape, scale=scale).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, tree)


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@functools.cache
def predict(model):
    return jax.jit(lambda variables, x: model.apply(variables, x, train=False))


def assert_close(actual, expected):
    spread = float(np.std(expected))
    assert spread > 1e-3
    np.testing.assert_allclose(actual, expected, atol=1e-4 * spread, rtol=0)


# --- plain numpy layers, [H, W, C] ----------------------------------------------------


def np_conv(x, layer):
    """Zero-padded "same" convolution by scipy, one pair of channels at a time."""
    kernel = np.asarray(layer["kernel"], np.float64)
    out = np.zeros((*x.shape[:2], kernel.shape[3]))
    for i in range(kernel.shape[2]):
        for o in range(kernel.shape[3]):
            out[..., o] += ndimage.correlate(
                x[..., i], kernel[..., i, o], mode="constant"
            )
    return out + np.asarray(layer.get("bias", 0.0))


def np_norm(x, params, stats):
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def np_pool(x, size):
    h, w, c = x.shape
    return x.reshape(h // size, size, w // size, size, c).max((1, 3))


def relu(x):
    return np.maximum(x, 0)


# --- all ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, channels, expected",
    [
        (FusionNet(1), 1, 78_531_137),
        (FusionNet(1, norm="none"), 1, 78_499_777),
        (FusionNet(1, head_size=3), 1, 78_531_649),
        (FusionNet(1, widths=(32, 64, 128, 256, 512)), 1, 19_644_705),
        (FusionNet(1, **RELEASED), 1, 62_804_545),
        (FusionNet(1, **RELEASED, norm="none"), 1, 62_792_769),
        # As many parameters as the transposed convolution's.
        (FusionNet(1, upsampling="nearest"), 1, 78_531_137),
        # Twice the fan-in behind the four merges: c more maps into c.
        (
            FusionNet(1, merge="concat"),
            1,
            78_531_137 + 9 * (64**2 + 128**2 + 256**2 + 512**2),
        ),
        # The second network reads K = 1 probability, as many maps as a gray image.
        (FusionNet(1, chain=2), 1, 2 * 78_531_137),
        (FRRN(19), 3, 17_746_803),
        (FRRN(19, variant="b"), 3, 24_755_699),
        # The trunk; transposed kernels 4, 8 and 16 to 64 maps; 3x3 and 1x1 per branch.
        (
            DeepContextual(2),
            1,
            7_634_112
            + (16 * 128 + 64 * 256 + 256 * 512) * 64
            + 3 * (64 + 36_928 + 130),
        ),
        (
            DeepContextual(2, upsampling="bilinear"),
            3,
            7_635_264 + 9 * (128 + 256 + 512) * 64 + 3 * (64 + 130),
        ),
    ],
)
def test_parameter_counts(model, channels, expected):
    assert values(abstract_variables(model, channels)["params"]) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "model_of, trunk",
    [
        (lambda **k: FusionNet(5, widths=(2, 3), chain=2, **k), "net2_bridge"),
        (
            lambda **k: DeepContextual(
                5, widths=(2, 3), convs=(1, 2), taps=(1, 2), norm="batch", **k
            ),
            "c2",
        ),
        (lambda **k: FRRN(5, **TINY_FRRN, **k), "residual2"),
    ],
    ids=["fusionnet", "contextual", "frrn"],
)
def test_contract(model_of, trunk, dtype):
    model = model_of(dtype=dtype)
    variables = abstract_variables(model)
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.float32.dtype}
    for train in (True, False):
        logits, ends = abstract_outputs(model, (2, 8, 12, 3), train)
        assert (logits.shape, logits.dtype) == ((2, 8, 12, 5), jnp.float32)
        assert ends[trunk].dtype == jnp.dtype(dtype)
        aux = {name: x for name, x in ends.items() if name.startswith("aux")}
        number = {FusionNet: 1, DeepContextual: 2, FRRN: 0}[type(model)]
        assert list(aux) == [f"aux_logits_{i + 1}" for i in range(number)]
        for x in aux.values():
            assert (x.shape, x.dtype) == (logits.shape, jnp.float32)


@pytest.mark.parametrize(
    "name, fields, expected",
    [
        ("fusionnet", {"widths": [2, 3]}, FusionNet(3, widths=(2, 3))),
        ("contextual", {"taps": [4]}, DeepContextual(3, taps=(4,))),
        ("frrn", {"variant": "b"}, FRRN(3, variant="b")),
    ],
)
def test_build(name, fields, expected):
    config = ConfigDict({"model_name": name, "model": fields})
    assert models.build(config, 3) == expected
    assert None not in models.model_fields(name).values()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FusionNet(2, merge="som"), "did you mean 'sum'"),
        (lambda: FusionNet(2, layout="code"), "known: paper, released"),
        (lambda: FusionNet(2, head_size=2), "known: 1, 3"),
        (
            lambda: FusionNet(2, chain=0),
            r"model.chain \(FusionNet\) is 0, .* at least 1",
        ),
        (lambda: FusionNet(2, residual_depth=0), "residual_depth .* is 0"),
        (lambda: FusionNet(2, widths=()), "at least 1 value"),
        (lambda: DeepContextual(2, convs=(1, 1)), r"convs .* is \(1, 1\), expected 4"),
        (lambda: DeepContextual(2, taps=(2, 5)), "different stages from 1 to 4"),
        (lambda: DeepContextual(2, taps=(2, 2)), "different stages from 1 to 4"),
        (lambda: DeepContextual(2, kernel_factor=0), "kernel_factor .* is 0"),
        (lambda: FRRN(2, variant="c"), r"model.variant \(FRRN\): unknown value 'c'"),
        (lambda: FRRN(2, unpooling="bilinar"), "did you mean 'bilinear'"),
        (lambda: FRRN(2, stage_units=(1, 1)), r"have \[2, 7, 7\] values"),
        (lambda: FRRN(2, stage_scales=(2, 4, 8, 16, 6, 4, 2)), "unlike 16 and 6"),
        (lambda: FRRN(2, stage_channels=(0,) * 7), "expected positive integers"),
        (
            lambda: FRRN(2, residual_channels=0),
            r"model.residual_channels \(FRRN\) is 0, expected",
        ),
        (
            lambda: FRRN(2, last_units=-1),
            r"model.last_units \(FRRN\) is -1, .* at least 0",
        ),
        (
            lambda: DeepContextual(2, branch_channels=0),
            "branch_channels .* is 0, expec",
        ),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "model, step",
    [
        (FusionNet(2), 16),
        (FusionNet(2, widths=(2,)), 1),
        (DeepContextual(2), 8),
        (FRRN(2), 16),
        (FRRN(2, variant="b"), 32),
        (FRRN(2, **TINY_FRRN | dict(stage_scales=(3, 6))), 6),
        # 4 and 6 do not follow each other; their common multiple is 12.
        (FRRN(2, **TINY_FRRN | THREE_STAGES), 12),
    ],
)
def test_tiling(model, step):
    assert model.tiling == geometry.Tiling(step, 0, 0, step)
    if step > 1:
        bad = f"height is {3 * step + 1}.* is {3 * step} or {4 * step}"
        with pytest.raises(UserError, match=bad):
            abstract_outputs(model, (1, 3 * step + 1, step, 3))


# --- FusionNet ------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, RELEASED], ids=["paper", "released"])
def test_fusionnet_sizes(fields):
    logits, ends = abstract_outputs(FusionNet(2, **fields), (1, 640, 640, 1))
    assert logits.shape == (1, 640, 640, 2)
    expected = dict(bridge=(40, 1024))
    for level, shape in enumerate(((640, 64), (320, 128), (160, 256), (80, 512)), 1):
        expected[f"down{level}"] = expected[f"up{level}"] = shape
    shapes = {name: (x.shape[1], x.shape[3]) for name, x in ends.items()}
    assert shapes == expected
    # Layers as published: 3x3 convolutions, four transposed ones, one 1x1.
    params = abstract_variables(FusionNet(2, **fields), 1)["params"]
    layers = [name for name, layer in params.items() if "kernel" in layer]
    assert len(layers) == (41 if fields else 50)
    assert sum(name.endswith("_up") for name in layers) == 4


def test_fusionnet_sums_its_skips():
    """No 2c anywhere behind a merge, unless it concatenates."""
    for fields in ({}, RELEASED):
        first = "up2_res1" if fields else "up2_conv1"
        for merge, width in (("sum", 3), ("concat", 6)):
            model = FusionNet(2, widths=(2, 3, 4), merge=merge, **fields)
            params = abstract_variables(model)["params"]
            assert params[first]["kernel"].shape == (3, 3, width, 3)
            assert ("up2_shortcut" in params) == (bool(fields) and merge == "concat")


def np_fusionnet(variables, x, layout):
    """A FusionNet of two levels on the normalized `x` [H, W, C], without chain."""
    params, stats = variables["params"], variables["batch_stats"]
    released = layout == "released"

    def norm(x, name):
        return np_norm(x, params[f"{name}_bn"], stats[f"{name}_bn"])

    def unit(x, name):
        x = np_conv(x, params[name])
        return relu(x if released else norm(x, name))

    def block(x, name, first=True):
        if first:
            x = unit(x, f"{name}_conv1")
        shortcut = x
        if released:
            for layer in (f"{name}_res1", f"{name}_res2"):
                x = relu(np_conv(norm(x, layer), params[layer]))
        else:
            x = unit(unit(x, f"{name}_res1"), f"{name}_res2")
            x = norm(np_conv(x, params[f"{name}_res3"]), f"{name}_res3")
        return unit(shortcut + x, f"{name}_conv2")

    skip = block(x, "down1")
    x = block(np_pool(skip, 2), "bridge")
    if released:
        x = unit(x, "up1_reduce")
    # TensorFlow's "same" transposed convolution, by its definition: the gradient of a
    # convolution of stride 2.
    kernel = np.asarray(params["up1_up"]["kernel"])
    _, gradient = jax.vjp(
        lambda y: jax.lax.conv_general_dilated(
            y,
            kernel.swapaxes(2, 3),
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        jnp.zeros((1, *skip.shape)),
    )
    (up,) = gradient(jnp.asarray(x[None], jnp.float32))
    up = np.asarray(up[0]) + params["up1_up"]["bias"]
    up = relu(up if released else norm(up, "up1_up"))
    x = block(skip + up, "up1", first=not released)
    return np_conv(x, params["head"])


@pytest.mark.parametrize("fields", [{}, RELEASED], ids=["paper", "released"])
def test_fusionnet_like_numpy(fields):
    model = FusionNet(2, widths=(2, 3), **fields)
    variables = random_like(abstract_variables(model))
    x = images(1, 6, 8, 3)
    logits, _ = predict(model)(variables, x)
    expected = np_fusionnet(variables, x[0] / 127.5 - 1, model.layout)
    assert_close(logits[0], expected)


def test_fusionnet_chain():
    """Each network has its own weights and reads the one before it."""
    one, two = (FusionNet(2, widths=(2, 3), chain=chain) for chain in (1, 2))
    both = random_like(abstract_variables(two))
    first, second = {}, {}
    for kind, layers in both.items():
        first[kind] = {n: v for n, v in layers.items() if not n.startswith("net2_")}
        second[kind] = {n[5:]: v for n, v in layers.items() if n.startswith("net2_")}
    x = images(1, 6, 8, 3)
    logits, ends = predict(two)(both, x)
    expected, _ = predict(one)(first, x)
    assert_close(ends["aux_logits_1"], expected)
    # The "image" that image_stats "unit" maps to the probabilities.
    probabilities = scipy.special.softmax(np.float64(expected), -1)
    refined, _ = predict(one)(second, np.float32((probabilities + 1) * 127.5))
    assert_close(logits, refined)


# --- Deep Contextual Network ----------------------------------------------------------


@pytest.mark.parametrize("side, taps", [(512, (256, 128, 64)), (480, (240, 120, 60))])
def test_contextual_sizes(side, taps):
    logits, ends = abstract_outputs(DeepContextual(3), (1, side, side, 1))
    assert logits.shape == (1, side, side, 3)
    names = "conv2_2", "conv3_3", "conv4_3"
    shapes = [ends[name].shape[1:] for name in names]
    assert shapes == [(n, n, c) for n, c in zip(taps, (128, 256, 512), strict=True)]
    for branch in (1, 2, 3):
        assert ends[f"c{branch}"].shape == (1, side, side, 64)


def test_contextual_layers():
    params = abstract_variables(DeepContextual(2), 1)["params"]
    kernels = {name: layer["kernel"].shape for name, layer in params.items()}
    ups = {name: kernels.pop(name)[0] for name in list(kernels) if name[-2:] == "up"}
    assert ups == dict(c1_up=4, c2_up=8, c3_up=16)
    assert len(kernels) == 16
    trunk = {name: layer for name, layer in params.items() if name.startswith("conv")}
    assert len(trunk) == 10
    assert values(trunk) == 7_634_112
    # Any stages may have a branch; stride 1 needs no upsampling.
    params = abstract_variables(DeepContextual(2, taps=(3, 1), kernel_factor=1))
    assert params["params"]["c1_up"]["kernel"].shape == (4, 4, 256, 64)
    assert "c2_up" not in params["params"]
    assert params["params"]["c2_conv"]["kernel"].shape == (3, 3, 64, 64)


def receptive_widths(model, names, side, fill, height):
    """Columns of an image on which the central cell of each endpoint depends.

    Kernels are means and the image is constant, so that every cell of a pooling window
    ties and gets its share of the gradient.
    """

    def constant(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            return np.full(leaf.shape, 1 / math.prod(leaf.shape[:3]), np.float32)
        return np.full(leaf.shape, kind in ("scale", "var"), np.float32)

    variables = jax.tree_util.tree_map_with_path(constant, abstract_variables(model, 1))

    def maps(image):
        ends = model.apply(variables, image, train=False)[1]
        return [ends[name] for name in names]

    image = jnp.full((1, height, side, 1), fill)
    shapes = [x.shape for x in jax.eval_shape(maps, image)]
    # One compilation, called with the cotangent of one endpoint at a time.
    pullback = jax.jit(lambda cotangents: jax.vjp(maps, image)[1](cotangents)[0])
    widths = []
    for chosen in range(len(names)):
        cotangents = [np.zeros(shape, np.float32) for shape in shapes]
        _, rows, columns, _ = shapes[chosen]
        cotangents[chosen][0, rows // 2, columns // 2] = 1
        touched = np.flatnonzero(np.any(pullback(cotangents) != 0, axis=(0, 1, 3)))
        assert touched[0] > 0 and touched[-1] < side - 1
        widths.append(int(touched[-1] - touched[0] + 1))
    return widths


def test_contextual_receptive_fields():
    model = DeepContextual(1, widths=(1,) * 4, branch_channels=1)
    names = "conv2_2", "conv3_3", "conv4_3"
    assert receptive_widths(model, names, 112, 255.0, height=112) == [14, 40, 92]


@pytest.mark.parametrize(
    "fields",
    [{}, dict(upsampling="bilinear"), dict(kernel_factor=3, taps=(3, 1))],
    ids=["transposed", "bilinear", "factor3"],
)
def test_contextual_sum_and_alignment(fields):
    """Logits are the sum of the class maps, and no branch is shifted.

    With mirror-symmetric kernels the mirrored image gives the mirrored class maps.
    """
    fields = dict(taps=(2, 3)) | fields
    model = DeepContextual(
        2, widths=(2, 3, 2), convs=(1, 1, 1), branch_channels=2, **fields
    )
    variables = jax.tree.map(
        lambda x: (x + x[::-1] + x[:, ::-1] + x[::-1, ::-1]) / 2 if x.ndim == 4 else x,
        random_like(abstract_variables(model)),
    )
    x = images(1, 16, 24, 3)
    logits, ends = predict(model)(variables, x)
    _, mirrored = predict(model)(variables, x[:, ::-1, ::-1])
    maps = [np.asarray(ends[f"aux_logits_{i}"]) for i in (1, 2)]
    assert_close(logits, maps[0] + maps[1])
    for i, expected in enumerate(maps, start=1):
        assert_close(mirrored[f"aux_logits_{i}"][:, ::-1, ::-1], expected)


def test_auxiliary_weight():
    steps = [0, 9_999, 10_000, 19_999, 20_000, 90_000]
    weights = jax.vmap(losses.auxiliary_weight)(jnp.array(steps))
    np.testing.assert_allclose(weights, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)
    weight = losses.auxiliary_weight(7, initial=8.0, factor=0.5, every=2, floor=0.1)
    assert weight == 1.0


# --- FRRN -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant, up",
    [
        ("a", {"frru5_1": 1_057_568, "frru5_2": 725_792}),
        (
            "b",
            {
                "frru5_1": 2_778_656,
                "frru5_2": 2_778_656,
                "frru6_1": 1_057_568,
                "frru6_2": 725_792,
                "frru7_1": 725_792,
                "frru7_2": 725_792,
            },
        ),
    ],
)
def test_frrn_layer_table(variant, up):
    params = abstract_variables(FRRN(19, variant=variant))["params"]
    counts = {name: values(layer) for name, layer in params.items()}
    stem = counts.pop("conv1") + counts.pop("bn1")
    split = counts.pop("conv_split") + counts.pop("bn_split")
    assert (stem, split) == (3_696, 1_600)
    last = len(frrn.VARIANTS[variant].units)
    expected = dict.fromkeys(("ru1", "ru2", "ru3", "ru_out2", "ru_out3"), 41_664)
    expected |= {"ru_out1": 82_368, "classifier": 931, **up}
    expected |= {"frru1_1": 155_552, "frru1_2": 197_024, "frru1_3": 197_024}
    expected |= {"frru2_1": 559_904, "frru3_1": 2_115_104, "frru3_2": 2_778_656}
    expected |= {f"frru2_{i}": 725_792 for i in (2, 3, 4)}
    expected |= {"frru4_1": 2_778_656, "frru4_2": 2_778_656}
    expected |= {f"frru{last - 1}_1": 725_792, f"frru{last - 1}_2": 725_792}
    expected |= {f"frru{last}_1": 279_968, f"frru{last}_2": 197_024}
    assert counts == expected


@pytest.mark.parametrize("variant, size", [("a", (256, 512)), ("b", (512, 1024))])
def test_frrn_streams(variant, size):
    """The residual stream keeps its shape; the pooling stream goes down and up."""
    logits, ends = abstract_outputs(FRRN(19, variant=variant), (1, *size, 3))
    assert logits.shape == (1, *size, 19)
    assert ends["pooling0"].shape == (1, *size, 48)
    stages = frrn.VARIANTS[variant]
    rows = [ends[f"pooling{i + 1}"].shape[1] for i in range(len(stages.units))]
    expected = {
        "a": [128, 64, 32, 16, 32, 64, 128],
        "b": [256, 128, 64, 32, 16, 32, 64, 128, 256],
    }
    assert rows == expected[variant]
    for stage in range(len(rows) + 1):
        assert ends[f"residual{stage}"].shape == (1, *size, 32)
    assert f"residual{len(rows) + 1}" not in ends
    assert ends["merged"].shape == (1, *size, 96 + 32)


@pytest.mark.optimized  # gradients of all columns are not 0 otherwise
def test_frrn_receptive_fields():
    units, _, scales = (values[:5] for values in frrn.VARIANTS["b"])  # the encoder
    model = FRRN(
        1,
        stage_units=units,
        stage_channels=(1,) * 5,
        stage_scales=scales,
        width=1,
        residual_channels=1,
    )
    names = [f"pooling{i}" for i in (1, 2, 3, 4, 5)]
    widths = receptive_widths(model, names, 640, 255.0, height=32)
    assert widths == [42, 108, 176, 312, 584]


def test_frrn_zero_residuals_leave_the_stream():
    model = FRRN(2, **TINY_FRRN)
    variables = random_like(abstract_variables(model))
    x = images(1, 8, 12, 3)
    _, changed = predict(model)(variables, x)
    for name, layer in variables["params"].items():
        if name.startswith("frru"):
            layer["residual"] = jax.tree.map(np.zeros_like, layer["residual"])
    _, ends = predict(model)(variables, x)
    np.testing.assert_array_equal(ends["residual2"], ends["residual0"])
    np.testing.assert_array_equal(ends["merged"][..., -2:], ends["residual0"])
    assert np.any(changed["residual2"] != changed["residual0"])


def np_conv_bn(x, params, stats, number):
    x = np_conv(x, params[f"conv{number}"])
    return np_norm(x, params[f"bn{number}"], stats[f"bn{number}"])


def test_frru_like_numpy():
    rng = np.random.default_rng(1)
    y, z = rng.normal(size=(1, 3, 2, 3)), rng.normal(size=(1, 6, 4, 2))
    y, z = y.astype(np.float32), z.astype(np.float32)
    unit = frrn.FRRU(channels=4, scale=2)
    variables = random_like(
        jax.eval_shape(lambda: unit.init(jax.random.key(0), y, z, False))
    )
    params, stats = variables["params"], variables["batch_stats"]
    run = jax.jit(lambda variables: unit.apply(variables, y, z, False))
    actual_y, actual_z = run(variables)
    x = np.concatenate([y[0], np_pool(z[0], 2)], -1)
    x = relu(np_conv_bn(x, params, stats, 1))
    x = relu(np_conv_bn(x, params, stats, 2))
    assert_close(actual_y[0], x)
    residual = np_conv(x, params["residual"])
    assert_close(actual_z[0], z[0] + np.kron(residual, np.ones((2, 2, 1))))


@pytest.mark.parametrize("channels", [2, 3], ids=["identity", "projection"])
def test_ru_like_numpy(channels):
    x = np.random.default_rng(1).normal(size=(1, 6, 4, 2)).astype(np.float32)
    unit = frrn.RU(channels)
    variables = random_like(
        jax.eval_shape(lambda: unit.init(jax.random.key(0), x, False))
    )
    params, stats = variables["params"], variables["batch_stats"]
    assert ("project" in params) == (channels == 3)
    y = relu(np_conv_bn(x[0], params, stats, 1))
    y = np_conv_bn(y, params, stats, 2)
    shortcut = np_conv(x[0], params["project"]) if channels == 3 else x[0]
    actual = jax.jit(lambda variables: unit.apply(variables, x, False))(variables)[0]
    assert actual.min() < 0  # no ReLU at the end
    assert_close(actual, shortcut + y)


@pytest.mark.parametrize("ratio", [2, 3])
def test_unpool(ratio):
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    run = jax.jit(frrn.unpool, static_argnums=(1, 2))
    # Theano's rule: output i samples at i / ratio, the border repeats.
    at = [np.arange(n * ratio) / ratio for n in (3, 4)]
    grid = np.meshgrid(*at, indexing="ij")
    up = run(x, ratio, "bilinear_origin")
    for channel in range(2):
        expected = ndimage.map_coordinates(
            x[0, :, :, channel], grid, order=1, mode="nearest"
        )
        np.testing.assert_allclose(up[0, :, :, channel], expected, atol=1e-6)
    # And is the only one that is not symmetric.
    for rule in frrn.UNPOOLING:
        up, mirrored = run(x, ratio, rule), run(x[:, ::-1, ::-1], ratio, rule)
        assert up.shape == (1, 3 * ratio, 4 * ratio, 2)
        same = np.allclose(mirrored[:, ::-1, ::-1], up, atol=1e-6)
        assert same == (rule != "bilinear_origin")


def test_unpool_numbers():
    x = jnp.float32([1, 3, 7]).reshape(1, 1, 3, 1)
    up = frrn.unpool(x, 2, "bilinear_origin")
    np.testing.assert_allclose(up[0, :, :, 0], [[1, 2, 3, 5, 7, 7]] * 2)
    tiles = frrn.unpool(x, 4, "nearest")
    assert tiles[0, 3, :, 0].tolist() == [1] * 4 + [3] * 4 + [7] * 4
    np.testing.assert_array_equal(frrn.max_pool(tiles, 4), x)


def test_frrn_max_pool_and_its_gradient():
    """As ops.pool's; all of a window's gradient goes to its maxima, which often tie."""
    x = np.random.default_rng(0).integers(-9, -5, (2, 6, 12, 2)).astype(np.float32)
    pooled = frrn.max_pool(jnp.asarray(x), 3)
    np.testing.assert_array_equal(pooled, pool.max_pool(x, 3, stride=3))
    gradient = jax.jit(jax.grad(lambda x: (frrn.max_pool(x, 3) ** 2).sum()))(x)
    gradient = np.asarray(gradient)
    sums = gradient.reshape(2, 2, 3, 4, 3, 2).sum((2, 4))
    np.testing.assert_allclose(sums, 2 * pooled, rtol=1e-6)
    below = np.kron(pooled, np.ones((1, 3, 3, 1))) > x
    assert below.any() and not gradient[below].any()


def test_frrn_remat():
    """The same parameters, logits and batch statistics; the units are recomputed."""
    x = images(2, 8, 8, 3)
    fields = dict(stage_units=(1,), stage_channels=(2,), stage_scales=(2,), width=2)
    fields |= dict(residual_channels=1, first_units=0, last_units=1)
    results = []
    for remat in (False, True):
        model = FRRN(2, **fields, remat=remat)
        variables = random_like(abstract_variables(model))

        def train(params, model=model, stats=variables["batch_stats"]):
            return model.apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                mutable=["batch_stats"],
            )

        def loss(params, train=train):
            return train(params)[0][0].sum()

        traced = str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))
        assert ("remat" in traced or "checkpoint" in traced) == remat
        results.append(jax.jit(train)(variables["params"]))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *results)


# --- the bootstrapped loss ------------------------------------------------------------


def logits_of(nll):
    """Logits [..., 2] of class 0 having the cross-entropies `nll` > 0."""
    return np.stack([np.zeros_like(nll), np.log(np.expm1(nll))], -1)


def test_hard_pixels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 6, 7)).astype(np.uint8)  # cropped by 1
    labels[0, 1:3] = 255  # 10 valid pixels left in the first image
    inner = labels[:, 1:-1, 1:-1]
    log_p = scipy.special.log_softmax(logits.astype(np.float64), -1)
    index = np.where(inner == 255, 0, inner)[..., None]
    nll = -np.take_along_axis(log_p, index, -1)[..., 0] * (inner != 255)
    assert (nll[0] > 0).sum() == 10
    for kept in (1, 7, 15, 20, 99):  # 15: five zeros in the first image's mean
        worst = np.sort(nll.reshape(2, 20))[:, ::-1][:, :kept]
        total, count = losses.hard_pixels(
            logits, labels, losses.Options(hard_pixels=kept)
        )
        assert count == 2 * min(kept, 20)
        np.testing.assert_allclose(total, worst.sum(), rtol=1e-5)
        # Images weigh the same: the mean of the images' means.
        np.testing.assert_allclose(total / count, worst.mean(1).mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="pixels is 0"):
        losses.hard_pixels(logits, labels, losses.Options(hard_pixels=0))


def test_hard_pixels_of_the_paper():
    """K = 512 * 64: all losses equal; and K pixels of which the others are void."""
    labels = np.zeros((1, 256, 512), np.uint8)
    nll = np.full(labels.shape, 0.7, np.float32)
    total, count = losses.hard_pixels(logits_of(nll), labels)
    assert count == 32_768
    np.testing.assert_allclose(total / count, 0.7, rtol=1e-5)

    labels[:] = 255
    labels[0, ::2, ::2] = 0  # exactly 128 * 256 = K
    nll = np.random.default_rng(0).uniform(0.01, 3, labels.shape).astype(np.float32)
    total, count = losses.hard_pixels(logits_of(nll), labels)
    np.testing.assert_allclose(total / count, nll[0, ::2, ::2].mean(), rtol=1e-4)


def test_hard_pixels_gradient_and_sharding():
    rng = np.random.default_rng(0)
    nll = rng.permutation(np.arange(1, 33)).reshape(4, 2, 4) / 10
    labels = np.zeros((4, 2, 4), np.uint8)
    labels[3] = 255  # no valid pixel

    def loss(logits, labels):
        total, count = losses.hard_pixels(logits, labels, losses.Options(hard_pixels=3))
        return total / count

    step = jax.jit(jax.value_and_grad(loss))
    value, gradient = step(np.float32(logits_of(nll)), labels)
    worst = nll >= np.sort(nll.reshape(4, 8))[:, -3][:, None, None]
    worst[3] = False
    np.testing.assert_allclose(value, nll[worst].sum() / 12, rtol=1e-5)
    # d nll / d logit_0 = p_0 - 1, of the kept pixels only.
    expected = np.where(worst, np.exp(-nll) - 1, 0) / 12
    np.testing.assert_allclose(gradient[..., 0], expected, atol=1e-6)

    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        for x in (np.float32(logits_of(nll)), labels)
    ]
    other_value, other_gradient = step(*sharded)
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    np.testing.assert_allclose(other_gradient, gradient, atol=1e-7)
