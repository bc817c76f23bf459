"""Dilation (front end, context module) and DeepLab: published numbers and geometry."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segjax import models
from segjax.errors import UserError
from segjax.models import deeplab, dilation, vgg
from segjax.models.deeplab import DeepLab
from segjax.models.dilation import Context, Dilation
from segjax.ops import conv, geometry, resize
from segjax.published import NETWORKS

TINY_VGG = dict(widths=(3, 4, 4, 5, 6))
TINY_DILATION = dict(**TINY_VGG, fc_channels=8)
TINY_RESNET = dict(stage_sizes=(1, 1, 1, 1), width=2)
PIXELS = geometry.Grid()
# Compiles in half the time; nothing here runs for long.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def abstract_variables(model, shape=(1, 33, 33, 3)):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jnp.zeros(shape, jnp.uint8)
    return jax.eval_shape(lambda: model.init(keys, images, train=True))


def abstract_outputs(model, side, variables_side=33, train=False):
    shape = (2, *side, 3) if isinstance(side, tuple) else (1, side, side, 3)
    start = (1, variables_side, variables_side, 3)

    def run(variables):
        images = jnp.zeros(shape, jnp.uint8)
        if not train:
            return model.apply(variables, images, train=False)
        keys, mutable = {"dropout": jax.random.key(1)}, ["batch_stats"]
        return model.apply(variables, images, train=True, rngs=keys, mutable=mutable)[0]

    return jax.eval_shape(run, abstract_variables(model, start))


def values(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_variables(model, shape=(1, 33, 33, 3)):
    return random_like(abstract_variables(model, shape))


def random_like(tree):
    """Kernels that sum to zero: the few maps keep varying over the image."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            kernel = (
                rng.normal(size=leaf.shape) * (2 / math.prod(leaf.shape[:-1])) ** 0.5
            )
            return (kernel - kernel.mean((0, 1, 2))).astype(np.float32)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.uniform(0, 0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, tree)


def symmetric(variables):
    """The same with kernels that equal their mirror images."""
    return jax.tree.map(
        lambda x: (x + x[::-1] + x[:, ::-1] + x[::-1, ::-1]) / 2 if x.ndim == 4 else x,
        variables,
    )


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def predict(model):
    return jit(lambda variables, x: model.apply(variables, x, train=False))


def assert_close(actual, expected, tolerance=1e-3):
    """Relative to how much [N, H, W, C] maps vary over the image."""
    spread = np.std(expected, axis=(1, 2)).min()
    assert spread > 1e-2 * np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, atol=tolerance * spread, rtol=0)


# --- all ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_of",
    [
        lambda **k: Dilation(5, **TINY_DILATION, norm="batch", context="large", **k),
        lambda **k: Dilation(
            5, **TINY_DILATION, norm="batch", upsampling="interp", **k
        ),
        lambda **k: DeepLab(5, **TINY_RESNET, **k),
        lambda **k: DeepLab(
            5,
            backbone="vgg16",
            **TINY_VGG,
            fc6_channels=3,
            norm="batch",
            side_branches=True,
            scales=(1.0, 0.5),
            **k,
        ),
    ],
    ids=["dilation", "dilation_interp", "deeplab", "deeplab_vgg"],
)
def test_contract(model_of):
    model = model_of(dtype="bfloat16")
    variables = abstract_variables(model)
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.float32.dtype}
    assert model.tiling == geometry.ANY_SIZE
    for train in (True, False):
        logits, ends = abstract_outputs(model, (40, 33), train=train)
        assert logits.shape == (2, 40, 33, 5)
        assert logits.dtype == ends["scores"].dtype == jnp.float32
        assert ends.get("conv5_3", ends.get("block4")).dtype == jnp.bfloat16
        several = isinstance(model, DeepLab) and len(model.scales) > 1
        assert ("scale_logits" in ends) == several


def test_names():
    for name, model in (("dilation", Dilation), ("deeplab", DeepLab)):
        assert models.MODELS[name] is model
        assert None not in models.model_fields(name).values()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Dilation(2, context="lage"), "did you mean 'large'"),
        (
            lambda: Dilation(2, padding="mirror"),
            r"model.padding \(Dilation\): .*known: reflect, ",
        ),
        (lambda: Dilation(2, context_rates=(1, 0)), "context_rates .* is .* positive"),
        (
            lambda: Dilation(2, fc6_rate=0),
            r"model.fc6_rate \(Dilation\) is 0, expected an integer of at least 1",
        ),
        (lambda: Dilation(2, context_noise=-1.0), "context_noise .* is -1.0, expected"),
        (
            lambda: DeepLab(2, rates=()),
            r"model.rates \(DeepLab\) is .* at least 1 value",
        ),
        (
            lambda: DeepLab(2, fc6_kernel=4, rates=(4, 3)),
            "rates .*: 3 with .*kernel of 4",
        ),
        (
            lambda: DeepLab(2, scales=(0.5,)),
            r"model.scales \(DeepLab\) is \(0.5,\), .*1.0",
        ),
        (lambda: DeepLab(2, side_branches=True), "side_branches .*: .*'resnet101'"),
        (lambda: DeepLab(2, backbone="vgg"), "did you mean 'vgg16'"),
        (
            lambda: DeepLab(2, fc6_kernel=0),
            r"model.fc6_kernel \(DeepLab\) is 0, expected",
        ),
        (lambda: DeepLab(2, fc6_channels=-1), "fc6_channels .* is -1, .* at least 0"),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_interpolate():
    rows = jnp.array([[0, 8, 8], [16, 24, 24], [0, 0, 0]], jnp.float32)
    x = rows.reshape(1, 3, 3, 1)
    y = resize.interpolate(x, geometry.Grid(Fraction(4)), target=PIXELS, size=(6, 5))[
        0, :, :, 0
    ]
    assert y[0].tolist() == [0, 2, 4, 6, 8]
    assert y[1].tolist() == [4, 6, 8, 10, 12]
    assert y[4].tolist() == [16, 18, 20, 22, 24]
    assert y[5].tolist() == [12, 13.5, 15, 16.5, 18]
    # Corners on corners: the align-corners resize, up and down.
    x = np.random.default_rng(0).normal(size=(1, 41, 31, 2)).astype(np.float32)
    up = resize.interpolate(
        jnp.asarray(x), geometry.Grid(Fraction(8)), target=PIXELS, size=(321, 241)
    )
    np.testing.assert_allclose(
        up, resize.resize_bilinear(jnp.asarray(x), (321, 241), True), atol=1e-5
    )
    down = resize.interpolate(
        up, PIXELS, target=geometry.Grid(Fraction(8)), size=(41, 31)
    )
    np.testing.assert_array_equal(down, up[:, ::8, ::8])
    # Half a pixel off, and beyond the last cell.
    grid = geometry.Grid(Fraction(8), Fraction(1, 2))
    line = jnp.arange(3.0).reshape(1, 1, 3, 1)
    y = resize.interpolate(line, grid, target=PIXELS, size=(1, 20))[0, 0, :, 0]
    np.testing.assert_allclose(y, np.clip((np.arange(20) - 0.5) / 8, 0, 2), atol=1e-6)


# --- Dilation -------------------------------------------------------------------------


def released(name):
    network = NETWORKS[name]
    return dict(network.fields, num_classes=network.classes)


@pytest.mark.parametrize(
    "fields, expected",
    [
        (dict(num_classes=21, context="none"), 134_346_581),
        (dict(num_classes=19, context="none"), 134_338_387),
        (dict(num_classes=11, context="none"), 134_305_611),
        (released("dilation8-voc"), 134_346_581 + 6_803_139),
        (released("dilation8-camvid"), 134_305_611 + 7_832),
        (released("dilation7-kitti"), 134_305_611 + 6_732),
        (released("dilation10-cityscapes"), 134_338_387 + 29_792),
        (dict(num_classes=21), 134_346_581 + 28_392),
    ],
)
def test_dilation_counts(fields, expected):
    assert values(abstract_variables(Dilation(**fields))["params"]) == expected


def context_variables(module, classes):
    scores = jnp.zeros((1, 4, 4, classes))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), scores))


def test_context_counts():
    large = context_variables(Context("large"), 21)["params"]
    assert [values(large[f"conv{i}"]) for i in range(1, 8)] + [
        values(large["final"])
    ] == [7_980, 15_918, 31_836, 127_176, 508_368, 2_032_800, 4_064_928, 14_133]
    seven = NETWORKS["dilation7-kitti"].fields["context_rates"]
    ten = NETWORKS["dilation10-cityscapes"].fields["context_rates"]
    eight = Context().rates
    for rates, expected in (
        (seven, {21: 24_402, 11: 6_732, 19: 19_988}),
        (eight, {21: 28_392, 11: 7_832, 19: 23_256}),
        (ten, {21: 36_372, 11: 10_032, 19: 29_792}),
    ):
        for classes, count in expected.items():
            assert values(context_variables(Context(rates=rates), classes)) == count


@pytest.mark.parametrize(
    "side, cells",
    [(380, 1), (500, 16), (628, 32), (852, 60), (900, 66), (1100, 91), (1396, 128)],
)
def test_dilation_sizes(side, cells):
    model = Dilation(2, **TINY_DILATION, padding="valid")
    logits, ends = abstract_outputs(model, side, variables_side=380)
    assert ends["final"].shape == ends["scores"].shape == (1, cells, cells, 2)
    assert (
        logits.shape == (1, side - 372, side - 372, 2) == (1, 8 * cells, 8 * cells, 2)
    )


def test_dilation_geometry():
    model = Dilation(2, **TINY_DILATION, padding="valid")
    assert model.margin == 186
    assert model.grid == geometry.Grid(Fraction(8), Fraction(379, 2))
    assert model.tiling == geometry.Tiling(step=8, offset=4, margin=186, minimum=380)
    # fc6's rate is the only ablated one: 3 cells of 8 pixels for each unit.
    assert Dilation(2, fc6_rate=1).margin == 186 - 3 * 24
    logits, _ = abstract_outputs(
        Dilation(2, **TINY_DILATION, padding="valid", fc6_rate=1), 244, 236
    )
    assert logits.shape == (1, 16, 16, 2)
    with pytest.raises(UserError, match="height is 379.*nearest valid value is 380"):
        abstract_variables(model, (1, 379, 380, 3))

    sides = {n: x.shape[1] for n, x in abstract_outputs(model, 900, 380)[1].items()}
    expected = dict(pool1=448, pool2=222, pool3=108, conv4_3=102, conv5_3=90, fc6=66)
    assert {name: sides[name] for name in expected} == expected
    # The input of the KITTI network: 158.5 columns but for the ceil-mode poolings.
    trunk = vgg.DilatedVGG(dilation.RATES, dilation.POOLS, False, (1, 1, 1, 1, 1))
    x = jnp.zeros((1, 852, 1640, 3))
    ends, _ = jax.eval_shape(
        lambda: trunk.init_with_output(jax.random.key(0), x, False)
    )
    fc6_loses = 4 * (7 - 1)
    assert ends["conv5_3"].shape == (1, 60 + fc6_loses, 159 + fc6_loses, 1)


@pytest.mark.parametrize(
    "padding, upsampling", [("reflect", "interp"), ("zero", "deconv")]
)
def test_dilation_any_size(padding, upsampling):
    model = Dilation(2, **TINY_DILATION, padding=padding, upsampling=upsampling)
    for side in range(1, 10):
        logits, _ = abstract_outputs(model, (side, 18 - side), 16)
        assert logits.shape == (2, side, 18 - side, 2)


def test_dilation_padding():
    """Padded by itself or by hand, as far as the trunk needs it; nothing shifts."""
    fields = dict(**TINY_DILATION, context_rates=(1, 2))
    valid = predict(Dilation(2, padding="valid", **fields))
    variables = symmetric(random_variables(Dilation(2, **fields)))
    x = images(1, 24, 13, 3).astype(np.float32)
    mean = np.float32([122.67892, 116.66877, 104.00699])
    around = (0, 0), (186, 186), (186, 186 + 3), (0, 0)
    for padding, padded in (
        ("reflect", np.pad(x, around, mode="reflect")),
        ("zero", np.pad(x - mean, around) + mean),
    ):
        logits, ends = predict(Dilation(2, padding=padding, **fields))(variables, x)
        expected, _ = valid(variables, padded)
        assert expected.shape == (1, 24, 16, 2)
        assert_close(logits, expected[:, :, :13])

    # Whole cells: the mirrored image gives the mirrored logits, which are the scores
    # upsampled by the Cityscapes network's layer: kernel 16, stride 8, padding 4.
    logits, ends = valid(variables, padded)
    mirrored, _ = valid(variables, padded[:, ::-1, ::-1])
    assert_close(mirrored[:, ::-1, ::-1], logits)
    kernel = conv.bilinear_kernel(16)[:, :, None, None] * np.eye(2)
    layer = conv.conv_transpose(
        ends["scores"], jnp.asarray(kernel, jnp.float32), stride=8, padding=4
    )
    assert_close(layer, logits, 1e-5)


def test_dilation_interpolates_probabilities():
    model = Dilation(
        2, **TINY_DILATION, context="none", upsampling="interp", padding="zero"
    )
    variables = random_variables(model)
    logits, ends = predict(model)(variables, images(1, 17, 16, 3))
    scores = ends["scores"]
    assert ends["scores"].shape == (1, 3, 3, 2)  # up to pixel 16 of 17, 16 behind 15
    log_p = jax.nn.log_softmax(scores)
    np.testing.assert_allclose(logits[:, ::8, ::8], log_p[:, :, :2], atol=1e-5)
    p = jnp.exp(log_p)
    between = (p[:, :, 0] + 3 * p[:, :, 1]) / 4  # pixel 6
    assert_close(jnp.exp(logits[:, ::8, 6:7]), between[:, :, None])


def test_context_padding():
    voc = Context("large", padding="once")
    scores = jnp.zeros((1, 66, 66, 21))
    (out, maps), _ = jax.eval_shape(
        lambda: voc.init_with_output(jax.random.key(0), scores)
    )
    assert [x.shape[1] for x in maps.values()] == [130, 128, 124, 116, 100, 68, 66]
    widths = [42, 42, 84, 168, 336, 672, 672]
    assert [x.shape[3] for x in maps.values()] == widths
    assert out.shape == (1, 66, 66, 21)

    # Padded once or layer by layer: the same away from the border only.
    rates = (1, 2, 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 19, 19, 2)).astype(np.float32)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32),
        context_variables(Context(rates=rates), 2),
    )
    once, layerwise = (
        jit(Context(rates=rates, padding=padding).apply)(variables, x)[0]
        for padding in ("once", "layers")
    )
    reach = sum(rates)
    inner = slice(reach, -reach)
    assert_close(once[:, inner, inner], layerwise[:, inner, inner], 1e-5)
    assert np.abs(once - layerwise).max() > 0.1 * float(layerwise.std())


@pytest.mark.parametrize(
    "rates, cells, pixels",
    [
        (NETWORKS["dilation7-kitti"].fields["context_rates"], 35, 652),
        (Context().rates, 67, 908),
        (NETWORKS["dilation10-cityscapes"].fields["context_rates"], 259, 2444),
    ],
)
def test_context_receptive_field(rates, cells, pixels):
    module = Context(rates=rates)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), context_variables(module, 1))
    side = cells + 10

    @jit
    def reach(x):
        return jax.grad(lambda x: module.apply(ones, x)[0][0, side // 2, 1, 0])(x)

    rows = np.flatnonzero(np.any(reach(jnp.ones((1, side, 3, 1)))[0], axis=(1, 2)))
    assert rows[0] == side // 2 - cells // 2 and rows[-1] == side // 2 + cells // 2
    assert 380 + 8 * (cells - 1) == pixels


def test_identity_initialization():
    def kernel_of(groups, noise, shape):
        init = dilation.identity_init(groups, noise)
        return np.array(jit(lambda: init(jax.random.key(0), shape))())

    kernel = kernel_of(2, 0.0, (3, 3, 4, 8))
    rows = kernel[1, 1].T
    assert rows[:4].tolist() == [[0.25, 0.25, 0, 0]] * 4
    assert rows[4:].tolist() == [[0, 0, 0.25, 0.25]] * 4
    kernel[1, 1] = 0
    assert not kernel.any()
    # Noise everywhere else, relative to the taps, which it does not change.
    noisy = kernel_of(8, 0.1, (3, 3, 8, 32))
    taps = np.repeat(np.eye(8, dtype=bool), 4, axis=1)
    np.testing.assert_array_equal(noisy[1, 1][taps], 0.25)
    noisy[1, 1][taps] = np.nan
    assert np.nanstd(noisy) == pytest.approx(0.1 * 0.25, rel=0.1)

    # Without noise the module is the identity of what is not negative.
    scores = np.random.default_rng(0).normal(size=(1, 6, 5, 3)).astype(np.float32)
    for form, rates in (("basic", (1, 2)), ("large", (2, 4, 1))):
        module = Context(form, rates=rates, noise=0.0)

        @jit
        def fresh(x, module=module):
            return module.init_with_output(jax.random.key(0), x)[0][0]

        np.testing.assert_allclose(
            fresh(scores), np.maximum(scores, 0), atol=1e-6, err_msg=form
        )


def test_dilation_initialization():
    model = Dilation(16, widths=(1, 1, 1, 1, 1), fc_channels=256, context="none")
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    x = jnp.zeros((1, 8, 8, 3))
    final = jit(lambda: model.init(keys, x, train=True)["params"]["final"])()
    assert float(final["kernel"].std()) == pytest.approx(0.001, rel=0.05)
    assert not np.any(final["bias"])


def test_dilation_atrous_consistency():
    """The front end computes what VGG16 would if pooling 4 and 5 only took every
    second cell, and more between them: with conv5 at rate 2 and fc6 at rate 4.

    (It has no poolings there, as the paper removes them.) Without padding exactly, for
    any size: the height is odd, the width even.
    """
    widths = (2, 3, 3, 4, 4)
    dense = vgg.DilatedVGG(dilation.RATES, dilation.POOLS, False, widths)
    sampled = (*dilation.POOLS[:3], (1, 2, 0), (1, 2, 0))
    strided = vgg.DilatedVGG((1,) * 5, sampled, False, widths)
    x = np.random.default_rng(1).normal(size=(1, 413, 420, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: dense.init(jax.random.key(0), x, False))
    variables = random_like(shapes)
    fc6 = np.random.default_rng(2).normal(size=(7, 7, 4, 2)).astype(np.float32)

    @jit
    def run(x):
        fine = dense.apply(variables, x, False)["conv5_3"]
        coarse = strided.apply(variables, x, False)["pool5"]
        return conv.conv2d(fine, fc6, dilation=4), conv.conv2d(coarse, fc6)

    fine, coarse = run(x)
    shared = fine[:, ::4, ::4]
    assert shared.shape[1:3] == (2, 2)
    # (Ceil-mode windows of one cell may begin behind the map, and end in a third cell.)
    assert_close(shared, coarse[:, :2, :2])


# --- DeepLab --------------------------------------------------------------------------


def variant_params(name):
    # Scales share their parameters, and would be traced one by one.
    fields = {**NETWORKS[name].fields, "scales": (1.0,)}
    return abstract_variables(DeepLab(21, **fields))["params"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("deeplab-7x7", 134_346_581),
        ("deeplab-v1", 65_140_565),
        ("deeplab-4x4", 65_140_565),
        ("deeplab-largefov", 20_505_429),
        ("deeplab-msc", 66_346_686),
        ("deeplab-msc-largefov", 21_711_550),
        ("deeplab-v2-vgg16-aspp-s", 37_877_652),
        ("deeplab-v2-vgg16-aspp-l", 37_877_652),
        ("deeplab-v2-resnet101-largefov", 42_887_253),
        ("deeplab-v2-resnet101", 44_048_532),
    ],
)
def test_deeplab_counts(name, expected):
    params = variant_params(name)
    assert values(params) == expected
    backbone = 42_500_160 if "resnet101" in name else 14_714_688
    assert values(params["backbone"]) == backbone
    assert values(params.get("sides", ())) == (1_206_121 if "msc" in name else 0)


def test_deeplab_head_counts():
    def head(name):
        layers = variant_params(name)["head"]
        return {layer: values(leaves) for layer, leaves in layers.items()}

    largefov = dict(fc6=4_719_616, fc7=1_049_600, fc8=21_525)
    assert head("deeplab-largefov") == largefov
    wide = dict(fc6=102_764_544, fc7=16_781_312, fc8=86_037)
    assert head("deeplab-7x7") == wide
    assert head("deeplab-4x4") == wide | dict(fc6=33_558_528)
    branches = {f"fc1_{i}": 387_093 for i in (1, 2, 3, 4)}
    assert head("deeplab-v2-resnet101") == branches
    assert sum(head("deeplab-v2-vgg16-aspp-l").values()) == 4 * 5_790_741


@pytest.mark.parametrize(
    "name, side, sizes",
    [
        ("deeplab-largefov", 321, (161, 81, 41, 41, 41)),
        ("deeplab-largefov", 513, (257, 129, 65, 65, 65)),
        ("deeplab-msc-largefov", 321, (161, 81, 41, 41, 41)),
        ("deeplab-v1", 306, (154, 78, 40, 39, 39)),
        ("deeplab-v1", 514, (258, 130, 66, 65, 65)),
        ("deeplab-v2-vgg16-aspp-l", 321, (161, 81, 41, 41, 41)),
    ],
)
def test_deeplab_vgg_sizes(name, side, sizes):
    fields = {**NETWORKS[name].fields, **TINY_VGG, "fc6_channels": 3}
    logits, ends = abstract_outputs(DeepLab(2, **fields), side)
    assert logits.shape == (1, side, side, 2)
    assert tuple(ends[f"pool{i}"].shape[1] for i in range(1, 6)) == sizes
    assert ends["scores"].shape == (1, sizes[-1], sizes[-1], 2)
    assert ("pool5a" in ends) == ("largefov" in name)


def test_deeplab_grids():
    def grid(name):
        return DeepLab(2, **NETWORKS[name].fields).grid

    # Cells on pixels 8i; the ICLR networks' on 8i + 1/2.
    for name in ("deeplab-largefov", "deeplab-v2-vgg16-aspp-l", "deeplab-v2-resnet101"):
        assert grid(name) == geometry.Grid(Fraction(8))
    assert grid("deeplab-v1") == geometry.Grid(Fraction(8), Fraction(1, 2))
    trunk = vgg.dilated(8, pool_kernel=3)
    assert trunk.rates == (1, 1, 1, 1, 2)
    assert trunk.pools == ((3, 2, 1),) * 3 + ((3, 1, 1),) * 2
    assert vgg.dilated(8, pool_kernel=2).pools == (
        *((2, 2, 1),) * 3,
        *((2, 1, 0), (3, 1, 1)),
    )
    assert vgg.dilated(16).rates == (1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    "name, height, pixels", [("deeplab-largefov", 1, 435), ("deeplab-v1", 18, 308)]
)
def test_deeplab_receptive_field(name, height, pixels):
    """Where a constant image has a gradient: all cells of a pooling window tie.

    The even kernel of "deeplab" has no tap in the row of the cell, but two cells below.
    """
    fields = dict(widths=(1, 1, 1, 1, 1), fc6_channels=1, dropout=0.0)
    model = DeepLab(1, **{**NETWORKS[name].fields, **fields})
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), abstract_variables(model))
    middle = 60

    @jit
    def gradient(x):
        def score(x):
            return model.apply(ones, x, train=False)[1]["scores"][0, 0, middle, 0]

        return jax.grad(score)(x)

    # Brighter than the mean color that surrounds it.
    x = jnp.full((1, height, 16 * middle, 3), 125.0)
    seen = np.flatnonzero(np.any(gradient(x), axis=(0, 1, 3)))
    center = model.grid.start + middle * model.grid.step
    assert seen[-1] - seen[0] + 1 == pixels
    assert Fraction(int(seen[0] + seen[-1]), 2) == center


def test_deeplab_multi_scale_sizes():
    fields = {**TINY_RESNET, **NETWORKS["deeplab-v2-resnet101"].fields}
    model = DeepLab(2, **fields)
    assert model.scale_strides == (8, 8, 16)
    for side, cells, half in ((321, 41, 21), (513, 65, 33)):
        logits, ends = abstract_outputs(model, side)
        assert logits.shape == (1, side, side, 2)
        assert ends["scores"].shape[1] == cells
        # Scale 0.75 is interpolated to the cells of scale 1, scale 0.5 is raw.
        sides = [x.shape[1] for x in ends["scale_logits"]]
        assert sides == [cells, cells, half]
        labels = np.zeros((side, side))
        assert [len(labels[::s]) for s in model.scale_strides] == sides
    single = DeepLab(2, **TINY_RESNET)
    for side, cells in ((241, 31), (161, 21), (385, 49), (257, 33)):
        assert abstract_outputs(single, side)[1]["scores"].shape[1] == cells


def test_deeplab_multi_scale_fusion():
    """The maximum over what the same network says of resized images."""
    fields = dict(backbone="vgg16", **TINY_VGG, rates=(1, 2))
    variables = random_variables(DeepLab(2, **fields))
    single = predict(DeepLab(2, **fields))
    x = jnp.asarray(images(1, 33, 65, 3), jnp.float32)
    logits, ends = predict(DeepLab(2, scales=(1.0, 0.75, 0.5), **fields))(variables, x)
    raw = []
    for size in ((33, 65), (25, 49), (17, 33)):
        resized = resize.resize_bilinear(x, size, align_corners=True)
        raw.append(single(variables, resized)[1]["scores"])
    assert [x.shape[1:3] for x in raw] == [(5, 9), (4, 7), (3, 5)]
    at_one = [resize.resize_bilinear(y, (5, 9), align_corners=True) for y in raw]
    for found, expected in zip(ends["scale_logits"], (at_one[0], at_one[1], raw[2])):
        assert_close(found, expected)
    fused = np.maximum.reduce([np.asarray(y) for y in at_one])
    assert_close(ends["scores"], fused)
    assert all(np.any(fused == y) for y in at_one)  # every scale wins somewhere
    full = resize.resize_bilinear(jnp.asarray(fused), (33, 65), align_corners=True)
    assert_close(logits, full)


@pytest.mark.parametrize(
    "fields",
    [
        dict(**TINY_RESNET, rates=(1, 2)),
        dict(
            **NETWORKS["deeplab-msc-largefov"].fields | TINY_VGG | {"fc6_channels": 3},
            side_channels=2,
        ),
        NETWORKS["deeplab-v1"].fields | TINY_VGG | {"fc6_channels": 3},
    ],
    ids=["resnet", "msc_largefov", "first"],
)
def test_deeplab_alignment(fields):
    """Mirrored images give mirrored logits; other sizes are filled with the mean."""
    model = DeepLab(2, **fields)
    variables = symmetric(random_variables(model))
    run = predict(model)
    side = 34 if fields.get("pool_kernel") == 2 else 33
    mean = np.float32([122.67892, 116.66877, 104.00699])
    x = images(1, side, side + 8, 3).astype(np.float32)
    logits, ends = run(variables, x)
    if "pool5a" in ends:  # Caffe's mean counts the padding
        pooled, mean5 = np.asarray(ends["pool5"]), ends["pool5a"]
        corner = pooled[:, :2, :2].sum((1, 2)) / 9
        np.testing.assert_allclose(mean5[:, 0, 0], corner, rtol=1e-5)
        inside = pooled[:, 1:4, :3].mean((1, 2))
        np.testing.assert_allclose(mean5[:, 2, 1], inside, rtol=1e-5)
    mirrored, _ = run(variables, x[:, ::-1, ::-1])
    assert_close(mirrored[:, ::-1, ::-1], logits)
    x[:, side - 3 :] = x[:, :, side + 4 :] = mean
    filled, _ = run(variables, x)
    part, _ = run(variables, x[:, : side - 3, : side + 4])
    assert_close(part, filled[:, : side - 3, : side + 4])


@pytest.mark.parametrize(
    "channels, layers", [(0, ("fc1",)), (4, ("fc6", "fc7", "fc8"))]
)
def test_deeplab_aspp_is_a_sum(channels, layers):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 9, 7, 3)).astype(np.float32)
    common = dict(
        dropout=0.5,
        norm="none",
        bn_momentum=0.9,
        bn_unbiased=False,
        dtype="float32",
    )
    one, four = (
        deeplab.Head(2, rates=(2,) * n, kernel=3, channels=channels, **common)
        for n in (1, 4)
    )
    shapes = jax.eval_shape(lambda: one.init(jax.random.key(0), x, False, False))
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"]
    )
    assert set(params) == set(layers)
    repeated = {f"{n}_{i}": params[n] for n in layers for i in (1, 2, 3, 4)}
    single = one.apply({"params": params}, x, False, False)
    assert_close(four.apply({"params": repeated}, x, False, False), 4 * single)


def test_deeplab_vgg_atrous_consistency():
    """Dilated, the network computes the strided network's maps and more between them.

    That holds for convolutions, for the first pooling that loses its stride and, with
    rates that grow likewise, for the head. The height is even and the width odd.

    DeepLab does not dilate poolings, so with stride 8 it ends at pool5, the second
    pooling without a stride, which sees cells 8 pixels apart. With windows dilated like
    conv5 it would be that of stride 16, and so would be what follows.
    """
    x = images(1, 64, 33, 3)
    maps = {}
    for stride in (32, 16, 8):
        fields = dict(backbone="vgg16", widths=(2, 2, 3, 3, 4), rates=(32 // stride,))
        model = DeepLab(2, output_stride=stride, **fields)
        if not maps:
            variables = random_variables(model)
        maps[stride] = predict(model)(variables, x)[1]
        assert maps[stride]["scores"].shape[1:3] == (64 // stride + 1, 32 // stride + 1)
    for name in ("pool5", "scores"):
        assert_close(maps[16][name][:, ::2, ::2], maps[32][name])
    for name in ("pool4", "conv5_3"):
        assert_close(maps[8][name][:, ::2, ::2], maps[16][name])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(maps[8]["pool5"][:, ::2, ::2], maps[16]["pool5"], 0.1)
    window = np.zeros((5, 5), bool)
    window[::2, ::2] = True
    for channel in range(4):
        pooled = ndimage.maximum_filter(
            np.asarray(maps[8]["conv5_3"][0, :, :, channel]),
            footprint=window,
            mode="constant",
            cval=-np.inf,
        )
        np.testing.assert_allclose(
            pooled[::2, ::2], maps[16]["pool5"][0, :, :, channel], rtol=1e-3
        )


def test_deeplab_frozen_statistics():
    model = DeepLab(2, **TINY_RESNET, rates=(1, 2), frozen_bn=True)
    variables = random_variables(model)
    x = images(1, 33, 17, 3)

    @jit
    def train(variables):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    (logits, _), updated = train(variables)
    jax.tree.map(
        np.testing.assert_array_equal,
        updated.get("batch_stats", variables["batch_stats"]),
        variables["batch_stats"],
    )
    assert_close(logits, predict(model)(variables, x)[0])
    assert len(jax.tree.leaves(abstract_variables(model)["batch_stats"])) > 20
