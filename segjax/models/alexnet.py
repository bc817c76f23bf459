"""AlexNet (Krizhevsky et al., NIPS 2012) as a fully convolutional trunk, Caffe's form.

conv2, conv4 and conv5 are in two groups, poolings overlap (3x3, stride 2, ceil-mode)
and there is a local response normalization (LRN) in the first two stages. The paper
and Caffe's ``bvlc_alexnet`` normalize before pooling; Caffe's reference net, CaffeNet,
from which FCN-AlexNet starts, pools first. That is the default here (`lrn_first`).
Layer names are those of Caffe; the hidden fully-connected layers are the convolutions
fc6 (6x6) and fc7 (1x1).
"""

from typing import NamedTuple

import jax
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import layers
from segjax.models.backbone import Backbone
from segjax.models.dropout import Dropout
from segjax.ops import geometry, norm


class Layer(NamedTuple):
    """One of conv1 .. conv5 and what follows it."""

    size: int
    stride: int
    padding: int
    groups: int
    pooled: bool  # a max-pooling follows
    normalized: bool  # and an LRN


LAYERS = (
    Layer(11, 4, 0, 1, True, True),
    Layer(5, 1, 2, 2, True, True),
    Layer(3, 1, 1, 1, False, False),
    Layer(3, 1, 1, 2, False, False),
    Layer(3, 1, 1, 2, True, False),
)
WIDTHS = (96, 256, 384, 384, 256)


def grids(pad_first: int = 0) -> dict[str, geometry.Grid]:
    """Where the locations of conv1, pool1, ..., conv5, pool5, fc6 and fc7 lie."""
    grid = geometry.Grid()
    named = {}
    for index, layer in enumerate(LAYERS, start=1):
        padding = pad_first if index == 1 else layer.padding
        grid = geometry.conv(grid, layer.size, stride=layer.stride, padding=padding)
        named[f"conv{index}"] = grid
        if layer.pooled:
            grid = named[f"pool{index}"] = geometry.conv(grid, kernel=3, stride=2)
    named["fc6"] = named["fc7"] = geometry.conv(grid, kernel=6)
    return named


class AlexNet(nn.Module):
    """The trunk up to fc7: normalized images [N, H, W, C] -> endpoints.

    Endpoints: conv1 .. conv5, pool1, pool2, pool5, norm1, norm2, fc6, fc7. Kernels
    start He-normal and biases zero (Caffe: Gaussian of fixed deviation).

    Attributes:
      pad_first: padding of conv1: 0 in the classifier, 100 in FCN.
      widths: channels of conv1 .. conv5, even numbers.
      lrn_first: LRN before the pooling (the paper, ``bvlc_alexnet``) or after.
      fc_channels: channels of fc6 and fc7.
      dropout: rate after fc6 and fc7.
      norm: "none" (as published) or "batch": a batch normalization after every
        convolution, in place of the biases and of the LRN.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      dtype: compute type.

    Raises:
      UserError: bad `widths`, or an image too small for a pooling.
    """

    pad_first: int = 0
    widths: tuple[int, ...] = WIDTHS
    lrn_first: bool = False
    fc_channels: int = 4096
    dropout: float = 0.5
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_positive(self, "widths", length=len(LAYERS))
        if any(width % 2 for width in self.widths):
            raise UserError(
                f"{layers.flag(self, 'widths')} "
                f"is {tuple(self.widths)}, expected even numbers: the "
                f"convolutions are in two groups"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)
        endpoints = {}
        for index, (layer, width) in enumerate(
            zip(LAYERS, self.widths, strict=True), start=1
        ):
            x = endpoints[f"conv{index}"] = conv_bn_relu(
                x,
                f"conv{index}",
                width,
                layer.size,
                stride=layer.stride,
                padding=self.pad_first if index == 1 else layer.padding,
                groups=layer.groups,
            )
            steps = ["pool"] * layer.pooled
            if layer.normalized and self.norm == "none":
                steps.insert(0 if self.lrn_first else 1, "norm")
            for step in steps:
                name = f"{step}{index}"
                if step == "pool":
                    x = layers.overlapping_pool(x, name)
                else:
                    x = norm.local_response_norm(x)
                endpoints[name] = x
        for name, size in (("fc6", 6), ("fc7", 1)):
            x = conv_bn_relu(x, name, self.fc_channels, size)
            x = Dropout(self.dropout, deterministic=not train)(x)
            endpoints[name] = x
        return endpoints


BACKBONE = Backbone(
    module=AlexNet, crop=227, widths=WIDTHS, top="fc7", score="fc8", grids=grids
)
