"""Predictors against NumPy, OpenCV and each other."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from segjax import inference
from segjax.errors import UserError
from segjax.models.unet import UNet
from segjax.ops import geometry

CLASSES = 3


class Strided(nn.Module):
    """A same-size model that takes sides 1 modulo 4, from 5 up."""

    tiling = geometry.Tiling(step=4, offset=1, margin=0, minimum=5)

    @nn.compact
    def __call__(self, images, train):
        geometry.check_sides(self.tiling, geometry.sides(images), model="Strided")
        x = images.astype(jnp.float32) / 255
        logits = nn.Conv(CLASSES, (5, 5), padding=2, name="score")(x)
        return logits, {}


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def initialized(model, side, channels=3):
    """Random variables that keep the size of activations (not compiling an init)."""
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, side, side, channels), jnp.uint8),
    )
    rng = np.random.default_rng(0)

    def leaf(shape):
        spread = (2 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 0.1
        return rng.normal(0, spread, shape).astype(np.float32)

    return jax.tree.map(lambda found: leaf(found.shape), shapes)


def direct(model, variables, images):
    apply = jax.jit(functools.partial(model.apply, train=False))
    return np.asarray(apply(variables, images)[0])


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def pointwise(variables, images):
    """Class probabilities that depend on the pixel alone."""
    return jax.nn.softmax(images[..., :CLASSES].astype(jnp.float32) / 100, axis=-1)


def local(variables, images):
    """Probabilities that also depend on the place in the window, to tell them apart."""
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    logits = images[..., :CLASSES].astype(jnp.float32) / 100
    logits += np.stack([rows, 2 * columns, rows * columns], -1)[None] / 30
    return jax.nn.softmax(logits, axis=-1)


@pytest.mark.parametrize("size", [(9, 13), (10, 12), (3, 30), (1, 2)])
def test_whole_mirrors_to_a_valid_size(size):
    model, images = Strided(), pixels(2, *size, 3)
    variables = initialized(model, 9)
    probabilities = jax.jit(inference.whole(model))(variables, images)

    valid = [max(5, side + (1 - side) % 4) for side in size]
    rim = [(0, side - old) for side, old in zip(valid, size)]
    mirrored = np.pad(images, [(0, 0), *rim, (0, 0)], mode="reflect")
    logits = direct(model, variables, mirrored)
    expected = softmax(logits)[:, : size[0], : size[1]]
    assert probabilities.shape == (2, *size, CLASSES)
    assert probabilities.dtype == jnp.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 12), (9, 14), (3, 2)])
def test_whole_adds_the_margin(size):
    model, images = UNet(CLASSES, widths=(2, 3)), pixels(1, *size, 1)
    assert model.tiling == geometry.Tiling(step=2, offset=0, margin=8, minimum=18)
    variables = initialized(model, 18, channels=1)
    probabilities = jax.jit(inference.whole(model))(variables, images)

    rim = [(8, 8 + side % 2) for side in size]
    mirrored = np.pad(images, [(0, 0), *rim, (0, 0)], mode="reflect")
    logits = direct(model, variables, mirrored)
    expected = softmax(logits)[:, : size[0], : size[1]]
    assert expected.std() > 0.01
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize(
    "levels, tile, size, batch",
    [
        (2, 36, (20, 20), 1),  # one tile fits
        (2, 24, (21, 30), 1),
        (2, 24, (21, 30), 5),  # 12 tiles in runs of 5
        (2, 24, (2, 50), 99),  # smaller than the margin; all tiles in one run
        (4, 108, (29, 40), 1),  # 20 px are predicted: tiles advance by 16
        (4, 100, (5, 21), 2),  # 12 px are predicted: tiles advance by 8
    ],
)
def test_overlap_tile_equals_whole(levels, tile, size, batch):
    model, images = UNet(CLASSES, widths=(2, 3, 3, 2)[:levels]), pixels(2, *size, 1)
    variables = initialized(model, tile, channels=1)
    tiled = jax.jit(inference.overlap_tile(model, tile, batch))(variables, images)
    whole = jax.jit(inference.whole(model))(variables, images)
    assert tiled.shape == (2, *size, CLASSES)
    assert np.std(whole) > 0.01
    np.testing.assert_allclose(tiled, whole, atol=2e-6)


def test_tiles_may_not_follow_the_output_side():
    """Why tiles advance by multiples of the step: pooling windows would not match."""
    model, images = UNet(CLASSES, widths=(2, 3, 3, 2)), pixels(1, 40, 40, 1)
    variables = initialized(model, 100, channels=1)
    whole = np.asarray(jax.jit(inference.whole(model))(variables, images))
    mirrored = np.pad(images, [(0, 0), (44, 56), (44, 56), (0, 0)], mode="reflect")
    second = direct(model, variables, mirrored[:, :100, 12:112])
    assert np.abs(softmax(second) - whole[:, :12, 12:24]).max() > 1e-3


def test_overlap_tile_refuses():
    model = UNet(CLASSES, widths=(1, 1, 1, 1, 1))
    with pytest.raises(UserError, match="572 or 588"):
        inference.overlap_tile(model, 573)
    with pytest.raises(
        UserError, match="predicts 4 px of a tile of 188.* at least 204"
    ):
        inference.overlap_tile(model, 188)
    with pytest.raises(UserError, match="sliding window"):
        inference.overlap_tile(Strided(), 9)


def test_window_counts():
    """Window counts of PSPNet's evaluation."""

    def count(height, width, crop):
        sides = (max(height, crop), max(width, crop))
        rows, columns = (len(inference.window_starts(side, crop)) for side in sides)
        return rows * columns

    assert count(1024, 2048, 713) == 2 * 4
    assert count(1025, 2049, 713) == 2 * 4
    scales = (0.5, 0.75, 1.25, 1.5, 1.75)
    counts = [count(int(1024 * s), int(2048 * s), 713) for s in scales]
    assert counts == [2, 6, 15, 18, 32]
    assert count(512, 512, 473) == 4
    assert count(896, 896, 473) == 9
    assert inference.window_starts(896, 473) == [0, 316, 896 - 473]
    assert inference.window_starts(2048, 713) == [0, 476, 952, 2048 - 713]
    assert inference.window_starts(473, 473) == [0]
    assert inference.window_starts(9, 3, 1.0) == [0, 3, 6]


@pytest.mark.parametrize("batch", [1, 4, 50])
@pytest.mark.parametrize(
    "size, crop, fraction",
    [((17, 22), 9, 2 / 3), ((12, 20), (12, 7), 0.5), ((14, 9), 5, 1.0)],
)
def test_sliding_is_the_mean_over_windows(size, crop, fraction, batch):
    images = pixels(2, *size, 3)
    predictor = inference.sliding(local, crop, stride=fraction, batch=batch)
    probabilities = jax.jit(predictor)({}, images)

    height, width = (crop, crop) if isinstance(crop, int) else crop
    total, count = np.zeros((2, *size, CLASSES)), np.zeros((1, *size, 1))
    for row in inference.window_starts(size[0], height, fraction):
        for column in inference.window_starts(size[1], width, fraction):
            window = np.s_[:, row : row + height, column : column + width]
            total[window] += local({}, images[window])
            count[window] += 1
    assert count.min() == 1 and count.max() > 1
    np.testing.assert_allclose(probabilities, total / count, atol=1e-6)


@pytest.mark.parametrize("fill", [(), (10.0, 20.0, 30.0)])
def test_sliding_centers_a_smaller_image(fill):
    images = pixels(2, 6, 12, 3)
    predictor = inference.sliding(local, 9, fill=fill)
    probabilities = jax.jit(predictor)({}, images)

    padded = np.pad(images, ((0, 0), (1, 2), (0, 0), (0, 0)), mode="reflect")
    if fill:
        padded[:, :1] = padded[:, -2:] = fill
    expected = inference.sliding(local, 9)({}, padded)[:, 1:7]
    assert probabilities.shape == (2, 6, 12, CLASSES)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)

    # The padding is what the predictor sees.
    def column_mean(variables, images):
        mean = images.astype(jnp.float32).mean((1, 2), keepdims=True)
        return jnp.broadcast_to(mean, images.shape)

    mean = inference.sliding(column_mean, 12, fill=fill)({}, images)
    rim = ((0, 0), (3, 3), (0, 0), (0, 0))
    padded = np.pad(images, rim, mode="reflect").astype(float)
    if fill:
        padded[:, :3] = padded[:, -3:] = fill
    np.testing.assert_allclose(mean[:, 0, 0], padded.mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    "window, stride", [(0, 1.0), ((5, 0), 1.0), ((5, 5, 5), 1.0), (5, 0.0), (5, 1.1)]
)
def test_sliding_refuses(window, stride):
    with pytest.raises(UserError, match="^--(window|stride): found"):
        inference.sliding(pointwise, window, stride=stride)


def test_flip_averages_the_mirrored_prediction():
    images = pixels(2, 5, 8, 3)
    probabilities = jax.jit(inference.flip(local))({}, images)
    straight = np.asarray(local({}, images))
    mirrored = np.asarray(local({}, images[:, :, ::-1]))[:, :, ::-1]
    assert np.abs(straight - mirrored).max() > 0.1
    np.testing.assert_allclose(probabilities, (straight + mirrored) / 2, atol=1e-6)
    same = inference.flip(pointwise)({}, images)
    np.testing.assert_allclose(same, pointwise({}, images), atol=1e-6)


def test_multi_scale_agrees_with_opencv():
    images = pixels(2, 16, 21, 3)
    scales = (0.5, 1.0, 1.75)
    probabilities = jax.jit(inference.multi_scale(local, scales))({}, images)

    expected = np.zeros((2, 16, 21, CLASSES))
    for scale in scales:
        size = (round(21 * scale), round(16 * scale))
        resized = [cv2.resize(image.astype(np.float32), size) for image in images]
        found = np.asarray(local({}, np.stack(resized)))
        expected += np.stack([cv2.resize(one, (21, 16)) for one in found]) / 3
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)

    alone = inference.multi_scale(local, (1,))({}, images)
    np.testing.assert_allclose(alone, local({}, images), atol=1e-6)
    for scales in ((), (1.0, 0.0)):
        with pytest.raises(UserError, match="^--scales: found"):
            inference.multi_scale(local, scales)


def test_labels():
    images = pixels(1, 7, 5, 3)
    labels = inference.predict_labels(pointwise)({}, images)
    assert labels.dtype == jnp.uint8
    np.testing.assert_array_equal(labels, images.argmax(-1))

    def most(variables, images):
        return jnp.eye(255)[images[..., 0]]

    top = inference.predict_labels(most)({}, np.full((1, 2, 2, 1), 254))
    assert (np.asarray(top) == 254).all()

    def many(variables, images):
        return jnp.eye(300)[images[..., 0]]

    top = inference.predict_labels(many)({}, np.full((1, 2, 2, 1), 299))
    assert top.dtype == jnp.uint16 and (np.asarray(top) == 299).all()


def test_predictors_compose_on_a_sharded_batch():
    model, images = Strided(), pixels(4, 14, 18, 3)
    variables = initialized(model, 9)
    predictor = inference.sliding(inference.whole(model), 10, batch=2)
    predictor = inference.multi_scale(inference.flip(predictor), (0.75, 1.0))
    expected = jax.jit(predictor)(variables, images)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.jit(predictor)(variables, jax.device_put(images, sharding))
    assert sharded.sharding.is_equivalent_to(sharding, 4)
    np.testing.assert_allclose(sharded, expected, atol=1e-6)
