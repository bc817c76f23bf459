"""Zoom-out features: what describes a superpixel, computed the long way round."""

import functools
import math

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from experiments.shared import training_run
from segjax import config, models
from segjax.data import scenes
from segjax.errors import UserError
from segjax.models import vgg, zoomout
from segjax.models.network import abstract_variables
from segjax.models.zoomout import LEVELS, Standardize, Zoomout
from segjax.ops import geometry, image, resize, superpixels

WIDTHS, FC = (2, 3, 4, 5, 6), 7
TINY = dict(
    widths=WIDTHS,
    fc_channels=FC,
    superpixels=20,
    scene_side=32,
    subscene_batch=8,
    hidden=(6, 5),
)
SIZE = (40, 53)


def values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = abstract_variables(model)
    params = jax.tree.map(
        lambda x: rng.normal(
            size=x.shape, scale=(2 / math.prod(x.shape[:-1])) ** 0.5
        ).astype(np.float32),
        shapes["params"],
    )
    stats = shapes["batch_stats"]["standardize"]
    # As if nothing were brought to mean 0 and variance 1.
    plain = {"mean": 0.0, "var": 1 - 1e-5, "weight": 0.0}
    stats = {key: np.full(x.shape, plain[key], np.float32) for key, x in stats.items()}
    return {"params": params, "batch_stats": {"standardize": stats}}


@functools.partial(jax.jit, static_argnums=0)
def predict(model, variables, images):
    return model.apply(variables, images, train=False)


@functools.cache
def photos():
    return np.stack([scenes.scene(1, i, size=SIZE)["image"] for i in range(2)])


@functools.cache
def predicted():
    model = Zoomout(3, **TINY)
    variables = random_variables(model)
    return model, variables, jax.device_get(predict(model, variables, photos()))


def test_dimensions_and_parameters_at_full_size():
    """64 2 + 128 2 + 256 3 + 512 6 = 4,224 of the convolutions, fc7 twice."""
    conv = 64 * 2 + 128 * 2 + 256 * 3 + 512 * 3 + 512 * 3
    assert conv == 4224 and conv + 2 * 4096 == 12_416
    model = Zoomout(21)
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((1, 500, 375, 3), np.uint8)
    run = functools.partial(model.apply, train=False)
    logits, endpoints = jax.eval_shape(run, variables, images)
    assert logits.shape == (1, 500, 375, 21)
    assert endpoints["features"].shape == (1, 1, 26 * 19, 12_416)
    mlp = 12_416 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 21 + 21
    assert values(variables["params"]) == 134_260_544 + mlp == 148_046_677
    linear = abstract_variables(Zoomout(21, hidden=()))["params"]
    assert values(linear) == 134_260_544 + 12_416 * 21 + 21
    stats = variables["batch_stats"]["standardize"]
    assert stats["mean"].shape == stats["var"].shape == (12_416,)


@pytest.mark.parametrize(
    "size, train", [((1, 1), False), ((33, 50), True), ((224, 97), False)]
)
def test_any_size(size, train):
    model = Zoomout(3, **TINY)
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((2, *size, 3), np.uint8)
    keys = {"dropout": jax.random.key(0)}
    count = math.prod(superpixels.grid_size(*size, 20))
    run = functools.partial(
        model.apply, train=train, rngs=keys, mutable=["batch_stats"]
    )
    (logits, endpoints), _ = jax.eval_shape(run, variables, images)
    assert logits.shape == (2, *size, 3) and logits.dtype == jnp.float32
    assert endpoints["superpixel_scores"].shape == (2, 1, count, 3)


def test_features_of_each_superpixel():
    """VGG16 applied to the image, to the warped image and to each cut out sub-scene."""
    model, variables, (_, endpoints) = predicted()
    trunk = vgg.VGG16(widths=WIDTHS, fc_channels=FC, convolutions=True, fc6_padding=3)
    run = jax.jit(
        lambda x: trunk.apply(
            {"params": variables["params"]["backbone"]},
            image.normalize(x, "caffe"),
            False,
        )
    )
    ids = endpoints["superpixels"][..., 0]
    features = endpoints["features"][:, 0]
    channels = [w for w, n in zip(WIDTHS, vgg.STAGES) for _ in range(n)] + [FC, FC]
    ends = np.cumsum(channels)
    parts = dict(zip(LEVELS, np.split(features, ends[:-1], axis=-1), strict=True))
    maps = run(photos())
    for name in ("conv1_1", "conv2_2", "conv4_3", "conv5_3"):
        full = resize.interpolate(
            maps[name], vgg.grids(1)[name], target=geometry.Grid(), size=SIZE
        )
        for n, c in ((0, 0), (1, 1)):
            mean = ndimage.mean(full[n, ..., c], ids[n], range(features.shape[1]))
            filled = np.isin(range(features.shape[1]), ids[n])
            np.testing.assert_allclose(
                parts[name][n, filled, c], mean[filled], rtol=1e-3, atol=1e-2
            )

    def fc7(picture):
        warped = cv2.resize(picture.astype(np.float32), (32, 32))
        return np.asarray(run(warped[None])["fc7"])[0].mean(axis=(0, 1))

    # Superpixels that touch, by SciPy: those that a grown one covers.
    near = np.zeros((2, features.shape[1], features.shape[1]), bool)
    for n, index in np.ndindex(near.shape[:2]):
        grown = ndimage.binary_dilation(ids[n] == index)
        near[n, index, np.unique(ids[n][grown])] = True
    for n, index in ((0, ids[0, 0, 0]), (1, ids[1, 20, 30]), (0, ids[0, 39, 52])):
        np.testing.assert_allclose(
            parts["scene"][n, index], fc7(photos()[n]), rtol=1e-3, atol=1e-2
        )
        reached = near[n, index]
        for _ in range(2):
            reached = near[n, reached].any(axis=0)
        y, x = np.nonzero(reached[ids[n]])
        part = photos()[n, y.min() : y.max() + 1, x.min() : x.max() + 1]
        np.testing.assert_allclose(
            parts["subscene"][n, index], fc7(part), rtol=1e-3, atol=1e-2
        )


def test_scores_are_those_of_the_superpixel():
    """The classifier by numpy, painted back."""
    _, variables, (logits, endpoints) = predicted()
    x = endpoints["features"][:, 0].astype(np.float64)
    params = variables["params"]
    for name in ("hidden1", "hidden2", "score"):
        x = x @ params[name]["kernel"][0, 0] + params[name]["bias"]
        x = np.maximum(x, 0) if name != "score" else x
    ids = endpoints["superpixels"][..., 0]
    expected = np.stack([scores[one] for scores, one in zip(x, ids, strict=True)])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.1
    found = superpixels.slic(photos(), superpixels=20)
    assert (np.asarray(found) == ids).mean() > 0.99


def test_the_number_of_subscenes_at_a_time_changes_nothing():
    model, variables, (logits, _) = predicted()
    found, _ = predict(model.clone(subscene_batch=100), variables, photos())
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_levels_choose_columns_in_their_order():
    _, variables, (_, endpoints) = predicted()
    model = Zoomout(3, **TINY | {"levels": ("scene", "conv2_1"), "hidden": ()})
    random = random_variables(model)
    random["params"]["backbone"] = variables["params"]["backbone"]
    _, found = predict(model, random, photos())
    full = endpoints["features"]
    expected = np.concatenate([full[..., -FC:], full[..., 4:7]], axis=-1)
    np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-3)


def test_standardized_by_moving_averages():
    """Weights m^(t - s) of the steps s = 1 .. t, which sum to 1; by numpy."""
    rng = np.random.default_rng(0)
    layer, momentum = Standardize(0.8), 0.8
    batches = [rng.normal(i, 1 + i, (2, 6, 3)).astype(np.float32) for i in range(4)]
    masks = [rng.random((2, 6, 1)) < 0.7 for _ in batches]
    variables = layer.init(jax.random.key(0), batches[0], masks[0], True)
    outputs = []
    for x, mask in zip(batches, masks, strict=True):
        y, variables = layer.apply(variables, x, mask, True, mutable=["batch_stats"])
        outputs.append(y)
    weights = np.concatenate(
        [
            np.full(mask.sum(), momentum ** (3 - i) / mask.sum())
            for i, mask in enumerate(masks)
        ]
    )
    points = np.concatenate([x[m[..., 0]] for x, m in zip(batches, masks)])
    mean = np.average(points, axis=0, weights=weights)
    var = np.average((points - mean) ** 2, axis=0, weights=weights)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-4)
    expected = np.where(masks[3], (batches[3] - mean) / np.sqrt(var + 1e-5), 0)
    np.testing.assert_allclose(outputs[3], expected, rtol=1e-3, atol=1e-4)
    # Prediction does the same, and changes nothing.
    found, after = layer.apply(
        variables, batches[3], masks[3], False, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(found, outputs[3], rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], stats)


def test_gradients_reach_the_classifier_alone():
    model = Zoomout(3, **TINY | {"levels": ("conv5_3", "subscene", "scene")})
    variables = random_variables(model)

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = model.apply(
                variables | {"params": params},
                photos(),
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )[0]
            return jnp.square(logits).mean()

        return jax.grad(loss)(params)

    found = jax.device_get(gradient(variables["params"]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert (path[0].key != "backbone") == bool(np.any(leaf)), path


def test_weight_decay_leaves_the_backbone_alone():
    options = config.make(
        model_name="zoomout", model=TINY, optim={"lr": 0.5, "weight_decay": 0.1}
    )
    model = Zoomout(3, **TINY)
    with_crf = models.CRFRNN(3, base="zoomout", base_options=("superpixels=20",))
    assert with_crf.frozen == ("backbone",)
    assert models.CRFRNN(3).frozen == ()
    params = {"backbone": {"kernel": np.ones(3)}, "score": {"kernel": np.ones(3)}}
    for network in (model, with_crf):
        optimizer = training_run.make_optimizer(options, network)(params)
        zeros = jax.tree.map(np.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        assert (updates["backbone"]["kernel"] == 0).all()
        assert (updates["score"]["kernel"] < 0).all()


def test_fields_reach_their_layers():
    rates, momenta, calls = [], [], []

    def record(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__":
            if isinstance(module, nn.Dropout) and not module.deterministic:
                rates.append(module.rate)
            if isinstance(module, Standardize):
                momenta.append(module.momentum)
            if isinstance(module, vgg.VGG16):
                calls.append((module.fc6_padding, module.dtype, args[0].shape[1:3]))
        return call(*args, **kwargs)

    fields = {"dropout": 0.25, "bn_momentum": 0.75, "dtype": "bfloat16"}
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    for side, padding in ((192, 3), (193, 0)):
        rates, momenta, calls = [], [], []
        model = Zoomout(3, **TINY | fields | {"scene_side": side})
        with nn.intercept_methods(record):
            jax.eval_shape(functools.partial(model.init, train=True), keys, photos())
        assert rates == [0.25, 0.25] and momenta == [0.75]
        assert {(side, side), SIZE} == {size for _, _, size in calls}
        assert {call[:2] for call in calls} == {(padding, "bfloat16")}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"levels": ()}, r"--config.model.levels \(Zoomout\) is \(\), expected names"),
        ({"levels": ("scene", "scene")}, "expected different values"),
        ({"levels": ("scenes",)}, "did you mean 'scene'"),
        ({"compactness": 0.0}, r"model.compactness .* is 0.0, expected more than 0"),
        ({"superpixels": 0}, r"model.superpixels .*expected an integer of at least 1"),
        ({"distance": -1}, r"model.distance .*expected an integer of at least 0"),
        ({"hidden": (0,)}, r"model.hidden .*expected positive integers"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        Zoomout(2, **fields)


def test_subscenes_of_a_row_of_squares():
    """Four superpixels side by side: a distance of 1 reaches one to each side."""
    ids = np.repeat(np.arange(4), 3)[None, None].astype(np.int32)
    boxes = np.asarray(zoomout.subscene_boxes(ids, 4, 1))[0]
    assert boxes.tolist() == [[0, 0, 1, 6], [0, 0, 1, 9], [0, 3, 1, 12], [0, 6, 1, 12]]
