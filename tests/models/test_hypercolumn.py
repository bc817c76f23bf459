"""Hypercolumns: one linear classifier of stacked activations, also by location."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import UserError
from segjax.models import vgg
from segjax.models.hypercolumn import Hypercolumn, upsample_located
from segjax.models.network import abstract_variables
from segjax.ops import geometry

TINY = dict(widths=(2, 3, 4, 5, 6), fc_channels=7)


def values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(model, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32),
        {"params": abstract_variables(model)["params"]},
    )


@functools.partial(jax.jit, static_argnums=0)
def predict(model, variables, images):
    return model.apply(variables, images, train=False)


def bilinear_at(values, step, start, size):
    """Linear interpolation of [n, C] whose entry i lies at start + i step, by numpy."""
    at = start + step * np.arange(len(values))
    return np.stack(
        [np.interp(np.arange(size), at, column) for column in values.T], axis=-1
    )


def upsampled(x, grid, size):
    """[h, w, C] -> [H, W, C], one axis after the other."""
    step, start = float(grid.step), float(grid.start)
    rows = np.stack(
        [bilinear_at(x[:, j], step, start, size[0]) for j in range(x.shape[1])], axis=1
    )
    return np.stack([bilinear_at(row, step, start, size[1]) for row in rows])


def test_parameters_of_vgg16():
    """14,714,688 + 102,764,544 + 16,781,312, and a classifier of 4,736 activations."""
    trunk, stack = 134_260_544, 128 + 512 + 4096
    assert stack == 4736
    params = abstract_variables(Hypercolumn(21))["params"]
    assert values(params["backbone"]) == trunk
    assert values(params) == trunk + stack * 21 + 21
    located = abstract_variables(Hypercolumn(21, grid=5))["params"]
    assert values(located) == trunk + 25 * (stack * 21 + 21)
    wide = abstract_variables(Hypercolumn(21, kernel=3))["params"]
    assert values(wide) == trunk + 9 * stack * 21 + 21


@pytest.mark.parametrize("size", [(1, 1), (33, 50), (224, 224), (97, 131)])
@pytest.mark.parametrize("fields", [{}, {"grid": 3, "kernel": 3}])
def test_any_size(size, fields):
    model = Hypercolumn(3, **TINY, **fields)
    variables = abstract_variables(model)
    images, keys = jnp.zeros((2, *size, 3), jnp.uint8), {"dropout": jax.random.key(0)}
    for train in (False, True):
        run = functools.partial(model.apply, train=train, rngs=keys)
        logits, endpoints = jax.eval_shape(run, variables, images)
        assert logits.shape == (2, *size, 3) and logits.dtype == jnp.float32
        assert endpoints["fc7"].shape[1:3] == endpoints["pool5"].shape[1:3]
        assert {n for n in endpoints if n.startswith("score_")} == {
            *("score_pool2", "score_conv4_3", "score_fc7")
        }


def test_grids_of_the_convolutions():
    """By the rule of the published table: field and stride of every layer at 1 + 3."""
    grids = vgg.grids(1, 3)
    assert [grids[f"conv{i}_1"].step for i in range(1, 6)] == [1, 2, 4, 8, 16]
    assert grids["conv4_3"] == geometry.Grid(8, 3.5)
    assert grids["pool2"] == geometry.Grid(4, 1.5)
    assert grids["fc7"] == grids["pool5"] == geometry.Grid(32, 15.5)
    assert vgg.grids(1)["fc7"].start == 15.5 + 3 * 32


def test_sum_of_scores_is_one_classifier_of_the_stack():
    """Explicit concatenation of the interpolated layers, then one 1x1 convolution."""
    model = Hypercolumn(4, layers=("pool2", "conv4_3", "conv5_1", "fc7"), **TINY)
    variables = random_variables(model)
    images = np.random.default_rng(1).integers(0, 256, (2, 37, 70, 3)).astype(np.uint8)
    logits, endpoints = predict(model, variables, images)
    grids, params = vgg.grids(1, 3), variables["params"]
    kernels, stacks = [], []
    for name in model.layers:
        kernels.append(params[f"score_{name}"]["kernel"][0, 0])
        maps = np.asarray(endpoints[name], np.float64)
        stacks.append(
            np.stack([upsampled(x, grids[name], images.shape[1:3]) for x in maps])
        )
    expected = np.concatenate(stacks, -1) @ np.concatenate(kernels)
    expected += params["score_pool2"]["bias"]
    assert np.abs(expected).max() > 1
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=tolerance)
    assert sorted(params) == ["backbone", *sorted(f"score_{n}" for n in model.layers)]
    assert [n for n in model.layers if "bias" in params[f"score_{n}"]] == ["pool2"]


def test_kernel_of_three_sees_the_neighbors():
    model = Hypercolumn(2, kernel=3, layers=("pool1",), **TINY)
    variables = random_variables(model)
    images = np.random.default_rng(1).integers(0, 256, (1, 12, 12, 3)).astype(np.uint8)
    _, endpoints = predict(model, variables, images)
    pool1 = np.pad(np.asarray(endpoints["pool1"][0]), ((1, 1), (1, 1), (0, 0)))
    layer = variables["params"]["score_pool1"]
    for i, j in ((0, 0), (2, 3), (5, 5)):
        window = pool1[i : i + 3, j : j + 3]
        expected = np.einsum("hwc,hwck->k", window, layer["kernel"]) + layer["bias"]
        np.testing.assert_allclose(
            endpoints["score_pool1"][0, i, j], expected, rtol=1e-4, atol=1e-2
        )


@pytest.mark.parametrize("grid", [1, 2, 5])
def test_classifiers_by_location(grid):
    """A loop over pixels: the four nearest classifiers, weighted bilinearly."""
    size, classes = (11, 14), 2
    source = geometry.Grid(4, 1.5)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1, 3, 4, grid * grid * classes)).astype(np.float32)
    found = upsample_located(scores, source, grid=grid, size=size)
    full = upsampled(scores[0].astype(np.float64), source, size)
    full = full.reshape(*size, grid, grid, classes)
    for y in range(size[0]):
        for x in range(size[1]):
            # Position among the classifiers, whose centers are at 0, 1 .. grid - 1.
            at = [
                min(max((p + 0.5) / side * grid - 0.5, 0), grid - 1)
                for p, side in ((y, size[0]), (x, size[1]))
            ]
            expected = 0
            for i in range(grid):
                for j in range(grid):
                    weight = max(1 - abs(at[0] - i), 0) * max(1 - abs(at[1] - j), 0)
                    expected = expected + weight * full[y, x, i, j]
            np.testing.assert_allclose(found[0, y, x], expected, rtol=1e-4, atol=1e-5)


def test_equal_classifiers_at_all_locations_are_one_classifier():
    one = Hypercolumn(3, **TINY)
    variables = random_variables(one)
    many = Hypercolumn(3, grid=4, **TINY)
    params = dict(variables["params"])
    for name in one.layers:
        params[f"score_{name}"] = {
            key: np.tile(x, (1,) * (x.ndim - 1) + (16,))
            for key, x in params[f"score_{name}"].items()
        }
    images = np.random.default_rng(1).integers(0, 256, (1, 40, 33, 3)).astype(np.uint8)
    expected, _ = predict(one, variables, images)
    found, _ = predict(many, {"params": params}, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"layers": ()}, r"--config.model.layers \(Hypercolumn\) is \(\), expected"),
        ({"layers": ("pool2", "pool2")}, "expected different values"),
        ({"layers": ("conv4_4",)}, "unknown value 'conv4_4'; did you mean 'conv4_"),
        ({"kernel": 2}, r"model.kernel .*unknown value '2'; known: 1, 3"),
        ({"grid": 0}, r"model.grid \(Hypercolumn\) is 0, expected an integer of"),
        ({"widths": (2,)}, "expected 5 values"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        Hypercolumn(2, **fields)
