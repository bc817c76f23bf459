"""ResNets of every program, as classifiers and as backbones."""

import functools

import numpy as np
import pytest
from published import (
    Maker,
    assert_close,
    caffe_input,
    check_complete,
    each_library,
    logits,
    operators,
    picture,
    run_import,
    torch_input,
)

from segjax.weights import sources

STAGES = (2, 1, 1, 1)
TINY = dict(stage_sizes=STAGES, width=2)
PLAIN_STEM = (dict(stride=2, padding=3),)


def units(inputs=2, stages=STAGES):
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


def np_resnet(ops, x, unit, stem, stride_in_1x1, dilate=False, ceil=False):
    """`unit(x, stage, block, index, **conv)` is convolution and normalization."""
    for index, options in enumerate(stem):
        x = ops.relu(unit(x, 0, 0, index, **options))
    x = ops.max_pool(x, 3, 2, 1, ceil=ceil)
    for stage, count in enumerate(STAGES, start=1):
        rate = {3: 2, 4: 4}.get(stage, 1) if dilate else 1
        for block in range(1, count + 1):
            stride = 2 if stage > 1 and block == 1 and rate == 1 else 1
            strides = (stride, 1) if stride_in_1x1 else (1, stride)
            y = ops.relu(unit(x, stage, block, 1, stride=strides[0]))
            options = dict(stride=strides[1], padding=rate, dilation=rate)
            y = ops.relu(unit(y, stage, block, 2, **options))
            y = unit(y, stage, block, 3)
            if block == 1:
                x = unit(x, stage, block, 0, stride=stride)
            x = ops.relu(x + y)
    return x


# --- classifiers: the names of a layer and its normalization, by program ---


def torch_names(stage, block, index):
    if stage == 0:
        return "conv1", "bn1"
    name = f"layer{stage}.{block - 1}."
    if index == 0:
        return f"{name}downsample.0", f"{name}downsample.1"
    return f"{name}conv{index}", f"{name}bn{index}"


def msra_names(stage, block, index):
    branch = "1" if index == 0 else "2" + "abc"[index - 1]
    name = f"{stage + 1}{'abc'[block - 1]}_branch{branch}" if stage else "_conv1"
    return f"res{name}" if stage else "conv1", f"bn{name}"


def keras_names(stage, block, index):
    name = f"conv{stage + 1}_block{block}_{index}" if stage else "conv1"
    return f"{name}_conv", f"{name}_bn"


def torchvision_resnet():
    maker = Maker()
    for *which, out, inputs, size in ((0, 0, 0, 2, 3, 7), *units()):
        conv, norm = torch_names(*which)
        maker.torch(conv, out, inputs, size, size)
        maker.torch_norm(norm, out)
    maker.torch("fc", 10, 64, bias=True)
    return maker.arrays


def msra_resnet():
    """BatchNorm with its factor, Scale, and the bias of ResNet-50's conv1."""
    maker = Maker()
    for *which, out, inputs, size in ((0, 0, 0, 2, 3, 7), *units()):
        conv, norm = msra_names(*which)
        maker.caffe(conv, out, inputs, size, size, bias=conv == "conv1")
        maker.caffe_norm(norm, norm.replace("bn", "scale"), out)
    maker.caffe("fc1000", 10, 64)
    return maker.arrays


def keras_resnet(names, top):
    """Biases in front of the normalization, and its epsilons."""
    maker = Maker()
    for *which, out, inputs, size in ((0, 0, 0, 2, 3, 7), *units()):
        conv, norm = names(*which)
        maker.keras(conv, size, size, inputs, out)
        maker.keras_norm(norm, out)
    maker.keras(top, 64, 10)
    return maker.arrays


def torch_unit(ops, arrays, x, conv, norm, **options):
    kinds = ("weight", "bias", "running_mean", "running_var")
    x = ops.conv(x, arrays[f"{conv}.weight"], **options)
    return ops.norm(x, *(arrays[f"{norm}.{kind}"] for kind in kinds))


def caffe_unit(ops, arrays, x, conv, norm, **options):
    x = ops.conv(x, arrays[f"{conv}[0]"], arrays.get(f"{conv}[1]"), **options)
    mean, var, factor = (arrays[f"{norm}[{i}]"] for i in range(3))
    scale, bias = (arrays[f"{norm.replace('bn', 'scale')}[{i}]"] for i in range(2))
    return ops.norm(x, scale, bias, mean / factor, var / factor)


def keras_unit(ops, arrays, x, conv, norm, **options):
    kernel = arrays[f"{conv}/kernel"].transpose(3, 2, 0, 1)
    x = ops.conv(x, kernel, arrays[f"{conv}/bias"], **options)
    kinds = ("gamma", "beta", "moving_mean", "moving_variance")
    epsilon = 1.001e-5 if conv.endswith("_conv") else 1e-3
    return ops.norm(x, *(arrays[f"{norm}/{kind}"] for kind in kinds), epsilon)


# file, names, unit, scores [out, in] and their bias, images, the stride's place
CLASSIFIERS = {
    "torchvision": (
        torchvision_resnet,
        torch_names,
        torch_unit,
        lambda arrays: (arrays["fc.weight"], arrays["fc.bias"]),
        sources.TORCHVISION,
        False,
    ),
    "MSRA": (
        msra_resnet,
        msra_names,
        caffe_unit,
        lambda arrays: (arrays["fc1000[0]"], arrays["fc1000[1]"]),
        sources.ILSVRC,
        True,
    ),
    "Keras": (
        functools.partial(keras_resnet, keras_names, "predictions"),
        keras_names,
        keras_unit,
        lambda arrays: (arrays["predictions/kernel"].T, arrays["predictions/bias"]),
        sources.VGG,
        True,
    ),
    "Keras before 2019": (
        functools.partial(keras_resnet, msra_names, "fc1000"),
        msra_names,
        keras_unit,
        lambda arrays: (arrays["fc1000/kernel"].T, arrays["fc1000/bias"]),
        sources.VGG,
        True,
    ),
}


def tracked(arrays):
    return [name for name in arrays if name.endswith("num_batches_tracked")]


@functools.cache
def classifier_case(name):
    make, _, _, _, source, stride_in_1x1 = CLASSIFIERS[name]
    arrays, images = make(), picture(224, 224)
    fields = dict(backbone="resnet50", stage_sizes=STAGES, widths=(2,))
    fields["stride_in_1x1"] = stride_in_1x1
    if name == "torchvision":
        fields["image_stats"] = "imagenet"
    imported = run_import(arrays, "classifier", source, **fields)
    assert not imported.result.notes and imported.num_classes == 10
    check_complete(arrays, imported, tracked(arrays))
    return arrays, images, logits(imported, images, "classifier", **fields)


@each_library
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, library):
    ops = operators(library)
    arrays, images, found = classifier_case(name)
    _, names, unit, scores, _, stride_in_1x1 = CLASSIFIERS[name]

    def named(x, *which, **options):
        return unit(ops, arrays, x, *names(*which), **options)

    x = torch_input(images) if name == "torchvision" else caffe_input(images)
    x = np_resnet(ops, x, named, PLAIN_STEM, stride_in_1x1)
    kernel, bias = scores(arrays)
    assert_close(found[0, :, 0, 0], kernel @ x.mean((0, 2, 3)) + bias)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_trunk_without_its_classifier(name):
    arrays = CLASSIFIERS[name][0]()
    head = [n for n in arrays if n.startswith(("fc.", "fc1000", "predictions"))]
    fields = dict(stem="plain", stride_in_1x1=CLASSIFIERS[name][5], bins=(1,), **TINY)
    imported = run_import(arrays, "pspnet", **fields)
    assert imported.num_classes == 0
    missing = {layer.split("/")[0] for layer in imported.result.missing}
    assert "backbone" not in missing and "conv6" in missing
    check_complete(arrays, imported, [*tracked(arrays), *head], imported.result.missing)
    bare = {name: array for name, array in arrays.items() if name not in head}
    imported = run_import(bare, "pspnet", **fields)
    check_complete(bare, imported, tracked(arrays), imported.result.missing)


def test_backbone_of_torchvision_segmentation_networks():
    """fcn_resnet50, deeplabv3_resnet50: heads that are none of ours."""
    inner = {n: a for n, a in torchvision_resnet().items() if not n.startswith("fc.")}
    arrays = {f"backbone.{name}": array for name, array in inner.items()}
    heads = ("classifier.0.weight", "aux_classifier.4.bias", "classifier.4.weight")
    arrays |= dict.fromkeys(heads, np.zeros(3, np.float32))
    fields = dict(TINY, stem="plain", bins=(1,), first_block_dilation=False)
    imported = run_import(arrays, "pspnet", **fields)
    (note,) = imported.result.notes
    assert "torchvision's FCN is not one of ours" in note
    ignored = [*tracked(arrays), *heads]
    check_complete(arrays, imported, ignored, imported.result.missing)
    same = run_import(inner, "pspnet", **fields).result.arrays
    assert imported.result.arrays.keys() == same.keys()
    for name, array in imported.result.arrays.items():
        np.testing.assert_array_equal(array, same[name])
    # Their first dilated blocks keep the rate of the stage before; ours would not.
    imported = run_import(arrays, "pspnet", **{**fields, "first_block_dilation": True})
    _, note = imported.result.notes
    assert "first_block_dilation=False" in note
    arrays["classifier.0.convs.0.0.weight"] = np.zeros(3, np.float32)
    (note,) = run_import(arrays, "pspnet", **fields).result.notes
    assert "torchvision's DeepLabV3" in note
