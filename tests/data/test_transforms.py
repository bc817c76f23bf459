"""Joint augmentation: exact copies, alignment, borders and OpenCV / SciPy oracles."""

import math

import cv2
import numpy as np
import pytest
from scipy import interpolate, ndimage

from segjax.data import transforms, warping
from segjax.errors import UserError

HEIGHT, WIDTH = 48, 64
MEAN = (120.0, 110.0, 100.0)
STRONG = {
    "crop": (56, 40),
    "scale": (0.5, 2.0),
    "rotate": 30.0,
    "flip": 0.5,
    "vflip": 0.5,
    "rot90": True,
    "translate": 0.2,
    "elastic_sigma": 2.0,
}


def noise_example(channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (HEIGHT, WIDTH, channels), np.uint8),
        "label": rng.integers(0, 11, (HEIGHT, WIDTH), np.uint8),
        "id": "seq/0001",
    }


def coordinate_example():
    """The image holds the coordinates 3x, 4y of its pixels; labels are 8-px squares."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return {
        "image": np.stack([3 * x, 4 * y, 0 * x], -1).astype(np.uint8),
        "label": (x // 8 + 8 * (y // 8)).astype(np.uint8),
        "id": "",
    }


def augmented(example, config, seed=0):
    options = transforms.options({"flip": 0.0} | config, MEAN)
    return transforms.augment(example, np.random.default_rng(seed), options)


def warped(example, size=None, nodes=None, border="mean", **where):
    size = size or example["label"].shape
    matrix = warping.input_from_output(example["label"].shape, size, **where)
    image, label, instance = warping.warp(
        example["image"],
        example["label"],
        matrix=matrix,
        size=size,
        nodes=nodes,
        border=border,
        fill=MEAN,
        # Of 16 bits; 0 outside where the label is void.
        instance=257 * example["label"].astype(np.uint16) + 1,
    )
    np.testing.assert_array_equal(
        instance, np.where(label == 255, 0, 257 * label.astype(np.uint16) + 1)
    )
    return image, label


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_without_augmentation_examples_are_copied(channels):
    example = noise_example(channels)
    for seed in range(3):
        out = augmented(example, {}, seed)
        np.testing.assert_array_equal(out["image"], example["image"])
        np.testing.assert_array_equal(out["label"], example["label"])
        assert out["image"].dtype == out["label"].dtype == np.uint8
        assert out["id"] == "seq/0001"


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_mirrors_and_quarter_turns_are_exact(elastic, channels):
    example = noise_example(channels)
    nodes = np.zeros((3, 3, 2)) if elastic else None
    cases = [
        ({"mirror": (False, True)}, lambda a: a[:, ::-1]),
        ({"mirror": (True, False)}, lambda a: a[::-1]),
        ({"turns": 1}, lambda a: np.rot90(a, 1)),
        ({"turns": 2}, lambda a: np.rot90(a, 2)),
        ({"turns": 3}, lambda a: np.rot90(a, 3)),
        ({"turns": 1, "mirror": (True, False)}, lambda a: np.rot90(a)[::-1]),
        ({"degrees": 180.0}, lambda a: a[::-1, ::-1]),
    ]
    for where, expected in cases:
        size = expected(example["label"]).shape
        image, label = warped(example, size, nodes, **where)
        np.testing.assert_array_equal(image, expected(example["image"]), str(where))
        np.testing.assert_array_equal(label, expected(example["label"]), str(where))


def test_flip_and_rot90_options():
    example = noise_example()
    mirrored = augmented(example, {"flip": 1.0, "vflip": 1.0})
    np.testing.assert_array_equal(mirrored["image"], example["image"][::-1, ::-1])

    square = {name: example[name][:, :HEIGHT] for name in ("image", "label")}
    seen = set()
    for seed in range(30):
        image = augmented(square, {"rot90": True}, seed)["image"]
        turns = [(np.rot90(square["image"], k) == image).all() for k in range(4)]
        assert sum(turns) == 1
        seen.add(turns.index(True))
    assert seen == {0, 1, 2, 3}


def test_scale_agrees_with_resize():
    example = noise_example()
    for scale in (2.0, 1.5, 0.7):
        size = (round(HEIGHT * scale), round(WIDTH * scale))
        image, label = warped(example, size, scale=scale)
        expected = cv2.resize(example["image"], size[::-1])
        inside = np.s_[2:-2, 2:-2]  # cv2.resize repeats the border, the warp fills
        difference = np.abs(image[inside].astype(int) - expected[inside])
        assert difference.max() <= 5, scale  # weights of 1/32 on 255 levels
        if scale != 2.0:
            continue
        nearest = cv2.resize(
            example["label"], size[::-1], interpolation=cv2.INTER_NEAREST
        )
        np.testing.assert_array_equal(label, nearest)


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_affine_agrees_with_scipy(elastic, mirrored):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = 127 + 60 * np.sin(x / 7) + 60 * np.cos(y / 9)
    example = {
        "image": np.rint(smooth).astype(np.uint8)[..., None],
        "label": ((x + y) // 5).astype(np.uint8),
    }
    size = (56, 70)
    nodes = np.random.default_rng(1).normal(0, 2, (3, 3, 2)) if elastic else None
    where = dict(scale=1.3, degrees=20.0, mirror=(False, mirrored), place=(0.3, 0.6))
    image, label = warped(example, size, nodes, **where)

    # The same, step by step: output pixel -> crop -> mirror -> rotate -> scale.
    sides = np.array([round(HEIGHT * 1.3), round(WIDTH * 1.3)])
    start = np.floor(np.array([0.3, 0.6]) * (sides - size + 1))
    at = np.mgrid[: size[0], : size[1]].astype(float)
    if elastic:
        at += warping.displacement(nodes, size).transpose(2, 0, 1)[::-1]
    at += 0.5 + start[:, None, None]
    if mirrored:
        at[1] = sides[1] - at[1]
    dy, dx = at[0] - sides[0] / 2, at[1] - sides[1] / 2
    cosine, sine = math.cos(math.radians(20)), math.sin(math.radians(20))
    at = np.stack([sine * dx + cosine * dy, cosine * dx - sine * dy])
    at = (at / sides[:, None, None] + 0.5) * np.reshape([HEIGHT, WIDTH], (2, 1, 1))
    at -= 0.5

    expected = ndimage.map_coordinates(
        example["image"][..., 0].astype(float), at, order=1
    )
    inside = (at > 0).all(0) & (at[0] < HEIGHT - 1) & (at[1] < WIDTH - 1)
    assert 0.5 < inside.mean() < 1
    assert np.abs(image[..., 0] - expected)[inside].max() < 1.2
    nearest = ndimage.map_coordinates(
        example["label"], at, order=0, mode="grid-constant", cval=255
    )
    assert (nearest != label).mean() < 0.005  # rounding of ties at most


def test_rotation_turns_the_way_rot90_does():
    example = {
        name: coordinate_example()[name][:, :HEIGHT] for name in ("image", "label")
    }
    quarter, _ = warped(example, turns=1)
    rotated, _ = warped(example, degrees=90.0)
    np.testing.assert_array_equal(rotated[1:-1, 1:-1], quarter[1:-1, 1:-1])


@pytest.mark.parametrize("border", ["mean", "reflect"])
def test_padding_is_centered_and_void(border):
    example = noise_example()
    size = (HEIGHT + 5, WIDTH + 4)
    for config in ({"crop": size}, {"crop": size, "elastic_sigma": 1e-9}):
        out = augmented(example, config | {"border": border})
        inside = np.s_[2 : 2 + HEIGHT, 2 : 2 + WIDTH]
        np.testing.assert_array_equal(out["image"][inside], example["image"])
        np.testing.assert_array_equal(out["label"][inside], example["label"])
        outside = np.ones(size, bool)
        outside[inside] = False
        assert (out["label"][outside] == 255).all()
        if border == "mean":
            assert (out["image"][outside] == MEAN).all()
        else:
            rim = ((2, 3), (2, 2), (0, 0))
            expected = np.pad(example["image"], rim, mode="reflect")
            np.testing.assert_array_equal(out["image"], expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("border", ["mean", "reflect"])
def test_image_and_label_stay_aligned(seed, border):
    example = coordinate_example()
    out = augmented(example, STRONG | {"border": border}, seed)
    assert out["image"].shape == (56, 40, 3)
    assert out["label"].shape == (56, 40)
    assert set(np.unique(out["label"])) <= set(np.unique(example["label"])) | {255}

    # Where an output pixel came from is written in its color. Leave out the pixels
    # whose color may be mixed with the padding, and those near an edge of a square.
    known = out["label"] != 255
    known = cv2.erode(known.astype(np.uint8), np.ones((9, 9)), borderValue=0) > 0
    x, y = out["image"][..., 0] / 3, out["image"][..., 1] / 4
    middle = (np.abs((x + 0.5) % 8 - 4) < 3) & (np.abs((y + 0.5) % 8 - 4) < 3)
    check = known & middle
    assert check.sum() > 30
    expected = np.rint(x) // 8 + 8 * (np.rint(y) // 8)
    np.testing.assert_array_equal(out["label"][check], expected[check])


def test_zero_displacement_is_the_affine_path():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    example = coordinate_example() | {
        "image": ((x * y) % 251).astype(np.uint8)[..., None]
    }
    where = dict(scale=1.37, degrees=-17.0, mirror=(True, False), place=(0.2, 0.9))
    for border in ("mean", "reflect"):
        plain = warped(example, (50, 50), None, border, **where)
        elastic = warped(example, (50, 50), np.zeros((3, 3, 2)), border, **where)
        assert np.abs(plain[0].astype(int) - elastic[0]).mean() < 1
        assert np.abs(plain[0].astype(int) - elastic[0]).max() <= 16  # 2/32 of 255
        assert (plain[1] != elastic[1]).mean() < 0.002


def test_displacement_is_cubic_convolution():
    nodes = np.random.default_rng(0).normal(0, 10, (3, 3, 2))
    height, width = 45, 70
    field = warping.displacement(nodes, (height, width))
    assert field.shape == (height, width, 2)
    assert field.dtype == np.float32

    # Cubic convolution is the Hermite spline of slopes 0.75 * (next - previous).
    padded = np.pad(nodes, ((2, 2), (2, 2), (0, 0)), mode="edge")
    for axis, side in ((0, height), (1, width)):
        values = np.moveaxis(padded, axis, 0)
        slopes = np.zeros_like(values)
        slopes[1:-1] = 0.75 * (values[2:] - values[:-2])
        spline = interpolate.CubicHermiteSpline(np.arange(-2, 5), values, slopes)
        at = (np.arange(side) + 0.5) * 3 / side - 0.5
        padded = np.moveaxis(spline(at), 0, axis)
    np.testing.assert_allclose(field, padded, atol=1e-3)

    # A node in the middle of the output is met exactly, a constant is a shift.
    odd = warping.displacement(nodes, (45, 69))
    np.testing.assert_allclose(odd[22, 34], nodes[1, 1], atol=1e-4)
    example = noise_example()
    shifted, label = warped(example, None, np.full((3, 3, 2), (3.0, -5.0)))
    np.testing.assert_array_equal(shifted[5:, :-3], example["image"][:-5, 3:])
    np.testing.assert_array_equal(label[5:, :-3], example["label"][:-5, 3:])
    assert (label[:5] == 255).all() and (label[:, -3:] == 255).all()


def test_elastic_strength():
    config = {"elastic_sigma": 1.5}
    shifts = []
    for seed in range(40):
        image = augmented(coordinate_example(), config, seed)["image"]
        middle = image[HEIGHT // 2, WIDTH // 2].astype(float)
        shifts.append(middle[:2] / (3, 4) - (WIDTH // 2, HEIGHT // 2))
    assert 1.0 < np.std(shifts) < 2.0


def test_one_rng_state_one_result():
    config = STRONG | {"brightness": 0.4, "noise": 9.0, "blur_prob": 0.5, "gamma": 0.3}
    first, again, other = (
        augmented(noise_example(), config, seed) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["label"], again["label"])
    assert (first["image"] != other["image"]).any()
    assert (first["label"] != other["label"]).any()


def test_switching_one_option_off_keeps_the_other_draws():
    example = noise_example()
    config = {"crop": (20, 20), "flip": 0.5, "translate": 0.1}
    for seed in range(5):
        both = augmented(example, config | {"brightness": 0.0}, seed)
        colored = augmented(example, config | {"brightness": 0.5}, seed)
        np.testing.assert_array_equal(both["label"], colored["label"])


def test_the_example_is_left_alone():
    example = noise_example()
    before = {name: np.copy(value) for name, value in example.items()}
    augmented(example, STRONG | {"brightness": 0.5, "saturation": 0.5, "noise": 5.0})
    for name, value in before.items():
        np.testing.assert_array_equal(example[name], value)


def test_scale_is_uniform_within_bounds():
    config = {"crop": (24, 24), "scale": (0.5, 2.0)}
    scales = []
    for seed in range(300):
        image = augmented(coordinate_example(), config, seed)["image"].astype(float)
        scales.append(3 * 4 / (image[12, 14, 0] - image[12, 10, 0]))
    assert 0.45 < min(scales) < 0.6
    assert 1.75 < max(scales) < 2.3
    assert 1.15 < np.mean(scales) < 1.35  # 1.25 if uniform, 1.08 if log-uniform


def test_scales_are_drawn_from_a_set(monkeypatch):
    factors = (0.5, 0.75, 1.0, 1.25, 1.5)
    found = [
        drawn(monkeypatch, {"scales": factors}, seed)["scale"] for seed in range(200)
    ]
    assert set(found) == set(factors)
    assert min(found.count(factor) for factor in factors) > 20
    only = drawn(monkeypatch, {"scales": (0.7,)}, 0)
    assert only["scale"] == 0.7
    with pytest.raises(UserError, match=r"augment.scale: found \(0.5, 2.0\), expected"):
        transforms.options({"scale": (0.5, 2.0), "scales": factors}, MEAN)


def test_crops_are_uniform_over_what_fits():
    example = coordinate_example()
    corners = [
        augmented(example, {"crop": (HEIGHT - 2, WIDTH)}, seed)["label"][[0, -1], 0]
        for seed in range(60)
    ]
    tops = [
        augmented(example, {"crop": (HEIGHT - 2, WIDTH)}, seed)["image"][0, 0, 1] // 4
        for seed in range(60)
    ]
    assert all((corner != 255).all() for corner in corners)
    assert np.bincount(tops).size == 3
    assert np.bincount(tops).min() >= 10


def test_translation_is_bounded_and_by_whole_pixels():
    example = coordinate_example()
    rows = set()
    for seed in range(60):
        out = augmented(example, {"translate": 0.1}, seed)
        inside = np.argwhere(out["label"] != 255)
        top, left = inside[0]
        bottom, right = inside[-1] + 1
        down, across = top - (HEIGHT - bottom), left - (WIDTH - right)
        assert abs(down) <= round(0.1 * HEIGHT) and abs(across) <= round(0.1 * WIDTH)
        expected = example["image"][
            max(-down, 0) : HEIGHT - max(down, 0),
            max(-across, 0) : WIDTH - max(across, 0),
        ]
        np.testing.assert_array_equal(out["image"][top:bottom, left:right], expected)
        rows.add(int(down))
    assert len(rows) > 6


def test_rotate_prob():
    still = [
        (
            augmented(coordinate_example(), {"rotate": 10.0, "rotate_prob": 0.5}, seed)[
                "label"
            ]
            != 255
        ).all()
        for seed in range(60)
    ]
    assert 15 < sum(still) < 45
    config = {"rotate": 10.0, "rotate_prob": 0.0}
    out = augmented(noise_example(), config)
    np.testing.assert_array_equal(out["image"], noise_example()["image"])


def test_brightness_contrast_gamma():
    ramp = np.arange(40, 168, dtype=np.uint8).reshape(8, 16, 1)
    example = {"image": ramp, "label": np.zeros((8, 16), np.uint8)}
    value = ramp.astype(float)
    seen = []
    for seed in range(20):
        bright = augmented(example, {"brightness": 0.3}, seed)["image"] / value
        assert bright.min() >= 0.69 and bright.max() <= 1.31
        assert np.ptp(bright) < 0.03
        contrast = augmented(example, {"contrast": 0.3}, seed)["image"].astype(float)
        assert abs(contrast.mean() - value.mean()) < 0.6
        assert 0.69 < contrast.std() / value.std() < 1.31
        gamma = augmented(example, {"gamma": 0.5}, seed)["image"] / 255
        exponent = np.log(gamma) / np.log(value / 255)
        assert np.ptp(exponent) < 0.06
        assert 1 / 1.55 < exponent.mean() < 1.55
        seen.append((bright.mean(), contrast.std(), exponent.mean()))
    assert (np.std(seen, axis=0) > (0.05, 1, 0.1)).all()
    assert (np.min(seen, axis=0)[[0, 2]] < 0.9).all()
    assert (np.max(seen, axis=0)[[0, 2]] > 1.1).all()


def test_saturation_keeps_the_luma():
    example = noise_example()
    example["image"] = example["image"] // 4 + 96  # away from clipping
    luma = np.array([0.299, 0.587, 0.114])
    gray = example["image"] @ luma
    factors = []
    for seed in range(10):
        image = augmented(example, {"saturation": 0.5}, seed)["image"]
        assert np.abs(image @ luma - gray).max() < 1.1
        factors.append(
            (image @ [1, 0, -1]).std() / (example["image"] @ [1, 0, -1.0]).std()
        )
    assert 0.49 < min(factors) < 0.9 and 1.1 < max(factors) < 1.51
    gray = noise_example(1)
    out = augmented(gray, {"saturation": 0.5})["image"]
    np.testing.assert_array_equal(out, gray["image"])


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_and_noise(channels):
    example = noise_example(channels)
    blurred = augmented(example, {"blur_prob": 1.0})["image"]
    weights = np.array([1, 4, 6, 4, 1]) / 16
    expected = example["image"].astype(float)
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, weights, axis, mode="mirror")
    assert np.abs(blurred - expected).max() < 1

    flat = {
        "image": np.full((64, 64, channels), 128, np.uint8),
        "label": np.zeros((64, 64), np.uint8),
    }
    spread = [augmented(flat, {"noise": 20.0}, s)["image"].std() for s in range(20)]
    assert 0 <= min(spread) < 6 and 14 < max(spread) < 21


def test_sizes_must_agree():
    example = noise_example() | {"label": np.zeros((HEIGHT, WIDTH - 1), np.uint8)}
    with pytest.raises(UserError, match=r"seq/0001: the image is \(48, 64\)"):
        augmented(example, {})


def test_options_from_a_config():
    made = transforms.options({"crop": [33, 33], "scale": (0.5, 2), "flip": 1}, (7, 8))
    assert made.crop == (33, 33)
    assert made.scale == (0.5, 2)
    assert made.fill == (7.0, 8.0)
    assert made.rotate == 0 and made.border == "mean"
    assert transforms.options({}, ()) == transforms.Options(fill=())
    with pytest.raises(UserError, match=r"^--config\.augment: .*'flipp'.*mean 'flip'"):
        transforms.options({"flipp": 0.5}, MEAN)


@pytest.mark.parametrize(
    "name, value",
    [
        ("crop", (473,)),
        ("crop", 473),
        ("crop", (473.0, 473.0)),
        ("crop", (-1, 5)),
        ("crop", (0, 5)),
        ("scale", (2.0, 0.5)),
        ("scale", (0.0, 1.0)),
        ("scale", 0.5),
        ("scale", (1.0, math.inf)),
        ("scales", (1.0, 0.0)),
        ("scales", 0.5),
        ("scales", "0.5"),
        ("rotate", -10.0),
        ("rotate", 181),
        ("rotate_prob", 1.5),
        ("flip", -0.1),
        ("flip", "0.5"),
        ("flip", True),
        ("vflip", 2),
        ("rot90", 1),
        ("translate", 1.1),
        ("elastic_sigma", math.nan),
        ("elastic_sigma", -1.0),
        ("elastic_grid", 1),
        ("elastic_grid", 3.0),
        ("border", "zero"),
        ("border", ["mean"]),
        ("brightness", 1.1),
        ("contrast", -0.5),
        ("saturation", None),
        ("hue", 181.0),
        ("shear", 61.0),
        ("shear", -1.0),
        ("aspect", (0, 1)),
        ("aspect", (2.0, 0.5)),
        ("aspect", 1.5),
        ("gamma", -0.5),
        ("blur_prob", 2.0),
        ("noise", "much"),
    ],
)
def test_nonsense_is_refused(name, value):
    with pytest.raises(
        UserError, match=rf"^--config\.augment\.{name}: found .*expected"
    ):
        transforms.options({name: value}, MEAN)


# Every option by itself, strong enough to be seen in every example.
EACH = {
    "crop": (20, 24),
    "scale": (0.6, 1.7),
    "aspect": (0.5, 1.9),
    "shear": 25.0,
    "rotate": 40.0,
    "rotate_prob": 0.5,
    "flip": 0.5,
    "vflip": 0.5,
    "rot90": True,
    "translate": 0.3,
    "elastic_sigma": 3.0,
    "elastic_grid": 5,
    "border": "reflect",
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 60.0,
    "gamma": 0.5,
    "blur_prob": 0.5,
    "noise": 9.0,
}
GEOMETRY = {  # option -> the argument of ``input_from_output`` that it decides
    "scale": "scale",
    "aspect": "aspect",  # with "scale" the factors on height and width
    "shear": "lean",
    "rotate": "degrees",
    "rot90": "turns",
    "flip": "mirror",
    "vflip": "mirror",
    "translate": "shift",
}


def drawn(monkeypatch, config, seed):
    """What is drawn: arguments of the warp, its nodes, and a flat image."""
    calls = {}

    def matrix(image_size, size, **arguments):
        calls.update(arguments)
        return np.eye(2, 3)

    def warp(image, label, *, size, nodes, instance, **more):
        calls["nodes"] = None if nodes is None else nodes.tolist()
        return np.full((*size, 3), 128, np.uint8), np.zeros(size, np.uint8), instance

    monkeypatch.setattr(transforms, "input_from_output", matrix)
    monkeypatch.setattr(transforms, "warp", warp)
    out = augmented(noise_example(), config, seed)
    down, across = calls["scale"]
    calls["scale"] = round(math.sqrt(down * across), 9)
    calls["aspect"] = round(across / down, 9)
    calls["shift"] = np.asarray(calls["shift"]).tolist()
    calls["place"] = np.asarray(calls["place"]).tolist()
    return calls | {"image": out["image"].astype(int)}


@pytest.mark.parametrize("removed", EACH)
def test_removing_one_augmentation_leaves_the_draws_of_the_others(monkeypatch, removed):
    geometry = {name: EACH[name] for name in [*GEOMETRY, "elastic_sigma"]}
    neutral = {"scale": (1.0, 1.0), "aspect": (1.0, 1.0), "rot90": False}
    for seed in range(4):
        whole = drawn(monkeypatch, geometry, seed)
        without = geometry | {removed: EACH[removed]}
        if removed in geometry:
            without[removed] = neutral.get(removed, 0.0)
        less = drawn(monkeypatch, without, seed)
        own = "nodes" if removed.startswith("elastic") else GEOMETRY.get(removed)
        for name in less.keys() - {"mirror", "margin", "image"}:
            if name != own and not (removed == "rotate_prob" and name == "degrees"):
                assert less[name] == whole[name] or removed == "crop", (name, removed)
        kept = [removed != "vflip", removed != "flip"]
        assert np.array_equal(
            np.array(less["mirror"])[kept], np.array(whole["mirror"])[kept]
        )


@pytest.mark.parametrize("removed", ["brightness", "contrast", "gamma", "blur_prob"])
def test_colors_have_streams_of_their_own(removed):
    """On a flat image only brightness and gamma act; noise is what was drawn."""
    flat = {
        "image": np.full((32, 32, 3), 128, np.uint8),
        "label": np.zeros((32, 32), np.uint8),
    }
    for seed in range(4):
        noise = augmented(flat, {"noise": 8.0}, seed)["image"].astype(int) - 128
        both = augmented(flat, {"noise": 8.0, removed: 0.4}, seed)["image"].astype(int)
        shift = np.round(np.median(both - noise))
        assert np.abs(both - noise - shift).max() <= 1
    shades = [
        augmented(flat, {removed: 0.4}, seed)["image"][0, 0, 0] for seed in range(9)
    ]
    assert (len(set(shades)) > 4) == (removed in ("brightness", "gamma"))


def test_streams_differ_by_name_and_by_example():
    def first(seed, name):
        return transforms.streams(np.random.default_rng(seed))(name).random(3).tolist()

    assert first(0, "flip") == first(0, "flip")
    assert len(
        {tuple(first(seed, name)) for seed in (0, 1) for name in EACH}
    ) == 2 * len(EACH)
    # Names are drawn apart: no correlation between two of them over many examples.
    pairs = [(first(seed, "flip")[0], first(seed, "vflip")[0]) for seed in range(400)]
    assert abs(np.corrcoef(np.transpose(pairs))[0, 1]) < 0.2


def test_an_augmentation_that_is_added_moves_no_other_draw(monkeypatch):
    example = noise_example()
    config = {name: EACH[name] for name in EACH if name not in ("crop", "border")}

    def invert(image, stream, options):
        return 255 - image if stream("invert").random() < 2 else image

    before = augmented(example, config)
    changes = (*transforms.COLOR_CHANGES, invert)
    monkeypatch.setattr(transforms, "COLOR_CHANGES", changes)
    after = augmented(example, config)
    np.testing.assert_array_equal(after["image"], 255 - before["image"])
    np.testing.assert_array_equal(after["label"], before["label"])


# Images with sides that OpenCV cannot address


@pytest.mark.parametrize("border", ["mean", "reflect"])
@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("size", [(70, 90), (20, 24)])
def test_blocks_show_what_one_warp_shows(monkeypatch, border, elastic, size):
    example = noise_example()
    example["image"] = cv2.GaussianBlur(example["image"], (9, 9), 3)
    nodes = np.random.default_rng(1).normal(0, 4, (3, 3, 2)) if elastic else None
    where = dict(scale=1.3, degrees=25.0, turns=1, place=(0.3, 0.6), shift=(30, -9))
    whole = warped(example, size, nodes, border, **where)
    monkeypatch.setattr(warping, "_MAX_SIDE", 10)
    monkeypatch.setattr(warping, "_BLOCK_SIDE", 13)
    parts = warped(example, size, nodes, border, **where)
    assert np.abs(whole[0].astype(int) - parts[0]).max() <= 6  # weights of 1/32
    assert (whole[1] != parts[1]).mean() < 0.004  # ties of nearest neighbors
    assert (whole[1] == 255).any() and (whole[1] != 255).any()


@pytest.mark.parametrize("nodes", [None, np.array([[[3.0, -2], [0, 1]]] * 2)])
def test_three_channels_are_warped_as_the_first_of_four(nodes):
    """OpenCV warps three as four; its own warp of three gives the same bits."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 24, 4), np.uint8)
    label = np.zeros((20, 24), np.uint8)
    matrix = np.array([[0.6, 0.2, 3], [-0.2, 0.6, -4]])
    how = dict(matrix=matrix, size=(30, 26), nodes=nodes)
    four = warping.warp(image, label, fill=(9, 8, 7, 200), **how)[0]
    three = warping.warp(image[..., :3], label, fill=(9, 8, 7), **how)[0]
    np.testing.assert_array_equal(three, four[..., :3])
    if nodes is None:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        pixels = np.ascontiguousarray(image[..., :3])
        plain = cv2.warpAffine(
            pixels, matrix, (26, 30), flags=flags, borderValue=(9, 8, 7)
        )
        np.testing.assert_array_equal(three, plain)


def test_boxes_far_outside_the_image(monkeypatch):
    """A crop many times as large as the image, mirrored again and again."""
    example = noise_example()
    size = (5 * HEIGHT, 7 * WIDTH)
    monkeypatch.setattr(warping, "_MAX_SIDE", 100)
    monkeypatch.setattr(warping, "_BLOCK_SIDE", 50)
    image, label = warped(example, size, None, "reflect")
    rim = [(2 * HEIGHT, 2 * HEIGHT), (3 * WIDTH, 3 * WIDTH)]
    np.testing.assert_array_equal(
        image, np.pad(example["image"], [*rim, (0, 0)], mode="reflect")
    )
    np.testing.assert_array_equal(
        label, np.pad(example["label"], rim, constant_values=255)
    )
    image, _ = warped(example, size)
    assert (image[0] == MEAN).all()


@pytest.mark.parametrize("elastic", [0.0, 1e-9])
@pytest.mark.parametrize("shape", [(6, 40_000), (40_000, 6)])
def test_sides_beyond_16_bit_integers(shape, elastic):
    along = np.arange(max(shape))
    position = along[None, :] if shape[1] > 6 else along[:, None]
    position = np.broadcast_to(position, shape)
    image = np.stack([position % 256, position // 256, 0 * position], -1)
    example = {
        "image": image.astype(np.uint8),
        "label": (position // 200).astype(np.uint8),
        "id": "strip",
    }
    whole = augmented(example, {"elastic_sigma": elastic})
    np.testing.assert_array_equal(whole["image"], example["image"])
    np.testing.assert_array_equal(whole["label"], example["label"])
    starts = []
    for seed in range(8):
        crop = (6, 50) if shape[1] > 6 else (50, 6)
        out = augmented(example, {"crop": crop, "elastic_sigma": elastic}, seed)
        start = int(out["image"][0, 0, 0]) + 256 * int(out["image"][0, 0, 1])
        cut = (
            np.s_[:, start : start + 50] if shape[1] > 6 else np.s_[start : start + 50]
        )
        np.testing.assert_array_equal(out["image"], example["image"][cut])
        np.testing.assert_array_equal(out["label"], example["label"][cut])
        starts.append(start)
    assert max(starts) > 32_767
