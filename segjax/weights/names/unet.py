"""What published files call the layers of a U-Net."""

import re
from typing import Any

from segjax.weights.convert import Entry
from segjax.weights.names.backbones import torch, torch_norm
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
