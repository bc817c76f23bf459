"""Published networks at their full sizes: every array, and the number of parameters.

The arrays are zeros that take no memory.
"""

import pytest
from published import Maker, bilinear_blob, run_import, vgg_caffe
from test_weights_dilated import deconvnet_caffe
from test_weights_resnet import msra_names, torch_names
from test_weights_resnet_networks import psp_caffe_name

from segjax import published


def full_fcn(skips=8, classes=21):
    maker = Maker(full=True)
    vgg_caffe(maker, (64, 128, 256, 512, 512), 4096)
    maker.caffe("score_fr", classes, 4096, 1, 1)
    for name, channels in (("score_pool4", 512), ("score_pool3", 256)):
        maker.caffe(name, classes, channels, 1, 1)
    for name, size in (("upscore2", 4), ("upscore_pool4", 4), ("upscore8", 2 * skips)):
        maker.arrays[f"{name}[0]"] = bilinear_blob(classes, size)
    return maker.arrays


def full_deconvnet():
    maker = Maker(full=True)
    return deconvnet_caffe((64, 128, 256, 512, 512), 4096, 7, maker)


def full_deeplab_vgg():
    maker = Maker(full=True)
    vgg_caffe(maker, (64, 128, 256, 512, 512))
    for branch in range(1, 5):
        maker.caffe(f"fc6_{branch}", 1024, 512, 3, 3)
        maker.caffe(f"fc7_{branch}", 1024, 1024, 1, 1)
        maker.caffe(f"fc8_voc12_{branch}", 21, 1024, 1, 1)
    return maker.arrays


STEM = (0, 0, 0, 64, 3, 7)


def resnet_units(blocks, inputs=64):
    """(stage, block, index, out, in, size); 0 is the shortcut."""
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        for block in range(1, count + 1):
            if block == 1:
                yield stage, block, 0, 4 * width, inputs, 1
            yield stage, block, 1, width, inputs, 1
            yield stage, block, 2, width, width, 3
            yield stage, block, 3, 4 * width, width, 1
            inputs = 4 * width


def full_deeplab_resnet():
    maker = Maker(full=True)
    for *which, out, inputs, size in (STEM, *resnet_units((3, 4, 23, 3))):
        stage, block, index = which
        if stage in (2, 3) and block > 1:
            branch = "2" + "abc"[index - 1]
            layer = f"res{stage + 1}b{block - 1}_branch{branch}"
            norm = layer.replace("res", "bn")
        else:
            layer, norm = msra_names(*which)
        maker.caffe(layer, out, inputs, size, size, bias=False)
        maker.caffe_norm(norm, norm.replace("bn", "scale"), out)
    for branch in range(4):
        maker.caffe(f"fc1_voc12_c{branch}", 21, 2048, 3, 3)
    return maker.arrays


def full_pspnet50():
    maker = Maker(full=True)
    stem = ((0, 0, 0, 64, 3, 3), (0, 0, 1, 64, 64, 3), (0, 0, 2, 128, 64, 3))
    for *which, out, inputs, size in (*stem, *resnet_units((3, 4, 6, 3), 128)):
        name = psp_caffe_name(*which)
        maker.caffe(name, out, inputs, size, size, bias=False)
        maker.psp_norm(f"{name}/bn", out)
    heads = {f"conv5_3_pool{bins}_conv": (512, 2048, 1, 1) for bins in (1, 2, 3, 6)}
    for name, shape in (heads | {"conv5_4": (512, 4096, 3, 3)}).items():
        maker.caffe(name, *shape, bias=False)
        maker.psp_norm(f"{name}/bn", 512)
    maker.caffe("conv6", 150, 512, 1, 1)
    return maker.arrays


def full_resnet50():
    maker = Maker(full=True)
    for *which, out, inputs, size in (STEM, *resnet_units((3, 4, 6, 3))):
        layer, norm = torch_names(*which)
        maker.torch(layer, out, inputs, size, size)
        maker.torch_norm(norm, out)
    maker.torch("fc", 1000, 2048, bias=True)
    return maker.arrays


# name, file -> the published number of parameters
FULL = {
    # 32s, and the scores of pool4 and pool3.
    "fcn8s": (full_fcn, 134_346_581 + 21 * (512 + 1 + 256 + 1)),
    "deconvnet": (full_deconvnet, 251_805_653),
    "deeplab-v2-vgg16-aspp-l": (full_deeplab_vgg, 37_877_652),
    "deeplab-v2-resnet101": (full_deeplab_resnet, 44_048_532),
    "pspnet50-ade20k": (full_pspnet50, 46_782_550),
    "resnet50": (full_resnet50, 25_557_032),
}


@pytest.mark.parametrize("name", FULL)
def test_published_sizes(name):
    make, count = FULL[name]
    arrays = make()
    model, fields = "classifier", {"backbone": name}
    if name in published.NETWORKS:
        model, fields = published.NETWORKS[name][:2]
    fields = {key: value for key, value in fields.items() if key != "scales"}
    imported = run_import(arrays, model, **fields)
    result = imported.result
    used = {source for row in result.rows for source in row.sources}
    assert used | {*result.checked, *result.ignored} == arrays.keys()
    ours = [a.size for n, a in result.arrays.items() if n.startswith("params/")]
    assert sum(ours) == count
    assert not result.notes
