"""What published files call the layers of a U-Net."""

import re
from typing import Any

from segjax.weights.convert import Entry
from segjax.weights.names.backbones import caffe, torch, torch_norm
from segjax.weights.names.networks import Target, expect


def unet_milesial(layer: str, target: Target) -> Entry | None:
    """milesial/Pytorch-UNet: inc, down1 .. down4, up1 .. up4, outc.

    Read from unet/unet_parts.py and unet/unet_model.py of the repository.
    """
    if layer == "head":
        return torch("outc.conv")
    match = re.fullmatch(r"(enc|dec)(\d+)_(conv|bn|up)([12]?)", layer)
    if match is None:
        return None
    side, level, kind = match[1], int(match[2]), match[3]
    depth = len(target.fields["widths"])
    if side == "dec":
        name = f"up{depth - 1 - level}"
        if kind == "up":
            return torch(f"{name}.up")._replace(layout="IOHW")
        name += ".conv"
    else:
        name = f"down{level}.maxpool_conv.1" if level else "inc"
    # Convolution, normalization and ReLU, twice.
    index = 3 * (int(match[4]) - 1) + (kind == "bn")
    name += f".double_conv.{index}"
    return torch(name) if kind == "conv" else torch_norm(name)


def unet_milesial_extra(target: Target) -> dict[str, Any]:
    for field, value in (
        ("padding", "same"),
        ("upsampling", "transposed"),
        ("norm", "batch"),
    ):
        expect(target, field, value)
    return {}


def unet_caffe(layer: str, target: Target) -> Entry | None:
    """phseg_v5, the authors' release: d0 .. d4 down, u3 .. u0 up, maps a .. d of each.

    The convolution from map a to map b of level 0 is conv_d0a-b. The up-convolutions
    start at the last map of the level below: d4c, then u3d, u2d, u1d.
    """
    if layer == "head":
        return caffe("conv_u0d-score")
    match = re.fullmatch(r"(enc|dec)(\d+)_(conv|up)([12]?)", layer)
    if match is None:
        return None
    side, level, index = match[1], int(match[2]), int(match[4] or 0)
    if match[3] == "up":
        last = len(target.fields["widths"]) - 1
        below = f"d{last}c" if level + 1 == last else f"u{level + 1}d"
        return caffe(f"upconv_{below}_u{level}a", "IOHW")
    if side == "enc":
        return caffe(f"conv_d{level}{'ab'[index - 1]}-{'bc'[index - 1]}")
    return caffe(f"conv_u{level}{'bc'[index - 1]}-{'cd'[index - 1]}")


def unet_caffe_extra(target: Target) -> dict[str, Any]:
    for field, value in (("upsampling", "transposed"), ("norm", "none")):
        expect(target, field, value)
    return {}
