"""Images as networks see them, and first layers that are made for other images."""

from collections.abc import Container
from typing import NamedTuple

import numpy as np

# Our layers that see the image.
FIRST = (
    *("backbone/conv1", "backbone/conv1_1", "backbone/conv1_7x7_s2"),
    *("conv1_1", "enc0_conv1", "down1_conv1", "conv1"),
)
# Of DeepLab v1's side branches, one more that sees it.
BESIDE = "sides/image_ms1"


class Images(NamedTuple):
    """Images as a network sees them: (x * scale - mean) / deviation, x RGB 0..255."""

    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)
    bgr: bool = False  # the order in which its first layer takes them


def layers(names: Container[str]) -> list[str]:
    """The layers that see the image, of the names of a model's arrays."""
    known = [name for name in FIRST if f"params/{name}/kernel" in names][:1]
    return known + [BESIDE] * (f"params/{BESIDE}/kernel" in names)


def between(source: Images, target: Images) -> tuple[np.ndarray, np.ndarray]:
    """(factor, offset) of each channel: images of `source` from those of `target`.

    ``source = target * factor + offset``; of one value if both hold for any number of
    channels.
    """
    source_deviation, target_deviation = map(
        np.array, (source.deviation, target.deviation)
    )
    ratio = source.scale / target.scale
    factor = target_deviation * ratio / source_deviation
    offset = (np.array(target.mean) * ratio - np.array(source.mean)) / source_deviation
    factor, offset = np.broadcast_arrays(factor, offset)
    return factor, offset


def fold(
    layer: str,
    arrays: dict[str, np.ndarray],
    *,
    factor: np.ndarray,
    offset: np.ndarray,
) -> str:
    """Makes a first layer for images x that was made for ``x * factor + offset``.

    Args:
      layer: its name.
      arrays: by name; the layer's kernel, and its bias or the mean of the normalization
        behind it, are replaced.
      factor, offset: of each channel, from :func:`between`.

    Returns:
      The name of the array that took the offset; "" if nothing had to be done.
    """
    if np.allclose(factor, 1, 0, 1e-6) and np.allclose(offset, 0, 0, 1e-6):
        return ""
    name, bias = f"params/{layer}/kernel", f"params/{layer}/bias"
    kernel = arrays[name].astype(np.float64)
    channels = kernel.shape[2]
    factor = np.broadcast_to(factor, channels)
    shift = np.einsum("hwio,i->o", kernel, np.broadcast_to(offset, channels))
    arrays[name] = kernel * factor[:, None]
    target = bias if bias in arrays else mean_behind(layer, arrays)
    arrays[target] = arrays[target] + (shift if target == bias else -shift)
    return target


def widen(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A kernel for RGB images as one for images of another number of channels.

    The first three channels keep the kernels of red, green and blue, further ones get
    their mean, and all are multiplied by 3 / channels. Fewer than three channels all
    get the mean. An image whose channels are equal therefore gives what it would give
    as RGB, and activations keep their size.

    Args:
      kernel: [h, w, 3, O].
      channels: of the images.

    Returns:
      [h, w, channels, O].
    """
    mean = kernel.mean(2, keepdims=True)
    kept = kernel if channels >= 3 else kernel[:, :, :0]
    others = np.repeat(mean, channels - kept.shape[2], axis=2)
    return np.concatenate([kept, others], axis=2) * (3 / channels)


def mean_behind(layer: str, names: Container[str]) -> str:
    """The mean of the batch normalization behind a convolution, or ""."""
    head, slash, tail = layer.rpartition("/")
    for norm in (f"{layer}_bn", head + slash + tail.replace("conv", "bn", 1)):
        if f"batch_stats/{norm}/mean" in names:
            return f"batch_stats/{norm}/mean"
    return ""
