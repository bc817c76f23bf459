"""Ports to PyTorch, starts of training, and networks that are none of ours."""

import functools

import numpy as np
import pytest
from published import (
    Maker,
    assert_close,
    check_complete,
    each_library,
    known_shapes,
    logits,
    make_config,
    operators,
    picture,
    run_import,
    save_pth,
    torch_input,
    vgg_layers,
)
from test_weights_resnet import tracked
from test_weights_resnet_networks import DEEPLAB, deeplab_caffe, deeplab_kazuto
from test_weights_vgg import CRF, FCN, crf_case, np_crf, np_fcn

from experiments import import_weights
from segjax import weights
from segjax.errors import UserError
from segjax.weights import refused, sources

# --- CRF-RNN in PyTorch ---


def crfasrnn():
    """The arrays of crf_case() under the names of the port, mu of the other sign."""
    caffe = crf_case()[0]
    names = {
        "score-fr": "score_fr",
        "score2": "upscore2",
        "score-pool4": "score_pool4",
        "score4": "upscore_pool4",
        "score-pool3": "score_pool3",
        "upsample": "upscore8",
    }
    arrays = {}
    for name, array in caffe.items():
        layer, index = name[:-3], int(name[-2])
        if layer == "inference1":
            kinds = ("spatial_ker_weights", "bilateral_ker_weights")
            kind = (*kinds, "compatibility_matrix")[index]
            arrays[f"crfrnn.{kind}"] = array[0, 0] * (-1 if index == 2 else 1)
        else:
            kind = ("weight", "bias")[index]
            arrays[f"{names.get(layer, layer)}.{kind}"] = array
    return arrays


@each_library
def test_crfasrnn_pytorch(library):
    """The messages are added there: U + C (W_s S p + W_b B p)."""
    ops = operators(library)
    arrays, (caffe, images, _) = crfasrnn(), crf_case()
    imported = run_import(arrays, "crfrnn", sources.VGG, **CRF)
    check_complete(arrays, imported)
    found = logits(imported, images, "crfrnn", **CRF)
    names = {"score_fr": "score-fr", "upscore2": "score2", "score_pool4": "score-pool4"}
    names |= {"upscore_pool4": "score4", "score_pool3": "score-pool3"}
    unary = np_fcn(ops, caffe, images, 8, names | {"upscore8": "upsample"})
    mu = -arrays["crfrnn.compatibility_matrix"][None, None]
    expected = np_crf(ops, caffe | {"inference1[2]": mu}, unary, images, iterations=4)
    assert_close(found, expected)
    other = dict(CRF, base_options=("skips=16", *CRF["base_options"][1:]))
    with pytest.raises(UserError, match="network with skips=8, the model has 16"):
        run_import(arrays, "crfrnn", **other)
    arrays["upscore8.weight"] = arrays["upscore8.weight"] + 0.01
    with pytest.raises(UserError, match="upscore8.weight is not the fixed bilinear"):
        run_import(arrays, "crfrnn", **CRF)


# --- the start of DeepLab v2 that was trained on COCO ---


@pytest.mark.parametrize("program", ["Caffe", "deeplab-pytorch"])
def test_deeplab_starts_from_coco(program):
    """One 1x1 convolution, 91 classes, in the place of the four branches."""
    if program == "Caffe":
        whole = deeplab_caffe()
        start = {n: a for n, a in whole.items() if not n.startswith("fc1_")}
        scores = {"fc1_coco[0]": (91, 64, 1, 1), "fc1_coco[1]": (91,)}
    else:
        whole = deeplab_kazuto(False)
        start = {
            n.removeprefix("base."): a for n, a in whole.items() if "aspp" not in n
        }
        scores = {"fc.weight": (91, 64, 1, 1), "fc.bias": (91,)}
    start |= {name: np.ones(shape, np.float32) for name, shape in scores.items()}
    imported = run_import(start, "deeplab", sources.DEEPLAB, **DEEPLAB)
    head = [f"head/fc1_{branch}" for branch in range(1, 5)]
    check_complete(start, imported, [*tracked(start), *scores], head)
    assert imported.num_classes == 0
    reference = run_import(whole, "deeplab", sources.DEEPLAB, **DEEPLAB).result.arrays
    for name, array in imported.result.arrays.items():
        np.testing.assert_array_equal(array, reference[name])
    # A whole file still must have all four branches.
    name = "fc1_voc12_c2[0]" if program == "Caffe" else "base.aspp.c2.weight"
    del whole[name]
    with pytest.raises(UserError, match="missing: "):
        run_import(whole, "deeplab", sources.DEEPLAB, **DEEPLAB)


# --- VGG16 with batch normalization ---

VGG_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)


def vgg16_bn(widths=FCN["widths"], count=13):
    maker = Maker()
    layers = list(zip(VGG_BN, vgg_layers(widths), strict=True))
    for index, (_, out, inputs) in layers[:count]:
        maker.torch(f"features.{index}", out, inputs, 3, 3, bias=True)
        maker.torch_norm(f"features.{index + 1}", out)
    return maker.arrays


@functools.cache
def vgg16_bn_case():
    arrays, images = vgg16_bn(), picture(37, 40)
    head = {"classifier.6.weight": np.zeros((7, 4), np.float32)}
    head |= {"classifier.0.weight": np.zeros((4, 98), np.float32)}
    # Without its first pixels of padding, FCN is a chain of these layers.
    fields = dict(backbone="vgg16", norm="batch", rates=(1,), fc6_channels=3)
    fields |= dict(widths=FCN["widths"], output_stride=32, pool_kernel=3)
    imported = run_import(arrays | head, "deeplab", sources.TORCHVISION, **fields)
    check_complete(
        arrays | head,
        imported,
        [*tracked(arrays), *head],
        [n for n in imported.result.missing if n.startswith("head/")],
    )
    assert imported.num_classes == 0
    return arrays, images, imported, fields


def test_vgg16_bn_has_its_norms():
    """fc6 and fc7 of FCN have norms, and torchvision's have none: they are new."""
    arrays, _, imported, fields = vgg16_bn_case()
    for index, (name, _, _) in zip(VGG_BN, vgg_layers(FCN["widths"]), strict=True):
        layer = f"backbone/{name}_bn"
        mean = arrays[f"features.{index + 1}.running_mean"]
        mean = mean - arrays[f"features.{index}.bias"]
        got = imported.result.arrays[f"batch_stats/{layer}/mean"]
        if index:  # the first one takes the mean of the images, too
            np.testing.assert_allclose(got, mean, rtol=1e-6)
        scale = imported.result.arrays[f"params/{layer}/scale"]
        np.testing.assert_array_equal(scale, arrays[f"features.{index + 1}.weight"])
    fcn = run_import(arrays, "fcn", sources.TORCHVISION, norm="batch", skips=32, **FCN)
    missing = {"backbone/fc6", "backbone/fc6_bn", "backbone/fc7", "backbone/fc7_bn"}
    missing |= {"score_fr"}
    assert set(fcn.result.missing) == missing
    with pytest.raises(UserError, match="norm='batch', the model has 'none'"):
        run_import(arrays, "fcn", sources.TORCHVISION, skips=32, **FCN)


@each_library
def test_vgg16_bn_computes_what_torchvision_does(library):
    ops = operators(library)
    arrays = vgg16_bn_case()[0]
    fields = dict(backbone="vgg16", norm="batch", image_stats="imagenet", **FCN)
    images = picture(224, 224)
    found = run_import(arrays, "classifier", sources.TORCHVISION, **fields)
    weights_of = found.result.arrays
    x = torch_input(images)
    for index, (name, _, _) in zip(VGG_BN, vgg_layers(FCN["widths"]), strict=True):
        blobs = (arrays[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
        x = ops.conv(x, *blobs, padding=1)
        kinds = ("weight", "bias", "running_mean", "running_var")
        norm = (arrays[f"features.{index + 1}.{kind}"] for kind in kinds)
        x = ops.relu(ops.norm(x, *norm))
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"):
            x = ops.max_pool(x, 2, 2)
    # What torchvision does not have, here: the same numbers on both sides.
    rng = np.random.default_rng(1)
    filled = {}
    for name, shape in known_shapes("classifier", fields, 2).items():
        filled[name] = weights_of.get(name)
        if filled[name] is None:
            filled[name] = rng.uniform(0.5, 1, shape).astype(np.float32)
    complete = found._replace(result=found.result._replace(arrays=filled))
    got = logits(complete, images, "classifier", **fields)
    for layer in ("fc6", "fc7"):
        kernel = filled[f"params/backbone/{layer}/kernel"].transpose(3, 2, 0, 1)
        x = ops.conv(x, kernel)
        kinds = ("params/{}/scale", "params/{}/bias")
        kinds += ("batch_stats/{}/mean", "batch_stats/{}/var")
        norm = (filled[kind.format(f"backbone/{layer}_bn")] for kind in kinds)
        x = ops.relu(ops.norm(x, *norm))
    kernel = filled["params/fc8/kernel"].transpose(3, 2, 0, 1)
    assert_close(got, ops.conv(x, kernel, filled["params/fc8/bias"]))


def test_a_body_under_other_names(tmp_path):
    """CRAFT: VGG16 with batch normalization in five slices, without conv5_3."""
    pytest.importorskip("safetensors")
    arrays = {}
    for name, array in vgg16_bn(count=12).items():
        index = int(name.split(".")[1])
        number = 1 + sum(index >= start for start in (12, 19, 29))
        arrays[f"module.basenet.slice{number}.{name.removeprefix('features.')}"] = array
    arrays["module.basenet.slice5.1.weight"] = np.zeros((4, 2, 3, 3), np.float32)
    arrays["module.conv_cls.0.weight"] = np.zeros((2, 2, 3, 3), np.float32)
    path, output = tmp_path / "craft.pth", tmp_path / "craft.safetensors"
    save_pth(path, arrays)
    fields = dict(backbone="vgg16", norm="batch", widths=FCN["widths"])
    config = make_config("deeplab", rates=(1,), fc6_channels=3, **fields)
    options = dict(rename=r"basenet\.slice[1-4]\.=features.")
    with pytest.raises(UserError, match="missing: features.40.weight"):
        import_weights.import_weights(path, config, output=output, **options)
    options |= dict(ignore="basenet.*|conv_cls.*")
    options |= dict(leave=r"backbone/conv5_3(_bn)?")
    imported = import_weights.import_weights(path, config, output=output, **options)
    layers = {row.target.split("/")[2] for row in imported.result.rows}
    assert len(layers) == 24 and "conv5_2_bn" in layers
    assert {"backbone/conv5_3", "backbone/conv5_3_bn"} < set(imported.result.missing)
    with pytest.raises(UserError, match="--leave=.: not a regular expression"):
        import_weights.import_weights(path, config, output=output, leave="(")


def test_renaming():
    arrays = {"a.x": 1, "b.x": 2}
    assert weights.rename(arrays, "") == arrays
    assert weights.rename(arrays, r"\.x=") == {"a": 1, "b": 2}
    assert weights.rename(arrays, r"(.)\.=\1_") == {"a_x": 1, "b_x": 2}
    for text, expected in (
        ("x", "expected PATTERN=REPLACEMENT"),
        ("(=x", "not a regular expression"),
        (r"(.)=\2", "not a replacement"),
        ("[ab]=c", "two arrays would be called 'c.x'"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            weights.rename(arrays, text)
        assert str(error.value).startswith("--rename=")


# --- none of ours ---

OTHERS = {
    "torchvision's AlexNet": [
        *(f"features.{i}.weight" for i in (0, 3, 6, 8, 10)),
        *(f"classifier.{i}.weight" for i in (1, 4, 6)),
    ],
    "torchvision's GoogLeNet": [
        *("conv1.conv.weight", "inception3a.branch1.conv.weight", "fc.weight"),
    ],
    "VGG19": [
        f"features.{i}.weight"
        for i in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
    ],
    "VGG19 with batch": [
        f"features.{i}.weight"
        for i in (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49)
    ],
    "VGG11": [f"features.{i}.weight" for i in (0, 3, 6, 8, 11, 13, 16, 18)],
    "VGG13": [f"features.{i}.weight" for i in (0, 2, 5, 7, 10, 12, 15, 17, 20, 22)],
    "SqueezeNet 1.0": [
        f"features.{i}.squeeze.weight" for i in (3, 4, 5, 7, 8, 9, 10, 12)
    ],
    "FusionNet of Keras": ["deconvolution2d_1/kernel", "batchnormalization_1/gamma"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_that_are_refused_by_name(name):
    arrays = dict.fromkeys(OTHERS[name], np.zeros(3, np.float32))
    with pytest.raises(UserError, match=f"^the file is of {name}"):
        run_import(arrays, "fcn", skips=32, **FCN)


def test_nothing_that_is_known_is_refused():
    """Every array of the networks above that are imported, against the refusals."""
    known = [vgg16_bn(), crfasrnn(), deeplab_kazuto(False), deeplab_caffe()]
    features = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    known.append([f"features.{i}.weight" for i in features])
    known.append(["features.0.weight", "classifier.1.weight"])
    known[-1] += [f"features.{i}.squeeze.weight" for i in (3, 4, 6, 7, 9, 10, 11, 12)]
    for arrays in known:
        for other in refused.REFUSED:
            assert not set(other.arrays) <= set(arrays), other.title
