"""Arrays that have one right value, which is part of our code."""

from collections.abc import Callable

import numpy as np


def bilinear(kernel: np.ndarray) -> str:
    """What is wrong with a Caffe deconvolution that should be the bilinear one, or "".

    [C, C, k, k] with the interpolation between a channel and itself, or [C, 1, k, k].
    """
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        return f"has shape {kernel.shape}, expected a square kernel"
    channels, group, side = kernel.shape[:3]
    half = (side + 1) // 2
    center = half - 1 if side % 2 else half - 0.5
    taps = 1 - np.abs(np.arange(side) - center) / half
    pairs = np.eye(channels) if group == channels else np.ones((channels, group))
    if group not in (1, channels) or not np.allclose(
        kernel, pairs[:, :, None, None] * np.outer(taps, taps), atol=1e-5
    ):
        return "is not the fixed bilinear kernel: the upsampling was learned"
    return ""


def constant(value: float) -> Callable[[np.ndarray], str]:
    """A check that an array is `value` everywhere (to float32 accuracy)."""

    def check(array: np.ndarray) -> str:
        if np.allclose(array, value, rtol=1e-5, atol=0):
            return ""
        return f"is not {value} everywhere"

    return check
