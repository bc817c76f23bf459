"""OpenCV on images of any number of channels."""

from collections.abc import Callable

import numpy as np


def groups(channels: int) -> list[slice]:
    """Consecutive channels, 4, 3 or 1 at once, that OpenCV filters in the same way.

    Its functions round other numbers in another way, refuse them, or crash: they warp
    up to 4 channels, and an image has at most 128.
    """
    fours, rest = divmod(channels, 4)
    sizes = [4] * fours + {0: [], 1: [1], 2: [1, 1], 3: [3]}[rest]
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes)]


def by_group(run: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Applies a function of OpenCV to [H, W, C], or to a map [H, W].

    Returns:
      [h, w, C], also of one channel, whose axis OpenCV drops; [h, w] of a map.
    """
    if image.ndim == 2:
        return run(image)
    parts = groups(image.shape[2])
    if len(parts) == 1:
        result = run(image)
        return result.reshape(*result.shape[:2], -1)
    results = [run(np.ascontiguousarray(image[:, :, part])) for part in parts]
    return np.concatenate([r.reshape(*r.shape[:2], -1) for r in results], axis=2)
