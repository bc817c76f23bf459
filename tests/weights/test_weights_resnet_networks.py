"""DeepLab v2 and PSPNet on ResNets: Caffe's files and PyTorch's."""

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
from test_weights_resnet import (
    PLAIN_STEM,
    TINY,
    caffe_unit,
    msra_names,
    np_resnet,
    torch_names,
    torch_unit,
    tracked,
    units,
)

from segjax.errors import UserError
from segjax.weights import sources

DEEP_STEM = (dict(stride=2, padding=1), dict(padding=1), dict(padding=1))

# --- DeepLab v2 ---

DEEPLAB = dict(scales=(1.0, 0.5), **TINY)


def deeplab_caffe():
    maker = Maker()
    for *which, out, inputs, size in ((0, 0, 0, 2, 3, 7), *units()):
        conv, norm = msra_names(*which)
        maker.caffe(conv, out, inputs, size, size, bias=False)
        maker.caffe_norm(norm, norm.replace("bn", "scale"), out)
    for branch in range(4):
        maker.caffe(f"fc1_voc12_c{branch}", 5, 64, 3, 3)
    return maker.arrays


def kazuto_names(stage, block, index, old=False):
    prefix, shortcut = ("scale.", "proj") if old else ("base.", "shortcut")
    part = (shortcut, "reduce", "conv3x3", "increase")[index]
    name = f"{prefix}layer{stage + 1}." + (f"block{block}.{part}" if stage else "conv1")
    return f"{name}.conv", f"{name}.bn"


def deeplab_kazuto(old):
    maker = Maker()
    for *which, out, inputs, size in ((0, 0, 0, 2, 3, 7), *units()):
        conv, norm = kazuto_names(*which, old=old)
        maker.torch(conv, out, inputs, size, size)
        maker.torch_norm(norm, out)
    for branch in range(4):
        name = f"scale.aspp.stages.c{branch}" if old else f"base.aspp.c{branch}"
        maker.torch(name, 5, 64, 3, 3, bias=True)
    return maker.arrays


DEEPLABS = {
    "Caffe": deeplab_caffe,
    "deeplab-pytorch": functools.partial(deeplab_kazuto, False),
    "deeplab-pytorch, old": functools.partial(deeplab_kazuto, True),
}


@functools.cache
def deeplab_case(name):
    # Sides that Caffe's network takes, and one whose half is no whole number.
    images = picture(33, 49) if name == "Caffe" else picture(35, 52)
    arrays, fields = DEEPLABS[name](), dict(DEEPLAB, half_pixel=name != "Caffe")
    imported = run_import(arrays, "deeplab", sources.DEEPLAB, **fields)
    check_complete(arrays, imported, tracked(arrays))
    assert imported.num_classes == 5 and not imported.result.notes
    return arrays, images, logits(imported, images, "deeplab", **fields)


@each_library
@pytest.mark.parametrize("name", DEEPLABS)
def test_deeplab(name, library):
    """Four branches summed, the maximum over two scales of the image.

    deeplab-pytorch resizes with half-pixel centers, and its pooling is ceil-mode.
    """
    half_pixel = name != "Caffe"
    ops = operators(library)
    arrays, images, found = deeplab_case(name)

    def unit(x, *which, **options):
        if name == "Caffe":
            return caffe_unit(ops, arrays, x, *msra_names(*which), **options)
        conv, norm = kazuto_names(*which, old=name.endswith("old"))
        return torch_unit(ops, arrays, x, conv, norm, **options)

    def run(x):
        options = dict(stride_in_1x1=True, dilate=True, ceil=half_pixel)
        x = np_resnet(ops, x, unit, PLAIN_STEM, **options)
        total = 0
        for branch, rate in enumerate((6, 12, 18, 24)):
            blobs = {
                "Caffe": (f"fc1_voc12_c{branch}[0]", f"fc1_voc12_c{branch}[1]"),
                "deeplab-pytorch": (
                    f"base.aspp.c{branch}.weight",
                    f"base.aspp.c{branch}.bias",
                ),
            }.get(name) or [
                f"scale.aspp.stages.c{branch}.{kind}" for kind in ("weight", "bias")
            ]
            kernel, bias = (arrays[blob] for blob in blobs)
            total = total + ops.conv(x, kernel, bias, padding=rate, dilation=rate)
        return total

    x = caffe_input(images)
    fused = run(x)
    half = run(ops.rescale(x, 0.5) if half_pixel else ops.resize(x, (17, 25)))
    half = ops.resize(half, fused.shape[2:], not half_pixel)
    fused = np.maximum(fused, half)
    assert_close(found, ops.resize(fused, images.shape[1:3], not half_pixel))


def test_resnet101_block_names():
    """a, b, c in the short stages and a, b1, b2, .. in the long ones."""
    stages = (3, 4, 12, 3)
    maker = Maker()
    maker.caffe("conv1", 2, 3, 7, 7, bias=False)
    maker.caffe_norm("bn_conv1", "scale_conv1", 2)
    for stage, block, index, out, inputs, size in units(stages=stages):
        letter = "abc"[block - 1] if stage in (1, 4) else f"b{block - 1}"
        letter = "a" if block == 1 else letter
        branch = "1" if index == 0 else "2" + "abc"[index - 1]
        name = f"{stage + 1}{letter}_branch{branch}"
        maker.caffe(f"res{name}", out, inputs, size, size, bias=False)
        maker.caffe_norm(f"bn{name}", f"scale{name}", out)
    assert {"res2c_branch2a[0]", "res4b11_branch2c[0]"} < maker.arrays.keys()
    for branch in range(4):
        maker.caffe(f"fc1_voc12_c{branch}", 3, 64, 3, 3)
    # The copies for the other scales, as the training net stores them.
    copies = ["conv1_res075[0]", "bn4b3_branch2a_res05[2]", "fc1_voc12_c0_res05[0]"]
    for name in copies:
        maker.arrays[name] = np.zeros(1, np.float32)
    fields = dict(backbone="resnet101", stage_sizes=stages, width=2)
    imported = run_import(maker.arrays, "deeplab", **fields)
    check_complete(maker.arrays, imported, copies)
    assert imported.num_classes == 3
    del maker.arrays["bn3b1_branch2a[1]"]
    with pytest.raises(UserError, match=r"missing: bn3b1_branch2a\[1\]"):
        run_import(maker.arrays, "deeplab", **fields)


# --- PSPNet ---

PSP = dict(pyramid_channels=3, head_channels=4, **TINY)
LEVELS = (1, 2, 3, 6)


def psp_caffe_name(stage, block, index):
    if stage == 0:
        return ("conv1_1_3x3_s2", "conv1_2_3x3", "conv1_3_3x3")[index]
    ending = ("1x1_proj", "1x1_reduce", "3x3", "1x1_increase")[index]
    return f"conv{stage + 1}_{block}_{ending}"


STEM = ((0, 0, 0, 2, 3, 3), (0, 0, 1, 2, 2, 3), (0, 0, 2, 4, 2, 3))


def psp_caffe():
    """BN of four arrays, no auxiliary head."""
    maker = Maker()

    def add(name, *shape):
        maker.caffe(name, *shape, bias=False)
        maker.psp_norm(f"{name}/bn", shape[0])

    for *which, out, inputs, size in (*STEM, *units(inputs=4)):
        add(psp_caffe_name(*which), out, inputs, size, size)
    for bins in LEVELS:
        add(f"conv5_3_pool{bins}_conv", 3, 64, 1, 1)
    add("conv5_4", 4, 64 + 4 * 3, 3, 3)
    maker.caffe("conv6", 3, 4, 1, 1)
    return maker.arrays


def semseg_names(stage, block, index):
    if stage == 0:
        return f"layer0.{3 * index}", f"layer0.{3 * index + 1}"
    return torch_names(stage, block, index)


def psp_semseg():
    maker = Maker()
    for *which, out, inputs, size in (*STEM, *units(inputs=4)):
        conv, norm = semseg_names(*which)
        maker.torch(conv, out, inputs, size, size)
        maker.torch_norm(norm, out)
    for index in range(4):
        maker.torch(f"ppm.features.{index}.1", 3, 64, 1, 1)
        maker.torch_norm(f"ppm.features.{index}.2", 3)
    for head, out, inputs in (("cls", 4, 64 + 4 * 3), ("aux", 8, 32)):
        maker.torch(f"{head}.0", out, inputs, 3, 3)
        maker.torch_norm(f"{head}.1", out)
        maker.torch(f"{head}.4", 3, out, 1, 1, bias=True)
    return maker.arrays


# file, images, those of the layers of ours that it does not have
PSPNETS = {
    "Caffe": (psp_caffe, sources.VGG, ["aux_conv", "aux_conv_bn", "aux_score"]),
    "semseg": (psp_semseg, sources.TORCHVISION, []),
}


@functools.cache
def psp_case(name):
    make, source, missing = PSPNETS[name]
    arrays, images = make(), picture(33, 41)
    fields = dict(PSP, image_stats="vgg" if name == "Caffe" else "imagenet")
    imported = run_import(arrays, "pspnet", source, **fields)
    check_complete(arrays, imported, tracked(arrays), missing)
    assert imported.num_classes == 3 and not imported.result.notes
    return arrays, images, logits(imported, images, "pspnet", **fields)


@each_library
@pytest.mark.parametrize("name", PSPNETS)
def test_pspnet(name, library):
    """Caffe concatenates the pyramid from fine to coarse, semseg the other way.

    Caffe's images are BGR less VGG's mean, with zeros as padding behind that.
    """
    ops = operators(library)
    arrays, images, found = psp_case(name)

    def unit(x, conv, norm, **options):
        if name == "semseg":
            return torch_unit(ops, arrays, x, conv, norm, **options)
        x = ops.conv(x, arrays[f"{conv}[0]"], **options)
        return ops.norm(x, *(arrays[f"{norm}[{i}]"] for i in range(4)))

    def named(x, *which, **options):
        if name == "semseg":
            return unit(x, *semseg_names(*which), **options)
        conv = psp_caffe_name(*which)
        return unit(x, conv, f"{conv}/bn", **options)

    x = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
    x = torch_input(images) if name == "semseg" else x.transpose(0, 3, 1, 2)
    x = np_resnet(ops, x, named, DEEP_STEM, stride_in_1x1=False, dilate=True)
    parts = [x]
    for bins in LEVELS if name == "semseg" else LEVELS[::-1]:
        level = f"ppm.features.{LEVELS.index(bins)}"
        both = (f"{level}.1", f"{level}.2")
        if name == "Caffe":
            both = (f"conv5_3_pool{bins}_conv", f"conv5_3_pool{bins}_conv/bn")
        level = ops.relu(unit(ops.adaptive_pool(x, bins), *both))
        parts.append(ops.resize(level, x.shape[2:]))
    both = ("cls.0", "cls.1") if name == "semseg" else ("conv5_4", "conv5_4/bn")
    x = ops.relu(unit(np.concatenate(parts, 1), *both, padding=1))
    last = ("cls.4.weight", "cls.4.bias")
    last = last if name == "semseg" else ("conv6[0]", "conv6[1]")
    x = ops.conv(x, *(arrays[blob] for blob in last))
    assert_close(found, ops.resize(x, (33, 41)))


@pytest.mark.parametrize("backbone", ["resnet152", "resnet269"])
def test_pspnet_of_other_depths(backbone):
    for arrays in (psp_semseg(), psp_caffe()):
        imported = run_import(arrays, "pspnet", backbone=backbone, **PSP)
        assert "params/backbone/block3_1/conv2/kernel" in imported.result.arrays


def test_pspnet_of_other_fields():
    arrays = psp_semseg()
    # Other strides: the same arrays, but another network.
    with pytest.raises(UserError, match="stride_in_1x1=False, the model has True"):
        run_import(arrays, "pspnet", stride_in_1x1=True, **PSP)
    # A coarser map is a choice, which is said.
    imported = run_import(arrays, "pspnet", output_stride=16, **PSP)
    assert any("output_stride=8" in note for note in imported.result.notes)
    imported = run_import(arrays, "pspnet", aux=False, **PSP)
    aux = [name for name in arrays if name.startswith("aux.")]
    check_complete(arrays, imported, {*tracked(arrays), *aux})
    # Our own order of the levels does not matter.
    swapped = run_import(psp_caffe(), "pspnet", bins=(6, 1, 2, 3), **PSP)
    kernel = swapped.result.arrays["params/conv5_4/kernel"]
    theirs = psp_caffe()["conv5_4[0]"].transpose(2, 3, 1, 0)  # 64, then 6, 3, 2, 1
    np.testing.assert_array_equal(kernel[:, :, 64:67], theirs[:, :, 64:67])
    np.testing.assert_array_equal(kernel[:, :, 67:70], theirs[:, :, 73:76])
