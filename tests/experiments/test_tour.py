"""The tour: figures are drawn, every number reaches its figure, flags are checked."""

import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import tour
from experiments.tour import (
    __main__ as program,
)
from experiments.tour import (
    augmentation,
    classifying,
    context,
    decoding,
    trained,
)
from segjax.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tour.md"
TRAINED = ("skips", "layers", "results")

# Small values of every number; another value of each must change the picture.
SMALL = {
    "local": {},
    "heat": {"steps": 1, "side": 48},
    "one_by_one": {"side": 32},
    "upsampling": {},
    "unpooling": {},
    "boxes": {"side": 64, "count": 3},
    "fields": {"rates": (1, 2)},
    "context": {"rates": (1, 2), "classes": 3},
    "atrous": {"side": 32, "rates": (2,)},
    "aspp": {"side": 64, "rates": (1, 2)},
    "crf": {"side": 8, "sweeps": 10, "iterations": 2},
    "tile": {"tile": 4, "side": 48},
    "augmentations": {"side": 32},
    "deformation": {"side": 48},
    "borders": {"side": 64},
    "fusion": {"widths": (2, 4)},
    "frrn": {"side": 64},
    "pyramid": {"side": 32, "bins": (1, 2)},
}
OTHER = {
    "local": {"side": 6, "kernel": 2, "seed": 1},
    "one_by_one": {"scene": 4},
    "upsampling": {"kernel": 2, "stride": 3, "padding": 0, "output_padding": 0},
    "unpooling": {"side": 6, "seed": 1},
    "fields": {"rates": (1, 3), "kernel": 5},
    "context": {"rates": (1, 4), "classes": 4},
    "atrous": {"rates": (4,), "scene": 1},
    "borders": {"weight": 5.0, "sigma": 9.0, "seed": 0},
    "deformation": {"sigma": 4.0, "nodes": 5, "seed": 1},
    "fusion": {"widths": (2, 6)},
    "pyramid": {"bins": (1, 4), "scene": 1},
}


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_every_figure_is_on_the_page_in_this_order():
    text = PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"\]\(images/tour/(\w+)\.png\)", text)
    assert shown == list(tour.FIGURES)
    for name, function in tour.FIGURES.items():
        file = PAGE.parent / "images" / "tour" / f"{name}.png"
        assert file.stat().st_size < 100_000, name
        assert set(program.parameters(function)) <= set(program.PARAMETERS), name
    assert SMALL.keys() == tour.FIGURES.keys() - set(TRAINED)


@pytest.mark.parametrize("name", SMALL)
def test_figures_are_drawn_and_every_number_counts(name):
    function = tour.FIGURES[name]
    first = decoded(function(**SMALL[name]))
    assert first.std() > 10
    for number, value in OTHER.get(name, {}).items():
        other = decoded(function(**SMALL[name] | {number: value}))
        assert other.shape != first.shape or (other != first).any(), number


def test_ten_crops_are_corners_and_center_and_mirrors():
    image = np.arange(5 * 7 * 2).reshape(5, 7, 2)
    crops = augmentation.ten_crops(image, 3)
    assert crops.shape == (10, 3, 3, 2)
    np.testing.assert_array_equal(crops[1], image[:3, 4:])
    np.testing.assert_array_equal(crops[2], image[2:, :3])
    np.testing.assert_array_equal(crops[4], image[1:4, 2:5])
    np.testing.assert_array_equal(crops[5], image[:3, :3:-1])
    np.testing.assert_array_equal(crops[8], image[2:, 2::-1])


def test_fields_of_the_context_module_are_those_of_the_paper():
    rates = (1, 1, 2, 4, 8, 16, 1)
    sides = [context._field(rates[: n + 1]) for n in range(len(rates))]
    assert sides == [3, 5, 9, 17, 33, 65, 67]


def test_fully_connected_layers_are_convolutions():
    params = classifying._train(1, 0)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 36, 3)).astype("f4")
    maps = classifying._scores(params, images, classifying._as_convolutions)
    assert maps.shape[:3] == (1, 3, 2)
    for row, column in ((0, 0), (2, 1)):
        patch = images[:, 4 * row : 4 * row + 32, 4 * column : 4 * column + 32]
        alone = classifying._scores(params, patch, classifying._as_products)
        np.testing.assert_allclose(maps[:, row, column], alone, atol=1e-4)


@pytest.mark.parametrize(
    "name, numbers, message",
    [
        ("local", {"kernel": 9}, "--kernel=9: expected at most --side=5"),
        ("upsampling", {"output_padding": 2}, "expected 0 to 1"),
        ("upsampling", {"kernel": 1, "padding": 8}, "nothing is left"),
        ("tile", {"tile": 600}, "expected at most --side=500"),
        ("tile", {"tile": 5, "side": 48}, "expected 4 or 20"),
        ("unpooling", {"side": 1}, ""),
    ],
)
def test_numbers_that_do_not_fit_are_refused(name, numbers, message):
    if not message:  # an odd side is a map whose last windows are incomplete
        decoding.unpooling(side=3)
        return
    with pytest.raises(UserError, match=re.escape(message)):
        tour.FIGURES[name](**numbers)


def test_flags_become_numbers_of_the_figures_that_have_them():
    found = program.arguments(["atrous", "fields"], {"rates": "1,3", "scene": "4"})
    assert found == {
        "atrous": {"rates": (1, 3), "scene": 4},
        "fields": {"rates": (1, 3)},
    }
    assert program.chosen("") == list(tour.FIGURES)


@pytest.mark.parametrize(
    "names, given, message",
    [
        (["atrous"], {"rates": "1,x"}, "--rates: found '1,x', expected integers"),
        (["atrous"], {"rates": "0"}, "1 to 64"),
        (["crf"], {"noise": "nan"}, "--noise: found 'nan'"),
        (["crf"], {"noise": "1.5"}, "0 to 1"),
        (["fields"], {"steps": "3"}, "--steps: none of the figures fields has it"),
    ],
)
def test_bad_flags_are_refused(names, given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        program.arguments(names, given)


def test_unknown_figures_name_the_nearest():
    with pytest.raises(UserError, match="atrous"):
        program.chosen("atros")


def test_trained_figures_use_the_networks_of_the_workdir(tmp_path, monkeypatch):
    """The wiring without training: which networks, how many steps, which scenes."""
    asked = []

    class Segmenter:
        def predict(self, images):
            return [np.full(images[0].shape[:2], 2, np.uint8)]

    def network(name, *, workdir, steps):
        asked.append((name, workdir, steps))
        return Segmenter()

    monkeypatch.setattr(trained, "network", network)
    png = trained.skips(tmp_path, steps=7, scene=1, count=1)
    assert asked == [(f"FCN-{n}s", tmp_path, 7) for n in (32, 16, 8)]
    assert decoded(png).std() > 10
    for name in TRAINED:
        assert "workdir" in inspect.signature(tour.FIGURES[name]).parameters


def test_the_program_draws_and_refuses(tmp_path):
    def run(*flags):
        return subprocess.run(
            [sys.executable, "-m", "experiments.tour", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    output = f"--output={tmp_path / 'figures'}"
    done = run(output, "--only=fields", "--rates=1,2", "--compilation_cache=")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["fields.png"]
    done = run(output, "--only=fields", "--rates=nine")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --rates: found 'nine'")
