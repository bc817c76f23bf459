"""Counts, strides and receptive fields: published, counted by hand, by brute force."""

import functools
import math
import re
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from experiments import summarize
from experiments.shared import tables
from segjax import models
from segjax.analysis import counts, dependencies, published, receptive_field, tracing
from segjax.analysis.published import NUMBERS
from segjax.analysis.summary import Layer, Map, Summary, summary
from segjax.errors import UserError
from segjax.models import frrn, layers, resnet
from segjax.models.classifier import Classifier
from segjax.models.contextual import DeepContextual
from segjax.models.deeplab import DeepLab
from segjax.models.dilation import Dilation
from segjax.models.fcn import FCN
from segjax.models.frrn import FRRN
from segjax.models.network import abstract_variables
from segjax.models.pspnet import PSPNet
from segjax.models.unet import UNet
from segjax.ops import conv, geometry, pool, resize
from segjax.published import NETWORKS
from segjax.tables import markdown_table, text_table

# The others are left to the program and to the tests of their models, for the time
# it takes to trace them.
QUICK = [
    "fcn-alexnet",
    "deeplab-largefov",
    "dilation-frontend",
    "unet",
    "unet-camvid",
    "contextual",
    "frrn-a",
    "pspnet50-ade20k",
]


def traced(function, *shapes, dtype=np.float32):
    arguments = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    return jax.make_jaxpr(function)(*arguments).jaxpr


class Toy(nn.Module):
    """`body(x)` of float images [N, H, W, 1], as a model; no parameters but `head`."""

    body: object = lambda x: x
    step: int = 1

    @property
    def tiling(self):
        return geometry.Tiling(self.step, 0, 0, self.step)

    @nn.compact
    def __call__(self, images, train):
        x = self.body(images.astype(jnp.float32))
        return layers.Conv(1, 1, name="head")(x), {"body": x}


# --- published networks ---------------------------------------------------------------


DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def document_rows():
    """The rows of the tables of docs/models.md, as tuples of cells."""
    lines = DOCUMENT.read_text().splitlines()
    rows = (line.strip("|").split("|") for line in lines if line.startswith("|"))
    return [tuple(cell.strip() for cell in row) for row in rows]


@pytest.mark.parametrize("name", QUICK)
def test_published_numbers(name):
    """Computed, and as the document has them."""
    network = NETWORKS[name]
    found = summary(summarize.build(network), network.image)
    checked = summarize.checks(name, found)
    assert len(checked) == len(NUMBERS[name]) > 0
    for check in checked:
        assert check.equal == (not check.note), check
    rows = document_rows()
    expected = [
        *tables.model_rows({name: found})[1:],
        *summarize.check_rows(checked)[1:],
    ]
    assert [row for row in expected if row not in rows] == []


def test_parameters_of_all_published_networks():
    """Those of the document, and all that are known, from shapes alone."""
    overview = {}
    for row in document_rows():
        if row[0] in NETWORKS and len(row) == 10:
            overview[row[0]] = row[3]
    assert overview.keys() == NETWORKS.keys() == NUMBERS.keys()
    known = 0
    for name, network in NETWORKS.items():
        model = summarize.build(network)
        params = abstract_variables(model, network.image[2])["params"]
        sizes = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }
        assert f"{sum(sizes.values()):,}" == overview[name], name
        for number in NUMBERS[name]:
            match = re.fullmatch("parameters(| of (.*)| without (.*))", number.quantity)
            if match and "M" not in number.value:
                some, other = match[2] or "", match[3]
                count = sum(
                    size
                    for path, size in sizes.items()
                    if path.startswith(some) and not (other and path.startswith(other))
                )
                assert f"{count:,}" == number.value, (name, number)
                known += 1
    assert known > len(NETWORKS)


def fields_of(names, sides):
    return {name: int(side) for name, side in zip(names.split(), sides.split())}


# Receptive fields of all layers, from the tables of the networks' layers. They do not
# depend on the number of channels.
FIELDS = {
    "alexnet": (
        FCN(2, backbone="alexnet", skips=32, widths=(2,) * 5, fc_channels=2),
        fields_of(
            "conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool5 fc6 fc7 score_fr",
            "11 19 51 67 99 131 163 195 355 355 355",
        ),
    ),
    "googlenet": (
        Classifier(2, backbone="googlenet", widths=(2,)),
        fields_of("conv1 pool1 conv2 pool2 pool3 pool4 pool5", "7 11 19 27 107 459 907")
        | {
            f"inception_{block}": side
            for block, side in fields_of(
                "3a 3b 4a 4b 4c 4d 4e 5a 5b", "59 91 171 235 299 363 427 587 715"
            ).items()
        },
    ),
    "largefov": (
        DeepLab(
            2,
            **NETWORKS["deeplab-largefov"].fields
            | dict(widths=(2,) * 5, fc6_channels=2),
        ),
        fields_of(
            "conv1_1 conv1_2 pool1 conv2_1 conv2_2 pool2 conv3_1 conv3_2 conv3_3 pool3 "
            "conv4_1 conv4_2 conv4_3 pool4 conv5_1 conv5_2 conv5_3 pool5 pool5a fc6",
            "3 5 7 11 15 19 27 35 43 51 67 83 99 115 147 179 211 227 243 435",
        ),
    ),
    "resnet101": (
        DeepLab(2, rates=(6, 12, 18, 24), width=1),
        fields_of(
            "pool1 block1 block2 block3 block4 fc1_1 fc1_2 fc1_3 fc1_4",
            "11 35 99 835 1027 1123 1219 1315 1411",
        ),
    ),
    "dilation10": (
        Dilation(
            2,
            context_rates=(1, 1, 2, 4, 8, 16, 32, 64, 1),
            widths=(2,) * 5,
            fc_channels=2,
        ),
        fields_of(
            "conv1_1 conv1_2 pool1 conv2_1 conv2_2 pool2 conv3_1 conv3_2 conv3_3 pool3 "
            "conv4_1 conv4_2 conv4_3 conv5_1 conv5_2 conv5_3 fc6 final",
            "3 5 6 10 14 16 24 32 40 44 60 76 92 124 156 188 380 380",
        )
        | {
            f"context/conv{i}": 380 + 8 * (cells - 1)
            for i, cells in enumerate((3, 5, 9, 17, 33, 65, 129, 257, 259), start=1)
        },
    ),
    "contextual": (
        DeepContextual(2, widths=(2,) * 4, branch_channels=2),
        fields_of(
            "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 "
            "conv4_3",
            "3 5 10 14 24 32 40 60 76 92",
        ),
    ),
    "pspnet50": (
        PSPNet(2, width=2, stride_in_1x1=True, bins=()),
        {"block4": 487},
    ),
    "pspnet101": (
        PSPNet(2, width=2, backbone="resnet101", bins=()),
        {"block4": 1023},
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_receptive_fields_of_layers(name):
    model, expected = FIELDS[name]
    side = geometry.nearest_sides(model.tiling, 64)[-1]
    found = summary(model, (side, side, 3), activations=False)
    seen = {layer.name: layer.receptive_field for layer in found.layers}
    seen = {
        re.sub("^(backbone|head)/", "", layer): field for layer, field in seen.items()
    }
    seen |= {end: x.receptive_field for end, x in found.endpoints.items()}
    assert {name: seen[name] for name in expected} == {
        name: (side, side) for name, side in expected.items()
    }
    if name == "alexnet":
        strides = {layer.name: layer.stride for layer in found.layers}
        names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6")
        assert [strides[f"backbone/{n}"] for n in names] == [4, 8, 16, 16, 16, 32]


def test_rows_that_unet_sees():
    """Of 572 rows the first output sees the first 188, the last one the last 188."""
    model = UNet(2, widths=(1,) * 5)
    variables = abstract_variables(model, 1)
    # The columns do not matter, so the smallest width will do.
    reaches = receptive_field._reaches(model, variables, paths=(), image=(572, 188, 1))
    _, rows, seen = reaches.outputs["logits"]
    seen = seen.min(axis=(0, 2, 3))
    assert rows == len(seen) == 388
    assert tuple(seen[0]) == (0, -187) and tuple(seen[-1]) == (384, -571)
    widths = 1 - seen.sum(axis=1)
    assert set(widths) == {188, 204}
    assert set(widths[np.arange(388) % 16 < 4]) == {188}


def test_all_networks_are_there():
    assert {network.model for network in NETWORKS.values()} == set(models.MODELS)
    assert list(NUMBERS) == list(NETWORKS)
    for network in NETWORKS.values():
        summarize.build(network)


def test_layers_of_unet():
    found = summary(UNet(2), (572, 572, 1), activations=False)
    counts = {layer.name: layer.parameters for layer in found.layers}
    assert list(counts.items())[:3] == [
        ("enc0_conv1", 640),
        ("enc0_conv2", 36_928),
        ("enc1_conv1", 73_856),
    ]
    assert (counts["enc4_conv2"], counts["dec3_up"]) == (9_438_208, 2_097_664)
    assert (counts["dec0_conv1"], counts["head"]) == (73_792, 130)
    assert (found.parameters, found.statistics) == (31_030_658, 0)
    assert (found.margin, found.output_stride) == ((92, 92), 1)
    layers_of = {layer.name: layer for layer in found.layers}
    assert layers_of["enc4_conv1"].output == (1, 30, 30, 1024)
    assert layers_of["enc4_conv1"].kernel == (3, 3, 512, 1024)
    # By hand: output cells x taps x input x output channels.
    assert layers_of["enc0_conv1"].macs == 570**2 * 9 * 64
    assert layers_of["dec3_up"].macs == 28**2 * 4 * 1024 * 512
    assert layers_of["head"].macs == 388**2 * 64 * 2
    assert found.flops == 2 * found.macs == 2 * sum(x.macs for x in found.layers)


def test_computed_beside_published_macs():
    """conv5_4 by hand: the taps on the small maps, then rows and columns in turn."""
    fields = dict(width=4, pyramid_channels=5, head_channels=7, bins=(1, 3), aux=False)
    image = (57, 57, 3)  # maps of 8 x 8
    plain, folded = (
        summary(PSPNet(2, **fields, folded=form), image, activations=False)
        for form in (False, True)
    )
    assert plain.macs == folded.macs
    assert plain.computed_macs == plain.macs + plain.fixed_macs
    assert plain.fixed_macs == folded.fixed_macs
    (layer,) = (x for x in folded.layers if x.name == "conv5_4")
    channels = layer.kernel[2] - 2 * 5
    assert layer.macs == 8 * 8 * 9 * (channels + 2 * 5) * 7
    expected = 8 * 8 * 9 * channels * 7
    for side in (1, 3):
        expected += side**2 * 9 * 5 * 7 + 8 * (3 * side) ** 2 * 7
    expected += 8 * 8 * 3 * (1 + 3) * 7
    assert layer.computed_macs == expected
    saved = layer.macs - layer.computed_macs
    assert folded.computed_macs == plain.computed_macs - saved
    for x, y in zip(plain.layers, folded.layers, strict=True):
        assert x._replace(computed_macs=0) == y._replace(computed_macs=0)
        assert x.computed_macs == x.macs
    titles, *rows = tables.layer_rows(folded)
    (row,) = (dict(zip(titles, row)) for row in rows if row[0] == "conv5_4")
    assert (row["MACs"], row["computed"]) == (f"{layer.macs:,}", f"{expected:,}")
    assert ("MACs computed", f"{folded.computed_macs:,}") in tables.total_rows(folded)


def test_layers_of_fcn():
    found = summary(FCN(21, norm="batch"), (64, 96, 3), activations=False)
    layers_of = {layer.name: layer for layer in found.layers}
    fields = {name: layer.receptive_field for name, layer in layers_of.items()}
    # Table of the VGG16 trunk.
    for stage, sides in enumerate(
        [(3, 5), (10, 14), (24, 32, 40), (60, 76, 92), (132, 164, 196)], start=1
    ):
        for index, side in enumerate(sides, start=1):
            layer = layers_of[f"backbone/conv{stage}_{index}"]
            assert layer.receptive_field == (side, side)
            assert layer.stride == 2 ** (stage - 1)
            assert fields[f"backbone/conv{stage}_{index}_bn"] == (side, side)
    assert found.endpoints["pool5"].receptive_field == (212, 212)
    assert fields["backbone/fc6"] == fields["score_fr"] == (404, 404)
    assert found.output_stride == 8
    # mean and variance; scale and offset are parameters
    batch_norm = layers_of["backbone/conv5_3_bn"]
    assert (batch_norm.statistics, batch_norm.parameters) == (1024, 1024)
    # Bilinear matrices: no parameters, so no MACs of a layer.
    assert found.fixed_macs > 0
    assert found.macs == sum(layer.macs for layer in found.layers)


@pytest.mark.parametrize(
    "name, stem, output_stride, side, expected",
    [
        ("resnet50", "plain", 32, 224, "4.087"),
        ("resnet50", "plain", 8, 513, "102.7"),
        ("resnet50", "deep", 8, 473, "93.6"),
        ("resnet50", "deep", 8, 713, "210.8"),
        ("resnet101", "deep", 8, 473, "161.8"),
        ("resnet101", "deep", 8, 713, "364.2"),
    ],
)
def test_published_macs_of_resnets(name, stem, output_stride, side, expected):
    sizes = resnet.STAGE_SIZES[name]
    model = resnet.ResNet(sizes, stem=stem, output_stride=output_stride)
    variables = resnet_variables(sizes, stem)
    shape = (1, side, side, 3)
    run = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))
    jaxpr = run(variables, jax.ShapeDtypeStruct(shape, np.float32)).jaxpr
    decimals = len(expected.partition(".")[2])
    assert f"{counts.macs(jaxpr) / 1e9:.{decimals}f}" == expected


@functools.cache
def resnet_variables(sizes, stem):
    model = resnet.ResNet(sizes, stem=stem)
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


# --- multiply-adds --------------------------------------------------------------------


def convolve(x, kernel, stride=1, padding=0, holes=1, rate=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        lhs_dilation=(holes, holes),
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(
    "options, image, kernel, expected",
    [
        (dict(), (1, 6, 7, 3), (3, 3, 3, 5), 4 * 5 * 9 * 3 * 5),
        # Taps on the padding count.
        (dict(padding=1), (2, 6, 7, 3), (3, 3, 3, 5), 2 * 6 * 7 * 9 * 3 * 5),
        (dict(stride=2, padding=1), (1, 7, 7, 3), (3, 3, 3, 5), 4 * 4 * 9 * 3 * 5),
        (dict(rate=2), (1, 8, 9, 3), (3, 3, 3, 5), 4 * 5 * 9 * 3 * 5),
        (dict(groups=2), (1, 6, 7, 4), (3, 3, 2, 6), 4 * 5 * 9 * 2 * 6),
        (dict(groups=4), (1, 6, 7, 4), (3, 3, 1, 4), 4 * 5 * 9 * 4),
        # Transposed, stride 2: every input cell meets every tap, cropped or not.
        (dict(holes=2, padding=3), (1, 5, 6, 3), (4, 4, 3, 2), 5 * 6 * 16 * 3 * 2),
        (dict(holes=2, padding=2), (1, 5, 6, 3), (4, 4, 3, 2), 5 * 6 * 16 * 3 * 2),
    ],
)
def test_macs_of_convolutions(options, image, kernel, expected):
    jaxpr = traced(lambda x, k: convolve(x, k, **options), image, kernel)
    assert counts.macs(jaxpr) == expected


def test_macs_of_products():
    product = functools.partial(jnp.einsum, "nhc,ncd->nhd")
    assert counts.macs(traced(product, (2, 3, 4), (2, 4, 5))) == 2 * 3 * 4 * 5
    upsample = functools.partial(conv.conv_transpose, stride=2)
    jaxpr = traced(upsample, (1, 5, 6, 3), (2, 2, 3, 7))
    assert counts.macs(jaxpr) == 5 * 6 * 4 * 3 * 7


def test_macs_of_inner_programs():
    def multiply(x):
        return x @ jnp.ones((4, 4))

    @jax.custom_jvp
    def with_jvp(x):
        return multiply(x)

    @jax.custom_vjp
    def with_vjp(x):
        return multiply(x)

    def nothing(x):
        return x, None

    with_jvp.defjvp(lambda x, t: (multiply(*x), multiply(*t)))
    with_vjp.defvjp(nothing, lambda _, g: (g,))

    def loop(x):
        return jax.lax.scan(lambda c, _: (multiply(multiply(c)), None), x, length=5)[0]

    one = 3 * 4 * 4
    for function, times in (
        (jax.jit(multiply), 1),
        (jax.checkpoint(multiply), 1),
        (with_jvp, 1),
        (with_vjp, 1),
        (jax.jit(jax.checkpoint(with_jvp)), 1),
        (loop, 10),
        (jax.checkpoint(loop), 10),
        (lambda x: jax.lax.fori_loop(0, 7, lambda _, y: multiply(y), x), 7),
    ):
        assert counts.macs(traced(function, (3, 4))) == times * one

    def search(x):
        return jax.lax.while_loop(lambda y: y.sum() < 9, multiply, x)

    def choice(x):
        return jax.lax.cond(x.sum() > 0, multiply, jnp.sin, x)

    for function, name in ((search, "while"), (choice, "cond")):
        with pytest.raises(UserError, match=f"uses '{name}' with .* known number"):
            counts.macs(traced(function, (3, 4)))


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.jit(layers.Conv)(2, 3, padding=1, name="conv")(x)
        return nn.relu(x), None


class Nested(nn.Module):
    """A rematerialised module, and a loop over three layers of one name."""

    tiling = geometry.ANY_SIZE

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32)
        x, _ = nn.remat(Step)(name="remat")(x, None)
        repeated = nn.scan(
            Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = repeated(name="loop")(x, None)
        return x, {}


def test_layers_of_inner_programs():
    found = summary(Nested(), (8, 9, 2))
    remat, loop = found.layers
    assert (remat.name, loop.name) == ("remat/conv", "loop/conv")
    assert (remat.macs, loop.macs) == (8 * 9 * 9 * 4, 3 * 8 * 9 * 9 * 4)
    assert (remat.parameters, loop.parameters) == (38, 3 * 38)
    # What a loop reads is not followed step by step: it may be everything.
    everything = math.inf, math.inf
    assert (remat.receptive_field, loop.receptive_field) == ((3, 3), everything)
    assert found.logits.receptive_field == everything
    assert remat.output == loop.output == (1, 8, 9, 2)
    assert found.fixed_macs == 0


@pytest.mark.parametrize("padding, tolerance", [("valid", 0.02), ("same", 0.12)])
def test_xla_counts_the_same(padding, tolerance):
    """Without padding all but the additions of biases, activations and pooling agree.

    XLA leaves out taps on padding, which are more the smaller the maps are. From 48
    channels on, a CPU would multiply less often (ops/winograd.py).
    """
    model = UNet(4, widths=(16, 32, 40), padding=padding)
    found = summary(model, (108, 108, 3), activations=False)
    ratio = counts.xla_flops(model, (108, 108, 3)) / found.flops
    assert abs(ratio - 1) < tolerance
    assert (ratio > 1) == (padding == "valid")


# --- receptive fields -----------------------------------------------------------------


def brute_force(model, side, name="logits"):
    """(smallest, largest) rows that the cells of the middle of an output depend on.

    With positive weights an output changes iff an input it depends on grows a lot.
    """
    width = geometry.nearest_sides(model.tiling, 8)[-1]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32),
        abstract_variables(model, 1),
    )

    @jax.jit
    def run(images):
        logits, ends = model.apply(variables, images, train=False)
        return {"logits": logits, **ends}[name]

    base = rng.integers(0, 5, (1, side, width, 1)).astype(np.float32)
    changed = base + 1e4 * np.eye(side)[:, :, None, None]
    differ = np.asarray(run(base) != run(changed.astype(np.float32)))
    differ = differ.any(axis=(2, 3)).T  # [output row, input row]
    middle = differ[len(differ) * 2 // 5 : len(differ) * 3 // 5]
    widths = side - middle.argmax(1) - middle[:, ::-1].argmax(1)
    return int(widths.min()), int(widths.max())


def kernel(size, channels=1):
    return jnp.ones((size, size, channels, channels))


def windows(x):
    x = pool.max_pool(
        convolve(x, kernel(5), stride=2, padding=2), 3, stride=2, ceil=True
    )
    x = pool.avg_pool(convolve(x, kernel(3), padding=2, rate=2), 2, stride=1)
    return conv.conv_transpose(x, kernel(4), stride=3, padding=1)


def sparse(x):
    """Outputs of a transposed convolution that no tap reaches see nothing."""
    x = convolve(x, kernel(3), stride=2, padding=1)
    return convolve(conv.conv_transpose(x, kernel(3), stride=2), kernel(3), padding=1)


def reduce_windows(x):
    x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
    return nn.avg_pool(x, (2, 2), (1, 1), "VALID")


def resizing(x):
    small = resize.resize_bilinear(x, (x.shape[1] // 2, 4), align_corners=False)
    tall = resize.resize_nearest(small, (small.shape[1] * 4, small.shape[2]))
    other = resize.resize_nearest(small, (small.shape[1] * 2, small.shape[2]))
    other = conv.bilinear_upsample(other, 4, stride=2)[
        :, : tall.shape[1], : tall.shape[2]
    ]
    x = jnp.concatenate([tall, other], -1)
    return convolve(x, jnp.ones((3, 3, 2, 1)), padding=1)


def zeros(x):
    """Half of the cells of this unpooling multiply their neighbor by zero."""
    return frrn.unpool(convolve(x, kernel(3), padding=1), 2, "bilinear_origin")


def movements(x):
    x = jnp.pad(x, ((0, 0), (3, 3), (0, 0), (0, 0)), mode="reflect")
    x = jnp.stack([x[:, ::2], x[:, 1::2]], axis=2).transpose(0, 3, 1, 2, 4)
    x = x.reshape(1 if x.shape[0] == 1 else x.shape[0], x.shape[1], -1, 1)
    x = x.transpose(0, 2, 1, 3)[:, ::-1]
    top, bottom = jnp.split(x[:, : x.shape[1] // 2 * 2], 2, axis=1)
    return jnp.maximum(jnp.flip(top, 1), bottom[:, :1])


def nested(x):
    x = jax.checkpoint(lambda x: convolve(x, kernel(3), padding=1))(x)
    return jax.jit(jax.nn.relu)(convolve(x, kernel(3), padding=2, rate=2))


@pytest.mark.parametrize(
    "model, side",
    [
        (Toy(windows), 96),
        (Toy(sparse), 48),
        (Toy(reduce_windows), 32),
        (Toy(resizing, step=4), 64),
        (Toy(nested), 32),
        (UNet(1, widths=(1, 1), upsampling="bilinear", dropout=0.0), 100),
        (Toy(zeros), 32),
    ],
    ids=["windows", "sparse", "reduce_windows", "resizing", "nested", "unet", "zeros"],
)
def test_receptive_field_by_brute_force(model, side):
    found = summary(model, (side, side, 1), activations=False)
    largest = found.logits.receptive_field[1]
    assert 1 < largest < 0.6 * side  # or the brute force would meet the borders
    assert found.logits.receptive_field == brute_force(model, side)


def test_data_movements_by_brute_force():
    """Row by row, as the two ends of the image come together here."""
    model, side = Toy(movements), 12
    variables = abstract_variables(model, 1)
    jaxpr, _ = tracing.trace(model, variables, (side, 4, 1))
    *weights, images = jaxpr.jaxpr.invars
    rows = np.arange(side).reshape(1, -1, 1, 1)
    inputs = [dependencies.unknown(x) for x in weights]
    inputs.append(dependencies.Value(np.stack([rows, -rows], axis=-1)))
    constants = map(dependencies.constant, jaxpr.consts)
    body = dependencies.propagate(
        jaxpr.jaxpr, constants, inputs=inputs, visit=lambda *_: None
    )[1]
    seen = np.broadcast_to(body.reach, (*images.aval.shape[:1], *body.reach.shape[1:]))
    seen = seen.min(axis=(0, 2, 3))

    x = np.random.default_rng(0).uniform(1, 2, (1, side, 4, 1)).astype(np.float32)
    changed = x + 10 * np.eye(side)[:, :, None, None].astype(np.float32)
    # In both halves of a maximum, what grows shows.
    differ = np.asarray(movements(jnp.asarray(x)) != movements(jnp.asarray(changed)))
    for row, rows in enumerate(differ.any(axis=(2, 3)).T):
        (places,) = np.nonzero(rows)
        assert (seen[row][0], -seen[row][1]) == (places.min(), places.max())


def test_global_receptive_fields_and_unused_layers():
    fields = dict(
        stage_sizes=(1, 1, 1, 1), width=1, pyramid_channels=1, head_channels=1
    )
    for bins, pooling, expected in (
        ((1,), "avg", True),
        ((6,), "max", True),  # not the whole image, but a part that grows with it
        ((), "avg", False),
    ):
        model = PSPNet(2, bins=bins, pool=pooling, **fields)
        found = summary(model, (33, 33, 3), activations=False)
        assert (math.inf in found.logits.receptive_field) == expected
        assert found.endpoints["block4"].receptive_field[1] < 400
        for layer in found.layers:
            if layer.name.startswith("pyramid"):
                assert layer.stride == math.inf
        assert found.output_stride == 8
        # Prediction does without the auxiliary head.
        *_, unit, norm, score = found.layers
        assert [x.name for x in (unit, norm, score)] == [
            "aux_conv",
            "aux_conv_bn",
            "aux_score",
        ]
        for layer in (unit, norm, score):
            assert layer.parameters and not layer.output
            assert (layer.macs, layer.stride, layer.receptive_field) == (0, 0, (0, 0))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: jnp.cumsum(x, axis=1),
        lambda x: jnp.sort(x, axis=2),
        lambda x: x[:, jnp.argmax(x[0, :, 0, 0])][:, None],
        lambda x: jnp.zeros_like(x).at[:, jnp.int32(x[0, :, 0, 0])].add(x),
        lambda x: jax.lax.scan(lambda c, _: (c + 1, None), x, length=2)[0],
    ],
    ids=["cumsum", "sort", "gather", "scatter", "scan"],
)
def test_operations_that_may_read_everything(body):
    found = summary(Toy(body), (8, 8, 1), activations=False)
    assert found.logits.receptive_field == (math.inf, math.inf)


def test_unknown_operations_are_named():
    model = Toy(lambda x: jnp.fft.fft(x, axis=1).real)
    with pytest.raises(UserError, match="receptive field: Toy uses 'fft', expected"):
        summary(model, (8, 8, 1), activations=False)


# --- memory ---------------------------------------------------------------------------


class TwoLayers(nn.Module):
    tiling = geometry.ANY_SIZE

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32)
        x = nn.relu(layers.Conv(8, 3, padding=1, name="first")(x))
        return layers.Conv(5, 3, padding=1, name="second")(x), {}


def test_activation_bytes():
    """The inputs of both layers in float32, and where the ReLU is active, in bytes."""
    expected = 10 * 12 * (3 * 4 + 8 * 4 + 8 * 1)
    assert counts.activation_bytes(TwoLayers(), (10, 12, 3)) == expected
    assert summary(TwoLayers(), (10, 12, 3)).activation_bytes == expected
    tiny = dict(stage_units=(1,), stage_channels=(8,), stage_scales=(2,))
    stored, recomputed = (
        counts.activation_bytes(FRRN(2, remat=remat, **tiny), (16, 16, 3))
        for remat in (False, True)
    )
    assert 0 < recomputed < stored / 2


# --- effective receptive field --------------------------------------------------------


class Filter(nn.Module):
    """A blur of 5 rows and 3 columns into two channels."""

    tiling = geometry.ANY_SIZE

    @nn.compact
    def __call__(self, images, train):
        taps = jnp.outer(jnp.array([1.0, 2, 4, 2, 1]), jnp.array([1.0, 3, 1]))
        taps = jnp.stack([taps, 0 * taps], axis=-1)[:, :, None]
        x = jax.lax.conv_general_dilated(
            images, taps, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x, {"half": x[:, ::2, ::2]}


def test_effective_receptive_field():
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 14, 1)).astype(np.uint8)
    expected = np.zeros((12, 14))
    expected[4:9, 6:9] = np.outer([1, 2, 4, 2, 1], [1, 3, 1]) / 12
    field = receptive_field.effective(Filter(), {}, images=images)
    np.testing.assert_allclose(field, expected, atol=1e-6)
    half = receptive_field.effective(Filter(), {}, images=images, output="half")
    # Cell (3, 3) of the half-size map lies on pixel (6, 6).
    np.testing.assert_allclose(half, np.roll(expected, -1, axis=1), atol=1e-6)
    assert receptive_field.effective_side(field) == math.sqrt(15)
    with pytest.raises(UserError, match="output 'quarter': Filter has half, logits"):
        receptive_field.effective(Filter(), {}, images=images, output="quarter")


class ZeroScores(nn.Module):
    tiling = geometry.ANY_SIZE

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        first = layers.Conv(4, 3, padding=2, dilation=2, kernel_init=ones, name="first")
        score = layers.Conv(2, 3, padding=1, kernel_init=zeros, name="score")
        return score(nn.relu(first(x))), {}


def test_picture_of_the_effective_receptive_field(tmp_path):
    model, image = ZeroScores(), (21, 21, 1)
    found = summary(model, image, activations=False)
    assert found.logits.receptive_field == (7, 7)
    # Scores that start at zero would hide everything.
    variables = summarize.random_variables(model, image)
    summarize.draw_influence(
        model, variables, numbers=found, count=2, path=tmp_path / "erf.png"
    )
    picture = cv2.imread(str(tmp_path / "erf.png"))
    scale = 480 // 21
    assert picture.shape == (24 + 21 * scale, 21 * scale, 3)
    # The map, in a frame which is that of the theoretical receptive field.
    background = cv2.applyColorMap(np.zeros((1, 1), np.uint8), cv2.COLORMAP_INFERNO)
    seen = np.argwhere((picture[24:] != background).any(axis=-1))
    np.testing.assert_array_equal(seen.min(axis=0), 7 * scale)
    np.testing.assert_array_equal(seen.max(axis=0), 14 * scale)
    center = picture[24 + 7 * scale + 1 : 24 + 14 * scale, 7 * scale + 1 : 14 * scale]
    assert (center != background).any(axis=-1).all()


# --- the program ----------------------------------------------------------------------


def test_tables():
    rows = [("layer", "MACs", "field"), ("conv1", "1,234", "3"), ("b", "5", "188..204")]
    assert text_table(rows) == (
        "layer   MACs     field\nconv1  1,234         3\nb          5  188..204"
    )
    assert markdown_table(rows[:2]) == (
        "| layer | MACs | field |\n| --- | --- | --- |\n| conv1 | 1,234 | 3 |"
    )
    assert tables.field_text((404, 404)) == "404"
    assert tables.field_text((math.inf, math.inf)) == "global"


def test_measure_rounds_like_the_published_number():
    layer = Layer("a/conv", (3, 3, 1, 2), parameters=134_346_581, statistics=0)
    layer = layer._replace(macs=93_598_207_520)
    other = Layer("b", (), parameters=10, statistics=0)
    logits = Map((1, 4, 4, 2), 8, (3, 11))
    found = Summary("Net", (32, 32, 3), (layer, other), logits, {}, 0, 0, 0)
    for quantity, value in (
        ("parameters", "134,346,591"),
        ("parameters of a", "134,346,581"),
        ("parameters without a", "10"),
        ("parameters", "134 M"),
        ("parameters", "134.3 M"),
        ("MACs", "93.6 G"),
        ("FLOPs", "187.20 G"),
        ("layers", "1"),
        ("field of logits", "3..11"),
        ("stride of logits", "8"),
        ("side of logits", "4"),
    ):
        assert summarize.measure(found, quantity, like=value) == value
    assert summarize.measure(found, "parameters", like="99 M") == "134 M"


def test_all(tmp_path, monkeypatch, capsys):
    name = "contextual"
    network, numbers = NETWORKS[name], NUMBERS[name]

    def show(numbers, path, **fields):
        monkeypatch.setattr(
            summarize, "NETWORKS", {name: network._replace(image=(16, 16, 1), **fields)}
        )
        monkeypatch.setattr(summarize, "NUMBERS", {name: numbers})
        return summarize.summarize_all(path)

    path = tmp_path / "models.md"
    fields = [number for number in numbers if number.quantity.startswith("field")]
    assert show(fields, path) == 0
    text = path.read_text()
    assert "3 of 3 are equal" in text
    assert f"| {name} | field of conv4_3 | 92 | 92 | yes | layer list |" in text
    assert "field of conv4_3" in capsys.readouterr().out

    wrong = published.Number("layers", "20", published.PAPER)
    assert show([wrong], None) == 1
    assert show([wrong._replace(note="they count one twice")], None) == 0
    assert "paper; they count one twice" in capsys.readouterr().out


def test_document_is_up_to_date():
    rows = DOCUMENT.read_text().splitlines()
    checks = sum(map(len, NUMBERS.values()))
    notes = sum(bool(n.note) for numbers in NUMBERS.values() for n in numbers)
    assert any(f"{checks - notes} of {checks} are equal" in row for row in rows)
    for name, network in NETWORKS.items():
        assert any(row.startswith(f"| {name} | `{network.model}") for row in rows)
        for number in NUMBERS[name]:
            start = f"| {name} | {number.quantity} |"
            end = f" | {number.value} | {'no' if number.note else 'yes'} |"
            assert any(row.startswith(start) and end in row for row in rows), number


def test_image_size():
    config = ConfigDict(
        {
            "augment": {"crop": (0, 0)},
            "data": {"name": "camvid", "resize": (0, 0), "scenes_size": (96, 80)},
            "tile": 0,
        }
    )
    assert summarize.image_size(config, ["473", "713"]) == (473, 713)
    for size in (["473"], ["473", "x"]):
        with pytest.raises(UserError, match="expected H,W"):
            summarize.image_size(config, size)
    with pytest.raises(UserError, match="give --size"):
        summarize.image_size(config, [])
    config.data.name = "scenes"
    assert summarize.image_size(config, []) == (96, 80)
    config.tile = 572
    assert summarize.image_size(config, []) == (572, 572)
    config.augment.crop = (353, 473)
    assert summarize.image_size(config, []) == (353, 473)
