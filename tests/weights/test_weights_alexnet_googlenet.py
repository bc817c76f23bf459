"""Caffe's AlexNet and GoogLeNet: grouped kernels, response normalization, inception."""

import functools

import numpy as np
from published import (
    Maker,
    assert_close,
    bilinear_blob,
    caffe_input,
    check_complete,
    each_library,
    logits,
    operators,
    picture,
    run_import,
)

from segjax.weights import sources

WIDTHS, FC = (4, 4, 4, 4, 2), 3
ALEXNET = dict(backbone="alexnet", skips=32, widths=WIDTHS, fc_channels=FC)


def alexnet_convs():
    maker = Maker()
    for name, out, inputs, size in (
        ("conv1", 4, 3, 11),
        ("conv2", 4, 2, 5),  # two groups: half the input channels
        ("conv3", 4, 4, 3),
        ("conv4", 4, 2, 3),
        ("conv5", 2, 2, 3),
    ):
        maker.caffe(name, out, inputs, size, size)
    return maker


@functools.cache
def alexnet_case():
    maker, images = alexnet_convs(), picture(20, 27)
    maker.caffe("fc6", FC, 2, 6, 6)
    maker.caffe("fc7", FC, FC, 1, 1)
    maker.caffe("score_fr", 21, FC, 1, 1)
    maker.arrays["upscore[0]"] = bilinear_blob(21, 63)
    imported = run_import(maker.arrays, "fcn", **ALEXNET)
    check_complete(maker.arrays, imported)
    assert imported.num_classes == 21
    return maker.arrays, images, logits(imported, images, "fcn", **ALEXNET)


@each_library
def test_fcn_alexnet(library):
    """voc-fcn-alexnet: pooling before normalization, a 63x63 upsampling."""
    ops = operators(library)
    arrays, images, found = alexnet_case()

    def unit(x, name, **options):
        return ops.relu(
            ops.conv(x, arrays[f"{name}[0]"], arrays[f"{name}[1]"], **options)
        )

    x = unit(caffe_input(images), "conv1", stride=4, padding=100)
    x = ops.lrn(ops.max_pool(x, 3, 2))
    x = ops.lrn(ops.max_pool(unit(x, "conv2", padding=2, groups=2), 3, 2))
    x = unit(x, "conv3", padding=1)
    x = unit(x, "conv4", padding=1, groups=2)
    x = ops.max_pool(unit(x, "conv5", padding=1, groups=2), 3, 2)
    x = unit(unit(x, "fc6"), "fc7")
    x = ops.conv(x, arrays["score_fr[0]"], arrays["score_fr[1]"])
    x = ops.deconv(x, arrays["upscore[0]"], stride=32)
    assert_close(found, x[:, :, 18:38, 18:45])


def test_caffenet_classifier():
    maker = alexnet_convs()
    for name, shape in (("fc6", (FC, 72)), ("fc7", (FC, FC)), ("fc8", (1000, FC))):
        maker.caffe(name, *shape)
    imported = run_import(maker.arrays, "fcn", **ALEXNET)
    check_complete(maker.arrays, imported, ["fc8[0]", "fc8[1]"], ["score_fr"])
    fields = {key: ALEXNET[key] for key in ("backbone", "widths", "fc_channels")}
    imported = run_import(maker.arrays, "classifier", **fields)
    check_complete(maker.arrays, imported)
    assert imported.num_classes == 1000


# --- GoogLeNet ---

BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
GOOGLENET = dict(backbone="googlenet", widths=(4,))  # a sixteenth


def googlenet_caffe():
    maker = Maker()

    def add(name, out, inputs, size):
        maker.caffe(name, out, inputs, size, size)

    add("conv1/7x7_s2", 4, 3, 7)
    add("conv2/3x3_reduce", 4, 4, 1)
    add("conv2/3x3", 12, 4, 3)
    inputs = 12
    for block, channels in BLOCKS.items():
        one, reduce3, three, reduce5, five, proj = (max(c // 16, 1) for c in channels)
        add(f"inception_{block}/1x1", one, inputs, 1)
        add(f"inception_{block}/3x3_reduce", reduce3, inputs, 1)
        add(f"inception_{block}/3x3", three, reduce3, 3)
        add(f"inception_{block}/5x5_reduce", reduce5, inputs, 1)
        add(f"inception_{block}/5x5", five, reduce5, 5)
        add(f"inception_{block}/pool_proj", proj, inputs, 1)
        inputs = one + three + five + proj
        if block in ("4a", "4d"):
            loss = "loss1" if block == "4a" else "loss2"
            maker.caffe(f"{loss}/conv", 8, inputs, 1, 1)
            maker.caffe(f"{loss}/fc", 64, 8 * 16)
            maker.caffe(f"{loss}/classifier", 3, 64)
    maker.caffe("loss3/classifier", 3, inputs)
    return maker.arrays


@functools.cache
def googlenet_case():
    arrays, images = googlenet_caffe(), picture(224, 224)
    seen = sources.GOOGLENET
    imported = run_import(arrays, "classifier", seen, aux=True, **GOOGLENET)
    check_complete(arrays, imported)
    assert imported.num_classes == 3
    # The head is not computed at test, but imported.
    fc = imported.result.arrays["params/loss1_fc/kernel"]
    assert fc[2, 3, 5, 7] == arrays["loss1/fc[0]"][7, 5 * 16 + 2 * 4 + 3]
    return arrays, images, logits(imported, images, "classifier", aux=True, **GOOGLENET)


@each_library
def test_googlenet(library):
    ops = operators(library)
    arrays, images, found = googlenet_case()

    def unit(x, name, **options):
        return ops.relu(
            ops.conv(x, arrays[f"{name}[0]"], arrays[f"{name}[1]"], **options)
        )

    x = unit(caffe_input(images), "conv1/7x7_s2", stride=2, padding=3)
    x = ops.lrn(ops.max_pool(x, 3, 2))
    x = unit(unit(x, "conv2/3x3_reduce"), "conv2/3x3", padding=1)
    x = ops.max_pool(ops.lrn(x), 3, 2)
    for block in BLOCKS:
        name = f"inception_{block}/"
        pooled = ops.max_pool(x, 3, 1, 1)
        branches = (
            unit(x, name + "1x1"),
            unit(unit(x, name + "3x3_reduce"), name + "3x3", padding=1),
            unit(unit(x, name + "5x5_reduce"), name + "5x5", padding=2),
            unit(pooled, name + "pool_proj"),
        )
        x = np.concatenate(branches, 1)
        if block in ("3b", "4e"):
            x = ops.max_pool(x, 3, 2)
    x = ops.avg_pool(x, 7, 1)
    x = arrays["loss3/classifier[0]"] @ x[0, :, 0, 0] + arrays["loss3/classifier[1]"]
    assert_close(found[0, :, 0, 0], x)


def test_googlenet_trunk():
    arrays = googlenet_caffe()
    imported = run_import(arrays, "fcn", skips=32, **GOOGLENET)
    losses = [name for name in arrays if name.startswith("loss")]
    check_complete(arrays, imported, losses, ["score_fr"])
