"""VGG16 (Simonyan and Zisserman 2015, configuration D) as a fully convolutional trunk.

Layer names and shapes are those of the published network, its two hidden
fully-connected layers being the convolutions fc6 (7x7) and fc7 (1x1); fc8, the class
scores, is in classifier.py.
"""

import jax
from flax import linen as nn

from segjax.models import layers
from segjax.ops import geometry, pool

# Number of 3x3 convolutions in each of the five stages.
STAGES = (2, 2, 3, 3, 3)
WIDTHS = (64, 128, 256, 512, 512)


def grids(pad_first: int) -> dict[str, geometry.Grid]:
    """Where the cells of pool1 .. pool5, fc6 and fc7 sit in the image."""
    grid = geometry.Grid()
    named = {}
    padding = pad_first
    for stage, count in enumerate(STAGES, start=1):
        for _ in range(count):
            grid = geometry.conv(grid, kernel=3, padding=padding)
            padding = 1
        grid = geometry.conv(grid, kernel=2, stride=2)
        named[f"pool{stage}"] = grid
    named["fc6"] = named["fc7"] = geometry.conv(grid, kernel=7)
    return named


class VGG16(nn.Module):
    """The trunk up to fc7: normalised images -> endpoints pool1 .. pool5, fc6, fc7.

    2x2 poolings are ceil-mode (Caffe). Kernels start He-normal, biases zero; the
    papers built on this trunk start from ImageNet weights instead, and without those
    it trains only with ``norm="batch"`` (a batch normalisation after every
    convolution, whose bias it replaces).

    Attributes:
      pad_first: padding of conv1_1: 1 in the classifier, 100 in FCN.
      widths: channels of the five stages.
      fc_channels: channels of fc6 and fc7.
      dropout: rate after fc6 and fc7.
      norm: "none" (the paper) or "batch".
    """

    pad_first: int = 1
    widths: tuple[int, ...] = WIDTHS
    fc_channels: int = 4096
    dropout: float = 0.5
    norm: str = "none"
    bn_momentum: float = 0.9
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        batch = self.norm == "batch"

        def unit(x, name, features, size, padding):
            x = layers.Conv(
                features,
                size,
                padding=padding,
                use_bias=not batch,
                dtype=self.dtype,
                name=name,
            )(x)
            if batch:
                x = layers.batch_norm(
                    x, train, self.bn_momentum, self.dtype, name=f"{name}_bn"
                )
            return nn.relu(x)

        endpoints = {}
        padding = self.pad_first
        for stage, (count, width) in enumerate(
            zip(STAGES, self.widths, strict=True), start=1
        ):
            for i in range(1, count + 1):
                x = unit(x, f"conv{stage}_{i}", width, 3, padding)
                padding = 1
            x = endpoints[f"pool{stage}"] = pool.max_pool(x, 2, 2, ceil=True)
        for name, size in (("fc6", 7), ("fc7", 1)):
            x = unit(x, name, self.fc_channels, size, 0)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            endpoints[name] = x
        return endpoints
