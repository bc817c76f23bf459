"""Pictures of what networks compute: every picture decoded, every fault named."""

import json

import cv2
import forked
import kill
import numpy as np
import pytest
from PIL import Image
from workdirs import make_run

from experiments.visualization import activations, disagreement, field, heat, inputs
from segjax import heatmaps, inference, viz
from segjax.errors import UserError
from segjax.labels import VOID

SAME = {"padding": "same", "widths": (2, 3)}
VALID = {"padding": "valid", "widths": (2, 3)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two U-Nets of one kind, and one of another with a margin and resized inputs."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", "unet", SAME, seed=1)
    make_run(folder / "b", "unet", SAME, seed=2)
    make_run(folder / "c", "unet", VALID, seed=3, data={"resize": (40, 36)})
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    image = cv2.blur(image, (5, 5))
    Image.fromarray(image).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no image")
    return folder, image


def read(path):
    return cv2.imread(str(path))[..., ::-1]


def program(*arguments):
    argv = ["-m", "experiments.visualize", *map(str, arguments)]
    return forked.run(argv, kill.environment(1))


def of_tile(picture, index, *, size, lines, columns=5):
    """A picture of the tiles, at its own size."""
    zoom = -(-190 // size[1])
    height, width = (
        lines * viz.LINE + zoom * size[0] + viz.GAP,
        zoom * size[1] + viz.GAP,
    )
    top, left = index // columns * height + lines * viz.LINE, index % columns * width
    tile = picture[top : top + zoom * size[0], left : left + zoom * size[1]]
    return tile[::zoom, ::zoom]


def test_activations(runs, photos):
    segmenter = inference.load(runs / "a")
    image = photos[1]
    options = activations.Options(endpoints=("enc*", "logits"), rule="variance")
    network = activations.load(segmenter, options)
    assert network.names == ["enc0", "enc1", "logits"]
    picture = activations.draw(network, image)
    model, variables = segmenter.models[0], segmenter.variables[0]
    logits, endpoints = model.apply(variables, image[None], train=False)
    maps = [*(endpoints[name] for name in network.names[:2]), logits]
    np.testing.assert_array_equal(of_tile(picture, 0, size=(24, 30), lines=3), image)
    for i, values in enumerate(maps, start=1):
        values = np.asarray(values[0])
        best = values.reshape(-1, values.shape[2]).var(0).argmax()
        zoom = 24 // values.shape[0]
        shown = values[..., best].repeat(zoom, 0).repeat(zoom, 1)
        expected = heatmaps.heat(shown, shown.min(), shown.max()).astype(int)
        found = of_tile(picture, i, size=(24, 30), lines=3)
        assert np.abs(found - expected).max() <= 4, i
    label = np.asarray(logits[0]).argmax(-1)
    colors = of_tile(picture, 4, size=(24, 30), lines=3)
    agree = (colors == segmenter.info.palette[label]).all(-1)
    assert agree.mean() > 0.99
    chosen = activations.load(segmenter, options._replace(channel=1))
    other = activations.draw(chosen, image)
    values = np.asarray(endpoints["enc0"][0, ..., 1])
    expected = heatmaps.heat(values, values.min(), values.max()).astype(int)
    found = of_tile(other, 1, size=(24, 30), lines=3)
    assert np.abs(found - expected).max() <= 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"endpoints": ("enc0", "enk1")}, "--endpoints: unknown value 'enk1'; did you"),
        ({"channel": 2}, "--channel=2: enc0 has the channels 0 to 1"),
        ({"rule": "meen"}, "--rule: unknown value 'meen'; did you mean 'mean'"),
        ({"class_name": "klass1"}, "--class: unknown value 'klass1'"),
    ],
)
def test_bad_choices_of_activations(runs, options, message):
    with pytest.raises(UserError, match=message):
        activations.load(inference.load(runs / "a"), activations.Options(**options))


def test_class_changes_what_is_shown(runs, photos):
    segmenter = inference.load(runs / "a")
    pictures = [
        activations.draw(
            activations.load(segmenter, activations.Options(class_name=name)), photos[1]
        )
        for name in ("class0", "1")
    ]
    assert (pictures[0] != pictures[1]).any()


def test_activations_with_a_margin_at_another_size(runs, photos):
    """All of the image lies in every map of the valid U-Net, but for its logits."""
    segmenter = inference.load(runs / "c")
    network = activations.load(segmenter, activations.Options())
    picture = activations.draw(network, photos[1])
    for i in range(1, 1 + len(network.names)):
        tile = of_tile(picture, i, size=(24, 30), lines=3)
        assert not (tile == 128).all(-1).any(), network.names[i - 1]


def test_field(runs, photos):
    """What the gradient calls influence is what a change of the pixel changes."""
    segmenter = inference.load(runs / "a")
    network = field.load(segmenter, (4, 7), "class1")
    image = photos[1].astype(np.float32)
    found = np.asarray(network.influence(segmenter.variables[0], image, 4, 7, 1))
    model, variables = segmenter.models[0], segmenter.variables[0]

    def score(change):
        changed = image.copy()
        changed[5, 7] += change
        return model.apply(variables, changed[None], train=False)[0][0, 4, 7, 1]

    slopes = [(score(e) - score(-e)) / 0.2 for e in 0.1 * np.eye(3)]
    assert found.shape == (24, 30)
    np.testing.assert_allclose(found[5, 7], np.abs(slopes).sum(), rtol=0.02)
    assert found[23, 29] == 0  # beyond the theoretical field
    reach = np.argwhere(found > 0) - [4, 7]
    assert 2 * np.abs(reach).max() + 1 <= network.side + 2
    picture = field.draw(network, photos[1])
    marked = of_tile(picture, 0, size=(24, 30), lines=2)
    assert (marked[4, 7] == (255, 0, 0)).all()
    others = [field.load(segmenter, None, ""), field.load(segmenter, (4, 7), "class2")]
    for other in others:
        assert (field.draw(other, photos[1]) != picture).any()
    with pytest.raises(UserError, match="--pixel=24,0: the image has 24 rows and 30"):
        field.draw(field.load(segmenter, (24, 0), ""), photos[1])


def test_field_of_resized_inputs(runs, photos):
    network = field.load(inference.load(runs / "c"), (3, 25), "")
    marked = of_tile(field.draw(network, photos[1]), 0, size=(24, 30), lines=2)
    assert (marked[3, 25] == (255, 0, 0)).all()


def test_heat_map_of_classes():
    info = type("Info", (), {})()
    info.classes, info.palette = ("a", "b", "c"), np.eye(3, dtype=np.uint8) * 200
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 25, 3), np.uint8)
    probabilities = rng.dirichlet((1, 1, 0.01), (20, 25))
    probabilities[..., 2] = 0
    for names, shown in (((), (0, 1)), (("c", "0"), (2, 0))):
        picture = heat.draw(image, probabilities, info=info, names=names, columns=9)
        for i, index in enumerate(shown):
            found = of_tile(picture, 2 + i, size=(20, 25), lines=2, columns=9)
            values = probabilities[..., index].astype(np.float32)
            options = [
                heatmaps.heat_overlay(image, v.astype(np.float32), low=0, high=1)
                for v in (values, probabilities[..., 1 - index if index < 2 else 1])
            ]
            # Without names, the most frequent class comes first.
            assert any((found == option).all() for option in options)
            if names:
                np.testing.assert_array_equal(found, options[0])


def test_large_images_come_in_parts(runs, photos, tmp_path):
    """Above the limit of pixels, in tiles: the same pictures as in one piece."""
    make_run(runs / "d", "unet", VALID, seed=4)
    make_run(runs / "e", "unet", VALID, seed=5)
    path = str(photos[0] / "good.png")
    images = inputs.Images({path: path}, {path: "good"}, [], None)
    shared = {"columns": 9, "threads": 1}
    for limit in (10**6, 500):
        segmenters = {
            name: inference.load(runs / name, options=inference.PredictOptions(tile=36))
            for name in "de"
        }
        shared |= {"output": tmp_path / str(limit), "limits": (0.0, limit)}
        assert not heat.write(images, segmenters["d"], names=("1",), **shared)
        failures, counts = disagreement.write(images, segmenters, labels=None, **shared)
        assert not failures and counts[path].pixels == 24 * 30
        assert disagreement.total(counts)["A and B differ"] > 0
    for kind in ("heatmap", "disagreement"):
        whole, parts = (
            read(tmp_path / str(limit) / kind / "good.png") for limit in (10**6, 500)
        )
        assert np.abs(whole.astype(int) - parts).max() <= 2


def test_images_above_the_limit_and_missing_masks(runs, photos, tmp_path):
    path = photos[0] / "good.png"
    output = ("--workdir", runs / "a", "--output", tmp_path)
    code, out, err = program(*output, "--max_pixels=700", path)
    assert code == 1 and f"{path}: 24x30 pixels, which are more than" in err
    assert out.startswith("0 pictures written")
    masks = tmp_path / "masks"
    masks.mkdir()
    what = ("--what=disagreement", "--other", runs / "b", "--labels", masks)
    code, out, err = program(*output, *what, path)
    assert code == 1 and "masks/good.png: not found; expected the mask" in err


def test_kinds_of_disagreement():
    label = np.array([[0, 0, 1, 1, 2, VOID]], np.uint8)
    first = np.array([[0, 0, 2, 2, 0, 1]], np.uint8)
    second = np.array([[0, 1, 1, 2, 1, 2]], np.uint8)
    found = disagreement.kinds(first, second, label)
    expected = {
        "A right, B wrong": [0, 1, 0, 0, 0, 0],
        "B right, A wrong": [0, 0, 1, 0, 0, 0],
        "both wrong, differently": [0, 0, 0, 0, 1, 0],
        "both wrong, equally": [0, 0, 0, 1, 0, 0],
    }
    for kind, where in expected.items():
        np.testing.assert_array_equal(found[kind], np.array([where], bool), kind)
    found = disagreement.kinds(first, second, None)
    expected = [[0, 1, 1, 0, 1, 1]]
    np.testing.assert_array_equal(found["A and B differ"], np.array(expected, bool))


def test_program(runs, photos, tmp_path):
    """Every picture, from files with a bad one among them: named, exit code 1."""
    folder, image = photos
    masks = tmp_path / "masks"
    masks.mkdir()
    truth = np.random.default_rng(3).integers(0, 3, (24, 30), np.uint8)
    truth[:3] = VOID
    Image.fromarray(truth).save(masks / "good.png")
    output = tmp_path / "out"
    shared = ("--workdir", runs / "a", "--output", output)
    for arguments in (
        ("--endpoints=dec0",),
        ("--what=field",),
        ("--what=heatmap", "--class=class2"),
        ("--what=disagreement", "--other", runs / "b", "--labels", masks),
    ):
        code, out, err = program(*shared, *arguments, folder)
        assert code == 1, err
        assert "bad.png: cannot be decoded" in err
        assert out.splitlines()[-1].startswith("1 pictures written")
    for kind in ("activations", "field", "heatmap", "disagreement"):
        assert read(output / kind / "good.png").std() > 10
        facts = json.loads((output / f"{kind}.json").read_text())
        assert list(facts["failures"]) == [str(folder / "bad.png")]
    first, second = (inference.load(runs / n).predict([image])[0] for n in "ab")
    kinds = disagreement.kinds(first, second, truth)
    found = facts["images"]["good"]
    assert found.pop("pixels") == 21 * 30
    assert found == {kind: where.sum() for kind, where in kinds.items()}
    assert facts["shares"] == {k: pytest.approx(n / 630) for k, n in found.items()}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "name either images"),
        (("x.png", "--split=validation"), "name either images"),
        (("x.png", "--what=heatmap", "--pixel=1,2"), "--pixel has no effect on"),
        (("x.png", "--flip"), "--flip has no effect on --what=activations"),
        (("x.png", "--what=disagreement"), "give --other"),
        (("x.png", "--number=3"), "--number=3: expected"),
        (("x.png", "--what=field", "--pixel=1"), "--pixel=1: expected ROW,COLUMN"),
        (("nowhere.png",), "nowhere.png: no image there"),
        (
            ("x.png", "--what=disagreement", "--other=b", "--ensemble=c"),
            "--ensemble has no effect on --what=disagreement, only on heatmap;",
        ),
    ],
)
def test_wrong_flags_are_answered_in_one_line(runs, tmp_path, arguments, message):
    code, out, err = program(
        "--workdir", runs / "a", "--output", tmp_path / "o", *arguments
    )
    assert (code, out) == (2, ""), err
    assert err.splitlines()[-1].startswith("error: ") and message in err


def test_labels_that_do_not_fit(photos, tmp_path):
    twice = dict.fromkeys(("a/1.jpg", "b/1.png"), "")
    with pytest.raises(UserError, match="a/1.jpg and b/1.png would have the same mask"):
        inputs.check_stems(inputs.Images(twice, twice, [], None))
    path = str(photos[0] / "good.png")
    images = inputs.Images({path: path}, {path: "good"}, [], None)
    assert inputs.label_of(images, 0, folder=None, classes=3) is None
    with pytest.raises(UserError, match="good.png: not found; expected the mask"):
        inputs.label_of(images, 0, folder=tmp_path, classes=3)
    Image.fromarray(np.full((2, 2), 3, np.uint8)).save(tmp_path / "good.png")
    with pytest.raises(UserError, match="has the value 3, expected .* 0 to 2, 255"):
        inputs.label_of(images, 0, folder=tmp_path, classes=3)
    assert inputs.label_of(images, 0, folder=tmp_path, classes=4).max() == 3
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "good.png")
    with pytest.raises(UserError, match="has colors, expected a palette or gray PNG"):
        inputs.label_of(images, 0, folder=tmp_path, classes=3)
