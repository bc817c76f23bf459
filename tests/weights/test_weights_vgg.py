"""FCN, CRF-RNN and ImageNet classifiers on VGG16, AlexNet and GoogLeNet."""

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

from segjax.errors import UserError
from segjax.weights import sources

# --- FCN ---

FCN = dict(widths=(2, 2, 3, 3, 2), fc_channels=4)
# The CVPR net has other names for the head.
CVPR = {
    "score_fr": "score-fr",
    "upscore2": "score2",
    "score_pool4": "score-pool4",
    "upscore_pool4": "score4",
    "score_pool3": "score-pool3",
    "upscore8": "upsample",
}


def fcn_caffe(skips, classes=3, at_once=False):
    maker = Maker()
    vgg_caffe(maker, FCN["widths"], FCN["fc_channels"])
    maker.caffe("score_fr", classes, 4, 1, 1)
    if skips < 32:
        maker.arrays["upscore2[0]"] = bilinear_blob(classes, 4)
        maker.caffe("score_pool4", classes, 3, 1, 1)
    if skips < 16:
        maker.arrays["upscore_pool4[0]"] = bilinear_blob(classes, 4)
        maker.caffe("score_pool3", classes, 3, 1, 1)
    last = {32: "upscore", 16: "upscore16", 8: "upscore8"}[skips]
    maker.arrays[f"{last}[0]"] = bilinear_blob(classes, 2 * skips)
    if at_once:
        maker.arrays["scale_pool4[0]"] = np.full(3, 0.01, np.float32)
        maker.arrays["scale_pool3[0]"] = np.full(3, 0.0001, np.float32)
        # Larger, or the scaled skips would not be seen.
        maker.arrays["score_pool4[0]"] *= 100
        maker.arrays["score_pool3[0]"] *= 10000
    return maker.arrays


def fcn_cvpr():
    """Learned upsampling kernels, the first with a bias."""
    maker = Maker()
    vgg_caffe(maker, FCN["widths"], FCN["fc_channels"])
    for name, channels in (("score-fr", 4), ("score-pool4", 3), ("score-pool3", 3)):
        maker.caffe(name, 3, channels, 1, 1)
    maker.caffe("score2", 3, 3, 4, 4)
    maker.caffe("score4", 3, 3, 4, 4, bias=False)
    maker.arrays["upsample[0]"] = bilinear_blob(3, 16)
    return maker.arrays


def np_fcn(ops, arrays, images, skips, rename=()):
    """The nets' layers and crops (voc-fcn*/train.prototxt)."""
    names = dict(rename)

    def blobs(name):
        name = names.get(name, name)
        return arrays[f"{name}[0]"], arrays.get(f"{name}[1]")

    def skip(x, up, score, pooled, offset):
        x = ops.deconv(x, *blobs(up), stride=2)
        scale = arrays.get(score.replace("score", "scale") + "[0]", np.ones(1))
        skipped = ops.conv(pooled * scale.reshape(-1, 1, 1), *blobs(score))
        h, w = x.shape[2:]
        return x + skipped[:, :, offset : offset + h, offset : offset + w]

    x, pools = caffe_input(images), {}
    for name, _, _ in vgg_layers(FCN["widths"]):
        x = ops.relu(ops.conv(x, *blobs(name), padding=100 if name == "conv1_1" else 1))
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"):
            x = pools[name[4]] = ops.max_pool(x, 2, 2)
    x = ops.relu(ops.conv(ops.relu(ops.conv(x, *blobs("fc6"))), *blobs("fc7")))
    x = ops.conv(x, *blobs("score_fr"))
    if skips < 32:
        x = skip(x, "upscore2", "score_pool4", pools["4"], 5)
    if skips < 16:
        x = skip(x, "upscore_pool4", "score_pool3", pools["3"], 9)
    last, offset = {32: ("upscore", 19), 16: ("upscore16", 27), 8: ("upscore8", 31)}[
        skips
    ]
    x = ops.deconv(x, *blobs(last), stride=skips)
    h, w = images.shape[1:3]
    return x[:, :, offset : offset + h, offset : offset + w]


FCN_CASES = {
    "32s": (dict(skips=32), functools.partial(fcn_caffe, 32)),
    "16s": (dict(skips=16), functools.partial(fcn_caffe, 16)),
    "8s": (dict(skips=8), functools.partial(fcn_caffe, 8)),
    "at once": (
        dict(skips=8, at_once=True),
        functools.partial(fcn_caffe, 8, at_once=True),
    ),
    "CVPR": (dict(skips=8, learn_upsampling=True), fcn_cvpr),
}


@functools.cache
def fcn_case(name):
    fields, make = FCN_CASES[name]
    arrays, images = make(), picture(20, 27)
    imported = run_import(arrays, "fcn", **fields, **FCN)
    check_complete(arrays, imported)
    assert imported.num_classes == 3
    return arrays, images, logits(imported, images, "fcn", **fields, **FCN)


@each_library
@pytest.mark.parametrize("name", FCN_CASES)
def test_fcn(name, library):
    ops = operators(library)
    arrays, images, found = fcn_case(name)
    skips = FCN_CASES[name][0]["skips"]
    rename = CVPR if name == "CVPR" else ()
    assert_close(found, np_fcn(ops, arrays, images, skips, rename))


@pytest.mark.parametrize("skips", [32, 16])
def test_fcn_stages(skips):
    arrays = fcn_caffe(skips, classes=5)
    imported = run_import(arrays, "fcn", skips=skips, **FCN)
    assert imported.num_classes == 5
    heads = {"score_fr", "score_pool4"} if skips == 16 else {"score_fr"}
    assert {name.split("/")[1] for name in imported.heads} == heads
    # V1 files, 4-dimensional all over, give the same.
    old = {name: a.reshape((1,) * (4 - a.ndim) + a.shape) for name, a in arrays.items()}
    again = run_import(old, "fcn", skips=skips, **FCN)
    for name, array in imported.result.arrays.items():
        np.testing.assert_array_equal(array, again.result.arrays[name])
    with pytest.raises(UserError, match=f"set --config.model.skips to {skips}"):
        run_import(arrays, "fcn", skips=8, **FCN)


def test_fields_that_contradict_the_file():
    with pytest.raises(UserError, match="set --config.model.learn_upsampling to True"):
        run_import(fcn_cvpr(), "fcn", skips=8, **FCN)
    arrays = fcn_caffe(8)
    arrays["upscore2[0]"] += 0.01
    with pytest.raises(UserError, match=r"upscore2\[0\] is not the fixed bilinear"):
        run_import(arrays, "fcn", skips=8, **FCN)
    arrays = fcn_caffe(8, at_once=True)
    with pytest.raises(UserError, match="set --config.model.at_once to True"):
        run_import(arrays, "fcn", skips=8, **FCN)
    arrays["scale_pool3[0]"][1] = 0.01
    arrays["scale_pool4[0]"][2] = 0.02
    with pytest.raises(UserError) as error:
        run_import(arrays, "fcn", skips=8, at_once=True, **FCN)
    assert "scale_pool3[0] is not 0.0001 everywhere" in str(error.value)
    assert "scale_pool4[0] is not 0.01 everywhere" in str(error.value)


# --- CRF-RNN ---


CRF = dict(
    base_options=(
        *("skips=8", "learn_upsampling=True"),
        *("widths=2,2,3,3,2", "fc_channels=4"),
    ),
    iterations_test=4,
    spatial_filter="exact",
    bilateral_filter="exact",
)


def np_filter(features):
    """Gaussian of all pairs, self included, its rows normalized to sums of 1."""
    distances = np.square(features[:, None] - features).sum(-1)
    kernel = np.exp(-distances / 2)
    return kernel / kernel.sum(1, keepdims=True)


def np_crf(ops, arrays, unary, images, iterations):
    """The layer inference1; `unary` [1, K, H, W]."""
    w_s, w_b, mu = (arrays[f"inference1[{i}]"][0, 0] for i in range(3))
    _, classes, height, width = unary.shape
    position = np.indices((height, width)).reshape(2, -1).T
    colors = images.reshape(-1, 3).astype(float)
    spatial = np_filter(position / 3)
    bilateral = np_filter(np.concatenate([position / 160, colors / 3], 1))
    u = q = unary.reshape(classes, -1)
    for _ in range(iterations):
        p = ops.softmax(q[None, :, :, None])[0, :, :, 0]
        q = u - mu @ (w_s @ p @ spatial.T + w_b @ p @ bilateral.T)
    return q.reshape(unary.shape)


@functools.cache
def crf_case():
    arrays, images = fcn_cvpr(), picture(9, 7)
    images[:, :5, :4] = images[:, :1, :1]  # or no two colors would be near
    arrays["conv1_1[0]"] *= 0.01  # scores that a softmax does not turn into 0 and 1
    rng = np.random.default_rng(2)
    for index, weight in enumerate((3, 5, -1)):
        matrix = weight * np.eye(3) + rng.normal(size=(3, 3)) / 4
        arrays[f"inference1[{index}]"] = np.float32(matrix)[None, None]
    imported = run_import(arrays, "crfrnn", sources.VGG, **CRF)
    check_complete(arrays, imported)
    return arrays, images, logits(imported, images, "crfrnn", **CRF)


@each_library
def test_crfrnn(library):
    ops = operators(library)
    arrays, images, found = crf_case()
    unary = np_fcn(ops, arrays, images, 8, CVPR)
    expected = np_crf(ops, arrays, unary, images, iterations=4)
    assert np.abs(expected - unary).max() > 0.1 * np.abs(unary).max()
    assert_close(found, expected)


def test_crfrnn_without_learned_matrices():
    arrays = {**crf_case()[0]}
    with pytest.raises(UserError, match=r"unexpected: inference1\[2\]"):
        run_import(arrays, "crfrnn", **CRF, compatibility="potts")
    arrays["inference1[1]"] = arrays["inference1[1]"][0, 0, 0]
    with pytest.raises(UserError, match=r"inference1\[1\] has shape \(3,\).* \(3, 3\)"):
        run_import(arrays, "crfrnn", **CRF)


# --- VGG16 of three programs ---

VGG = dict(widths=(2, 2, 3, 3, 2), fc_channels=4)


@functools.cache
def vgg_files():
    """One network as Caffe, torchvision and Keras store it; their input channels."""
    widths, fc = VGG["widths"], VGG["fc_channels"]
    base = Maker()
    vgg_caffe(base, widths)
    for name, shape in (("fc6", (fc, 98)), ("fc7", (fc, fc)), ("fc8", (10, fc))):
        base.caffe(name, *shape)
    convs = [name for name, _, _ in vgg_layers(widths)]
    features = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    in_torch = [f"features.{i}" for i in features]
    in_torch += [f"classifier.{i}" for i in (0, 3, 6)]
    in_keras = ["block{}_conv{}".format(*name[4:].split("_")) for name in convs]
    in_keras += ["fc1", "fc2", "predictions"]
    torch, keras = {}, {}
    for name, torch_name, keras_name in zip(
        [*convs, "fc6", "fc7", "fc8"], in_torch, in_keras, strict=True
    ):
        kernel, bias = base.arrays[f"{name}[0]"], base.arrays[f"{name}[1]"]
        torch[f"{torch_name}.weight"], torch[f"{torch_name}.bias"] = kernel, bias
        if kernel.ndim == 4:
            kernel = np.moveaxis(kernel, (0, 1), (3, 2))
        elif name == "fc6":  # the map is flattened channels last
            kernel = np.moveaxis(kernel.reshape(fc, 2, 7, 7), 1, 3).reshape(fc, -1).T
        else:
            kernel = kernel.T
        keras[f"{keras_name}/kernel"], keras[f"{keras_name}/bias"] = kernel, bias
    # Caffe and Keras see BGR, torchvision RGB.
    torch["features.0.weight"] = torch["features.0.weight"][:, ::-1]
    return base.arrays, torch, keras


VGG_SOURCES = {
    "caffe": (sources.VGG, ["fc8[0]", "fc8[1]"]),
    "torchvision": (
        sources.TORCHVISION,
        ["classifier.6.bias", "classifier.6.weight"],
    ),
    "keras": (sources.VGG, ["predictions/bias", "predictions/kernel"]),
}


@pytest.mark.parametrize("program", VGG_SOURCES)
def test_vgg16_trunk_without_its_classifier(program):
    """FCN and the other networks on VGG16 leave the scores of ImageNet out."""
    images, head = VGG_SOURCES[program]
    caffe, torch, keras = vgg_files()
    arrays = {"caffe": caffe, "torchvision": torch, "keras": keras}[program]
    fields = dict(skips=32, image_stats="imagenet", **VGG)
    imported = run_import(arrays, "fcn", images, **fields)
    check_complete(arrays, imported, head, ["score_fr"])
    assert imported.num_classes == 0
    # All are the same network.
    reference = run_import(caffe, "fcn", sources.VGG, **fields)
    for name, array in imported.result.arrays.items():
        np.testing.assert_array_equal(array, reference.result.arrays[name])
    # The trunk of contextual ends before block 5.
    widths = VGG["widths"][:4]
    imported = run_import(arrays, "contextual", images, widths=widths)
    assert len(imported.result.rows) == 20
    if program == "keras":
        notop = {k: v for k, v in arrays.items() if k.startswith("block")}
        imported = run_import(notop, "fcn", images, **fields)
        missing = ["score_fr", "backbone/fc6", "backbone/fc7"]
        check_complete(notop, imported, missing=missing)
    if program == "caffe":
        old = dict(arrays)  # a V1 file
        for name in ("fc6[0]", "fc7[0]", "fc8[0]"):
            old[name] = old[name][None, None]
        check_complete(
            old, run_import(old, "fcn", images, **fields), head, ["score_fr"]
        )
        with pytest.raises(UserError, match="set model.norm to 'none'"):
            run_import(arrays, "fcn", norm="batch", **fields)


@functools.cache
def vgg_logits():
    """The three files give the same parameters but for "imagenet" images."""
    images = picture(224, 224)
    fields = dict(backbone="vgg16", **VGG)
    found = {}
    for program, arrays in zip(VGG_SOURCES, vgg_files()):
        seen = VGG_SOURCES[program][0]._replace(bgr=False)
        imported = run_import(arrays, "classifier", seen, **fields)
        check_complete(arrays, imported)
        assert imported.num_classes == 10
        found[program] = imported
    reference = found["caffe"].result.arrays
    for imported in found.values():
        for name, array in imported.result.arrays.items():
            np.testing.assert_array_equal(array, reference[name])
    return images, logits(found["keras"], images, "classifier", **fields)


@each_library
def test_vgg16_classifier(library):
    ops = operators(library)
    images, found = vgg_logits()
    arrays, _, _ = vgg_files()
    x = caffe_input(images)
    for name, _, _ in vgg_layers(VGG["widths"]):
        kernel, bias = arrays[f"{name}[0]"], arrays[f"{name}[1]"]
        x = ops.relu(ops.conv(x, kernel, bias, padding=1))
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"):
            x = ops.max_pool(x, 2, 2)
    x = x.reshape(-1)  # channels first, as Caffe flattens it
    for name in ("fc6", "fc7", "fc8"):
        x = arrays[f"{name}[0]"] @ x + arrays[f"{name}[1]"]
        x = x if name == "fc8" else np.maximum(x, 0)
    assert_close(found[0, :, 0, 0], x)
