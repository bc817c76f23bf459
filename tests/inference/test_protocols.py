"""Test-time protocols: rotations, rules of scales and ensembles, against NumPy."""

import cv2
import jax
import numpy as np
import pytest
from test_predictor import CLASSES, Strided, direct, initialized, local, pixels, softmax

from segjax import inference
from segjax.data import windows
from segjax.errors import UserError
from segjax.inference import PredictOptions, large, options
from segjax.models.unet import UNet

VERSIONS = [(mirrored, turns) for mirrored in (False, True) for turns in range(4)]


def rotated_mean(predict, image, count):
    """The mean over the first ``count`` versions of one image [H, W, C]."""
    total = 0
    for mirrored, turns in VERSIONS[:count]:
        version = np.rot90(np.fliplr(image) if mirrored else image, turns)
        found = np.rot90(predict(np.ascontiguousarray(version)), -turns)
        total = total + (np.fliplr(found) if mirrored else found)
    return total / count


def of_one(predictor, variables):
    run = jax.jit(predictor)
    return lambda image: np.asarray(run(variables, image[None])[0])


def test_the_versions_are_the_eight_symmetries_of_the_square():
    image = pixels(3, 3, 1)
    seen = [
        np.rot90(np.fliplr(image) if m else image, t).tobytes() for m, t in VERSIONS
    ]
    assert len(set(seen)) == 8


@pytest.mark.parametrize("count", [1, 2, 4, 7, 8])
def test_rotations_are_the_mean_of_a_numpy_loop(count):
    image = pixels(5, 7, 3)  # not square
    found = jax.jit(inference.rotate(local, count))({}, image[None])
    assert found.shape == (1, 5, 7, CLASSES)
    expected = rotated_mean(of_one(local, {}), image, count)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    others = {1, 4, 8} - {count}
    for other in others:
        wrong = rotated_mean(of_one(local, {}), image, other)
        assert np.abs(found[0] - wrong).max() > 1e-3


UNET = UNet(CLASSES, widths=(2, 3))
TILE = 24


@pytest.fixture(scope="module")
def unet():
    return (initialized(UNET, 18, channels=1),)


def test_rotations_in_overlap_tiles_whole_and_in_parts(unet):
    """U-Net's protocol: the tiles of every version; of a large image, each tile's."""
    choice = PredictOptions(tile=TILE, rotations=7)
    image = pixels(11, 14, 1, seed=3)
    found = of_one(inference.compose((UNET,), choice), unet)(image)
    plain = of_one(inference.compose((UNET,), PredictOptions(tile=TILE)), unet)
    expected = rotated_mean(plain, image, 7)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - plain(image)).max() > 1e-3

    window = jax.jit(large.window_predictor((UNET,), choice))
    one = jax.jit(large.window_predictor((UNET,), PredictOptions(tile=TILE)))
    cut = pixels(TILE, TILE, 1, seed=4)
    expected = rotated_mean(lambda x: np.asarray(one(unet, x[None])[0]), cut, 7)
    np.testing.assert_allclose(window(unet, cut[None])[0], expected, atol=1e-5)
    layout = large.layout((UNET,), choice, (11, 14))
    rows = large.stream(
        lambda batch: np.asarray(window(unet, batch)),
        windows.array_windows(image, 1),
        layout=layout,
        batch=1,
    )
    parts = np.concatenate(list(rows))
    assert parts.shape == (11, 14, CLASSES)
    np.testing.assert_allclose(parts.sum(-1), 1, atol=1e-5)


MODEL, IMAGE = Strided(), pixels(9, 13, 3, seed=5)


@pytest.fixture(scope="module")
def strided():
    first = initialized(MODEL, 9)
    return first, jax.tree.map(lambda x: x[..., ::-1] * 3, first)


def compose(number, **fields):
    return inference.compose((MODEL,) * number, PredictOptions(**fields))


def test_rotations_with_scales_and_windows(strided):
    fields = {"window": (5, 9), "stride": 0.5, "scales": (1.0, 2.0)}
    found = of_one(compose(1, rotations=3, **fields), strided[:1])(IMAGE)
    windowed = of_one(compose(1, window=(5, 9), stride=0.5), strided[:1])

    def run(image):
        return rotated_mean(windowed, image.astype(np.float32), 3)

    twice = run(cv2.resize(IMAGE.astype(np.float32), (26, 18)))
    expected = (run(IMAGE) + cv2.resize(twice, (13, 9))) / 2
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_ensemble_by_product_is_a_normalized_geometric_mean(strided):
    parts = [of_one(compose(1), (own,))(IMAGE).astype(float) for own in strided]
    product = np.prod(parts, axis=0) ** 0.5
    expected = product / product.sum(-1, keepdims=True)
    found = of_one(compose(2, ensemble_rule="product"), strided)(IMAGE)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    mean = of_one(compose(2), strided)(IMAGE)
    np.testing.assert_allclose(mean, np.mean(parts, axis=0), atol=1e-6)
    assert (mean.argmax(-1) != found.argmax(-1)).any()
    # In parts, too; each window is fused before windows are averaged.
    choice = PredictOptions(ensemble_rule="product", window=(9, 13))
    window = jax.jit(large.window_predictor((MODEL, MODEL), choice))
    np.testing.assert_allclose(window(strided, IMAGE[None])[0], expected, atol=1e-5)


def test_tiles_in_parts_are_fused_by_product(unet):
    (first,) = unet
    both = first, jax.tree.map(lambda x: x[..., ::-1] * 2, first)
    choice = PredictOptions(tile=TILE, ensemble_rule="product")
    cut = pixels(TILE, TILE, 1, seed=6)
    run = jax.jit(large.window_predictor((UNET,), PredictOptions(tile=TILE)))
    parts = [np.asarray(run((own,), cut[None])[0], float) for own in both]
    product = np.prod(parts, axis=0) ** 0.5
    window = jax.jit(large.window_predictor((UNET, UNET), choice))
    expected = product / product.sum(-1, keepdims=True)
    np.testing.assert_allclose(window(both, cut[None])[0], expected, atol=1e-5)
    assert np.abs(np.mean(parts, axis=0) - expected).max() > 1e-4


def test_a_product_survives_probabilities_of_zero():
    def sure(variables, images):
        return jax.nn.one_hot(variables + 0 * images[..., 0].astype(int), 3)

    run = inference.ensemble([sure, sure], "product")
    found = np.asarray(run((0, 1), IMAGE[None]))
    np.testing.assert_allclose(found[..., :2], 0.5, atol=1e-6)
    np.testing.assert_allclose(found[..., 2], 0, atol=1e-6)


def test_the_maximum_over_scales_is_that_of_the_scores(strided):
    """DeepLab v2 fuses score maps, which have no bounds, before the softmax."""
    image, size = IMAGE.astype(np.float32), IMAGE.shape[1::-1]
    small = cv2.resize(image, (7, 5))
    scores = []
    for scaled in (image, small):
        height, width = scaled.shape[:2]
        sides = [(0, max(5, s + (1 - s) % 4) - s) for s in (height, width)]
        mirrored = np.pad(scaled, [*sides, (0, 0)], mode="reflect")
        own = direct(MODEL, strided[0], mirrored[None])[0, :height, :width]
        scores.append(cv2.resize(own, size))
    expected = softmax(np.maximum(*scores))
    scales = (1.0, 7 / 13)
    assert [round(side * scales[1]) for side in (13, 9)] == [7, 5]
    found = of_one(compose(1, scales=scales, scale_rule="max"), strided[:1])(IMAGE)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    mean = of_one(compose(1, scales=scales), strided[:1])(IMAGE)
    assert np.abs(mean - found).max() > 1e-3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rotations": 0}, "--rotations: found 0, expected 1 .none. to 8"),
        ({"rotations": 9}, "--rotations: found 9"),
        ({"rotations": 5, "flip": True}, "--rotations=5 has mirror images already"),
        ({"ensemble_rule": "max"}, "--ensemble_rule: found 'max', expected mean or pr"),
        ({"scale_rule": "product"}, "--scale_rule: found 'product', expected mean or"),
        ({"scale_rule": "max", "flip": True}, "max cannot be combined with --flip"),
        ({"scale_rule": "max", "rotations": 2}, "combined with --rotations"),
        ({"scale_rule": "max", "window": (9,)}, "combined with --window"),
    ],
)
def test_what_cannot_be_is_said(fields, message):
    with pytest.raises(UserError, match=message):
        options.check((MODEL,), PredictOptions(**fields))


def test_the_maximum_is_of_one_model():
    with pytest.raises(UserError, match="combined with --ensemble"):
        compose(2, scale_rule="max")
    compose(1, flip=True, rotations=4)
