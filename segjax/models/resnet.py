"""ResNet backbones (He et al., CVPR 2016) with dilation instead of late strides.

The released networks differ among themselves; fields choose, and one choice is fixed:

* The stride of a stage is in the first 1x1 convolution of its first block (the authors,
  DeepLab) or in the 3x3 one (torchvision, semseg): `stride_in_1x1`.
* A dilated stage takes its new rate in all blocks (DeepLab, PSPNet) or behind the first
  one (torchvision): `first_block_dilation`.
* The stem is a 7x7 convolution or three 3x3 ones (PSPNet): `stem`.
* The pooling behind it pads by 1, floor-mode, as in DeepLab and torchvision. The
  authors' has no padding and is ceil-mode, which puts cells between the pixels.
"""

from typing import NamedTuple

import jax
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import layers
from segjax.ops import pool

# Bottleneck blocks per stage.
STAGE_SIZES: dict[str, tuple[int, ...]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
OUTPUT_STRIDES = (32, 16, 8)
STEMS = ("plain", "deep")


class Stage(NamedTuple):
    """How one stage moves through the image."""

    stride: int  # of the first block
    first_rate: int  # dilation of the first block's 3x3 convolution
    rate: int  # dilation of the others


def stage_plan(output_stride: int, first_block_dilation: bool) -> tuple[Stage, ...]:
    """Turns the strides beyond `output_stride` into dilation.

    Stages stride by 1, 2, 2, 2 behind a stem of stride 4. Once the budget is spent a
    stage's stride becomes 1 and the rate of what follows multiplies by the stride it
    lost.

    Args:
      output_stride: 32, 16 or 8.
      first_block_dilation: what the first block of a dilated stage does, whose 3x3
        convolution sees the undilated map in the strided network if that convolution
        carried the stride. True takes the new rate there too (DeepLab, PSPNet, their
        Caffe nets with the stride in the 1x1), False the rate of the stage before
        (torchvision). Same weights, different features.
    """
    stages, current, rate = [], 4, 1
    for stride in (1, 2, 2, 2):
        before = rate
        if current * stride > output_stride:
            rate, stride = rate * stride, 1
        current *= stride
        stages.append(Stage(stride, rate if first_block_dilation else before, rate))
    return tuple(stages)


def check_stage_sizes(model: nn.Module) -> None:
    """Checks `model.stage_sizes`, beside its `output_stride`.

    A stage without blocks (0) passes its input on, which makes a shallower backbone;
    it must not be one that strides.

    Raises:
      UserError: not four numbers, or none for a stage that strides.
    """
    sizes = model.stage_sizes
    if not sizes:
        return
    strided = [stage.stride > 1 for stage in stage_plan(model.output_stride, False)]
    if len(sizes) != 4 or any(
        not isinstance(size, int) or size < must
        for size, must in zip(sizes, strided, strict=True)
    ):
        raise UserError(
            f"{type(model).__name__}.stage_sizes is {sizes}, expected 4 values, 0 only "
            f"for stages that do not stride (output_stride {model.output_stride})"
        )


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions to 4 * `channels` and an identity or 1x1 shortcut.

    Attributes:
      channels: of the first two convolutions.
      stride: of the block.
      rate: dilation of the 3x3 convolution.
      project: a 1x1 shortcut; needed where the stride or the channels change.
      stride_in_1x1, bn_momentum, dtype: see ResNet.
    """

    channels: int
    stride: int = 1
    rate: int = 1
    project: bool = False
    stride_in_1x1: bool = False
    bn_momentum: float = 0.9
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv_unit = layers.conv_units(self, train)

        def unit(x, index, features, size, **options):
            name, norm_name = f"conv{index}", f"bn{index}"
            return conv_unit(x, name, features, size, norm_name=norm_name, **options)

        in_1x1, in_3x3 = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        wide = dict(padding=self.rate, dilation=self.rate)
        y = unit(x, 1, self.channels, 1, stride=in_1x1)
        y = unit(y, 2, self.channels, 3, stride=in_3x3, **wide)
        y = unit(y, 3, 4 * self.channels, 1, relu=False)
        if self.project:
            # "conv0", "bn0": the projection shortcut.
            x = unit(x, 0, 4 * self.channels, 1, stride=self.stride, relu=False)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Normalized images [N, H, W, C] -> endpoints; no classifier.

    With a head for image classification it is ``classifier.Classifier``.

    Endpoints: conv1 (stride 2), pool1 (4) and block1 .. block4, the outputs of the
    paper's conv2_x .. conv5_x (Caffe's res2 .. res5). Padding is symmetric, so cell
    (i, j) of a map sits on pixel (i, j) * stride for even and odd sizes alike.
    Parameters: conv1/bn1 (deep stem conv1_1/bn1_1 .. conv1_3/bn1_3), and
    block{stage}_{index}/conv{0..3}, bn{0..3} with 0 the shortcut. Kernels start
    He-normal.

    Attributes:
      stage_sizes: blocks per stage, see STAGE_SIZES; 0 leaves a stage out, which is
        possible where it does not stride.
      width: channels of the stem and the first stage (64); stages double it.
      stem: "plain" 7x7 convolution, or "deep" three 3x3 ones ending in 2 * width.
      output_stride: 32, 16 or 8.
      stride_in_1x1: a block's stride in its first 1x1 (Caffe) or its 3x3 convolution.
      first_block_dilation: see stage_plan.
      bn_momentum: fraction of the old running statistics kept at a step.
      dtype: compute type.
    """

    stage_sizes: tuple[int, ...] = STAGE_SIZES["resnet50"]
    width: int = 64
    stem: str = "plain"
    output_stride: int = 32
    stride_in_1x1: bool = False
    first_block_dilation: bool = False
    bn_momentum: float = 0.9
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        unit = layers.conv_units(self, train)
        if self.stem == "plain":
            stem = (("1", self.width, 7, 2),)
        else:
            stem = (
                ("1_1", self.width, 3, 2),
                ("1_2", self.width, 3, 1),
                ("1_3", 2 * self.width, 3, 1),
            )
        for suffix, features, size, stride in stem:
            window = dict(stride=stride, padding=size // 2)
            name, norm_name = f"conv{suffix}", f"bn{suffix}"
            x = unit(x, name, features, size, norm_name=norm_name, **window)
        endpoints = {"conv1": x}
        x = endpoints["pool1"] = pool.max_pool(x, 3, 2, padding=1)

        plan = stage_plan(self.output_stride, self.first_block_dilation)
        for number, (stage, blocks) in enumerate(
            zip(plan, self.stage_sizes, strict=True), start=1
        ):
            for index in range(1, blocks + 1):
                first = index == 1
                x = Bottleneck(
                    channels=self.width * 2 ** (number - 1),
                    stride=stage.stride if first else 1,
                    rate=stage.first_rate if first else stage.rate,
                    project=first,
                    stride_in_1x1=self.stride_in_1x1,
                    bn_momentum=self.bn_momentum,
                    dtype=self.dtype,
                    name=f"block{number}_{index}",
                )(x, train)
            endpoints[f"block{number}"] = x
        return endpoints
