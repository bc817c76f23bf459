"""Training and validation of data sets that publish no split."""

import hashlib
import os
from collections.abc import Sequence
from typing import TypeVar

VALIDATION_SHARE = 0.2
_SMALL = 100
"""Below this number of images, the share of validation is exact."""

_T = TypeVar("_T")


def by_hash(stems: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For images that are independent of each other.

    The images whose stems have the lowest hashes validate: from ``_SMALL`` images on
    those below ``VALIDATION_SHARE``, so that adding images moves no others; below, so
    many that the share is right, as the hashes of few images may fall anywhere.
    """
    hashes = {stem: _hash(stem) for stem in stems}
    if len(stems) < _SMALL:
        count = max(int(VALIDATION_SHARE * len(stems) + 0.5), 1)
        validation = set(sorted(stems, key=hashes.__getitem__)[:count])
    else:
        validation = {stem for stem in stems if hashes[stem] < VALIDATION_SHARE}
    return {
        "train": tuple(stem for stem in stems if stem not in validation),
        "validation": tuple(stem for stem in stems if stem in validation),
    }


def by_order(items: Sequence[_T]) -> dict[str, list[_T]]:
    """For images whose neighbors show nearly the same, such as slices and frames.

    The first floor(0.8 n) train, the rest validates: a random split would validate on
    the neighbors of training images.
    """
    count = len(items) * 4 // 5
    return {"train": list(items[:count]), "validation": list(items[count:])}


def _hash(stem: str) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.sha256(os.fsencode(stem)).digest()
    return int.from_bytes(digest[:6]) / 2**48
