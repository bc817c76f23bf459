"""Images of any number of channels: read, in folders, resized and augmented."""

import cv2
import numpy as np
import pytest
import tifffile
from image_arrays import H, W, noise, tiff_bytes
from image_folders import error_of, lists, write
from PIL import Image

from segjax.data import datasets, folder, images, pipeline, transforms, windows
from segjax.data.channel_groups import groups


def stretched(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """255 (v - low) / (high - low), halves up."""
    exact = 255 * (values.astype(np.float64) - low) / (high - low)
    return np.floor(exact.clip(0, 255) + 0.5).astype(np.uint8)


def tiff(path, values: np.ndarray, *, planes: bool = False, **options) -> None:
    """A TIFF as satellites' are: gray, with samples that mean nothing known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planar = "separate" if planes else "contig"
    data = np.moveaxis(values, 2, 0) if planes else values
    if values.shape[2] == 1:
        planar, data = None, values[:, :, 0]
    options = {"photometric": "minisblack", "planarconfig": planar} | options
    tifffile.imwrite(path, data, **options)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("samples", [2, 4, 5, 12])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"rowsperstrip": 4},
        {"tile": (16, 16)},
        {"compression": "zlib", "predictor": True},
        {"photometric": "miniswhite"},
    ],
)
def test_tiffs_of_many_channels(tmp_path, bits, samples, planes, options):
    values, path = noise(samples, bits), tmp_path / "a.tif"
    tiff(path, values, planes=planes, **options)
    if options.get("photometric") == "miniswhite":
        values = 2**bits - 1 - values
    assert images.image_header(path, samples) == ((H, W), samples == 2)
    expected = stretched(values, 0, 2**bits - 1)
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(images.decode_image(source, samples), expected)
    low, high = (7, 200) if bits == 8 else (100, 4000)
    expected = stretched(values, low, high)
    found = images.decode_image(path, samples, value_range=(low, high))
    np.testing.assert_array_equal(found, expected)
    size, read = windows.open_windows(path, samples, value_range=(low, high))
    assert size == (H, W)
    part = np.s_[3:17, 5:30]
    np.testing.assert_array_equal(read(*part), expected[part])
    message = error_of(images.decode_image, path, samples + 1)
    if samples > 2:
        assert (
            f"TIFF of {samples} channels, expected {samples + 1} (--config" in message
        )
    message = error_of(images.decode_image, path, 3)
    assert f"or use all: --config.data.channels={samples}" in message


def test_plain_tiffs_of_many_channels_are_mapped(tmp_path):
    tiff(tmp_path / "a.tif", noise(5, 16))
    assert isinstance(windows._map_tiff(tmp_path / "a.tif", 5), np.memmap)
    tiff(tmp_path / "b.tif", noise(5, 16), planes=True)
    assert windows._map_tiff(tmp_path / "b.tif", 5) is None


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_turns_all_channels(tmp_path, orientation):
    values = noise(5)
    tags = [(274, "H", 1, orientation, True)]
    tiff(tmp_path / "a.tif", values, extratags=tags)
    turned = values[::-1, ::-1] if orientation == 3 else np.rot90(values, -1)
    found = images.decode_image(tmp_path / "a.tif", 5)
    np.testing.assert_array_equal(found, turned)
    assert images.image_header(tmp_path / "a.tif", 5)[0] == turned.shape[:2]


def test_alpha_counts_where_channels_are_counted(tmp_path):
    rgba, path = noise(4), tmp_path / "a.png"
    Image.fromarray(rgba).save(path)
    np.testing.assert_array_equal(images.decode_image(path, 4), rgba)
    np.testing.assert_array_equal(images.decode_image(path, 3), rgba[..., :3])
    deep = noise(4, 16)
    cv2.imwrite(str(path), deep[..., [2, 1, 0, 3]])
    expected = stretched(deep, 0, 2**16 - 1)
    np.testing.assert_array_equal(images.decode_image(path, 4), expected)
    two = noise(2)
    Image.fromarray(two, "LA").save(path)
    np.testing.assert_array_equal(images.decode_image(path, 2), two)
    np.testing.assert_array_equal(images.decode_image(path, 1), two[..., :1])
    path.write_bytes(tiff_bytes(rgba))  # marked as alpha
    np.testing.assert_array_equal(images.decode_image(path, 4), rgba)
    np.testing.assert_array_equal(images.decode_image(path, 3), rgba[..., :3])


def test_files_without_channels_of_their_own(tmp_path):
    path = tmp_path / "a"
    for kind, mode in (("PNG", "P"), ("JPEG", "RGB"), ("TIFF", "CMYK"), ("GIF", "P")):
        Image.fromarray(noise(3)).convert(mode).save(path, kind)
        message = error_of(images.decode_image, path, 4)
        assert f"is a {kind} of colors, without channels of its own" in message
        assert error_of(images.image_header, path, 4) == message
    Image.fromarray(noise(3)).save(path, "PNG")
    assert "PNG of 3 channels, expected 4" in error_of(images.decode_image, path, 4)


@pytest.mark.parametrize("low, high", [(0, 255), (10, 90), (0, 1), (254, 4095)])
def test_value_range_of_8_bits_and_of_arrays(low, high):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = images.to_pixels(values, 1, value_range=(low, high))[:, :, 0]
    np.testing.assert_array_equal(found, stretched(values, low, high))
    whole = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = images.to_pixels(whole, 1, value_range=(low, high))[:, :, 0]
    np.testing.assert_array_equal(found, stretched(whole, low, high))


def test_arrays_of_other_channels_are_refused():
    assert images.to_pixels(noise(5), 5).shape == (H, W, 5)
    for array in (noise(4), noise(1)[..., 0]):
        message = error_of(images.to_pixels, array, 5, "x")
        assert message.startswith("x: has shape ") and "[H, W, 5]" in message


# Folders


def labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (H, W)).astype(np.uint8)


def multispectral(root, samples: int = 5, scale: int = 4096, count: int = 3) -> dict:
    """Images of so many channels, 16 bits of which 12 are used, and masks."""
    for i in range(count):
        values = noise(samples, 16, seed=i) % np.uint16(scale)
        tiff(root / "images" / f"{i}.tif", values, planes=i % 2 == 1)
        write(root / "masks" / f"{i}.png", labels(i))
    lists(root, "\n".join(map(str, range(count - 1))), f"{count - 1}\n")
    return {"name": "folder", "root": str(root)}


def test_folder_of_many_channels(tmp_path):
    data = multispectral(tmp_path)
    message = error_of(datasets.scan_folder, data)
    assert "0.tif: has 5 channels, of which 4 are neither color nor alpha" in message
    assert "--config.data.channels=5" in message
    data |= {"channels": 5, "value_range": (0, 4095)}
    source, info = datasets.load(data, "train")
    assert info.channels == 5 and info.mean == (127.5,) * 5
    for i in range(2):
        expected = stretched(noise(5, 16, seed=i) % 4096, 0, 4095)
        np.testing.assert_array_equal(source[i]["image"], expected)
    text = folder.report(datasets.scan_folder(data))
    assert "5 channels" in text and "value_range" not in text
    small, _ = datasets.load(data | {"resize": (10, 12)}, "validation")
    assert small[0]["image"].shape == (10, 12, 5)
    tiff(tmp_path / "images" / "1.tif", noise(4, 16))
    message = error_of(datasets.scan_folder, data)
    assert "1.tif: is a TIFF of 4 channels, expected 5" in message


def test_channels_of_other_data_sets_are_theirs():
    for field, value in {"channels": 4, "value_range": (0, 9)}.items():
        message = error_of(datasets.describe, {"name": "camvid", field: value})
        assert f"--config.data.{field} is {value!r}" in message and "folder" in message


def test_one_and_three_channels_may_be_asked_for(tmp_path):
    for i in range(2):
        write(tmp_path / "images" / f"{i}.png", noise(3 if i else 4, seed=i))
        write(tmp_path / "masks" / f"{i}.png", labels(i))
    data = {"name": "folder", "root": str(tmp_path)}
    for channels in (0, 1, 3):
        source, info = datasets.load(data | {"channels": channels}, "train")
        assert info.channels == (channels or 3) == source[0]["image"].shape[2]
    message = error_of(datasets.describe, data | {"channels": 4})
    assert "1.png: is a PNG of 3 channels, expected 4" in message


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_lost_contrast_is_said(tmp_path, samples):
    data = multispectral(tmp_path, samples) | {"channels": samples}
    (note,) = datasets.scan_folder(data).notes
    assert "usual values of the 16-bit images are" in note
    # 12 bits of 16: 4095 / 257 = 16 levels and black.
    assert "become only 17 of 256 gray levels" in note
    setting = note.split("value_range=")[1].split()[0]
    low, high = map(int, setting.rstrip(":").split(","))
    assert 0 <= low < 20 and 4075 < high <= 4095
    assert not datasets.scan_folder(data | {"value_range": (low, high)}).notes
    (note,) = datasets.scan_folder(data | {"value_range": (0, 1000)}).notes
    assert "those beyond --config.data.value_range=0,1000 are cut off" in note
    full = multispectral(tmp_path / "b", samples, scale=2**16 - 1)
    assert not datasets.scan_folder(full | {"channels": samples}).notes


def test_kept_counts_do_not_hide_other_channels(tmp_path):
    data = multispectral(tmp_path, count=40) | {"data_dir": str(tmp_path / "kept")}
    datasets.scan_folder(data | {"channels": 5})
    assert len(list((tmp_path / "kept" / "folder").iterdir())) == 1
    assert "has 5 channels" in error_of(datasets.scan_folder, data)
    message = error_of(datasets.scan_folder, data | {"channels": 4})
    assert "expected 4" in message


# Resizing and augmentation


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 12, 150])
def test_every_channel_is_treated_as_if_it_were_alone(channels):
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (24, 30, channels), np.uint8)
    assert sum(part.stop - part.start for part in groups(channels)) == channels

    def single(k: int) -> np.ndarray:
        return np.ascontiguousarray(image[:, :, k : k + 1])

    def augmented(pixels: np.ndarray, mean: tuple, change: dict) -> np.ndarray:
        options = transforms.options(change, mean)
        example = {"image": pixels, "label": np.zeros((24, 30), np.uint8)}
        return transforms.augment(example, np.random.default_rng(3), options)["image"]

    picked = range(channels) if channels < 20 else (0, 77, 149)
    for size in ((12, 15), (11, 17), (40, 50)):
        whole = images.resize_image(image, size)
        assert whole.shape == (*size, channels)
        for k in picked:
            expected = images.resize_image(single(k), size)
            np.testing.assert_array_equal(whole[:, :, k], expected[:, :, 0])
    extended = pipeline.mirror_to(image, (29, 40))
    padded = np.pad(image, ((0, 5), (0, 10), (0, 0)), "reflect")
    np.testing.assert_array_equal(extended, padded)
    fill = tuple(range(10, 10 + channels))
    for change in (
        {"rotate": 30.0, "scale": (1.1, 1.4)},
        {"elastic_sigma": 3.0, "border": "reflect"},
        {"elastic_sigma": 3.0, "crop": (20, 20), "blur_prob": 1.0},
        {"flip": 1.0, "rot90": True, "translate": 0.4},
    ):
        whole = augmented(image, fill, change)
        for k in picked:
            expected = augmented(single(k), fill[k : k + 1], change)
            np.testing.assert_array_equal(whole[:, :, k], expected[:, :, 0])


def test_tone_and_noise_of_many_channels():
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 6), np.uint8)
    change = {"brightness": 0.3, "contrast": 0.5, "gamma": 0.5, "flip": 0.0}
    options = transforms.options(change, (127.5,) * 6)
    example = {"image": image, "label": np.zeros((24, 30), np.uint8)}
    out = transforms.augment(example, np.random.default_rng(1), options)["image"]
    # One curve for all channels, from the mean of all of them: as a gray image.
    gray = {**example, "image": image.reshape(24, 180, 1)}
    gray["label"] = np.zeros((24, 180), np.uint8)
    options = transforms.options(change, (127.5,))
    other = transforms.augment(gray, np.random.default_rng(1), options)["image"]
    np.testing.assert_array_equal(out.ravel(), other.ravel())
    noisy = transforms.options({"noise": 9.0, "flip": 0.0}, (127.5,) * 6)
    out = transforms.augment(example, np.random.default_rng(1), noisy)["image"]
    assert (out != image).any(axis=(0, 1)).all()


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_changes_of_color_need_colors(name):
    for channels in (1, 3):
        transforms.options({name: 0.2}, (0.0,) * channels)
    message = error_of(transforms.options, {name: 0.2}, (0.0,) * 4)
    assert f"--config.augment.{name}: found 0.2, expected 0 for images of 4" in message
