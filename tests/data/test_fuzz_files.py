"""Damaged images, masks, classes files and lists: one line, never more.

A few hundred mutants here, thousands in ``make test-all``.  Whatever a file holds, it
is read, or refused by a UserError of one line that names it; what is read is what its
header says; and memory and time stay bounded.
"""

import datetime
import io
import resource
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from image_folders import make_folder, two_masks
from mutations import mutants, mutate, repair
from PIL import Image
from png_files import chunk, png, whole

from segjax.data import folder, images, masks, windows
from segjax.errors import UserError

FEW, MANY = 400, 2000
MEMORY = 2 * 2**30
"""Of the whole process, in bytes."""


def fuzz(count: int):
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=datetime.timedelta(seconds=10),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def image_files() -> dict[str, bytes]:
    """Small valid files of all formats and of many layouts."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    found = {}
    for color, samples in ((0, 1), (2, 3), (3, 1), (4, 2), (6, 4)):
        for bits in (8, 16) if color != 3 else (4,):
            values = rng.integers(0, 2**bits, (20, 30, samples))
            extra = chunk(b"PLTE", rng.bytes(48)) if color == 3 else b""
            extra += chunk(b"iCCP", b"x\0\0" + zlib.compress(b"profile"))
            extra += chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0")
            found[f"{color}-{bits}.png"] = whole(png(values, bits, color, extra))

    def save(name: str, image: Image.Image, kind: str, **options) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found[name] = buffer.getvalue()

    picture = Image.fromarray(colors)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("a.jpg", picture, "JPEG", exif=exif)
    save("progressive.jpg", picture, "JPEG", progressive=True)
    save("gray.jpg", picture.convert("L"), "JPEG")
    save("cmyk.jpg", picture.convert("CMYK"), "JPEG")
    save("rgb.bmp", picture, "BMP")
    save("palette.bmp", picture.quantize(16), "BMP")
    save("a.gif", picture.quantize(16), "GIF")
    save("lossy.webp", picture, "WEBP", exif=exif)
    save("lossless.webp", picture.convert("RGBA"), "WEBP", lossless=True)
    save("a.jp2", picture, "JPEG2000")
    save("a.avif", picture, "AVIF", speed=10)
    for compression in ("tiff_lzw", "packbits", "jpeg", "zstd", "lzma"):
        save(f"{compression}.tif", picture, "TIFF", compression=compression)
    save("bits.tif", picture.convert("1"), "TIFF", compression="packbits")
    deep = rng.integers(0, 2**16, (3, 20, 30)).astype(np.uint16)
    layouts = {
        "plain": {},
        "tiles": {"tile": (16, 16), "compression": "zlib", "predictor": True},
        "planes": {"planarconfig": "separate", "rowsperstrip": 6},
        "big": {"bigtiff": True, "byteorder": ">"},
    }
    for name, options in layouts.items():
        for dtype in (np.uint8, np.uint16):
            planes = name == "planes"
            values = deep.astype(dtype) if planes else np.moveaxis(deep, 0, -1)
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, values.astype(dtype), photometric="rgb", **options)
            found[f"{name}-{np.dtype(dtype)}.tif"] = buffer.getvalue()
    return found


IMAGES = image_files()
MASKS = {
    name: data for name, data in IMAGES.items() if name.endswith((".png", ".bmp"))
} | {
    f"gray{bits}.png": whole(png(np.ones((20, 30, 1), int), bits, 0))
    for bits in (1, 2, 4)
}


def attempt(read, *arguments):
    """What is read, or None if it is refused in one line that names the file."""
    try:
        return read(*arguments)
    except UserError as error:
        text = str(error)
        assert "\n" not in text and str(arguments[0]) in text, text
        return None


def check_image(path, data: bytes) -> None:
    """Header, pixels and windows of a file agree, or all refuse it."""
    path.write_bytes(data)
    header = attempt(images.image_header, path)
    image = attempt(images.decode_image, path)
    opened = attempt(windows.open_windows, path, 3)
    if image is not None:
        assert header is not None and header[0] == image.shape[:2]
        assert image.dtype == np.uint8 and image.shape[2] == 3
        if header[1]:
            assert (image == image[:, :, :1]).all()
    assert (opened is None) == (image is None)
    if opened is not None:
        size, read = opened
        assert size == image.shape[:2]
        window = read(slice(0, size[0]), slice(0, size[1]))
        np.testing.assert_array_equal(window, image)


def check_mask(path, data: bytes) -> None:
    path.write_bytes(data)
    mask = attempt(masks.read_mask, path)
    header = attempt(images.image_header, path)
    if mask is not None:
        assert header is not None and mask.values.shape[:2] == header[0]
        assert mask.values.shape[2:] == ((3,) if mask.kind == "color" else ())
        assert mask.values.dtype in (np.uint8, np.int32)
        assert (mask.palette is not None) == (mask.kind == "index")


def check_memory() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert used < MEMORY, f"{used / 2**30:.1f} GiB"


def test_valid_files_are_read(tmp_path):
    for name, data in IMAGES.items():
        (tmp_path / name).write_bytes(data)
        assert images.decode_image(tmp_path / name).shape[2] == 3, name
        check_image(tmp_path / name, data)
    for name, data in MASKS.items():
        check_mask(tmp_path / name, data)


def run_images(folder_path, count: int) -> None:
    @fuzz(count)
    @given(mutants(IMAGES))
    def run(mutant):
        check_image(folder_path / "image", mutant[1])
        if mutant[0].endswith(".png"):  # most of them fail by their checksums
            check_image(folder_path / "image", repair(mutant[1]))

    run()
    check_memory()


def run_masks(folder_path, count: int) -> None:
    @fuzz(count)
    @given(mutants(MASKS))
    def run(mutant):
        check_mask(folder_path / "mask.png", mutant[1])
        check_mask(folder_path / "mask.png", repair(mutant[1]))

    run()
    check_memory()


TEXTS = {
    "classes.txt": b"\xef\xbb\xbf# c\nsky 0 0 0\r\nroad 1 1 1\ncar 2 2 2\nvoid 9 9 9\n",
    "labelmap.txt": b"# label:color_rgb:parts:actions\na:0,0,0::\nb:1,1,1::a,b:\n",
    "train.txt": b"a.png\nimages/b\r\n",
    "val.txt": b"# v\nc\n",
    "test.txt": b"c\n",
}


def run_folders(root, count: int) -> None:
    """One mutated text file, or mutated mask, in a folder that is right but for it."""
    make_folder(root, two_masks() | {"c": two_masks()["a"]})
    good = (root / "masks" / "a.png").read_bytes()

    @fuzz(count)
    @given(
        st.sampled_from([*sorted(TEXTS), "masks/a.png", "images/a.png"]),
        st.one_of(st.integers(0, 2**32), st.binary(max_size=60), st.text(max_size=40)),
    )
    def run(name, change):
        if isinstance(change, int):
            data = mutate(TEXTS.get(name, good), change)
        else:
            data = change if isinstance(change, bytes) else change.encode()
        path = root / name
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        try:
            found = folder.scan(str(root))
            folder.report(found)
            for split in found.splits:
                for example in folder.FolderSource(found, split):
                    known = example["label"] < len(found.classes)
                    assert (known | (example["label"] == 255)).all()
        except UserError as error:
            assert "\n" not in str(error)
        finally:
            path.unlink()
            if kept is not None:
                path.write_bytes(kept)

    run()


def test_damaged_images(tmp_path):
    run_images(tmp_path, FEW)


def test_damaged_masks(tmp_path):
    run_masks(tmp_path, FEW // 2)


def test_damaged_folders(tmp_path):
    run_folders(tmp_path, FEW // 2)


@pytest.mark.slow
def test_many_damaged_images(tmp_path):
    run_images(tmp_path, MANY)


@pytest.mark.slow
def test_many_damaged_masks(tmp_path):
    run_masks(tmp_path, MANY)


@pytest.mark.slow
def test_many_damaged_folders(tmp_path):
    run_folders(tmp_path, MANY)
