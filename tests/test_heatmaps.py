"""Heat maps and tiles, by array."""

import cv2
import numpy as np
import pytest

from segjax import heatmaps


def test_heat():
    values = np.array([[0.0, 0.5, 1.0], [-3.0, np.nan, 9.0]])
    colors = heatmaps.heat(values, 0, 1)
    assert colors.shape == (2, 3, 3) and colors.dtype == np.uint8
    levels = np.arange(256, dtype=np.uint8)[None]
    viridis = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[0, :, ::-1]
    np.testing.assert_array_equal(colors[0], viridis[[0, 128, 255]])
    np.testing.assert_array_equal(colors[1, [0, 2]], viridis[[0, 255]])
    assert (colors[1, 1] == 128).all()
    flat = heatmaps.heat(np.full((2, 2), 7.0), 7, 7)
    np.testing.assert_array_equal(flat, np.broadcast_to(viridis[0], (2, 2, 3)))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_heat_overlay(channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)
    values = np.linspace(0, 1, 20).reshape(4, 5)
    mixed = heatmaps.heat_overlay(image, values, low=0, high=1)
    shown = image[..., :3] if channels >= 3 else image[..., :1]
    gray = shown.astype(float).mean(-1, keepdims=True)
    expected = 0.35 * gray + 0.65 * heatmaps.heat(values, 0, 1)
    assert np.abs(mixed - expected).max() <= 0.5


def test_tiles():
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 250, (5, 30, 70, 3), np.uint8))
    below = np.full((9, 700, 3), 3, np.uint8)
    captions = [["one", "two"]] * 5
    whole = heatmaps.tiles(pictures, captions, columns=3, below=below)
    assert whole.shape == (2 * (44 + 90 + 4) + 9, 700, 3)
    for i, picture in enumerate(pictures):
        top, left = i // 3 * 138 + 44, i % 3 * 214
        shown = whole[top : top + 90, left : left + 210]
        np.testing.assert_array_equal(shown[::3, ::3], picture)
        assert whole[top - 44 : top - 22, left : left + 210].min() < 100  # ink
        assert whole[top - 22 : top, left : left + 210].min() < 100
    assert (whole[138:276, 2 * 214 :] == 255).all()  # no sixth picture
    np.testing.assert_array_equal(whole[-9:], below)
    assert heatmaps.tiles(pictures[:1], captions[:1], columns=3).shape[1] == 214
    with pytest.raises(ValueError):
        heatmaps.tiles(pictures, captions[:2], columns=3)


def test_heat_bar():
    bar = heatmaps.heat_bar("0", "1")
    colors = {tuple(color) for color in bar[10].tolist()}
    assert len(colors) > 100 and (255, 255, 255) in colors
