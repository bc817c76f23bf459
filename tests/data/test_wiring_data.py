"""Which field reaches which function: augmentation, the pipeline, files and folders."""

import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

from experiments.shared import training_run
from segjax import config as config_lib
from segjax.data import (
    augment_options,
    batching,
    datasets,
    images,
    pipeline,
    transforms,
    warping,
)

HEIGHT, WIDTH = 48, 64
MEAN = (120.0, 110.0, 100.0)


def noise_example(height=HEIGHT, width=WIDTH, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (height, width, channels), np.uint8),
        "label": rng.integers(0, 11, (height, width), np.uint8),
        "id": "noise",
    }


def coordinate_example():
    """The image holds the coordinates (3x, 4y, 0) of its pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([3 * x, 4 * y, 0 * x], -1).astype(np.uint8)
    return {"image": image, "label": (x % 7).astype(np.uint8), "id": "coordinates"}


def augmented(example, config, seed=0, **more):
    options = transforms.options({"flip": 0.0} | config, MEAN)._replace(**more)
    return transforms.augment(example, np.random.default_rng(seed), options)


def correlation(pairs):
    return np.corrcoef(np.transpose(np.array(pairs, float)))[0, 1]


# Augmentation: each field alone


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"flip": 1.0}, lambda a: a[:, ::-1]),
        ({"flip": 1.0, "vflip": 0.0}, lambda a: a[:, ::-1]),
        ({"vflip": 1.0}, lambda a: a[::-1]),
        ({"vflip": 1.0, "flip": 0.0}, lambda a: a[::-1]),
    ],
)
def test_flip_is_left_right_and_vflip_upside_down(config, expected):
    example = noise_example()
    for seed in range(3):
        out = augmented(example, config, seed)
        np.testing.assert_array_equal(out["image"], expected(example["image"]))
        np.testing.assert_array_equal(out["label"], expected(example["label"]))


def test_mirrors_have_their_own_probabilities_and_draws():
    example = noise_example(6, 8)
    both = {"flip": 0.3, "vflip": 0.7}
    counts = np.zeros((2, 2))
    for seed in range(400):
        label = augmented(example, both, seed)["label"]
        for up, left in itertools.product((0, 1), repeat=2):
            where = example["label"][:: 1 - 2 * up, :: 1 - 2 * left]
            counts[up, left] += (label == where).all()
    assert counts.sum() == 400
    expected = 400 * np.outer((0.3, 0.7), (0.7, 0.3))
    # Four standard deviations of a binomial count.
    spread = np.sqrt(expected * (1 - expected / 400))
    assert (np.abs(counts - expected) < 4 * spread).all(), counts


def test_crop_is_height_and_width_and_its_axes_are_drawn_apart():
    example = coordinate_example()
    corners = []
    for seed in range(200):
        out = augmented(example, {"crop": (20, 30)}, seed)
        assert out["image"].shape == (20, 30, 3) and out["label"].shape == (20, 30)
        left, top = out["image"][0, 0, :2] // (3, 4)
        cut = np.s_[top : top + 20, left : left + 30]
        np.testing.assert_array_equal(out["image"], example["image"][cut])
        np.testing.assert_array_equal(out["label"], example["label"][cut])
        corners.append((top, left))
    tops, lefts = zip(*corners)
    assert (min(tops), max(tops)) == (0, HEIGHT - 20)
    assert min(lefts) <= 1 and max(lefts) >= WIDTH - 30 - 1
    assert abs(correlation(corners)) < 0.3


def test_crops_reach_the_margin_out_of_the_image():
    """With a margin m they start at -m .. n - crop + m, all equally often."""
    margin, crop = 3, 44
    tops, lefts = [], []
    for seed in range(300):
        config = {"crop": (crop, crop)}
        out = augmented(coordinate_example(), config, seed, margin=margin)
        inside = out["label"] != 255
        row, column = np.argwhere(inside)[0]
        left, top = out["image"][row, column, :2] // (3, 4)
        tops.append(int(top) - int(row))
        lefts.append(int(left) - int(column))
    assert sorted(set(tops)) == list(range(-3, HEIGHT - crop + 3 + 1))
    assert sorted(set(lefts)) == list(range(-3, WIDTH - crop + 3 + 1))
    assert np.bincount(np.add(tops, 3)).min() > 10  # 27 on average


@pytest.mark.parametrize("place, start", [(0.0, -5), (0.999, 7), (0.5, 1)])
def test_place_with_a_margin(place, start):
    """Place 0 starts at -margin, place 1 ends at n + margin."""
    matrix = warping.input_from_output(
        (20, 30), (18, 28), place=(place, place), margin=5
    )
    np.testing.assert_allclose(matrix, [[1, 0, start], [0, 1, start]], atol=1e-9)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scale_is_of_both_sides(factor):
    example = noise_example()
    size = (int(HEIGHT * factor), int(WIDTH * factor))
    config = {"scale": (factor, factor), "crop": size}
    out = augmented(example, config)
    resized = cv2.resize(example["image"], size[::-1], interpolation=cv2.INTER_LINEAR)
    inside = np.s_[2:-2, 2:-2]
    difference = out["image"][inside].astype(int) - resized[inside]
    assert np.abs(difference).max() <= 5
    # Without a crop the size of the image stays, whatever the scale.
    assert augmented(example, {"scale": (factor, factor)})["label"].shape == (48, 64)


def test_rotation_is_uniform_up_to_its_angle_in_both_directions():
    angles = []
    for seed in range(100):
        config = {"rotate": 20.0, "rotate_prob": 1.0}
        image = augmented(coordinate_example(), config, seed)["image"].astype(float)
        xs, ys = image[20:28, 26:38, 0] / 3, image[20:28, 26:38, 1] / 4
        # The gradient of the coordinates in the middle of the output.
        across = (xs[:, -1] - xs[:, 0]).mean(), (ys[:, -1] - ys[:, 0]).mean()
        angles.append(np.degrees(np.arctan2(across[1], across[0])))
    assert -20.5 < min(angles) < -16 and 16 < max(angles) < 20.5
    assert abs(np.mean(angles)) < 4.7  # four standard errors
    assert 10 < np.std(angles) < 13  # 20 / sqrt(3) if uniform


@pytest.mark.parametrize(
    "config, rate",
    [
        ({"rotate": 20.0, "rotate_prob": 0.2}, 0.2),
        ({"rotate": 20.0, "rotate_prob": 0.8}, 0.8),
        ({"rotate": 20.0, "rotate_prob": 1.0}, 1.0),
        ({"blur_prob": 0.2}, 0.2),
        ({"blur_prob": 0.8}, 0.8),
        ({"flip": 0.2}, 0.2),
        ({"vflip": 0.8}, 0.8),
        ({}, 0.0),
    ],
)
def test_probabilities(config, rate):
    example = noise_example(16, 20)
    changed = [
        (augmented(example, config, seed)["image"] != example["image"]).any()
        for seed in range(200)
    ]
    assert abs(np.mean(changed) - rate) <= 4 * np.sqrt(rate * (1 - rate) / 200)


def test_translation_is_a_fraction_of_the_output_and_per_axis():
    """On top of a crop that is centered because it holds the whole image."""
    crop, shifts = (80, 100), []
    for seed in range(200):
        out = augmented(coordinate_example(), {"crop": crop, "translate": 0.1}, seed)
        rows, columns = np.nonzero(out["label"] != 255)
        assert (len(set(rows)), len(set(columns))) == (HEIGHT, WIDTH)
        shifts.append((rows[0] - 16, columns[0] - 18))
    down, right = np.transpose(shifts)
    assert (down.min(), down.max()) == (-8, 8)
    assert (right.min(), right.max()) == (-10, 10)
    assert abs(correlation(shifts)) < 0.3


@pytest.mark.parametrize("grid", [3, 7])
def test_elastic_nodes_are_independent_whatever_their_number(grid):
    """Displacements at the centers of neighboring cells differ by sqrt(2) sigma."""
    side, sigma = 63, 1.0  # 63 / 7 and 63 / 3 are odd: centers are pixels
    y, x = np.mgrid[:side, :side]
    image = np.stack([4 * x, 4 * y, 0 * x], -1).astype(np.uint8)
    example = {"image": image, "label": np.zeros((side, side), np.uint8)}
    config = {"elastic_sigma": sigma, "elastic_grid": grid}
    cell = side // grid
    centers = cell // 2 + cell * np.arange(grid)[1:-1]
    if grid == 3:  # neighbors 9 pixels apart move nearly together
        centers = np.array([22, 31, 40])
    differences, ups = [], []
    for seed in range(25):
        out = augmented(example, config, seed)["image"].astype(float)
        moved = out[..., :2] / 4 - np.stack([x, y], -1)
        differences.append(np.diff(moved[centers][:, centers], axis=1).ravel())
        ups.append(moved[31, 31])
    spread = np.std(differences)
    if grid == 7:
        assert 1.2 < spread < 1.65  # 1.41
    else:
        assert 0.3 < spread < 0.9
    assert abs(correlation(ups)) < 0.7  # x and y apart


def test_noise_is_drawn_per_pixel_and_channel():
    flat = {
        "image": np.full((48, 48, 3), 128, np.uint8),
        "label": np.zeros((48, 48), np.uint8),
    }
    spreads = []
    for seed in range(60):
        grain = augmented(flat, {"noise": 12.0}, seed)["image"].astype(float) - 128
        spreads.append(grain.std())
        if spreads[-1] > 3:
            channels = np.corrcoef(grain.reshape(-1, 3).T) - np.eye(3)
            assert np.abs(channels).max() < 0.1
            assert abs(np.corrcoef(grain[1:].ravel(), grain[:-1].ravel())[0, 1]) < 0.1
    # Uniform in [0, 12].
    assert min(spreads) < 1.5 and 10.5 < max(spreads) < 12.5
    assert 4.5 < np.mean(spreads) < 7.5


@pytest.mark.parametrize("channels", [1, 3])
def test_tone_is_a_uniform_factor_that_only_its_own_field_changes(channels):
    """Brightness scales all values, contrast their distances to the mean value."""
    ramp = np.linspace(60, 160, 24 * 32).reshape(24, 32, 1).astype(np.uint8)
    ramp = np.repeat(ramp, channels, axis=2)
    example = {"image": ramp, "label": np.zeros((24, 32), np.uint8)}
    value = ramp.astype(float)
    factors = {"brightness": [], "contrast": []}
    for seed in range(120):
        out = augmented(example, {"brightness": 0.4}, seed)["image"]
        slope, offset = np.polyfit(value.ravel(), out.ravel(), 1)
        assert abs(offset) < 1.5
        factors["brightness"].append(slope)
        out = augmented(example, {"contrast": 0.4}, seed)["image"]
        slope, offset = np.polyfit(value.ravel(), out.ravel(), 1)
        assert abs(offset - (1 - slope) * value.mean()) < 1.5
        factors["contrast"].append(slope)
    for found in factors.values():
        assert 0.595 < min(found) < 0.68 and 1.32 < max(found) < 1.405
        assert abs(np.mean(found) - 1) < 0.09
    assert abs(correlation(list(zip(*factors.values())))) < 0.4


def test_saturation_mixes_with_grey():
    example = noise_example()
    example["image"] = example["image"] // 4 + 96  # away from clipping
    gray = (example["image"] @ np.array([0.299, 0.587, 0.114]))[..., None]
    factors = []
    for seed in range(60):
        out = augmented(example, {"saturation": 0.6}, seed)["image"]
        distance = (example["image"] - gray).ravel()
        factor = (out - gray).ravel() @ distance / (distance @ distance)
        assert np.abs(gray + factor * (example["image"] - gray) - out).max() < 1.1
        factors.append(factor)
    assert 0.39 < min(factors) < 0.5 and 1.5 < max(factors) < 1.61


def test_every_field_of_the_config_is_an_option():
    fields = config_lib.make().augment.to_dict()
    expected = set(transforms.Options._fields) - set(augment_options.DERIVED)
    assert set(fields) == expected
    changed = {
        "crop": (9, 8),
        "scale": (0.5, 1.5),
        "aspect": (0.8, 1.2),
        "shear": 7.0,
        "rotate": 3.0,
        "rotate_prob": 0.25,
        "flip": 0.125,
        "vflip": 0.75,
        "rot90": True,
        "translate": 0.2,
        "elastic_sigma": 4.0,
        "elastic_grid": 5,
        "separate": 2,
        "border": "reflect",
        "brightness": 0.1,
        "contrast": 0.3,
        "saturation": 0.4,
        "hue": 11.0,
        "gamma": 0.6,
        "blur_prob": 0.7,
        "noise": 8.0,
    }
    # A set of scales takes the place of the range.
    assert changed.keys() == expected - {"scales"}
    assert transforms.options({"scales": (0.5, 2.0)}, MEAN).scales == (0.5, 2.0)
    changed["scales"] = ()
    made = transforms.options(changed, MEAN)
    derived = {"fill": MEAN, "margin": 0, "border_weight": 0.0, "border_sigma": 5.0}
    assert made._asdict() == changed | derived
    # By default only left-right mirrors are on: nothing stands on its head.
    example = noise_example(6, 8)
    for seed in range(30):
        out = augmented(example, fields, seed)["label"]
        mirrored = example["label"][:, ::-1]
        assert (out == example["label"]).all() or (out == mirrored).all()


# The pipeline


class Source:
    """Images of noise that differ."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.examples = [
            noise_example(h, w, seed=i) | {"id": f"im{i}"}
            for i, (h, w) in enumerate(sizes)
        ]

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return self.examples[index]


TWELVE = Source([(8, 9)] * 12)


def take(n, source=TWELVE, batch_size=4, seed=1, start=0, **options):
    augment = transforms.Options(crop=(6, 6), flip=0.5)
    stream = pipeline.train_batches(
        source,
        augment,
        batch_size=batch_size,
        seed=seed,
        start=start,
        threads=1,
        **options,
    )
    return [next(stream) for _ in range(n)]


def test_the_seed_changes_order_and_augmentation():
    orders = {tuple(np.concatenate([b["id"] for b in take(3, seed=s)])) for s in (0, 1)}
    assert len(orders) == 2
    single = Source([(20, 24)])
    crops = [take(1, single, batch_size=1, seed=seed)[0]["image"] for seed in range(4)]
    assert len({crop.tobytes() for crop in crops}) == 4
    (again,) = take(1, single, batch_size=1, seed=3)
    np.testing.assert_array_equal(again["image"], crops[3])


def test_examples_of_a_batch_and_of_epochs_are_augmented_apart():
    single = Source([(30, 34)])
    crops = [b["image"][i] for b in take(2, single) for i in range(4)]
    # 25 * 29 places, with or without a mirror.
    assert len({crop.tobytes() for crop in crops}) >= 7


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("start", [3, 4])
def test_processes_resume_with_their_share(start, count):
    """Rows i * b .. (i + 1) * b of what one process sees after the same start."""
    stream = take(7)[start:]
    rows = 4 // count
    for index in range(count):
        shares = take(len(stream), start=start, process=(index, count))
        for share, whole in zip(shares, stream, strict=True):
            for key in ("image", "label", "id"):
                part = whole[key][index * rows : (index + 1) * rows]
                np.testing.assert_array_equal(share[key], part)


def test_evaluation_batches_hold_the_images_mirrored_and_their_labels():
    """Six sizes share four frames; two processes take the rows of each batch."""
    source = Source([(10, 12), (11, 12), (10, 13), (7, 30), (20, 6), (12, 13)] * 2)
    whole = list(pipeline.eval_batches(source, batch_size=4, channels=3))
    shares = [
        list(pipeline.eval_batches(source, batch_size=4, channels=3, process=(i, 2)))
        for i in range(2)
    ]
    seen = []
    for batch, first, second in zip(whole, *shares, strict=True):
        for key in ("image", "label", "id"):
            joined = np.concatenate([first[key], second[key]])
            np.testing.assert_array_equal(joined, batch[key])
        for image, label, name in zip(batch["image"], batch["label"], batch["id"]):
            if not name:
                assert (label == 255).all()
                continue
            example = source[int(name.removeprefix("im"))]
            h, w = example["label"].shape
            rim = [(0, label.shape[0] - h), (0, label.shape[1] - w)]
            expected = np.pad(example["label"], rim, constant_values=255)
            np.testing.assert_array_equal(label, expected)
            expected = np.pad(example["image"], [*rim, (0, 0)], mode="reflect")
            np.testing.assert_array_equal(image, expected)
            seen.append(name)
    assert sorted(seen) == sorted(f"im{i}" for i in range(12))


def test_batches_of_buckets_follow_batch_devices_and_pixels():
    sizes = [(10, 10)] * 10

    def shape(batch, **options):
        (bucket,) = batching.plan(sizes, batch, **options)
        flat = [index for part in bucket.batches for index in part]
        assert sorted(flat) == list(range(10)) and bucket.padded_shape == (10, 10)
        return bucket.batch_size, len(bucket.batches)

    assert shape(10) == (10, 1)
    assert shape(4) == (4, 3)
    assert shape(4, devices=2) == (4, 3)
    assert shape(5, devices=4) == (8, 2)
    assert shape(10, max_pixels=200) == (2, 5)
    assert shape(10, max_pixels=99) == (1, 10)  # a single image is always allowed
    assert shape(10, max_pixels=200, devices=2) == (4, 3)


# Files


CENTRES = {  # halves fall between two pixels: the later one, as floor((i + 0.5) s)
    (24, 8): [1, 4, 7, 10, 13, 16, 19, 22],
    (20, 4): [2, 7, 12, 17],
    (16, 8): [1, 3, 5, 7, 9, 11, 13, 15],
    (7, 3): [1, 3, 5],
    (3, 7): [0, 0, 1, 1, 1, 2, 2],
}


@pytest.mark.parametrize("rows", CENTRES)
@pytest.mark.parametrize("columns", [(24, 8), (7, 3)])
def test_labels_are_resized_between_pixel_centers(rows, columns):
    """A checkerboard of single pixels, and a label per pixel; images by areas."""
    height, width = rows[0], columns[0]
    y, x = np.mgrid[:height, :width]
    size = (rows[1], columns[1])
    for label in ((x + y) % 2, x, y):
        label = label.astype(np.uint8)
        image = np.repeat(label[..., None], 3, axis=2)
        source = datasets.Resized([{"image": image, "label": label, "id": "a"}], size)
        expected = label[CENTRES[rows]][:, CENTRES[columns]]
        np.testing.assert_array_equal(source[0]["label"], expected)
        pillow = Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST)
        np.testing.assert_array_equal(source[0]["label"], np.asarray(pillow))
        assert source.sizes == [size] and source[0]["id"] == "a"
    # Of blocks of three by three, the label is that of the center of the image's area.
    if rows == columns == (24, 8):
        means = source[0]["image"][..., 0]
        np.testing.assert_array_equal(means, source[0]["label"])


ORIENTATIONS = {  # of EXIF: what a viewer shows of the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_exif_orientations(tmp_path, suffix, orientation):
    path = tmp_path / f"x{suffix}"
    coarse = noise_example(3, 4)["image"]
    stored = cv2.resize(coarse, (32, 24), interpolation=cv2.INTER_CUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    shown = ORIENTATIONS[orientation](stored).astype(int)
    assert images.image_header(path) == (shown.shape[:2], False)
    found = images.decode_image(path)
    assert found.shape == shown.shape
    difference = np.abs(found - shown)
    assert difference.mean() < 8 if suffix == ".jpg" else difference.max() == 0


def test_palette_files_show_the_colors_of_the_palette(tmp_path):
    """Decoded by Pillow: ids as they were, red first, void in its own color."""
    label = np.array([[0, 1, 2, 255], [2, 2, 1, 0]])
    palette = np.array([[200, 10, 20], [0, 220, 40], [30, 60, 240]], np.uint8)
    images.write_palette_png(tmp_path / "l.png", label, palette)
    with Image.open(tmp_path / "l.png") as file:
        assert file.mode == "P" and file.format == "PNG"
        np.testing.assert_array_equal(np.asarray(file), label)
        shown = np.asarray(file.convert("RGB"))
    np.testing.assert_array_equal(shown[label < 3], palette[label[label < 3]])
    assert tuple(shown[0, 3]) == (224, 224, 192)


def test_written_pngs_are_red_first(tmp_path):
    colors = noise_example()["image"]
    (tmp_path / "c.png").write_bytes(images.encode_png(colors))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "c.png")), colors)
    for dtype in (np.uint8, np.uint16):
        label = np.array([[0, 1, 200], [255, 254, np.iinfo(dtype).max]], dtype)
        images.write_ids_png(tmp_path / "ids.png", label)
        with Image.open(tmp_path / "ids.png") as file:
            assert file.mode == ("L" if dtype == np.uint8 else "I;16")
            np.testing.assert_array_equal(np.asarray(file), label)


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_turned_photographs_fit_their_upright_masks(tmp_path, orientation):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    shown = noise_example(6, 10)
    # What a camera stores so that a viewer shows that: the inverse turn.
    inverse = {1: 1, 6: 8, 7: 7}[orientation]
    stored = np.ascontiguousarray(ORIENTATIONS[inverse](shown["image"]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in "ab":
        Image.fromarray(stored).save(tmp_path / "images" / f"{name}.png", exif=exif)
        Image.fromarray(shown["label"]).save(tmp_path / "masks" / f"{name}.png")
    data = {"name": "folder", "root": str(tmp_path)}
    source, _ = datasets.load(data, "train")
    np.testing.assert_array_equal(source[0]["image"], shown["image"])
    np.testing.assert_array_equal(source[0]["label"], shown["label"])
    assert source.sizes == [(6, 10)]


# From the config to the batches of a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five training images, one for validation; masks of 0, 1, 2, 77 and 255."""
    root = tmp_path_factory.mktemp("folder")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(6):
        made = noise_example(20, 24, seed=i)
        mask = made["label"] % 3
        mask[0, :4] = (77, 77, 255, 0)
        Image.fromarray(made["image"]).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "val.txt").write_text("5\n")
    return root


def run_config(root, **options):
    options = {"model_name": "unet", "batch_size": 4, "threads": 1} | options
    data = {"name": "folder", "root": str(root), "void_values": (255, 77)}
    data |= options.pop("data", {})
    return config_lib.make(data=data, **options)


def test_the_margin_and_the_color_of_padding_reach_the_augmentation(folder, capfd):
    valid = {"padding": "valid", "widths": (2, 3)}
    augment = {"crop": (18, 22), "flip": 0.0}
    setup = training_run.build_run(run_config(folder, model=valid, augment=augment))
    # Two valid 3x3 convolutions, at full size twice and at half size once.
    assert setup.augment.margin == 2 + 2 * 2 + 2
    assert setup.augment.crop == (18, 22) and setup.augment.flip == 0
    np.testing.assert_allclose(setup.augment.fill, (122.67892, 116.66877, 104.00699))
    whole = training_run.build_run(
        run_config(folder, model=valid | {"padding": "same"})
    )
    assert whole.augment.margin == 0 and whole.augment.flip == 0.5
    assert whole.augment.crop == (20, 24)  # of all images
    capfd.readouterr()


def test_fields_of_the_config_reach_the_batches(folder, capfd):
    same = {"padding": "same", "widths": (2, 3)}

    def first(start=0, **options):
        setup = training_run.build_run(run_config(folder, model=same, **options))
        return next(setup.batches(start))

    plain = {"augment": {"flip": 0.0}}
    batch = first(**plain)
    assert batch["image"].shape == (4, 20, 24, 3)
    assert set(batch["id"]) < set("01234")
    for image, label, name in zip(batch["image"], batch["label"], batch["id"]):
        stored = np.asarray(Image.open(folder / "images" / f"{name}.png"))
        np.testing.assert_array_equal(image, stored)
        mask = np.asarray(Image.open(folder / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(label, np.where(mask == 77, 255, mask))
    assert first(batch_size=8, **plain)["image"].shape[0] == 8
    others = {tuple(first(seed=seed, **plain)["id"]) for seed in range(4)}
    assert len(others) > 1
    assert tuple(first(start=1, **plain)["id"]) != tuple(batch["id"])
    held = first(data={"train_split": "validation"}, **plain)
    assert set(held["id"]) == {"5"}
    small = first(data={"resize": (10, 12)}, **plain)
    assert small["image"].shape == (4, 10, 12, 3)
    assert small["label"].shape == (4, 10, 12)
    # Rows 2i + 1 and columns 2j + 1 of the masks.
    index = list(batch["id"]).index(small["id"][0])
    np.testing.assert_array_equal(small["label"][0], batch["label"][index][1::2, 1::2])
    capfd.readouterr()
