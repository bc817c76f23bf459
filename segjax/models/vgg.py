"""VGG16 (Simonyan and Zisserman 2015, configuration D), whole and with dilation.

Layer names and shapes are those of the published network, its two hidden
fully-connected layers being the convolutions fc6 (7x7) and fc7 (1x1); fc8, the class
scores, is in classifier.py. Poolings are ceil-mode, as in Caffe. Kernels start
He-normal, biases zero: the papers built on this trunk start from ImageNet weights
instead, and without those it trains only with ``norm="batch"``, a batch normalization
after every convolution in place of its bias.
"""

from typing import Any

import jax
from flax import linen as nn

from segjax.models import framed_layers, layers, packed_layers
from segjax.models.backbone import Backbone, Dilated, dilate
from segjax.models.dropout import Dropout
from segjax.ops import framed, geometry, pool

# Number of 3x3 convolutions in each of the five stages.
STAGES = (2, 2, 3, 3, 3)
WIDTHS = (64, 128, 256, 512, 512)


# The names of the 13 convolutions, in their order.
CONVOLUTIONS = tuple(
    f"conv{stage}_{i}"
    for stage, count in enumerate(STAGES, start=1)
    for i in range(1, count + 1)
)


def grids(pad_first: int, fc6_padding: int = 0) -> dict[str, geometry.Grid]:
    """Where the locations of the convolutions, poolings, fc6 and fc7 lie in the image.

    Args:
      pad_first, fc6_padding: see :class:`VGG16`.
    """
    grid = geometry.Grid()
    named = {}
    padding = pad_first
    for stage, count in enumerate(STAGES, start=1):
        for i in range(1, count + 1):
            grid = geometry.conv(grid, kernel=3, padding=padding)
            named[f"conv{stage}_{i}"] = grid
            padding = 1
        grid = geometry.conv(grid, kernel=2, stride=2)
        named[f"pool{stage}"] = grid
    named["fc6"] = named["fc7"] = geometry.conv(grid, kernel=7, padding=fc6_padding)
    return named


class VGG16(nn.Module):
    """The trunk up to fc7: normalized images -> endpoints pool1 .. pool5, fc6, fc7.

    Attributes:
      pad_first: padding of conv1_1: 1 in the classifier, 100 in FCN.
      framed: computes what that padding gives far from the image once per batch
        (ops/framed.py), where it saves a tenth of a stage or more; False computes it
        with every image, as the authors' networks do. The same parameters, and the
        same maps but for rounding. No effect in training within layers.bn_batch_size.
      fc6_padding: of fc6: 0 in both; with 3 its map is as large as pool5.
      convolutions: conv1_1 .. conv5_3, rectified, are endpoints as well.
      widths: channels of the five stages.
      fc_channels: channels of fc6 and fc7.
      dropout: rate after fc6 and fc7.
      norm: "none" (the paper) or "batch".
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      dtype: compute type.
      packed: computes stage 1 on pairs of pixels, for TPUs: see ops/packed.py.
    """

    pad_first: int = 1
    framed: bool = True
    fc6_padding: int = 0
    convolutions: bool = False
    widths: tuple[int, ...] = WIDTHS
    fc_channels: int = 4096
    dropout: float = 0.5
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"
    packed: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, fc: bool = True
    ) -> dict[str, jax.Array]:
        """`fc`: with fc6 and fc7, which need a pool5 of 7x7 unless fc6 is padded."""
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)
        endpoints: dict[str, jax.Array] = {}
        padding = self.pad_first
        x: framed.Framed | jax.Array = images
        in_groups = train and self.norm == "batch" and layers.in_groups(len(images))
        if self.framed and not in_groups and not self.is_initializing():
            x = framed.frame(images, padding, STAGES)
        stages = zip(STAGES, self.widths, strict=True)
        for stage, (count, width) in enumerate(stages, start=1):
            x = framed.grow(x, count)
            for i in range(1, count + 1):
                name = f"conv{stage}_{i}"
                in_pairs = self.packed and stage == 1
                form: dict[str, Any] = {"padding": padding}
                if isinstance(x, framed.Framed):
                    form = framed_layers.PACKED if in_pairs else framed_layers.FORM
                elif in_pairs:
                    form |= packed_layers.FORM
                x = conv_bn_relu(x, name, width, **form)
                padding = 1
                if self.convolutions:
                    endpoints[name] = framed.expand(x)
            x = framed.max_pool(x)
            # Where nothing reads the full map, the compiler leaves it out.
            endpoints[f"pool{stage}"] = framed.expand(x)
        if not fc:
            return endpoints
        top = framed.expand(x)
        for name, size, padding in (("fc6", 7, self.fc6_padding), ("fc7", 1, 0)):
            top = conv_bn_relu(top, name, self.fc_channels, size, padding=padding)
            top = Dropout(self.dropout, deterministic=not train)(top)
            endpoints[name] = top
        return endpoints


class DilatedVGG(nn.Module):
    """The 13 convolutions with rates and poolings to choose (Dilation, DeepLab).

    Normalized images -> endpoints conv1_2, pool1 .. conv5_3, pool5 (as far as there
    are poolings).

    Attributes:
      rates: dilation of each of the five stages.
      pools: (kernel, stride, padding) of the pooling behind each stage, () for none.
      same: pads every convolution by its rate; otherwise by nothing.
      widths: channels of the stages.
      norm, bn_momentum, bn_unbiased, dtype: see VGG16.
    """

    rates: tuple[int, ...]
    pools: tuple[tuple[int, ...], ...]
    same: bool
    widths: tuple[int, ...] = WIDTHS
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)
        endpoints = {}
        stages = zip(STAGES, self.widths, self.rates, self.pools, strict=True)
        for stage, (count, width, rate, window) in enumerate(stages, start=1):
            padding = rate if self.same else 0
            for i in range(1, count + 1):
                name = f"conv{stage}_{i}"
                x = conv_bn_relu(x, name, width, padding=padding, dilation=rate)
            endpoints[name] = x
            if window:
                size, stride, padding = window
                x = endpoints[f"pool{stage}"] = pool.max_pool(
                    x, size, stride=stride, padding=padding, ceil=True
                )
        return endpoints

    @property
    def grid(self) -> geometry.Grid:
        """Where the pixels of the last map sit in the image."""
        grid = geometry.Grid()
        for count, rate, window in zip(STAGES, self.rates, self.pools, strict=True):
            for _ in range(count):
                padding = rate if self.same else 0
                grid = geometry.conv(grid, kernel=3, padding=padding, dilation=rate)
            if window:
                kernel, stride, padding = window
                grid = geometry.conv(grid, kernel, stride=stride, padding=padding)
        return grid

    @property
    def remainder(self) -> int:
        """Sides 8k + 1 with 3x3 poolings, 8k + 2 with 2x2 ones that pad."""
        return 4 - self.pools[0][0]


def dilated(
    output_stride: int,
    pool_kernel: int = 3,
    *,
    widths: tuple[int, ...] = WIDTHS,
    norm: str = "none",
    bn_momentum: float = 0.9,
    bn_unbiased: bool = False,
    dtype: str = "float32",
    **where: Any,
) -> DilatedVGG:
    """DeepLab's VGG16: all poolings are there, the unstrided ones do not dilate.

    Args:
      output_stride: 8, 16 or 32.
      pool_kernel: of the first four poolings: 3, or 2, and then an unstrided pool4 is
        not padded; pool5 is always 3x3.
      widths, norm, bn_momentum, bn_unbiased, dtype: see :class:`DilatedVGG`.
      where: name and parent of the module.
    """
    steps = dilate((2,) * len(STAGES), output_stride)
    pools = []
    for stage, step in enumerate(steps, start=1):
        kernel = pool_kernel if stage < len(STAGES) else 3
        padding = 0 if kernel == 2 and step.stride == 1 else 1
        pools.append((kernel, step.stride, padding))
    rates = tuple(step.rate_before for step in steps)
    return DilatedVGG(
        rates=rates,
        pools=tuple(pools),
        same=True,
        widths=widths,
        norm=norm,
        bn_momentum=bn_momentum,
        bn_unbiased=bn_unbiased,
        dtype=dtype,
        **where,
    )


BACKBONE = Backbone(
    module=VGG16,
    crop=224,
    widths=WIDTHS,
    top="fc7",
    score="fc8",
    grids=grids,
    skips={16: "pool4", 8: "pool3"},
    dilated=Dilated(dilated, (8, 16, 32), "pool5"),
)
