"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import layers
from segjax.ops import geometry, image, pool, resize


class Plan(NamedTuple):
    """What follows from depth, padding and upsampling: see :func:`plan`."""

    crops: tuple[int, ...]  # cells cut from each side of the skip of level 0, 1, ..
    tiling: geometry.Tiling


def _up_layers(valid: bool, upsampling: str) -> tuple[tuple[int, int], ...]:
    """(kernel, padding) of the stride-2 transposed convolution and what follows it.

    Resizing is a transposed convolution for the geometry: nearest has kernel 2,
    bilinear 4. A valid bilinear one drops the border row that would interpolate
    beyond the map (padding 2 instead of 1).
    """
    if upsampling == "transposed":
        return ((2, 0),)
    resized = (2, 0) if upsampling == "nearest" else (4, 2 if valid else 1)
    return (resized, (3, 0 if valid else 1))


def plan(levels: int, padding: str, upsampling: str) -> Plan:
    """The crops of the skips, the margin and the valid sizes of a U-Net.

    With the paper's five levels: crops 88, 40, 16, 4, margin 92, sides 12 mod 16 from
    188 up.
    """
    valid = padding == "valid"
    pad = 0 if valid else 1
    (up_kernel, up_pad), *resize_convs = _up_layers(valid, upsampling)

    grid = geometry.Grid()
    skips = []
    for level in range(levels):
        if level:
            grid = geometry.conv(grid, kernel=2, stride=2)
        for _ in range(2):
            grid = geometry.conv(grid, kernel=3, padding=pad)
        skips.append(grid)
    crops = []
    for level in reversed(range(levels - 1)):
        grid = geometry.deconv(grid, up_kernel, 2, up_pad)
        for kernel, conv_pad in resize_convs:
            grid = geometry.conv(grid, kernel, padding=conv_pad)
        crops.append(
            geometry.crop_offset(skips[level], grid, f"enc{level}", f"dec{level}_up")
        )
        for _ in range(2):
            grid = geometry.conv(grid, kernel=3, padding=pad)
    margin = geometry.crop_offset(geometry.Grid(), grid, "the image", "the logits")

    # Every pooled side must be even, so the sides are set by that of the bottom map:
    # the smallest one that leaves an output gives the smallest image.
    step = 2 ** (levels - 1)
    lost = 4 - 4 * pad  # by a pair of 3x3 convolutions
    bottom = 1
    while True:
        output = bottom
        for _ in range(levels - 1):
            output = geometry.deconv_size(output, up_kernel, 2, up_pad) - lost
            for kernel, conv_pad in resize_convs:
                output = geometry.conv_size(output, kernel, padding=conv_pad)
            if output < 1:
                break
        if output >= 1:
            break
        bottom += 1
    side = bottom + lost
    for _ in range(levels - 1):
        side = 2 * side + lost
    return Plan(
        crops=tuple(reversed(crops)),
        tiling=geometry.Tiling(step, side % step if not valid else side, margin, side),
    )
