"""SqueezeNet 1.1 (Iandola et al. 2016): 722,496 parameters, for small machines.

Version 1.1 of the authors' release, which needs 2.4 times less work than the paper's
1.0: 64 filters of 3x3 in conv1, and poolings behind conv1, fire3 and fire5. Layers have
the authors' names with "_" for "/": fire2_squeeze1x1, fire2_expand1x1, ...

The release pads neither conv1 nor the poolings, which are ceil-mode; its maps sit
between the pixels, 15 + 16 i for the last one. That form is for classification and FCN.
In DeepLab and PSPNet all of them are padded by one pixel (`pool_padding`), which puts
map pixel i on image pixel 16 i; the convolutions compute the same away from the border.
The published stride is 16, so there is no output stride of 32.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import layers
from segjax.models.backbone import Backbone, Dilated, dilate
from segjax.ops import geometry, pool

WIDTH = 64
# Channels of a fire module: squeeze 1x1; expand 1x1 and expand 3x3, each.
FIRES: dict[str, tuple[int, int]] = {
    "fire2": (16, 64),
    "fire3": (16, 64),
    "fire4": (32, 128),
    "fire5": (32, 128),
    "fire6": (48, 192),
    "fire7": (48, 192),
    "fire8": (64, 256),
    "fire9": (64, 256),
}
# The poolings, by the layer before.
POOLS = {"conv1": "pool1", "fire3": "pool3", "fire5": "pool5"}


class SqueezeNet(nn.Module):
    """The trunk up to fire9: normalized images [N, H, W, C] -> endpoints.

    Endpoints: conv1, pool1, fire2, fire3, pool3, fire4, fire5, pool5, fire6 .. fire9.
    Kernels start He-normal, biases zero (Caffe: Xavier).

    Attributes:
      pad_first: padding of conv1: 0 in the classifier, 100 in FCN, 1 in dilated form.
      pool_padding: of the poolings: 0, ceil-mode as published, or 1.
      output_stride: 16, or 8: pool5 does not stride, and what follows is dilated by 2.
      width: channels of conv1 (64); those of all other layers scale with it.
      norm: "none" (as published) or "batch": a batch normalization after every
        convolution, in place of its bias.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      dtype: compute type.

    Raises:
      UserError: an image too small for a pooling.
    """

    pad_first: int = 0
    pool_padding: int = 0
    output_stride: int = 16
    width: int = WIDTH
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)
        endpoints = {}

        def pooled(x, name, stride):
            if stride == 1 or self.pool_padding:
                return pool.max_pool(x, 3, stride=stride, padding=self.pool_padding)
            return layers.overlapping_pool(x, name)

        def fire(x, name, rate):
            squeeze, expand = (max(1, n * self.width // WIDTH) for n in FIRES[name])
            x = conv_bn_relu(x, f"{name}_squeeze1x1", squeeze, 1)
            wide = dict(padding=rate, dilation=rate)
            both = (
                conv_bn_relu(x, f"{name}_expand1x1", expand, 1),
                conv_bn_relu(x, f"{name}_expand3x3", expand, 3, **wide),
            )
            return jnp.concatenate(both, axis=-1)

        steps = dict(zip(POOLS, dilate((2, 2, 2), self.output_stride, start=2)))
        rate = 1
        for name in ("conv1", *FIRES):
            if name == "conv1":
                x = conv_bn_relu(x, name, self.width, stride=2, padding=self.pad_first)
            else:
                x = fire(x, name, rate)
            endpoints[name] = x
            if name in POOLS:
                rate = steps[name].rate
                x = pooled(x, POOLS[name], steps[name].stride)
                endpoints[POOLS[name]] = x
        return endpoints

    @property
    def grid(self) -> geometry.Grid:
        """Where the pixels of the last map sit in the image, in the dilated form."""
        return geometry.Grid(Fraction(self.output_stride))

    @property
    def remainder(self) -> int:
        """See backbone.Dilated."""
        return 1


def grids(pad_first: int = 0) -> dict[str, geometry.Grid]:
    """Where the pixels of the endpoints sit, in the published form."""
    grid = geometry.conv(geometry.Grid(), kernel=3, stride=2, padding=pad_first)
    named = {}
    for name in ("conv1", *FIRES):
        named[name] = grid
        if name in POOLS:
            grid = named[POOLS[name]] = geometry.conv(grid, kernel=3, stride=2)
    return named


BACKBONE = Backbone(
    module=SqueezeNet,
    crop=224,
    widths=(WIDTH,),
    top="fire9",
    score="conv10",
    grids=grids,
    stride=16,
    skips={8: "fire5"},
    dropout=True,
    average=13,
    average_scores=True,
    dilated=Dilated(
        SqueezeNet,
        output_strides=(16, 8),
        features="fire9",
        aux="fire7",
        fixed=dict(pad_first=1, pool_padding=1),
    ),
)
