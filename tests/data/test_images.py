"""Image files: pixels, errors, PNGs, lists of files."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_folders import H, W, error_of, rgb, write
from PIL import Image

from segjax.data import datasets, images


def test_decode_image(tmp_path):
    path = tmp_path / "x.png"
    color = rgb(0)
    for suffix in (".png", ".bmp", ".tif"):
        write(path.with_suffix(suffix), color)
        found = images.decode_image(path.with_suffix(suffix))
        np.testing.assert_array_equal(found, color)
    luma = color @ np.array([0.299, 0.587, 0.114])
    gray = images.decode_image(path, 1)
    assert gray.shape == (H, W, 1) and np.abs(gray[:, :, 0] - luma).max() < 1
    alpha = np.dstack([color, np.zeros((H, W), np.uint8)])
    write(path, alpha)
    np.testing.assert_array_equal(images.decode_image(path), color)
    write(path, color[:, :, 0])
    expected = np.dstack([color[:, :, 0]] * 3)
    np.testing.assert_array_equal(images.decode_image(path.read_bytes()), expected)
    deep = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    write(path, deep)
    assert images.decode_image(path, 1).ravel().tolist() == [0, 0, 1, 1, 255]
    Image.fromarray(color).quantize(4).save(path)  # a palette image is color
    assert images.decode_image(path).shape == (H, W, 3)
    assert images.image_header(path) == ((H, W), False)


def test_decode_image_errors(tmp_path):
    assert "cannot be read (No such file" in error_of(
        images.decode_image, tmp_path / "none.png"
    )
    (tmp_path / "empty.png").write_bytes(b"")
    message = error_of(images.decode_image, tmp_path / "empty.png")
    assert "empty.png: cannot be decoded (0 bytes): it is empty" in message
    assert error_of(images.decode_image, b"junk", name="page 3").startswith("page 3:")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    message = error_of(images.decode_image, tmp_path / "f.tif")
    assert "holds floating-point samples of 32 bits" in message
    assert error_of(images.image_header, tmp_path / "f.tif") == message
    Image.fromarray(rgb(0)).convert("CMYK").save(tmp_path / "m.tif")
    message = error_of(images.decode_mask, tmp_path / "m.tif")
    assert "m.tif: mask is stored as TIFF, expected PNG" in message


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    smooth = cv2.resize(rgb(0, 3, 4), (32, 24), interpolation=cv2.INTER_CUBIC)
    for orientation, turns in ((1, 0), (3, 2), (6, -1), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(smooth).save(path, exif=exif, quality=100)
        turned = np.rot90(smooth, turns).astype(int)
        found = images.decode_image(path)
        assert images.image_header(path) == (turned.shape[:2], False)
        assert found.shape == turned.shape and np.abs(found - turned).mean() < 8


def test_palette_png(tmp_path):
    label = np.arange(12, dtype=np.int64).reshape(3, 4)
    label[0, 0] = 255
    palette = datasets.voc_palette(12)
    images.write_palette_png(tmp_path / "l.png", label, palette)
    values, kind = images.decode_mask(tmp_path / "l.png")
    assert kind == "index"
    np.testing.assert_array_equal(values, label)
    shown = cv2.imread(str(tmp_path / "l.png"))[:, :, ::-1]
    np.testing.assert_array_equal(shown[2], palette[8:12])
    assert tuple(shown[0, 0]) == images.VOID_COLOR
    assert os.listdir(tmp_path) == ["l.png"]  # no temporary file stays


def test_a_killed_program_leaves_no_half_png(tmp_path, monkeypatch):
    def killed(self, path, **options):
        assert Path(path) != tmp_path / "l.png"
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        images.write_palette_png(
            tmp_path / "l.png", np.zeros((2, 2)), datasets.voc_palette(2)
        )
    assert not os.listdir(tmp_path)


def test_png_round_trip():
    for array in (rgb(0), rgb(0)[:, :, :1]):
        data = images.encode_png(array)
        found = images.decode_image(data, array.shape[2])
        np.testing.assert_array_equal(found, array)
        stored = images.encode_png(array, compressed=False)
        found = images.decode_image(stored, array.shape[2])
        np.testing.assert_array_equal(found, array)
    large = np.random.default_rng(0).integers(0, 2**16, (300, 200), np.uint16)
    stored = images.encode_png(large, compressed=False)
    assert stored.count(b"IDAT") == 1
    for read in (
        lambda: np.array(Image.open(io.BytesIO(stored))),
        lambda: cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED),
        lambda: images.decode_mask(stored)[0],
    ):
        np.testing.assert_array_equal(read(), large)
    blank = np.zeros((64, 64), np.uint8)
    assert len(images.encode_png(blank)) < 500
    assert len(images.encode_png(blank, compressed=False)) > blank.size


def test_list_images(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", ".d.png", "sub/e.tif", "x[1].png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")

    def found(*paths) -> list[str]:
        listed = images.list_images(str(tmp_path / path) for path in paths).images
        return [os.path.relpath(path, tmp_path) for path in listed]

    assert found(".") == ["a.JPG", "b.png", "x[1].png"]
    assert found("*.png") == ["b.png", "x[1].png"]
    assert found("**/*") == ["a.JPG", "b.png", "sub/e.tif", "x[1].png"]
    assert found("x[1].png") == ["x[1].png"]
    assert found("sub", "b.png", "*.png") == ["sub/e.tif", "b.png", "x[1].png"]
    # What is in a folder or glob but no image is returned, too, unless it is named.
    for name in ("Thumbs.db", "photo.heic", "sub/f.webp"):
        (tmp_path / name).write_bytes(b"")
    listing = images.list_images([tmp_path, tmp_path / "sub", f"{tmp_path}/*"])
    assert [Path(path).name for path in listing.skipped] == ["c.txt", "photo.heic"]
    assert str(tmp_path / "sub/f.webp") in listing.images
    listing = images.list_images([tmp_path, tmp_path / "c.txt"])
    assert str(tmp_path / "c.txt") in listing.images
    assert [Path(path).name for path in listing.skipped] == ["photo.heic"]
    assert "(c.txt is not read)" in error_of(found, "c*")
    for nothing in ("none.png", "*.bmp", "none"):
        assert nothing in error_of(found, nothing)
