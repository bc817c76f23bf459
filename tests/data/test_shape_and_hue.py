"""Augmentation by aspect, shear and hue: what each does to coordinates and colors."""

import colorsys

import numpy as np
import pytest

from segjax.data import transforms
from segjax.data.warping import input_from_output

HEIGHT, WIDTH = 48, 64
MEAN = (120.0, 110.0, 100.0)


def augmented(image, config, seed):
    example = {"image": image, "label": np.zeros(image.shape[:2], np.uint8)}
    options = transforms.options({"flip": 0.0} | config, MEAN)
    return transforms.augment(example, np.random.default_rng(seed), options)["image"]


def gradients(config, seed):
    """d(input x, y) / d(output x, y) in the middle, measured in an image of its own
    coordinates."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([3 * x, 4 * y, 0 * x], -1).astype(np.uint8)
    out = augmented(image, config, seed)[20:29, 28:37, :2] / (3.0, 4.0)
    along_x = (out[:, -1] - out[:, 0]).mean(0) / 8
    along_y = (out[-1] - out[0]).mean(0) / 8
    return np.array([along_x, along_y]).T


def test_aspect_is_log_uniform_and_keeps_the_area():
    logs = []
    for seed in range(100):
        found = gradients({"aspect": (0.5, 2.0)}, seed)
        assert abs(np.linalg.det(found) - 1) < 0.1
        assert abs(found[0, 1]) < 0.03 and abs(found[1, 0]) < 0.03
        # Pixels of the input per pixel of the output: wide images have few.
        logs.append(np.log2(found[1, 1] / found[0, 0]))
    assert -1.12 < min(logs) < -0.85 and 0.85 < max(logs) < 1.12
    assert abs(np.mean(logs)) < 0.25
    assert 0.5 < np.std(logs) < 0.66  # 1 / sqrt(3) if uniform


def test_aspect_is_of_width_over_height():
    for seed in range(5):
        found = gradients({"aspect": (2.0, 2.0)}, seed)
        np.testing.assert_allclose(found, np.diag([0.5**0.5, 2**0.5]), atol=0.08)


def test_shear_leans_columns_and_keeps_rows():
    angles = []
    for seed in range(100):
        found = gradients({"shear": 30.0}, seed)
        np.testing.assert_allclose(found[:, 0], [1, 0], atol=0.04)
        assert abs(found[1, 1] - 1) < 0.04
        angles.append(np.degrees(np.arctan(found[0, 1])))
    assert -31 < min(angles) < -25 and 25 < max(angles) < 31
    assert abs(np.mean(angles)) < 7
    assert 15 < np.std(angles) < 20  # 30 / sqrt(3) if uniform


@pytest.mark.parametrize("degrees", [0.0, 33.0])
def test_shear_keeps_the_center_and_leans_clockwise(degrees):
    matrix = input_from_output((30, 40), (30, 40), lean=45.0, degrees=degrees)
    np.testing.assert_allclose(matrix @ (19.5, 14.5, 1), (19.5, 14.5))
    if not degrees:
        # What is ten rows higher in the output lies ten columns further left in the
        # input: its content has moved to the right.
        np.testing.assert_allclose(matrix @ (19.5, 4.5, 1), (9.5, 4.5))


def test_hue_turns_every_color_by_one_angle():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 7, 3), np.uint8)
    image[0, 0] = 93  # gray
    before = [colorsys.rgb_to_hsv(*(p / 255)) for p in image.reshape(-1, 3)]
    strong = [i for i, (_, s, v) in enumerate(before) if s * v > 0.4]
    found = []
    for seed in range(60):
        out = augmented(image, {"hue": 40.0}, seed)
        np.testing.assert_array_equal(out[0, 0], 93)
        after = [colorsys.rgb_to_hsv(*(p / 255)) for p in out.reshape(-1, 3)]
        turns = [(after[i][0] - before[i][0]) * 360 for i in strong]
        turns = (np.array(turns) + 180) % 360 - 180
        assert np.ptp(turns) < 2
        np.testing.assert_array_equal(out.max(-1), image.max(-1))  # the value stays
        np.testing.assert_array_equal(out.min(-1), image.min(-1))
        found.append(turns.mean())
    assert -40.5 < min(found) < -30 and 30 < max(found) < 40.5


def test_gray_images_have_no_hue():
    image = np.arange(60, dtype=np.uint8).reshape(6, 10, 1)
    np.testing.assert_array_equal(augmented(image, {"hue": 90.0}, 1), image)
