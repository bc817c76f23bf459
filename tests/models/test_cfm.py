"""Convolutional feature masking: pyramids of masked boxes, pasted by their scores."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segjax.data import scenes
from segjax.errors import UserError
from segjax.models import cfm, vgg
from segjax.models.cfm import CFM, Segments
from segjax.models.network import abstract_variables
from segjax.ops import image, segment_pool, superpixels

TINY = dict(
    widths=(2, 3, 4, 5, 6),
    fc_channels=7,
    bins=(3, 1),
    superpixels=12,
    segment_batch=4,
)
SIZE = (50, 67)


def values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params": jax.tree.map(
            lambda x: rng.normal(
                size=x.shape, scale=(2 / math.prod(x.shape[:-1])) ** 0.5
            ).astype(np.float32),
            abstract_variables(model)["params"],
        )
    }


@functools.partial(jax.jit, static_argnames=("model", "train"))
def apply(model, variables, images, masks=None, train=False):
    keys = {"dropout": jax.random.key(0)}
    return model.apply(variables, images, train=train, masks=masks, rngs=keys)


@functools.cache
def photos():
    return np.stack([scenes.scene(1, i, size=SIZE)["image"] for i in range(2)])


def random_masks(count):
    """Blobs: smoothed noise above its mean, and one that covers nothing."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, count, *SIZE)), (0, 0, 6, 6))
    masks = noise > np.quantile(noise, 0.6)
    masks[:, 2] = False
    return masks


@pytest.mark.parametrize("design, paths", [("a", 2), ("b", 1)])
def test_parameters_at_full_size(design, paths):
    """13 convolutions; 36 + 9 + 4 + 1 parts of 512 channels into fc6, fc7, scores."""
    path = 50 * 512 * 4096 + 4096 + 4096 * 4096 + 4096
    expected = 14_714_688 + paths * path + paths * 4096 * 21 + 21
    params = abstract_variables(CFM(21, design=design))["params"]
    assert values(params) == expected
    assert expected == {"a": 258_172_757, "b": 136_443_733}[design]


@pytest.mark.parametrize("size", [(1, 1), (33, 50), (224, 97)])
def test_any_size(size):
    model = CFM(3, **TINY)
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((2, *size, 3), np.uint8)
    keys = {"dropout": jax.random.key(0)}
    count = math.prod(superpixels.grid_size(*size, 12))
    for train in (False, True):
        run = functools.partial(model.apply, train=train, rngs=keys)
        logits, endpoints = jax.eval_shape(run, variables, images)
        assert logits.shape == (2, *size, 3) and logits.dtype == jnp.float32
        assert endpoints["segment_scores"].shape == (2, 1, 2 * count - 1, 3)
        assert ("aux_logits_segments" in endpoints) == train


def parts_of(window, bins):
    """The pyramid of [h, w, C], part by part."""
    parts = []
    for b in bins:
        for i, j in np.ndindex(b, b):
            (y0, y1), (x0, x1) = (
                (k * n // b, -(-(k + 1) * n // b)) for k, n in zip((i, j), window.shape)
            )
            parts.append(window[y0:y1, x0:x1].max(axis=(0, 1)))
    return np.stack(parts)


@pytest.mark.parametrize("design", ["a", "b"])
def test_scores_of_given_masks(design):
    """Features, projection, pyramids and layers by numpy, from the masks on."""
    model = CFM(3, design=design, **TINY)
    variables = random_variables(model)
    masks = random_masks(6)
    logits, endpoints = jax.device_get(apply(model, variables, photos(), masks))
    params = variables["params"]
    x = endpoints["conv5_3"].astype(np.float64)
    assert x.shape == (2, 4, 5, 6)
    scores = np.zeros((2, 6, 3))
    for n, p in np.ndindex(2, 6):
        rows, columns = np.nonzero(masks[n, p])
        rows, columns = (rows, columns) if len(rows) else ([0], [0])
        top, left = min(rows) // 16, min(columns) // 16
        bottom, right = max(rows) // 16 + 1, max(columns) // 16 + 1
        inside = np.zeros(x.shape[1:3])
        for i, j in np.ndindex(*inside.shape):
            part = masks[n, p, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
            inside[i, j] = part.mean() >= 0.5
        whole = parts_of(x[n, top:bottom, left:right], model.bins)
        masked = parts_of(
            (x[n] * inside[..., None])[top:bottom, left:right], model.bins
        )
        if design == "b":
            masked[9:] = whole[9:]
        vectors = []
        for path, y in (("segment", masked), ("box", whole))[
            : 2 if design == "a" else 1
        ]:
            y = y.reshape(-1)
            for name in (f"{path}_fc6", f"{path}_fc7"):
                y = np.maximum(
                    y @ params[name]["kernel"][0, 0] + params[name]["bias"], 0
                )
            vectors.append(y)
        score = params["score"]
        scores[n, p] = np.concatenate(vectors) @ score["kernel"][0, 0] + score["bias"]
    found = endpoints["segment_scores"][:, 0]
    np.testing.assert_allclose(found, scores, rtol=1e-3, atol=1e-3)
    assert scores.std() > 0.1
    # Pasted from the least to the most certain one, each over those before.
    expected = np.zeros_like(logits)
    ordered = np.sort(found.astype(np.float64), axis=-1)
    certain = ordered[..., -1] - np.logaddexp.reduce(ordered[..., :-1], axis=-1)
    for n in range(2):
        for p in np.argsort(certain[n]):
            expected[n, masks[n, p]] = found[n, p]
    np.testing.assert_array_equal(logits, expected)
    assert (~masks.any(axis=1)).any()


def test_features_are_those_of_vgg16():
    model = CFM(3, **TINY)
    variables = random_variables(model)
    _, endpoints = apply(model, variables, photos(), random_masks(6))
    trunk = vgg.VGG16(widths=TINY["widths"], convolutions=True)
    expected = trunk.apply(
        {"params": variables["params"]["backbone"]},
        image.normalize(photos(), "caffe"),
        False,
        fc=False,
    )["conv5_3"]
    np.testing.assert_allclose(endpoints["conv5_3"], expected, rtol=1e-3, atol=1e-2)


def test_a_mask_of_everything_is_no_mask():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 7, 3)).astype(np.float32)
    boxes = np.array([[[0, 0, 6, 7], [1, 2, 4, 7]]], np.int32)
    masks = np.ones((1, 2, 6, 7), bool)
    pool = jax.jit(
        functools.partial(cfm.pyramids, bins=(3, 2, 1), batch=2),
        static_argnames="design",
    )
    for design in ("a", "b"):
        whole, masked = pool(x, Segments(masks, boxes), design=design)
        np.testing.assert_array_equal(whole, masked)
    masks[0, 0, :3] = False
    whole, masked = pool(x, Segments(masks, boxes), design="b")
    assert (masked[0, 0, :9] != whole[0, 0, :9]).any()
    np.testing.assert_array_equal(masked[0, 0, 9:], whole[0, 0, 9:])


def test_segments_of_superpixels_are_masks_from_outside():
    """The hierarchy given as masks of pixels has the same scores and logits."""
    model = CFM(3, **TINY)
    variables = random_variables(model)
    logits, endpoints = jax.device_get(apply(model, variables, photos()))
    ids = endpoints["superpixels"][..., 0]
    members = endpoints["members"][:, 0]
    masks = np.stack([m[:, one] for m, one in zip(members, ids, strict=True)])
    assert masks[:, -1].all() or members[:, -1].sum() == 0
    found, given = jax.device_get(apply(model, variables, photos(), masks))
    filled = members.any(axis=2)
    np.testing.assert_allclose(
        given["segment_scores"][:, 0][filled],
        endpoints["segment_scores"][:, 0][filled],
        rtol=1e-3,
        atol=1e-3,
    )
    np.testing.assert_allclose(found, logits, rtol=1e-3, atol=1e-3)


def test_auxiliary_scores_are_means_over_the_segments_of_a_pixel():
    model = CFM(3, **TINY | {"dropout": 0.0})
    variables = random_variables(model)
    logits, endpoints = jax.device_get(apply(model, variables, photos(), train=True))
    plain, _ = jax.device_get(apply(model, variables, photos()))
    np.testing.assert_allclose(logits, plain, rtol=1e-4, atol=1e-4)
    ids, members = endpoints["superpixels"][..., 0], endpoints["members"][:, 0]
    for n, y, x in ((0, 0, 0), (1, 49, 66), (0, 25, 30)):
        covering = members[n, :, ids[n, y, x]]
        expected = endpoints["segment_scores"][n, 0, covering].mean(axis=0)
        found = endpoints["aux_logits_segments"][n, y, x]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        assert covering.sum() >= 2


def test_paste():
    """Probabilities decide, not scores, even near 1; equal ones keep the first."""
    near = np.array([[[100.0, 0.0], [0.0, 101.0]]], np.float32)
    both = cfm.paste(near, np.ones((1, 2, 1), bool))
    assert np.asarray(both).tolist() == [[[0, 101]]]
    scores = np.array([[[9.0, 9.0], [0.0, 2.0], [2.0, 0.0], [5.0, 0.0]]], np.float32)
    members = np.array(
        [[[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]]
    )
    found = np.asarray(cfm.paste(scores, members.astype(bool)))[0]
    assert found.tolist() == [[0, 2], [0, 2], [9, 9], [5, 0], [0, 0]]


def test_boxes_of_masks():
    masks = random_masks(6)
    found = np.asarray(cfm.mask_boxes(masks))
    for n, p in np.ndindex(2, 6):
        if p == 2:
            assert found[n, p].tolist() == [0, 0, 1, 1]
            continue
        (rows, columns) = ndimage.find_objects(masks[n, p].astype(int))[0]
        expected = [rows.start, columns.start, rows.stop, columns.stop]
        assert found[n, p].tolist() == expected


def test_fields_reach_their_layers():
    rates, calls = [], []

    def record(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__":
            if isinstance(module, nn.Dropout) and not module.deterministic:
                rates.append(module.rate)
            if isinstance(module, nn.BatchNorm):
                calls.append((module.momentum, module.use_running_average))
        return call(*args, **kwargs)

    model = CFM(3, **TINY | {"dropout": 0.25, "norm": "batch", "bn_momentum": 0.75})
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with nn.intercept_methods(record):
        jax.eval_shape(functools.partial(model.init, train=True), keys, photos())
    assert rates == [0.25] * 4
    assert calls == [(0.75, False)] * 13


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"design": "c"}, r"model.design \(CFM\): unknown value 'c'; known: a, b"),
        ({"bins": ()}, r"model.bins \(CFM\) .*expected at least 1 value"),
        ({"superpixels": 0}, r"model.superpixels .*expected an integer of at least 1"),
        ({"compactness": -1.0}, "expected more than 0"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        CFM(2, **fields)


def test_the_grid_is_that_of_conv5_3():
    assert vgg.grids(1)["conv5_3"] == cfm._GRID
    assert (
        segment_pool.nearest_location(cfm._GRID, 2, 32).tolist() == [0] * 16 + [1] * 16
    )
