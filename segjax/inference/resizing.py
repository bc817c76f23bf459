"""Results of resized images, back at the size of the image."""

from collections.abc import Iterator

import numpy as np

Size = tuple[int, int]

_BLOCK = 2**20  # values resized at a time


def resized_rows(probabilities: np.ndarray, size: Size) -> Iterator[np.ndarray]:
    """Probabilities at another size, some rows at a time.

    Bilinear between half-pixel centers, as ``predictors.multi_scale``.

    Args:
      probabilities: float32 [h, w, K].
      size: (H, W).

    Yields:
      float32 [n, W, K] of the next rows, from the top.
    """
    (top, bottom, down), (left, right, across) = (
        _taps(own, new) for own, new in zip(probabilities.shape, size)
    )
    step = max(_BLOCK // (size[1] * probabilities.shape[2]), 1)
    for at in range(0, size[0], step):
        rows = slice(at, at + step)
        share = down[rows, None, None]
        lines = probabilities[top[rows]] * (1 - share)
        lines += probabilities[bottom[rows]] * share
        share = across[None, :, None]
        yield lines[:, left] * (1 - share) + lines[:, right] * share


def _taps(own: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels that each new one lies between, and the weight of the second."""
    centers = np.clip((np.arange(new) + 0.5) * own / new - 0.5, 0, own - 1)
    first = np.floor(centers).astype(int)
    return first, np.minimum(first + 1, own - 1), (centers - first).astype(np.float32)
