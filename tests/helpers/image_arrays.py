"""Arrays that image files are made of, and what is read of the files."""

import io

import numpy as np
import tifffile

from segjax.data import images

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
