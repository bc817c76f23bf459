"""Headers and pixels of every format against the arrays the files are made of."""

import io
import os
import struct
import threading
import tracemalloc

import numpy as np
import pytest
import tifffile
from image_folders import error_of
from PIL import Image
from png_files import chunk, png, whole

from segjax.data import images, masks, windows

H, W = 21, 37

SHOWN = {  # by EXIF orientation: what a viewer shows of the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def noise(samples: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    """Samples [H, W, samples] of so many bits."""
    values = np.random.default_rng(seed).integers(0, 2**bits, (H, W, samples))
    return values.astype(np.uint16 if bits == 16 else np.uint8)


def smooth() -> np.ndarray:
    """Colors that survive JPEG."""
    y, x = np.mgrid[:H, :W] / (H, W)[0]
    waves = [127 + 100 * np.sin(2 * x + phase) * np.cos(2 * y) for phase in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def to_8_bit(values: np.ndarray, bits: int) -> np.ndarray:
    """Spread over 0..255, black and white kept."""
    return np.round(values * (255 / (2**bits - 1))).astype(np.uint8)


def assert_read(path, data: bytes, expected: np.ndarray, *, gray: bool, tolerance=0):
    """Size, kind and pixels of a file against uint8 [H, W] or [H, W, 3]."""
    path.write_bytes(data)
    assert images.image_header(path) == (expected.shape[:2], gray)
    if expected.ndim == 2:
        expected = np.repeat(expected[:, :, None], 3, axis=2)
    image = images.decode_image(path)
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= tolerance
    if gray:
        single = images.decode_image(data, 1)
        np.testing.assert_array_equal(single[:, :, 0], image[:, :, 0])


# PNG

PNG_KINDS = [
    *((0, bits) for bits in (1, 2, 4, 8, 16)),
    *((color, bits) for color in (2, 4, 6) for bits in (8, 16)),
    *((3, bits) for bits in (1, 2, 4, 8)),
]


@pytest.mark.parametrize("color, bits", PNG_KINDS)
def test_png(tmp_path, color, bits):
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    values = noise(samples, bits)
    palette = np.random.default_rng(1).integers(0, 256, (2**bits, 3)).astype(np.uint8)
    transparent = {0: b"\0\0", 2: bytes(6), 3: bytes([0, 255])}.get(color)
    before = chunk(b"PLTE", palette.tobytes()) if color == 3 else b""
    before += chunk(b"tRNS", transparent) if transparent else b""
    expected = palette[values[..., 0]] if color == 3 else to_8_bit(values, bits)
    if color in (0, 4):
        expected = expected[:, :, 0]
    expected = expected[..., :3] if expected.ndim == 3 else expected
    data = whole(png(values, bits, color, before))
    assert_read(tmp_path / "a.png", data, expected, gray=color in (0, 4))
    # The raw values of a mask.
    if bits == 16 and color != 0:
        assert "16-bit colors or alpha" in error_of(masks.read_mask, tmp_path / "a.png")
        return
    mask = masks.read_mask(tmp_path / "a.png")
    assert mask.bits == bits
    assert mask.kind == {0: "gray", 3: "index", 4: "gray"}.get(color, "color")
    raw = values[..., :3] if color in (2, 6) else values[..., 0]
    np.testing.assert_array_equal(mask.values, raw)
    if color == 3:
        np.testing.assert_array_equal(mask.palette, palette)


def test_chunks_that_decoders_take_differently_are_left_out(tmp_path):
    values = noise(3)
    plain = whole(png(values, 8, 2))
    gamma = chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sBIT", b"\3\3\3")
    animated = chunk(b"acTL", struct.pack(">II", 2, 0))
    for extra in (gamma, animated, chunk(b"iCCP", b"broken")):
        data = whole(png(values, 8, 2, extra))
        assert_read(tmp_path / "a.png", data, values, gray=False)
    np.testing.assert_array_equal(images.decode_image(plain), values)


def exif(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    return head + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/'
    b'02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    b' tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("orientation", [*SHOWN, 0, 9])
@pytest.mark.parametrize("kind", ["png", "late png", "JPEG", "tiff", "WEBP", "AVIF"])
def test_orientation(tmp_path, kind, orientation):
    stored = noise(3) if "png" in kind or kind == "tiff" else smooth()
    buffer = io.BytesIO()
    tolerance = 12
    if "png" in kind:
        extra = chunk(b"eXIf", exif(orientation, ">" if orientation % 2 else "<"))
        place = {"behind": extra} if kind == "late png" else {"before": extra}
        buffer.write(whole(png(stored, 8, 2, **place)))
        tolerance = 0
    elif kind == "tiff":
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(buffer, stored, photometric="rgb", extratags=tags)
        tolerance = 0
    elif kind == "AVIF" and orientation in (0, 9):
        pytest.skip("the writer refuses these")
    else:
        data = b"Exif\0\0" + exif(orientation)
        Image.fromarray(stored).save(buffer, kind, exif=data, quality=100)
    expected = SHOWN.get(orientation, SHOWN[1])(stored)
    path = tmp_path / "a"
    assert_read(path, buffer.getvalue(), expected, gray=False, tolerance=tolerance)


def test_an_orientation_of_another_type_does_not_count(tmp_path):
    long = exif(6).replace(struct.pack("<HH", 274, 3), struct.pack("<HH", 274, 4))
    data = whole(png(noise(3), 8, 2, chunk(b"eXIf", long)))
    assert_read(tmp_path / "a", data, noise(3), gray=False)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_orientation_of_xmp_does_not_count(tmp_path, kind):
    path, buffer = tmp_path / "a", io.BytesIO()
    if kind == "TIFF":
        tags = [(700, "B", len(XMP), XMP, True)]
        tifffile.imwrite(buffer, smooth(), photometric="rgb", extratags=tags)
    elif kind == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
        buffer.write(whole(png(smooth(), 8, 2, chunk(b"iTXt", text))))
    else:
        Image.fromarray(smooth()).save(buffer, kind, xmp=XMP, quality=100)
    assert_read(path, buffer.getvalue(), smooth(), gray=False, tolerance=12)


# JPEG and the formats of Pillow


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg(tmp_path, mode, options):
    buffer = io.BytesIO()
    image = Image.fromarray(smooth()).convert(mode)
    image.save(buffer, "JPEG", quality=98, **options)
    expected = np.asarray(image.convert("L" if mode == "L" else "RGB"))
    path, data = tmp_path / "a.jpg", buffer.getvalue()
    assert_read(path, data, expected, gray=mode == "L", tolerance=12)
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 900) + data[:900].ljust(900, b"\0")
    padded = data[:2] + b"\xff\xff" + thumbnail + data[2:] + b"behind the image"
    assert_read(path, padded, expected, gray=mode == "L", tolerance=12)
    for end in (len(data) // 2, len(data) - 2):
        assert "cut short" in error_of(images.decode_image, data[:end])


@pytest.mark.parametrize(
    "kind, mode, options",
    [
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(("GIF", mode, {}) for mode in ("L", "P")),
        ("GIF", "P", {"transparency": 3}),
        *(
            ("WEBP", mode, {"lossless": True, "exact": True})
            for mode in ("RGB", "RGBA")
        ),
        *(("JPEG2000", mode, {}) for mode in ("L", "LA", "RGB", "RGBA")),
        *(
            ("AVIF", mode, {"quality": 100, "subsampling": "4:4:4"})
            for mode in ("RGB",)
        ),
    ],
)
def test_formats_of_pillow(tmp_path, kind, mode, options):
    colors = smooth() if kind == "AVIF" else noise(3)
    if mode == "P":
        image = Image.fromarray(colors).quantize(40)
        expected = np.asarray(image.convert("RGB"))
    elif mode in ("1", "L", "LA"):
        image = Image.fromarray(colors).convert("1" if mode == "1" else "L")
        expected = np.asarray(image.convert("L"))
        image = image.convert(mode)
    else:
        image, expected = Image.fromarray(colors), colors
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(noise(1, seed=1)[..., 0]))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    gray = mode in ("1", "L", "LA") and kind != "GIF"
    tolerance = 4 if kind == "AVIF" else 0
    assert_read(
        tmp_path / "a", buffer.getvalue(), expected, gray=gray, tolerance=tolerance
    )
    for end in (20, len(buffer.getvalue()) // 2):
        error_of(images.decode_image, buffer.getvalue()[:end])


# TIFF


def tiff_bytes(values: np.ndarray, *, planes: bool = False, **options) -> bytes:
    """TIFF of samples [H, W, samples]; more than 3, or 2, end in alpha."""
    samples = values.shape[2]
    options = {"photometric": "rgb" if samples > 2 else "minisblack"} | options
    if samples in (2, 4):
        options = {"extrasamples": ["unassalpha"]} | options
    if samples > 1:
        options["planarconfig"] = 2 if planes else 1
    written = np.moveaxis(values, -1, 0) if planes else values
    buffer = io.BytesIO()
    written = values[..., 0] if samples == 1 else written
    tifffile.imwrite(buffer, written, metadata=None, **options)
    return buffer.getvalue()


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
    mapped = windows._map_tiff(path)
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


# Claims


def bomb(kind: str) -> bytes:
    """A short file that claims 60000x60000 pixels, or a chunk of gigabytes."""
    if kind == "PNG":
        _, _, _, pixels, _, end = png(np.zeros((1, 1, 1), np.uint8), 8, 0)
        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + end
    if kind == "PNG chunk":
        parts = list(png(np.zeros((1, 1, 1), np.uint8), 8, 0))
        parts[3] = struct.pack(">I", 2**31 - 1) + parts[3][4:]
        return b"".join(parts)
    if kind == "TIFF":
        data = bytearray(tiff_bytes(noise(1)))
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            for name in ("ImageWidth", "ImageLength"):
                at = file.pages[0].tags[name].valueoffset
                data[at : at + 2] = struct.pack("<H", 60000)
        return bytes(data)
    buffer = io.BytesIO()
    Image.fromarray(noise(1)[..., 0]).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60000, 60000)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", 60000, 60000)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", 60000, 60000)
    elif kind == "JPEG2000":
        at = data.index(b"ihdr") + 4
        data[at : at + 8] = struct.pack(">II", 60000, 60000)
    return bytes(data)


@pytest.mark.parametrize(
    "kind", ["PNG", "PNG chunk", "TIFF", "JPEG", "BMP", "GIF", "JPEG2000"]
)
def test_short_files_that_claim_much_cost_no_memory(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(bomb(kind))
    tracemalloc.start()
    for read in (images.image_header, images.decode_image, masks.read_mask):
        message = error_of(read, path)
        assert message.startswith(f"{path}: ")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_blank_images_are_no_bombs(tmp_path):
    blank = Image.new("L", (3000, 3000))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "JPEG2000", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        options |= {"compression": "zstd"} if kind == "TIFF" else {}
        blank.save(tmp_path / "a", kind, **options)
        assert not images.decode_image(tmp_path / "a", 1).any(), kind


def test_pipes_and_folders_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    for name in "ab":
        for read in (images.image_header, images.decode_image, masks.read_mask):
            message = error_of(read, tmp_path / f"{name}.png")
            assert "is not a regular file" in message
    assert threading.active_count() < 100  # nothing waits for the pipe
