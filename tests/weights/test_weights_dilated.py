"""DeconvNet, Dilation and DeepLab on VGG16, from Caffe."""

import functools

import numpy as np
import pytest
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
    vgg_caffe,
    vgg_layers,
)

from segjax import weights
from segjax.errors import UserError

STAGES = (2, 2, 3, 3, 3)

# --- DeconvNet ---

# With an epsilon that can be seen: variance and epsilon make 1.
DECONVNET = dict(widths=(2, 3, 3, 4, 4), fc_channels=5, fc6_kernel=2, bn_epsilon=0.25)


def deconvnet_norms(widths):
    """What normalizes each layer: its statistics are in scale and offset."""
    norms = {name: f"bn{name[4:]}" for name, _, _ in vgg_layers(widths)}
    norms |= {"fc6": "bnfc6", "fc7": "bnfc7", "fc6-deconv": "fc6-deconv-bn"}
    for stage, count in enumerate(STAGES, start=1):
        for index in range(1, count + 1):
            norms[f"deconv{stage}_{index}"] = f"debn{stage}_{index}"
    return norms


def deconvnet_caffe(widths, fc, fc_kernel, maker):
    vgg_caffe(maker, widths, fc, fc_kernel)
    channels = {name: out for name, out, _ in vgg_layers(widths)}
    channels |= {"fc6": fc, "fc7": fc, "fc6-deconv": widths[-1]}
    maker.add("fc6-deconv[0]", fc, widths[-1], fc_kernel, fc_kernel, fan_in=fc)
    maker.add("fc6-deconv[1]", widths[-1])
    inputs = widths[-1]
    for stage in (5, 4, 3, 2, 1):
        for index in range(1, STAGES[stage - 1] + 1):
            last = index == STAGES[stage - 1]
            out = widths[max(stage - 2, 0)] if last else widths[stage - 1]
            name = f"deconv{stage}_{index}"
            maker.add(f"{name}[0]", inputs, out, 3, 3, fan_in=9 * inputs)
            maker.add(f"{name}[1]", out)
            inputs = channels[name] = out
    for name, norm in deconvnet_norms(widths).items():
        maker.add(f"{norm}[0]", 1, channels[name], 1, 1)
        maker.add(f"{norm}[1]", 1, channels[name], 1, 1)
    maker.caffe("seg-score-voc", 21, widths[0], 1, 1)
    return maker.arrays


@functools.cache
def deconvnet_case():
    arrays = deconvnet_caffe(DECONVNET["widths"], DECONVNET["fc_channels"], 2, Maker())
    images = picture(64, 64)
    imported = run_import(arrays, "deconvnet", **DECONVNET)
    check_complete(arrays, imported)
    assert imported.num_classes == 21
    ours = imported.result.arrays
    assert set(ours["batch_stats/deconv1_2_bn/var"]) == {0.75}
    assert set(ours["batch_stats/deconv1_2_bn/mean"]) == {0.0}
    return arrays, images, logits(imported, images, "deconvnet", **DECONVNET)


@each_library
def test_deconvnet(library):
    ops = operators(library)
    arrays, images, found = deconvnet_case()
    norms = deconvnet_norms(DECONVNET["widths"])

    def unit(x, name, layer=ops.conv, padding=1):
        x = layer(x, arrays[f"{name}[0]"], arrays[f"{name}[1]"], padding=padding)
        scale, bias = (arrays[f"{norms[name]}[{i}]"] for i in range(2))
        return ops.relu(x * scale + bias)

    x, pooled = caffe_input(images), {}
    for stage, count in enumerate(STAGES, start=1):
        for index in range(1, count + 1):
            x = unit(x, f"conv{stage}_{index}")
        size = x.shape[2:]
        x, switches = ops.pool_switches(x, 2)
        pooled[stage] = switches, size
    x = unit(unit(x, "fc6", padding=0), "fc7", padding=0)
    x = unit(x, "fc6-deconv", ops.deconv, padding=0)
    for stage in (5, 4, 3, 2, 1):
        x = ops.unpool(x, *pooled[stage])
        for index in range(1, STAGES[stage - 1] + 1):
            x = unit(x, f"deconv{stage}_{index}", ops.deconv)
    x = ops.conv(x, arrays["seg-score-voc[0]"], arrays["seg-score-voc[1]"])
    assert_close(found, x)


def test_deconvnet_encoder_from_imagenet():
    maker = Maker()
    vgg_caffe(maker, DECONVNET["widths"], DECONVNET["fc_channels"], fc_kernel=2)
    imported = run_import(maker.arrays, "deconvnet", **DECONVNET)
    names = [name for name, _, _ in vgg_layers(DECONVNET["widths"])]
    filled = {row.target.split("/")[1] for row in imported.result.rows}
    assert filled == {*names, "fc6", "fc7"}


# --- Dilation ---

WIDTHS, FC, CLASSES = (2, 2, 2, 2, 2), 4, 3
DILATION = {
    "dilation8_pascal_voc": (
        dict(context="large", context_padding="once", upsampling="interp"),
        (116.52, 111.36, 102.93),
    ),
    "dilation8_camvid": (
        dict(upsampling="interp"),
        (105.41212523, 108.77808759, 110.70313206),
    ),
    "dilation7_kitti": (
        dict(context_rates=(1, 1, 2, 4, 8, 1), upsampling="interp"),
        (91.34692262, 95.55136972, 96.19429688),
    ),
    "dilation10_cityscapes": (
        dict(context_rates=(1, 1, 2, 4, 8, 16, 32, 64, 1), upsampling="deconv"),
        (73.16, 82.91, 72.39),
    ),
    "front end": (dict(context="none", upsampling="interp"), (116.52, 111.36, 102.93)),
}


def dilation_caffe(context="basic", context_rates=(1, 1, 2, 4, 8, 16, 1), **_):
    maker = Maker()
    vgg_caffe(maker, WIDTHS, fc=FC)
    # Scores that a softmax does not turn into 0 and 1.
    maker.arrays["conv1_1[0]"] *= 0.01
    final, prefix = ("fc-final", "ct") if context == "large" else ("final", "ctx")
    maker.caffe(final, CLASSES, FC, 1, 1)
    if context == "none":
        return maker.arrays
    names = ["conv1_1", "conv1_2"]
    names += [f"conv{i}_1" for i in range(2, len(context_rates) - 1)] + ["fc1"]
    inputs = CLASSES
    for index, name in enumerate(names, start=1):
        out = CLASSES
        if context == "large":
            out *= 2 * max(context_rates[:index])
        maker.caffe(f"{prefix}_{name}", out, inputs, 3, 3)
        inputs = out
    maker.caffe(f"{prefix}_final", CLASSES, inputs, 1, 1)
    if len(context_rates) == 9:
        grouped = bilinear_blob(CLASSES, 16)[range(CLASSES), range(CLASSES)][:, None]
        maker.arrays["ctx_upsample[0]"] = grouped
    return maker.arrays


def dilation_import(name):
    fields, mean = DILATION[name]
    arrays = dilation_caffe(**fields)
    fields = dict(widths=WIDTHS, fc_channels=FC, **fields)
    imported = run_import(arrays, "dilation", weights.Images(1.0, mean), **fields)
    check_complete(arrays, imported)
    assert imported.num_classes == CLASSES
    # With the mean of the data set nothing is folded in.
    bias = imported.result.arrays["params/backbone/conv1_1/bias"]
    np.testing.assert_array_equal(bias, arrays["conv1_1[1]"])
    return arrays, imported, fields


def test_dilation_for_camvid():
    dilation_import("dilation8_camvid")  # one layer more than KITTI's


@functools.cache
def dilation_case(name):
    arrays, imported, fields = dilation_import(name)
    images, mean = picture(12, 17), DILATION[name][1]
    # Our images have another mean; the picture that looks like theirs to them.
    shift = np.subtract(mean, (122.67892, 116.66877, 104.00699))
    seen = images.astype(np.float32) - np.float32(shift)
    return arrays, images, mean, logits(imported, seen, "dilation", **fields)


@each_library
@pytest.mark.parametrize("name", [n for n in DILATION if n != "dilation8_camvid"])
def test_dilation(name, library):
    ops = operators(library)
    arrays, images, mean, found = dilation_case(name)
    fields = DILATION[name][0]
    rates = fields.get("context_rates", (1, 1, 2, 4, 8, 16, 1))
    height, width = images.shape[1:3]

    def layer(x, which, **options):
        return ops.conv(x, arrays[f"{which}[0]"], arrays[f"{which}[1]"], **options)

    # Reflected by the margin, and on to whole cells; interpolation needs one more.
    more = 1 if fields["upsampling"] == "interp" else 0
    cells = [-(-(side - more) // 8) + more for side in (height, width)]
    x = (images[..., ::-1] - np.array(mean)[::-1]).transpose(0, 3, 1, 2)
    ends = [(186, 186 + 8 * n - side) for n, side in zip(cells, (height, width))]
    x = np.pad(x, ((0, 0), (0, 0), *ends), "reflect")
    for conv, _, _ in vgg_layers(WIDTHS):
        x = ops.relu(layer(x, conv, dilation=2 if conv.startswith("conv5") else 1))
        if conv in ("conv1_2", "conv2_2", "conv3_3"):
            x = ops.max_pool(x, 2, 2)
    x = ops.relu(layer(ops.relu(layer(x, "fc6", dilation=4)), "fc7"))
    prefix = "ct" if "fc-final[0]" in arrays else "ctx"
    x = layer(x, "fc-final" if prefix == "ct" else "final")
    if fields.get("context") != "none":
        names = ["conv1_1", "conv1_2", *(f"conv{i}_1" for i in range(2, 20))]
        names[len(rates) - 1] = "fc1"
        if prefix == "ct":
            x = ops.pad(x, 33)
        for which, rate in zip(names, rates):
            padding = 0 if prefix == "ct" else rate
            which = f"{prefix}_{which}"
            x = ops.relu(layer(x, which, padding=padding, dilation=rate))
        x = layer(x, f"{prefix}_final")
    if fields["upsampling"] == "deconv":
        channels = (
            ops.deconv(x[:, i : i + 1], arrays["ctx_upsample[0]"][:1], None, 8, 4)
            for i in range(CLASSES)
        )
        x = np.concatenate(list(channels), 1)
    else:  # of probabilities, cell i on pixel 8i
        assert x.std(1).max() < 20
        x = ops.resize(ops.softmax(x), [8 * (n - 1) + 1 for n in x.shape[2:]])
        found = np.exp(found)
    assert_close(found, x[:, :, :height, :width])


def test_dilation_context_starts_behind_a_trained_front_end():
    arrays = dilation_caffe(context="none")
    fields = dict(widths=WIDTHS, fc_channels=FC)
    imported = run_import(arrays, "dilation", **fields)
    missing = [f"context/conv{i}" for i in range(1, 8)] + ["context/final"]
    check_complete(arrays, imported, missing=missing)
    # But an incomplete one is an error.
    arrays = dilation_caffe()
    del arrays["ctx_conv3_1[0]"]
    with pytest.raises(UserError, match=r"missing: ctx_conv3_1\[0\]"):
        run_import(arrays, "dilation", **fields)


# --- DeepLab ---

DEEPLAB = {
    "LargeFOV": dict(rates=(12,), average_pool=True),
    "first": dict(rates=(4,), fc6_kernel=4, pool_kernel=2),
    "v2": dict(rates=(6, 12, 18, 24)),
}


@functools.cache
def deeplab_case(name):
    fields = dict(backbone="vgg16", fc6_channels=4, widths=WIDTHS, **DEEPLAB[name])
    maker, rates = Maker(), fields["rates"]
    vgg_caffe(maker, WIDTHS)
    size = fields.get("fc6_kernel", 3)
    for branch in range(1, len(rates) + 1):
        end = f"_{branch}" if len(rates) > 1 else ""
        maker.caffe(f"fc6{end}", 4, 2, size, size)
        maker.caffe(f"fc7{end}", 4, 4, 1, 1)
        maker.caffe(f"fc8_voc12{end}", 7, 4, 1, 1)
    # Sides 8k + 1, or 8k + 2 for 2x2 poolings that pad: nothing is extended.
    side = 8 * 3 + (2 if name == "first" else 1)
    images = picture(side, side + 8)
    imported = run_import(maker.arrays, "deeplab", **fields)
    check_complete(maker.arrays, imported)
    assert imported.num_classes == 7
    return maker.arrays, images, logits(imported, images, "deeplab", **fields)


@each_library
@pytest.mark.parametrize("name", DEEPLAB)
def test_deeplab_vgg16(name, library):
    ops = operators(library)
    arrays, images, found = deeplab_case(name)
    fields = DEEPLAB[name]
    size, kernel = fields.get("pool_kernel", 3), fields.get("fc6_kernel", 3)

    def layer(x, which, **options):
        return ops.conv(x, arrays[f"{which}[0]"], arrays[f"{which}[1]"], **options)

    x = caffe_input(images)
    for conv, _, _ in vgg_layers(WIDTHS):
        rate = 2 if conv.startswith("conv5") else 1
        x = ops.relu(layer(x, conv, padding=rate, dilation=rate))
        if conv in ("conv1_2", "conv2_2", "conv3_3"):
            x = ops.max_pool(x, size, 2, 1)
        elif conv == "conv4_3":
            x = ops.max_pool(x, size, 1, 1 if size == 3 else 0)
        elif conv == "conv5_3":
            x = ops.max_pool(x, 3, 1, 1)
    if fields.get("average_pool"):
        x = ops.avg_pool(x, 3, 1, 1)
    total = 0
    for branch, rate in enumerate(fields["rates"], start=1):
        end = f"_{branch}" if len(fields["rates"]) > 1 else ""
        padding = rate * (kernel - 1) // 2
        y = ops.relu(layer(x, f"fc6{end}", padding=padding, dilation=rate))
        total = total + layer(ops.relu(layer(y, f"fc7{end}")), f"fc8_voc12{end}")
    if name == "first":  # cells at 8i + 1/2, outside of them the border is repeated
        total = np.pad(total, ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")
        full = ops.resize(total, [16 * (n - 1) + 1 for n in total.shape[2:]])
        expected = full[:, :, 15::2, 15::2][:, :, : images.shape[1], : images.shape[2]]
    else:
        expected = ops.resize(total, images.shape[1:3])
    assert_close(found, expected)
