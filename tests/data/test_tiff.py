"""TIFFs of all layouts and compressions against the arrays they are made of."""

import io
import struct

import numpy as np
import pytest
import tifffile
from image_arrays import H, W, assert_read, noise, smooth, tiff_bytes, to_8_bit
from image_folders import error_of
from PIL import Image

from segjax.data import images, windows


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("segments", [{}, {"rowsperstrip": 5}, {"tile": (16, 16)}])
def test_tiff_layouts(tmp_path, bits, samples, planes, segments):
    values = noise(samples, bits)
    expected = to_8_bit(values, bits)
    expected = expected[..., 0] if samples < 3 else expected[..., :3]
    for compression in (
        {},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzma", "byteorder": ">"},
        {"compression": "zlib", "predictor": True, "byteorder": ">"},
        {"byteorder": ">", "bigtiff": True},
    ):
        options = segments | compression
        data = tiff_bytes(values, planes=planes and samples > 1, **options)
        assert_read(tmp_path / "a.tif", data, expected, gray=samples < 3)
    if samples == 1:
        data = tiff_bytes(values, photometric="miniswhite", **segments)
        assert_read(tmp_path / "a.tif", data, 255 - expected, gray=True)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_tiff_compressions(tmp_path, mode):
    """Written by libtiff."""
    colors, gray = smooth(), mode in ("1", "L", "LA", "I;16")
    if mode == "P":
        image = Image.fromarray(colors).quantize(40)
    elif mode == "I;16":
        image = Image.fromarray(noise(1, 16)[..., 0])
    else:
        image = Image.fromarray(colors).convert(mode)
    if mode == "I;16":
        expected = to_8_bit(np.asarray(image), 16)
    else:
        expected = np.asarray(image.convert("L" if gray else "RGB"))
    compressions = ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"]
    compressions += ["jpeg"] * (mode in ("L", "RGB"))
    for compression in compressions:
        buffer = io.BytesIO()
        image.save(buffer, "TIFF", compression=compression)
        tolerance = {"jpeg": 25, "CMYK": 1}
        tolerance = tolerance.get(compression, tolerance.get(mode, 0))
        path, data = tmp_path / "a.tif", buffer.getvalue()
        assert_read(path, data, expected, gray=gray, tolerance=tolerance)


def bit_tiff(values: np.ndarray, bits: int, tags: dict[int, tuple]) -> bytes:
    """Uncompressed TIFF of one strip of values [H, W] below 8 bits."""
    planes = (values[:, :, None] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(planes.reshape(len(values), -1), axis=1)
    if tags.get(266) == (2,):  # the lowest bit comes first
        packed = np.packbits(np.unpackbits(packed, axis=1, bitorder="little"), axis=1)
    height, width = values.shape
    tags = {256: (width,), 257: (height,), 258: (bits,), 259: (1,)} | tags
    tags |= {273: (8,), 277: (1,), 278: (height,), 279: (packed.size,)}
    pixels = packed.tobytes() + bytes(packed.size % 2)
    colormap = struct.pack(f"<{len(tags.get(320, ()))}H", *tags.get(320, ()))
    data = struct.pack("<2sHI", b"II", 42, 8 + len(pixels) + len(colormap)) + pixels
    entries = b""
    for tag in sorted(tags):
        count = len(tags[tag])
        value = tags[tag][0] if count == 1 else len(data)
        entries += struct.pack("<HHII", tag, 3, count, value)
    return data + colormap + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_tiffs_below_8_bits(tmp_path, bits):
    values = noise(1, bits)[:, :, 0]
    gray = to_8_bit(values, bits)
    path = tmp_path / "a.tif"
    assert_read(path, bit_tiff(values, bits, {262: (1,)}), gray, gray=True)
    assert_read(path, bit_tiff(values, bits, {262: (0,)}), 255 - gray, gray=True)
    flipped = bit_tiff(values, bits, {262: (1,), 266: (2,)})
    assert_read(path, flipped, gray, gray=True)
    colors = np.random.default_rng(1).integers(0, 256, (2**bits, 3))
    colors[0] = 255
    table = tuple((colors.T * 257).ravel().tolist())
    data = bit_tiff(values, bits, {262: (3,), 320: table})
    assert_read(path, data, colors[values].astype(np.uint8), gray=False)


def test_fax_compression_is_refused():
    """libtiff reads damaged faxes without an error."""
    buffer = io.BytesIO()
    Image.fromarray(smooth()).convert("1").save(buffer, "TIFF", compression="group4")
    message = error_of(images.decode_image, buffer.getvalue())
    assert "is a TIFF of compression 4 with predictor 1, expected none, LZW" in message


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib", "lzma"])
def test_tiffs_that_are_cut_short(tmp_path, planes, compression):
    """The directory stands before the pixels, so that headers are whole."""
    data = tiff_bytes(noise(3), planes=planes, compression=compression)
    for share in (0.3, 0.9, 0.99):
        (tmp_path / "a.tif").write_bytes(data[: int(share * len(data))])
        for read in (images.image_header, images.decode_image):
            message = error_of(read, tmp_path / "a.tif")
            assert "a.tif: cannot be decoded" in message and "cut short" in message
        message = error_of(windows.open_windows, tmp_path / "a.tif", 3)
        assert "cut short" in message


@pytest.mark.parametrize(
    "values, options, expected",
    [
        (noise(4, 16), {"extrasamples": ["unspecified"]}, "4 channels, of which 1 are"),
        (noise(4), {"extrasamples": ["unspecified"]}, "neither color nor alpha"),
        (noise(5, 16), {"extrasamples": [0, 2]}, "5 channels, of which 2 are"),
        (noise(2), {"extrasamples": [0]}, "2 channels, of which 1 are"),
        (noise(1).astype(np.float32), {}, "floating-point samples of 32 bits"),
        (noise(1, 16).astype(np.int16), {}, "signed samples of 16 bits"),
        (noise(1).astype(np.uint32), {}, "unsigned samples of 32 bits"),
        (noise(1).astype(np.int8), {}, "signed samples of 8 bits"),
        (noise(3).astype(np.float64), {}, "floating-point samples of 64 bits"),
        (noise(1).astype(np.complex64), {}, "complex samples"),
    ],
)
def test_tiffs_of_other_samples_are_refused_by_header_and_pixels(
    tmp_path, values, options, expected
):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(values, **options))
    message = error_of(images.image_header, path)
    assert message.startswith(f"{path}: ") and expected in message
    assert error_of(images.decode_image, path) == message
    assert error_of(windows.open_windows, path, 3) == message


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}])
def test_windows_of_a_tiff_are_those_of_the_image(tmp_path, bits, samples, options):
    path = tmp_path / "image.tif"
    path.write_bytes(tiff_bytes(noise(samples, bits), rowsperstrip=4, **options))
    mapped = windows._map_tiff(path, samples)
    assert (mapped is None) == ("compression" in options)
    assert mapped is None or isinstance(mapped, np.memmap)
    for channels in (1, 3):
        image = images.decode_image(path, channels)
        size, read = windows.open_windows(path, channels)
        assert size == (H, W)
        window = np.s_[3:17, 5:30]
        np.testing.assert_array_equal(read(*window), image[window])


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "miniswhite"},
        {"extratags": [(274, "H", 1, 6, True)]},
        {"tile": (16, 16)},
    ],
)
def test_windows_of_other_tiffs_are_decoded(tmp_path, options):
    path = tmp_path / "image.tif"
    path.write_bytes(tiff_bytes(noise(1, 16), **options))
    size, read = windows.open_windows(path, 1)
    image = images.decode_image(path, 1)
    assert size == image.shape[:2] == images.image_header(path)[0]
    np.testing.assert_array_equal(read(np.s_[:], np.s_[:]), image)


def test_strips_in_another_order_are_not_mapped(tmp_path):
    values, path = noise(1)[:20], tmp_path / "image.tif"
    data = bytearray(tiff_bytes(values, rowsperstrip=5))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = file.pages[0].tags["StripOffsets"]
        first, second, *_ = offsets = tag.value
        at = tag.valueoffset
    size = second - first
    data[first : first + 2 * size] = (
        data[second : second + size] + data[first : first + size]
    )
    width = "<I" if tag.dtype == 4 else "<H"
    for i, offset in enumerate((second, first, *offsets[2:])):
        struct.pack_into(width, data, at + i * struct.calcsize(width), offset)
    path.write_bytes(data)
    np.testing.assert_array_equal(images.decode_image(path, 1), values)
    size, read = windows.open_windows(path, 1)
    np.testing.assert_array_equal(read(np.s_[:], np.s_[:]), values)
