"""Heat maps of classifiers: the program on a small published file."""

import json

import cv2
import forked
import kill
import numpy as np
import pytest
from PIL import Image

from experiments.visualization import classifier
from segjax import heatmaps, viz, weights
from segjax.errors import UserError
from segjax.models.network import abstract_variables

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """SqueezeNet 1.1 in the names of Keras, random, with five classes."""
    from segjax.models.classifier import Classifier

    model = Classifier(num_classes=5, backbone="squeezenet")
    rng = np.random.default_rng(0)
    arrays = {}
    for name, leaf in weights.flatten(abstract_variables(model)["params"]).items():
        name = name.removeprefix("backbone/").replace("_", "/")
        spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if len(leaf.shape) > 1 else 0.1
        arrays[name] = rng.normal(0, spread, leaf.shape).astype(np.float32)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    safetensors.save_file(arrays, path)
    return path, arrays


def program(*arguments):
    return forked.run(
        ["-m", "experiments.heatmap", *map(str, arguments)], kill.environment(1)
    )


def test_heat_maps(file, tmp_path):
    """The map is that of the classifier, interpolated between centers of fields."""
    image = np.random.default_rng(1).integers(0, 256, (227, 260, 3), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(image).save(photo)
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    code, out, err = program(
        *("--weights", file[0], "--backbone=squeezenet"),
        *("--names", tmp_path / "names.txt", "--class=cat,4"),
        *("--output", tmp_path / "out", photo, tmp_path / "bad.png"),
    )
    assert code == 1 and "bad.png: cannot be decoded" in err, err
    assert "1 pictures written" in out
    network = classifier.load(file[0], "squeezenet")
    assert network.classes == tuple("01234")
    found = np.asarray(network.run(network.variables, image[None]))[0]
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    facts = json.loads((tmp_path / "out" / "heatmap.json").read_text())
    highest = facts["images"]["photo"]
    expected = {"cat": found[..., 2].max(), "elk": found[..., 4].max()}
    assert highest == pytest.approx(
        {k: float(v) for k, v in expected.items()}, rel=1e-4
    )
    picture = cv2.imread(str(tmp_path / "out/heatmap/photo.png"))[..., ::-1]
    top, left = 2 * viz.LINE, 260 + viz.GAP
    np.testing.assert_array_equal(picture[top : top + 227, :260], image)
    tile = picture[top : top + 227, left : left + 260].astype(int)
    # Across one row of the map: numpy interpolates between the centers.
    grid, (h, w) = network.grid, found.shape[:2]
    columns = float(grid.start) + float(grid.step) * np.arange(w)
    rows = float(grid.start) + float(grid.step) * np.arange(h)
    rough = np.array([np.interp(np.arange(260), columns, row) for row in found[..., 2]])
    values = np.array([np.interp(np.arange(227), rows, x) for x in rough.T]).T
    expected = heatmaps.heat_overlay(image, values, low=0, high=1).astype(int)
    assert np.abs(tile - expected).max() <= 4


def test_small_images_are_enlarged_and_top_classes_chosen(file):
    network = classifier.load(file[0], "squeezenet")
    small = np.random.default_rng(0).integers(0, 256, (50, 100, 3), np.uint8)
    pixels = classifier.sized(small, "squeezenet", 0)
    assert pixels.shape == (224, 448, 3)
    assert classifier.sized(pixels, "squeezenet", 240).shape == (240, 480, 3)
    picture, highest = classifier.draw(network, pixels, names=(), top=2, columns=9)
    found = np.asarray(network.run(network.variables, pixels[None]))[0].max((0, 1))
    assert list(highest) == [str(i) for i in np.argsort(-found)[:2]]
    assert picture.shape[1] == 3 * (448 + viz.GAP)


def test_files_that_are_no_classifier(file, tmp_path):
    path, arrays = file
    with pytest.raises(UserError, match="not for model 'classifier' with .* 'vgg16'"):
        classifier.load(path, "vgg16")
    headless = {k: v for k, v in arrays.items() if not k.startswith("conv10")}
    safetensors.save_file(headless, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors.*missing: conv10/kernel"):
        classifier.load(tmp_path / "x.safetensors", "squeezenet")
    (tmp_path / "two.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match="has 2 lines, expected one for each of the 5"):
        classifier.load(path, "squeezenet", names=str(tmp_path / "two.txt"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--backbone=squeeze", "x.png"), "--backbone: unknown value 'squeeze'; did"),
        (("--backbone=vgg16", "--side=100", "x.png"), "--side=100: expected 0, or at"),
        (("--backbone=vgg16", "--lrn_first", "x.png"), "--lrn_first is of"),
        (("--backbone=vgg16",), "no images given"),
        (("--backbone=vgg16", "--top=0", "x.png"), "--top=0: expected 1 or more"),
    ],
)
def test_wrong_flags_are_answered_in_one_line(file, tmp_path, arguments, message):
    code, out, err = program(
        "--weights", file[0], "--output", tmp_path / "o", *arguments
    )
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
