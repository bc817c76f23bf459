"""SqueezeNet 1.1 of torchvision and Keras; ResNet-18 and 34 of torchvision."""

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
from test_weights_keras_safetensors import NEW, write_keras

from segjax import weights
from segjax.errors import UserError
from segjax.weights import sources

# --- SqueezeNet ---

SQUEEZE = dict(backbone="squeezenet", widths=(4,))
# A sixteenth of the published channels, squeezed and expanded.
FIRES = {2: (1, 4), 3: (1, 4), 4: (2, 8), 5: (2, 8)}
FIRES |= {6: (3, 12), 7: (3, 12), 8: (4, 16), 9: (4, 16)}
IN_TORCH = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}


@functools.cache
def squeezenets():
    """One network as torchvision and Keras store it, with its scores."""
    maker, inputs = Maker(), 4
    maker.torch("features.0", 4, 3, 3, 3, bias=True)
    keras_names = {"features.0": "conv1", "classifier.1": "conv10"}
    for fire, (squeeze, expand) in FIRES.items():
        name = f"features.{IN_TORCH[fire]}"
        for kind, *shape in (
            ("squeeze", squeeze, inputs, 1, 1),
            ("expand1x1", expand, squeeze, 1, 1),
            ("expand3x3", expand, squeeze, 3, 3),
        ):
            maker.torch(f"{name}.{kind}", *shape, bias=True)
            kind_there = "squeeze1x1" if kind == "squeeze" else kind
            keras_names[f"{name}.{kind}"] = f"fire{fire}/{kind_there}"
        inputs = 2 * expand
    maker.torch("classifier.1", 7, inputs, 1, 1, bias=True)
    maker.arrays["classifier.1.bias"] += 3  # or the last ReLU would leave nothing
    keras = {}
    for name, array in maker.arrays.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight":
            array = array.transpose(2, 3, 1, 0)
            array = array[:, :, ::-1] if layer == "features.0" else array  # BGR
        keras[f"{keras_names[layer]}/{'kernel' if kind == 'weight' else kind}"] = array
    return maker.arrays, keras


@functools.cache
def squeezenet_logits():
    in_torch, in_keras = squeezenets()
    images = picture(224, 224)
    fields = dict(SQUEEZE, image_stats="imagenet")
    imported = run_import(in_torch, "classifier", sources.TORCHVISION, **fields)
    other = run_import(in_keras, "classifier", sources.VGG, **fields)
    for arrays, found in ((in_torch, imported), (in_keras, other)):
        check_complete(arrays, found)
        assert found.num_classes == 7
    for name, array in imported.result.arrays.items():
        np.testing.assert_array_equal(array, other.result.arrays[name])
    return images, logits(imported, images, "classifier", **fields)


@each_library
def test_squeezenet(library):
    """conv1 and the poolings are not padded; the scores are rectified and averaged."""
    ops = operators(library)
    arrays, (images, found) = squeezenets()[0], squeezenet_logits()

    def conv(x, name, **window):
        blobs = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        return ops.relu(ops.conv(x, *blobs, **window))

    x = ops.max_pool(conv(torch_input(images), "features.0", stride=2), 3, 2)
    for fire in FIRES:
        name = f"features.{IN_TORCH[fire]}"
        x = conv(x, f"{name}.squeeze")
        wide = conv(x, f"{name}.expand3x3", padding=1)
        x = np.concatenate([conv(x, f"{name}.expand1x1"), wide], 1)
        if fire in (3, 5):
            x = ops.max_pool(x, 3, 2)
    assert x.shape == (1, 32, 13, 13)
    assert_close(found[0, :, 0, 0], conv(x, "classifier.1").mean((2, 3))[0])


@pytest.mark.parametrize("model", ["fcn", "deeplab", "pspnet"])
def test_squeezenet_starts_networks(model, tmp_path):
    """Without a top, as the Keras file is published, with a slash in its names."""
    notop = {n: a for n, a in squeezenets()[1].items() if not n.startswith("conv10")}
    fields = {
        "fcn": dict(SQUEEZE, skips=16),
        "deeplab": dict(backbone="squeezenet", width=4, output_stride=8),
        "pspnet": dict(backbone="squeezenet", width=4, bins=(1,), pyramid_channels=2),
    }[model]
    imported = run_import(notop, model, sources.VGG, **fields)
    heads = imported.result.missing
    check_complete(notop, imported, missing=heads)
    assert heads and not any(layer.startswith("backbone/") for layer in heads)
    head = {"conv10/kernel": np.zeros((1, 1, 32, 7), np.float32)}
    whole = run_import(notop | head, model, sources.VGG, **fields)
    assert whole.result.ignored == ("conv10/kernel",)
    with pytest.raises(UserError, match="are of SqueezeNet 1.1 .Keras., for model"):
        run_import(notop, "unet", widths=(2, 2))


def test_keras_names_with_slashes(tmp_path):
    pytest.importorskip("h5py")
    arrays = squeezenets()[1]
    write_keras(tmp_path / "a.h5", arrays, NEW, nested=True)
    found = weights.read(tmp_path / "a.h5")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


# --- ResNet-18, ResNet-34 ---

BASIC = dict(stage_sizes=(2, 1, 1, 1), widths=(2,), backbone="resnet18")


@functools.cache
def resnet18():
    maker, inputs = Maker(), 2
    maker.torch("conv1", 2, 3, 7, 7)
    maker.torch_norm("bn1", 2)
    for stage, count in enumerate(BASIC["stage_sizes"]):
        width = 2 * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            for index, channels in ((1, inputs), (2, width)):
                maker.torch(f"{name}.conv{index}", width, channels, 3, 3)
                maker.torch_norm(f"{name}.bn{index}", width)
            if inputs != width:
                maker.torch(f"{name}.downsample.0", width, inputs, 1, 1)
                maker.torch_norm(f"{name}.downsample.1", width)
            inputs = width
    maker.torch("fc", 5, inputs, bias=True)
    return maker.arrays


def tracked(arrays):
    return [name for name in arrays if name.endswith("num_batches_tracked")]


@functools.cache
def resnet18_case():
    arrays, images = resnet18(), picture(224, 224)
    imported = run_import(arrays, "classifier", sources.TORCHVISION, **BASIC)
    check_complete(arrays, imported, tracked(arrays))
    assert imported.num_classes == 5 and not imported.result.notes
    return arrays, images, logits(imported, images, "classifier", **BASIC)


@each_library
def test_resnet18(library):
    ops = operators(library)
    arrays, images, found = resnet18_case()

    def conv_norm(x, conv, norm, **window):
        x = ops.conv(x, arrays[f"{conv}.weight"], **window)
        kinds = ("weight", "bias", "running_mean", "running_var")
        return ops.norm(x, *(arrays[f"{norm}.{kind}"] for kind in kinds))

    # Planes in the order of RGB, of the images that the model's "caffe" makes.
    x = caffe_input(images)[:, ::-1]
    x = ops.relu(conv_norm(x, "conv1", "bn1", stride=2, padding=3))
    x = ops.max_pool(x, 3, 2, padding=1, ceil=False)
    for stage, count in enumerate(BASIC["stage_sizes"]):
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            window = dict(stride=stride, padding=1)
            y = ops.relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1", **window))
            y = conv_norm(y, f"{name}.conv2", f"{name}.bn2", padding=1)
            if f"{name}.downsample.0.weight" in arrays:
                both = f"{name}.downsample.0", f"{name}.downsample.1"
                x = conv_norm(x, *both, stride=stride)
            x = ops.relu(x + y)
    expected = arrays["fc.weight"] @ x.mean((2, 3))[0] + arrays["fc.bias"]
    assert_close(found[0, :, 0, 0], expected)


@pytest.mark.parametrize("model", ["fcn", "deeplab", "pspnet"])
def test_resnet18_starts_networks(model):
    tiny = dict(backbone="resnet18", width=2, stage_sizes=BASIC["stage_sizes"])
    fields = {
        "fcn": dict(BASIC, skips=8),
        "deeplab": dict(tiny),
        "pspnet": dict(tiny, stem="plain", aux=False),
    }[model]
    arrays = resnet18()
    imported = run_import(arrays, model, sources.TORCHVISION, **fields)
    heads = imported.result.missing
    head = ["fc.weight", "fc.bias"]
    check_complete(arrays, imported, [*tracked(arrays), *head], heads)
    assert heads and not any(layer.startswith("backbone/") for layer in heads)


def test_sizes_of_the_new_backbones():
    """torchvision's, as published, with 1000 classes."""
    for name, blocks, count in (
        ("resnet18", (2, 2, 2, 2), 11_689_512),
        ("resnet34", (3, 4, 6, 3), 21_797_672),
    ):
        maker, inputs = Maker(full=True), 64
        maker.torch("conv1", 64, 3, 7, 7)
        maker.torch_norm("bn1", 64)
        for stage, number in enumerate(blocks):
            width = 64 * 2**stage
            for block in range(number):
                unit = f"layer{stage + 1}.{block}"
                for index, channels in ((1, inputs), (2, width)):
                    maker.torch(f"{unit}.conv{index}", width, channels, 3, 3)
                    maker.torch_norm(f"{unit}.bn{index}", width)
                if inputs != width:
                    maker.torch(f"{unit}.downsample.0", width, inputs, 1, 1)
                    maker.torch_norm(f"{unit}.downsample.1", width)
                inputs = width
        maker.torch("fc", 1000, 512, bias=True)
        imported = run_import(maker.arrays, "classifier", backbone=name)
        arrays = imported.result.arrays
        ours = [a.size for n, a in arrays.items() if n.startswith("params/")]
        assert sum(ours) == count and imported.num_classes == 1000
