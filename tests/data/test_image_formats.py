"""Headers and pixels of every format against the arrays the files are made of."""

import io
import os
import struct
import threading
import tracemalloc

import cv2
import numpy as np
import pytest
import tifffile
from image_arrays import SHOWN, assert_read, noise, smooth, tiff_bytes, to_8_bit
from image_folders import error_of
from PIL import Image
from png_files import chunk, png, whole

from segjax.data import images, masks

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


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_2000_of_16_bits_is_refused(channels):
    """Pillow would wrap bright colors around to dark ones."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (64, 64, channels), np.uint16)
    data = cv2.imencode(".jp2", pixels)[1].tobytes()
    assert "more than 8 bits: convert it" in error_of(images.decode_image, data)


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
