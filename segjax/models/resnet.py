"""ResNet backbones (He et al., CVPR 2016) with dilation instead of late strides.

The released networks differ among themselves; fields choose, and one choice is fixed:

* The stride of a stage is in the first 1x1 convolution of its first block (the authors,
  DeepLab) or in the 3x3 one (torchvision, semseg): `stride_in_1x1`.
* A dilated stage takes its new rate in all blocks (DeepLab, PSPNet) or behind the first
  one (torchvision): `first_block_dilation`.
* The stem is a 7x7 convolution or three 3x3 ones (PSPNet): `stem`.
* The pooling behind it pads by 1, floor-mode, as in DeepLab and torchvision. The
  authors' has no padding and is ceil-mode, which puts locations between the pixels.
"""

import functools
from fractions import Fraction
from typing import Any

import jax
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import expansion_layers, layers, packed_layers
from segjax.models.backbone import Backbone, Dilated, DilatedStep, dilate
from segjax.ops import activation, geometry, packed, pool

# Blocks per stage.
STAGE_SIZES: dict[str, tuple[int, ...]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet269": (3, 30, 48, 8),
}
# The networks of basic blocks; those of the others are bottlenecks.
BASIC = ("resnet18", "resnet34")
OUTPUT_STRIDES = (32, 16, 8)
STEMS = ("plain", "deep")


def stage_plan(output_stride: int) -> tuple[DilatedStep, ...]:
    """Stride of the first block of each stage, and the rates before and behind it.

    Stages stride by 1, 2, 2, 2 behind a stem of stride 4; see backbone.dilate.
    """
    return dilate((1, 2, 2, 2), output_stride, start=4)


def check_stage_sizes(model: nn.Module, output_stride: int) -> None:
    """Checks `model.stage_sizes` of a ResNet of this `output_stride`.

    A stage without blocks (0) passes its input on, which makes a shallower backbone;
    it must not be one that strides.

    Raises:
      UserError: not four numbers, or none for a stage that strides.
    """
    sizes = model.stage_sizes
    if not sizes:
        return
    strided = [stage.stride > 1 for stage in stage_plan(output_stride)]
    if len(sizes) != 4 or any(
        not isinstance(size, int) or size < must
        for size, must in zip(sizes, strided, strict=True)
    ):
        raise UserError(
            f"{layers.flag(model, 'stage_sizes')} "
            f"is {sizes}, expected 4 values, 0 only "
            f"for stages that do not stride (output_stride {output_stride})"
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions to `channels` and an identity or 1x1 shortcut.

    Attributes:
      channels: of both convolutions.
      stride: of the first convolution, and of the block.
      first_rate: dilation of the first convolution.
      rate: dilation of the second one.
      bn_momentum, bn_unbiased, dtype: see ResNet.
    """

    channels: int
    stride: int = 1
    first_rate: int = 1
    rate: int = 1
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv_bn(x, index, size, **options):
            names = dict(name=f"conv{index}", norm_name=f"bn{index}")
            conv_bn_relu = layers.bind_conv_bn_relu(self, train)
            return conv_bn_relu(
                x, features=self.channels, size=size, **names, **options
            )

        first = dict(padding=self.first_rate, dilation=self.first_rate)
        second = dict(padding=self.rate, dilation=self.rate)
        y = conv_bn(x, 1, 3, stride=self.stride, **first)
        y = conv_bn(y, 2, 3, relu=False, **second)
        if self.stride > 1 or x.shape[-1] != self.channels:
            # "conv0", "bn0": the projection shortcut.
            x = conv_bn(x, 0, 1, stride=self.stride, relu=False)
        return activation.relu_of_sum(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions to 4 * `channels` and an identity or 1x1 shortcut.

    Attributes:
      channels: of the first two convolutions.
      stride: of the block.
      rate: dilation of the 3x3 convolution.
      stride_in_1x1, bn_momentum, bn_unbiased, dtype: see ResNet.
    """

    channels: int
    stride: int = 1
    rate: int = 1
    stride_in_1x1: bool = False
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)

        def unit(x, index, features, size, **options):
            name, norm_name = f"conv{index}", f"bn{index}"
            return conv_bn_relu(x, name, features, size, norm_name=norm_name, **options)

        def expand(x, index, **options):
            features = 4 * self.channels
            form = expansion_layers.form(x, features, train=train)
            return unit(x, index, features, 1, relu=False, **form, **options)

        in_1x1, in_3x3 = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        wide = dict(padding=self.rate, dilation=self.rate)
        y = unit(x, 1, self.channels, 1, stride=in_1x1)
        y = unit(y, 2, self.channels, 3, stride=in_3x3, **wide)
        y = expand(y, 3)
        if self.stride > 1 or x.shape[-1] != 4 * self.channels:
            # "conv0", "bn0": the projection shortcut.
            x = expand(x, 0, stride=self.stride)
        return activation.relu_of_sum(x + y)


class ResNet(nn.Module):
    """Normalized images [N, H, W, C] -> endpoints; no classifier.

    With a head for image classification it is ``classifier.Classifier``.

    Endpoints: conv1 (stride 2), pool1 (4) and block1 .. block4, the outputs of the
    paper's conv2_x .. conv5_x (Caffe's res2 .. res5). Padding is symmetric, so location
    (i, j) of a map lies on pixel (i, j) * stride for even and odd sizes alike.
    Parameters: conv1/bn1 (deep stem conv1_1/bn1_1 .. conv1_3/bn1_3), and
    block{stage}_{index}/conv{0..3}, bn{0..3} with 0 the shortcut. Kernels start
    He-normal.

    Attributes:
      stage_sizes: blocks per stage, see STAGE_SIZES; 0 leaves a stage out, which is
        possible where it does not stride.
      block: "bottleneck" (from ResNet-50 on) or "basic" (ResNet-18 and 34).
      pad_first: padding of the first convolution; 3, in a deep stem 1, if it is None.
      width: channels of the stem and the first stage (64); stages double it.
      stem: "plain" 7x7 convolution, or "deep" three 3x3 ones ending in 2 * width.
      output_stride: 32, 16 or 8.
      packed: computes the stem on pairs of pixels, for TPUs: see ops/packed.py. The
        same parameters, and the same features but for rounding.
      ceil_pool: the pooling behind the stem keeps an incomplete last window
        (deeplab-pytorch), which maps of even sides have.
      stride_in_1x1: the stride of a bottleneck in its first 1x1 (Caffe) or its 3x3
        convolution; no effect on basic blocks.
      first_block_dilation: whether the first 3x3 convolution of a dilated stage takes
        the new rate, too (DeepLab, PSPNet, their Caffe networks with the stride in the
        1x1), or that of the stage before (torchvision), which is what it saw in the
        strided network if it carried the stride there. The same parameters, other
        features.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      dtype: compute type.
    """

    stage_sizes: tuple[int, ...] = STAGE_SIZES["resnet50"]
    block: str = "bottleneck"
    pad_first: int | None = None
    width: int = 64
    stem: str = "plain"
    output_stride: int = 32
    packed: bool = False
    ceil_pool: bool = False
    stride_in_1x1: bool = False
    first_block_dilation: bool = False
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        unit = layers.bind_conv_bn_relu(self, train)
        stem: tuple[tuple[str, int, int, int], ...]
        if self.stem == "plain":
            stem = (("1", self.width, 7, 2),)
        else:
            stem = (
                ("1_1", self.width, 3, 2),
                ("1_2", self.width, 3, 1),
                ("1_3", 2 * self.width, 3, 1),
            )
        form: dict[str, Any] = packed_layers.FORM if self.packed else {}
        padding = self.pad_first
        for suffix, features, size, stride in stem:
            padding = size // 2 if padding is None else padding
            window = dict(stride=stride, padding=padding)
            norm: dict[str, Any] = dict(norm_name=f"bn{suffix}")
            if self.packed and suffix == stem[-1][0]:
                norm["normalize"] = functools.partial(
                    packed_layers.batch_norm,
                    pool=functools.partial(
                        packed.overlapping_max_pool, ceil=self.ceil_pool
                    ),
                )
            x = unit(x, f"conv{suffix}", features, size, **{**form, **norm}, **window)
            padding = None
        if self.packed:
            pairs, x = x
            endpoints = {"conv1": packed.unpack(pairs)}
        else:
            endpoints = {"conv1": x}
            x = pool.max_pool(x, 3, stride=2, padding=1, ceil=self.ceil_pool)
        endpoints["pool1"] = x

        for number, (stage, blocks) in enumerate(
            zip(stage_plan(self.output_stride), self.stage_sizes, strict=True), start=1
        ):
            first_rate = stage.rate if self.first_block_dilation else stage.rate_before
            for index in range(1, blocks + 1):
                x = self._block(
                    channels=self.width * 2 ** (number - 1),
                    stride=stage.stride if index == 1 else 1,
                    first_rate=first_rate if index == 1 else stage.rate,
                    rate=stage.rate,
                    name=f"block{number}_{index}",
                )(x, train)
            endpoints[f"block{number}"] = x
        return endpoints

    def _block(self, *, first_rate: int, rate: int, **fields) -> nn.Module:
        fields.update(
            bn_momentum=self.bn_momentum, bn_unbiased=self.bn_unbiased, dtype=self.dtype
        )
        if self.block == "basic":
            return BasicBlock(first_rate=first_rate, rate=rate, **fields)
        # The only 3x3 convolution of a bottleneck is its first one.
        in_1x1 = self.stride_in_1x1
        return Bottleneck(rate=first_rate, stride_in_1x1=in_1x1, **fields)

    @property
    def grid(self) -> geometry.Grid:
        """Where the pixels of the last map sit in the image."""
        return geometry.Grid(Fraction(self.output_stride))

    @property
    def remainder(self) -> int:
        """See backbone.Dilated."""
        return 1


def grids(pad_first: int = 3) -> dict[str, geometry.Grid]:
    """Where the pixels of conv1, pool1 and block1 .. block4 sit; of the plain stem."""
    grid = geometry.conv(geometry.Grid(), kernel=7, stride=2, padding=pad_first)
    named = {"conv1": grid}
    grid = named["pool1"] = geometry.conv(grid, kernel=3, stride=2, padding=1)
    for number, stage in enumerate(stage_plan(32), start=1):
        grid = geometry.conv(grid, kernel=3, stride=stage.stride, padding=1)
        named[f"block{number}"] = grid
    return named


def _backbone(name: str) -> Backbone:
    block = "basic" if name in BASIC else "bottleneck"
    fixed = dict(stage_sizes=STAGE_SIZES[name], block=block)
    return Backbone(
        module=ResNet,
        fixed=fixed,
        crop=224,
        widths=(64,),
        top="block4",
        score="fc",
        grids=grids,
        skips={16: "block3", 8: "block2"},
        average=7,
        dilated=Dilated(ResNet, OUTPUT_STRIDES, "block4", aux="block3", fixed=fixed),
    )


BACKBONES = {name: _backbone(name) for name in STAGE_SIZES}
