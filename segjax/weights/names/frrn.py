"""The arrays of the authors' FRRNs, which have numbers in the place of names.

``np.savez`` of Lasagne's list of parameters: arr_0, arr_1, .. in the order in which a
depth-first walk from the class scores reaches their layers. That is the order of
computation: of a unit its two convolutions, each followed by its normalization, then
the projection of a residual unit, or the convolution that writes the residual stream.
A normalization has offset, scale, mean and inverse deviation, a convolution its kernel
and perhaps a bias. Lasagne's are convolutions proper: their kernels are turned around.
"""

import re

from segjax.weights.convert import Conv, Entry, Norm
from segjax.weights.names.networks import Target

_PARTS = ("conv1", "bn1", "conv2", "bn2", "project", "residual")
_GROUPS = ("conv1", "bn1", "ru", "conv_split", "bn_split", "frru", "ru_out")


def _position(layer: str) -> tuple[int, ...]:
    """Where a layer comes in the file."""
    unit, _, part = layer.partition("/")
    if layer == "classifier":
        return (len(_GROUPS),)
    match = re.fullmatch(r"(ru|frru|ru_out)(\d+)(?:_(\d+))?", unit)
    if match is None:
        return (_GROUPS.index(unit),)
    numbers = int(match[2]), int(match[3] or 0)
    return _GROUPS.index(match[1]), *numbers, _PARTS.index(part)


def frrn(layer: str, target: Target) -> Entry | None:
    """The arrays of a layer: those behind all arrays of the layers before."""
    layers = {name.partition("/")[2].rpartition("/")[0] for name in target.shapes}
    start = 0
    for name in sorted(layers, key=_position):
        size = 4
        if f"batch_stats/{name}/mean" not in target.shapes:
            size = 1 + (f"params/{name}/bias" in target.shapes)
        if name == layer:
            arrays = [f"arr_{index}" for index in range(start, start + size)]
            if size < 4:
                return Conv(arrays[0], (*arrays, "")[1], flipped=True)
            offset, scale, mean, deviation = arrays
            return Norm(scale, offset, mean, deviation, inverse=True)
        start += size
    return None
