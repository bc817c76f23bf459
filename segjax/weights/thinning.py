"""Which filters and taps of a convolution are kept: see ``convert.Thinned``."""

import numpy as np


def taps(side: int, kept: int) -> list[int]:
    """Evenly spaced rows of a kernel from the first to the last; [] if there are none.

    A single one is the central row.
    """
    if kept == 1:
        return [side // 2] if side % 2 else []
    step, rest = divmod(side - 1, kept - 1)
    return [] if rest or not step else list(range(0, side, step))


def subset(count: int, kept: int, draw: int) -> np.ndarray:
    """Which of `count` channels are kept: a random subset, the same at any time."""
    return np.sort(np.random.RandomState(draw).permutation(count)[:kept])
