"""Pictures: colors and layout by array, figures by what the decoded file shows."""

import cv2
import numpy as np
import pytest

from segjax import viz

PALETTE = np.array([[200, 10, 20], [0, 220, 40], [30, 30, 240]], np.uint8)
LABEL = np.array([[0, 1, 2, 255], [2, 2, 7, 0]], np.uint8)


def decode(png):
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    return picture[..., ::-1].astype(int)


def test_colorize():
    colors = viz.colorize(LABEL, PALETTE)
    assert colors.shape == (2, 4, 3)
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors[0, :3], PALETTE)
    assert (colors[0, 3] == 0).all() and (colors[1, 2] == 0).all()
    full = np.full((256, 3), 9, np.uint8)
    assert (viz.colorize(LABEL, full)[0, 3] == 0).all()  # void is black whatever


@pytest.mark.parametrize("channels", [1, 3])
def test_overlay(channels):
    image = np.random.default_rng(0).integers(0, 256, (2, 4, channels), np.uint8)
    mixed = viz.overlay(image, LABEL, palette=PALETTE, alpha=0.25)
    assert mixed.shape == (2, 4, 3)
    assert mixed.dtype == np.uint8
    expected = 0.75 * image + 0.25 * viz.colorize(LABEL, PALETTE)
    expected[0, 3] = image[0, 3]
    assert np.abs(mixed - expected).max() <= 0.5
    opaque = viz.overlay(image, LABEL, palette=PALETTE, alpha=1.0)
    np.testing.assert_array_equal(
        opaque[LABEL < 3], viz.colorize(LABEL, PALETTE)[LABEL < 3]
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("width, zoom", [(200, 1), (160, 1), (159, 2), (40, 4)])
def test_panel(channels, width, zoom):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, width, channels), np.uint8)
    truth, prediction = rng.integers(0, 3, (2, 30, width), np.uint8)
    picture = viz.panel(image, truth, prediction=prediction, palette=PALETTE)
    side = zoom * width
    gap = (picture.shape[1] - 3 * side) // 2
    head = picture.shape[0] - 30 * zoom
    assert picture.dtype == np.uint8
    assert 0 < gap < 10 and 15 < head < 40
    # The pictures stand in the order of the captions, each pixel as zoom x zoom.
    parts = [
        np.broadcast_to(image, (30, width, 3)),
        viz.colorize(truth, PALETTE),
        viz.colorize(prediction, PALETTE),
    ]
    for index, part in enumerate(parts):
        left = index * (side + gap)
        shown = picture[head:, left : left + side]
        for offset in {0, zoom - 1}:
            np.testing.assert_array_equal(shown[offset::zoom, offset::zoom], part)
        caption = picture[:head, left : left + side]
        assert caption.min() < 100, "no ink"
        assert (caption[:, -1] == 255).all(), "the caption is cut off"
        if index < 2:
            assert (picture[:, left + side : left + side + gap] == 255).all()
    with pytest.raises(ValueError):
        viz.panel(
            image,
            truth,
            prediction=prediction,
            palette=PALETTE,
            captions=("image", "truth"),
        )


def test_legend():
    classes = ["sky", "a rather long name", "car"]
    for columns, rows in ((1, 3), (2, 2), (4, 1)):
        picture = viz.legend(classes, PALETTE, columns)
        assert picture.dtype == np.uint8
        height = picture.shape[0] // rows
        width = picture.shape[1] // min(columns, 3)
        for index, color in enumerate(PALETTE):
            row, column = divmod(index, min(columns, 3))
            cell = picture[row * height :][:height, column * width :][:, :width]
            assert (cell == color).all(-1).sum() > 100, "no swatch"
            assert ((cell < 100).all(-1)).sum() > 10, "no name"
            assert (cell[:, -2:] == 255).all(), "the name is cut off"


def test_confusion_figure():
    classes = ["sky", "road", "car"]
    confusion = np.array([[90, 10, 0], [0, 0, 0], [5, 0, 5]])
    picture = decode(viz.confusion_figure(confusion, classes))
    # Only the shares of the true class count: scaling a row changes nothing.
    scaled = confusion * np.array([[7], [3], [2]])
    np.testing.assert_array_equal(
        decode(viz.confusion_figure(scaled, classes)), picture
    )
    other = decode(viz.confusion_figure(confusion.T, classes))
    assert other.shape != picture.shape or (other != picture).any()

    dark = decode(viz.confusion_figure(np.eye(3), classes))
    light = decode(viz.confusion_figure(np.ones((3, 3)) - np.eye(3), classes))
    navy = (np.abs(dark - (8, 48, 107)) < 12).all(-1)
    assert navy.mean() > 3 * (np.abs(light - (8, 48, 107)) < 12).all(-1).mean()
    # The truth runs downwards, the prediction to the right.
    rows, columns = np.nonzero(navy[:, : int(0.75 * navy.shape[1])])
    assert np.corrcoef(rows, columns)[0, 1] > 0.5


def test_confusion_figure_of_many_classes():
    names = [f"class {index}" for index in range(30)]
    picture = decode(viz.confusion_figure(np.eye(30, dtype=int), names))
    assert picture.shape[0] > 800


def test_the_legend_of_costs_names_models_that_some_axes_lack(monkeypatch):
    monkeypatch.setattr(viz, "_png", lambda figure: figure)
    costs = {"GFLOPs": [float("nan"), 2.0, 1.0], "parameters": [3.0, 2.0, 1.0]}
    figure = viz.tradeoff_figure(
        ["a", "b", "c"], costs, {"mIoU": [[50.0, 52.0], [60.0], []]}
    )
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_curves_figure():
    train = [{"step": s, "loss": 1 / (s + 1), "lr": 0.01} for s in range(0, 90, 10)]
    val = [{"step": 50, "val_miou": 0.3, "val_pixel_accuracy": 0.8, "other": 1.0}]

    def inked(rows):
        """Which of the axes hold a first (blue) and a second (orange) curve."""
        picture = decode(viz.curves_figure(rows))
        thirds = np.split(picture[:, : picture.shape[1] // 3 * 3], 3, axis=1)
        blue, orange = ((31, 119, 180), (255, 127, 14))
        return [
            [int((np.abs(part - color) < 9).all(-1).sum()) > 5 for part in thirds]
            for color in (blue, orange)
        ]

    assert inked([]) == [[False] * 3, [False] * 3]
    assert inked(train) == [[True, True, False], [False] * 3]
    assert inked(val) == [[False, False, True], [False, False, True]]
    assert inked(val + train) == [[True] * 3, [False, False, True]]
