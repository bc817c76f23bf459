"""Which values the images of a folder hold, and which range of them to spread."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from segjax.data import decoding
from segjax.data.images import WHOLE, ValueRange
from segjax.errors import UserError

RARE = 0.001
"""Values below and above, as a share of all, that the usual range leaves out."""
_BLOCK = 2**20
"""Pixels that are counted at a time: counting takes 8 bytes for each."""
_FEW_LEVELS = 64
"""Fewer of the 256 gray levels than this are hardly meant."""


class Values(NamedTuple):
    """Values of each channel of some images; lists of C integers."""

    images: int
    """How many were looked at."""
    bits: int
    """Of a sample, the most of them: 8 or 16."""
    lowest: list[int]
    highest: list[int]
    usual: list[ValueRange]
    """(low, high) between the rarest ``RARE`` at either end."""

    @property
    def range(self) -> ValueRange:
        """The usual range of all channels together."""
        return min(low for low, _ in self.usual), max(high for _, high in self.usual)


def observe(
    paths: Sequence[str],
    channels: int,
    *,
    limit: int = 0,
    bad: list[str] | None = None,
    progress: Callable[[int], object] = bool,
) -> Values | None:
    """Decodes images and counts the values of each channel.

    Args:
      paths: of the images, at least one.
      channels: as the images are read, see ``images.decode_image``.
      limit: looks at so many of them, evenly spread; 0: at all.
      bad: gets what is wrong with damaged images, which are left out; None: the first
        of them is an error.
      progress: called with 1 after each image.

    Returns:
      The values; None if all images are damaged.

    Raises:
      UserError: a damaged image.
    """
    count = min(limit or len(paths), len(paths))
    chosen = [paths[i * len(paths) // count] for i in range(count)]

    def values(path: str) -> tuple[int, np.ndarray] | UserError:
        try:
            image = decoding.decode(path, channels=channels)
        except UserError as error:
            return error
        counts = _count(image.reshape(-1, image.shape[2] if image.ndim == 3 else 1))
        if channels == 1:  # there may be colors among them
            counts = counts.sum(0, keepdims=True)
        return 8 * image.dtype.itemsize, np.broadcast_to(counts, (channels, 2**16))

    total: np.ndarray | None = None
    bits = 8
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for found in pool.map(values, chosen):
            progress(1)
            if isinstance(found, UserError):
                if bad is None:
                    raise found
                bad.append(str(found))
                continue
            bits = max(bits, found[0])
            total = found[1] if total is None else total + found[1]
    if total is None:
        return None
    shares = total.cumsum(1) / total.sum(1, keepdims=True)
    low = (shares > RARE).argmax(1).tolist()
    high = (shares >= 1 - RARE).argmax(1).tolist()
    return Values(
        images=count - len(bad or ()),
        bits=bits,
        lowest=(total > 0).argmax(1).tolist(),
        highest=(2**16 - 1 - (total[:, ::-1] > 0).argmax(1)).tolist(),
        usual=list(zip(low, high)),
    )


def _count(pixels: np.ndarray) -> np.ndarray:
    """How often each channel of [N, C] has each value, int64 [C, 65536]."""
    counts = np.zeros((pixels.shape[1], 2**16), np.int64)
    for at in range(0, len(pixels), _BLOCK):
        for row, values in zip(counts, pixels[at : at + _BLOCK].T):
            row += np.bincount(values, minlength=2**16)
    return counts


def advice(values: Values, value_range: ValueRange) -> str:
    """A note if few gray levels are left, or many values are cut; "" otherwise."""
    low, high = values.range
    first, last = value_range
    if value_range == WHOLE:
        first, last = 0, 2**values.bits - 1
    setting = f"--config.data.value_range={low},{high}"
    if low < first or high > last:
        return (
            f"the usual values of the images are {low}..{high}, and those beyond "
            f"--config.data.value_range={first},{last} are cut off: {setting} keeps "
            "them"
        )
    levels = 255 * (high - low) / (last - first)
    if low < high and levels < _FEW_LEVELS:
        return (
            f"the usual values of the {values.bits}-bit images are {low}..{high}, "
            f"which become only {round(levels) + 1} of 256 gray levels: {setting} "
            "spreads them over all"
        )
    return ""
