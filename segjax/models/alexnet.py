"""AlexNet (Krizhevsky et al., NIPS 2012) as a fully convolutional trunk, Caffe's form.

conv2, conv4 and conv5 are in two groups, poolings overlap (3x3, stride 2, ceil-mode)
and there is a local response normalisation (LRN) in the first two stages. The paper
and Caffe's ``bvlc_alexnet`` normalise before pooling; Caffe's reference net, CaffeNet,
from which FCN-AlexNet starts, pools first. That is the default here (`lrn_first`).
Layer names are those of Caffe; the hidden fully-connected layers are the convolutions
fc6 (6x6) and fc7 (1x1).
"""

from typing import NamedTuple

import jax
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import layers
from segjax.ops import conv, geometry, norm, pool


class Layer(NamedTuple):
    """One of conv1 .. conv5 and what follows it."""

    size: int
    stride: int
    padding: int
    groups: int
    pooled: bool  # a max-pooling follows
    normalised: bool  # and an LRN


LAYERS = (
    Layer(11, 4, 0, 1, True, True),
    Layer(5, 1, 2, 2, True, True),
    Layer(3, 1, 1, 1, False, False),
    Layer(3, 1, 1, 2, False, False),
    Layer(3, 1, 1, 2, True, False),
)
WIDTHS = (96, 256, 384, 384, 256)


def grids(pad_first: int = 0) -> dict[str, geometry.Grid]:
    """Where the cells of conv1, pool1, ..., conv5, pool5, fc6 and fc7 sit."""
    grid = geometry.Grid()
    named = {}
    for index, layer in enumerate(LAYERS, start=1):
        padding = pad_first if index == 1 else layer.padding
        grid = geometry.conv(grid, layer.size, layer.stride, padding)
        named[f"conv{index}"] = grid
        if layer.pooled:
            grid = named[f"pool{index}"] = geometry.conv(grid, kernel=3, stride=2)
    named["fc6"] = named["fc7"] = geometry.conv(grid, kernel=6)
    return named


def max_pool3(x: jax.Array, name: str) -> jax.Array:
    """Caffe's overlapping pooling: 3x3 windows, stride 2, ceil-mode.

    Raises:
      UserError: the map `x` [N, H, W, C] is too small for one window.
    """
    height, width = x.shape[1:3]
    if min(height, width) < 2:
        raise UserError(
            f"{name} gets a map of {height} x {width} cells, too small for its 3x3 "
            f"windows; use larger images or more padding"
        )
    return pool.max_pool(x, 3, 2, ceil=True)


class GroupedConv(nn.Module):
    """`layers.Conv` in groups; kernel [k, k, in / groups, out], He-normal."""

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", layers.he_normal, shape).astype(self.dtype)
        x = conv.conv2d(
            x.astype(self.dtype), kernel, self.stride, self.padding, groups=self.groups
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


class AlexNet(nn.Module):
    """The trunk up to fc7: normalised images [N, H, W, C] -> endpoints.

    Endpoints: conv1 .. conv5, pool1, pool2, pool5, norm1, norm2, fc6, fc7. Kernels
    start He-normal, biases zero.

    Attributes:
      pad_first: padding of conv1: 0 in the classifier, 100 in FCN.
      widths: channels of conv1 .. conv5, even numbers.
      lrn_first: LRN before the pooling (the paper, ``bvlc_alexnet``) or after.
      fc_channels: channels of fc6 and fc7.
      dropout: rate after fc6 and fc7.
      norm: "none" (as published) or "batch": a batch normalisation after every
        convolution, in place of the biases and of the LRN.

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
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_positive(self, "widths", length=len(LAYERS))
        if any(width % 2 for width in self.widths):
            raise UserError(
                f"AlexNet.widths is {tuple(self.widths)}, expected even numbers: the "
                f"convolutions are in two groups"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        batch = self.norm == "batch"

        def unit(x, name, features, size, **kwargs):
            x = GroupedConv(
                features,
                size,
                use_bias=not batch,
                dtype=self.dtype,
                name=name,
                **kwargs,
            )(x)
            if batch:
                x = layers.batch_norm(
                    x, train, self.bn_momentum, self.dtype, name=f"{name}_bn"
                )
            return nn.relu(x)

        endpoints = {}
        for index, (layer, width) in enumerate(
            zip(LAYERS, self.widths, strict=True), start=1
        ):
            x = endpoints[f"conv{index}"] = unit(
                x,
                f"conv{index}",
                width,
                layer.size,
                stride=layer.stride,
                padding=self.pad_first if index == 1 else layer.padding,
                groups=layer.groups,
            )
            steps = ["pool"] * layer.pooled
            if layer.normalised and not batch:
                steps.insert(0 if self.lrn_first else 1, "norm")
            for step in steps:
                name = f"{step}{index}"
                if step == "pool":
                    x = max_pool3(x, name)
                else:
                    x = norm.local_response_norm(x)
                endpoints[name] = x
        for name, size in (("fc6", 6), ("fc7", 1)):
            x = unit(x, name, self.fc_channels, size)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            endpoints[name] = x
        return endpoints
