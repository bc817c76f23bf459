"""Fields that turn the papers' networks into those that were released."""

import functools
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import UserError
from segjax.models.crfrnn import CRFRNN
from segjax.models.deeplab import DeepLab
from segjax.models.unet import UNet
from segjax.ops import conv, filters, image

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def variables_of(model, shape):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jnp.zeros(shape, jnp.uint8)
    return jax.eval_shape(lambda: model.init(keys, images, train=True))


def random_variables(model, shape):
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            deviation = (2 / math.prod(leaf.shape[:-1])) ** 0.5
            return rng.normal(size=leaf.shape, scale=deviation).astype(np.float32)
        return rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, variables_of(model, shape))


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


# --- U-Net ----------------------------------------------------------------------------


def test_released_unet_has_the_published_number_of_parameters():
    for layout, count in (("paper", 31_030_658), ("released", 31_100_354)):
        params = variables_of(UNet(2, layout=layout), (1, 188, 188, 1))["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    up = params["dec0_up"]["kernel"].shape, params["dec1_up"]["kernel"].shape
    assert up == ((2, 2, 128, 128), (2, 2, 256, 128))


@pytest.mark.parametrize("layout", ["paper", "released"])
def test_unet_layouts(layout):
    """A decoder level again, from what it reads: order, ReLU and channels."""
    model = UNet(2, widths=(3, 5), layout=layout, padding="same")
    x = pixels(1, 8, 12, 1)
    variables = random_variables(model, x.shape)
    params = variables["params"]
    _, ends = jit(lambda x: model.apply(variables, x, train=False))(x)
    up = conv.conv_transpose(ends["enc1"], params["dec0_up"]["kernel"], stride=2)
    # A bias of -1 here and there: some of it is below zero.
    up = np.asarray(up + params["dec0_up"]["bias"])
    skip = np.asarray(ends["enc0"])
    assert up.min() < 0 and up.shape[-1] == (5 if layout == "released" else 3)
    joined = [np.maximum(up, 0), skip] if layout == "released" else [skip, up]
    y = np.concatenate(joined, axis=-1)
    for index in (1, 2):
        layer = params[f"dec0_conv{index}"]
        y = np.maximum(conv.conv2d(y, layer["kernel"], padding=1) + layer["bias"], 0)
    assert np.std(y) > 1e-2
    np.testing.assert_allclose(ends["dec0"], y, rtol=1e-4, atol=1e-4)


# --- DeepLab --------------------------------------------------------------------------


def resized(x, size):
    """By OpenCV: half-pixel centers, the border repeated."""
    return np.stack(
        [cv2.resize(im, size[::-1], interpolation=cv2.INTER_LINEAR) for im in x]
    )


def test_half_pixel_scales():
    """Scales and scores resized by OpenCV, the network run at each scale alone."""
    fields = dict(width=2, stage_sizes=(1, 1, 0, 0), rates=(2,), half_pixel=True)
    both = DeepLab(3, scales=(1.0, 0.5), **fields)
    alone = DeepLab(3, **fields)
    x = pixels(2, 64, 96, 3).astype(np.float32)
    variables = random_variables(both, x.shape)

    def run(model, x):
        return jit(lambda x: model.apply(variables, x, train=False))(x)

    logits, ends = run(both, x)
    small = resized(x, (32, 48))
    first = np.asarray(run(alone, x)[1]["scores"])
    second = np.asarray(run(alone, small)[1]["scores"])
    # As many locations as a ceil-mode pooling leaves: 64 -> 32 -> 17 -> 9.
    assert first.shape[1:3] == (9, 13) and second.shape[1:3] == (5, 7)
    second = resized(second, (9, 13))
    fused = np.maximum(first, second)
    spread = np.std(fused)
    assert np.mean(fused == first) not in (0, 1)
    np.testing.assert_allclose(ends["scores"], fused, atol=1e-3 * spread)
    expected = resized(fused, (64, 96))
    np.testing.assert_allclose(logits, expected, atol=1e-3 * spread)
    scores = ends["scale_logits"]
    np.testing.assert_allclose(scores[1], second, atol=1e-3 * spread)
    assert both.scale_strides == (8, 8)
    # Aligned corners are something else.
    other = run(both.clone(half_pixel=False), x)[0]
    assert np.abs(other - logits).max() > 0.1 * spread
    with pytest.raises(UserError, match="half_pixel .* is for ResNets, not 'vgg16'"):
        DeepLab(2, backbone="vgg16", half_pixel=True)


@pytest.mark.parametrize(
    "side, locations", [(321, 41), (513, 65), (500, 63), (256, 33), (384, 49)]
)
def test_half_pixel_sizes(side, locations):
    """Sizes of deeplab-pytorch's maps, whose pooling is ceil-mode."""
    model = DeepLab(2, width=1, stage_sizes=(1, 1, 0, 0), half_pixel=True)
    variables = variables_of(model, (1, 65, 65, 3))
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    run = functools.partial(model.apply, train=False)
    logits, ends = jax.eval_shape(run, variables, images)
    assert ends["scores"].shape[1:3] == (locations, locations)
    assert logits.shape == (1, side, side, 2)


# --- colors ---------------------------------------------------------------------------


def test_mean_of_vgg():
    x = np.float32([[[[10, 20, 30]]]])
    y = image.normalize(x, "vgg")[0, 0, 0]
    np.testing.assert_allclose(y, [10 - 123.68, 20 - 116.779, 30 - 103.939], rtol=1e-6)


def test_color_order_reaches_the_lattice(monkeypatch):
    seen = []

    def record(images, alpha, beta, **options):
        seen.append(options["color_order"])
        return original(images, alpha, beta, **options)

    original = filters.appearance_features
    monkeypatch.setattr(filters, "appearance_features", record)
    base = ("padding=same", "widths=(2,)")
    for order in ("rgb", "caffe"):
        model = CRFRNN(2, base="unet", base_options=base, color_order=order)
        variables = variables_of(model, (1, 8, 8, 3))
        run = functools.partial(model.apply, train=False)
        jax.eval_shape(run, variables, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8))
    assert seen == ["rgb", "caffe"]
    with pytest.raises(UserError, match=r"model.color_order \(CRFRNN\): .*caffe"):
        CRFRNN(2, color_order="brg")
