"""Deep Contextual Network, CUMedVision (Chen, Qi, Cheng, Heng, AAAI 2016).

No code was released. The trunk, the three taps, their factors and the sum of the class
maps are known from descriptions and ports of the network, together with the number of
layers: 16 convolutions, 3 poolings, 3 "backwards strided" (transposed) convolutions.
The kernels of the branches are not: the reading taken here is a transposed convolution
of stride s and kernel 2s to 64 maps, a 3x3 and a 1x1 convolution; fields change it.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import layers
from segjax.ops import geometry, image, pool, resize


class DeepContextual(nn.Module):
    """Images [N, H, W, C] -> logits [N, H, W, K]; sides are multiples of `tiling.step`.

    VGG's trunk, conv1_1 .. conv4_3, up to stride 8. Branch i = 1, 2 .. brings the last
    map of a stage, before its pooling, to the size of the image: c{i}_up, c{i}_conv
    (both with ReLU) and c{i}_score give the class map C_i. The logits are the sum of
    the class maps.

    Each class map is also an auxiliary classifier, returned as aux_logits_1,
    aux_logits_2 ..: the paper minimizes the cross-entropy of the logits plus that of
    every class map times ``losses.auxiliary_weight``.

    Attributes:
      num_classes: K.
      widths: channels of the trunk's stages, a 2x2 pooling between them.
      convs: 3x3 convolutions of the stages, as many values.
      taps: the stages that have a branch, from 1, finest first: 2, 3, 4 (the paper),
        i.e. strides 2, 4, 8.
      branch_channels: of c{i}_up and c{i}_conv.
      upsampling: "transposed" convolution, or fixed "bilinear" resizing, which leaves
        c{i}_conv to read the trunk's channels.
      kernel_factor: side of the transposed kernel in strides. A stride of 1 needs
        no upsampling and has no c{i}_up.
      norm: "none" (the paper) or "batch": batch normalization after every convolution
        but the scores, whose biases it replaces. The paper starts the trunk from
        trained weights; without those use "batch".
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py; "unit" takes any number of channels.
      dtype: compute type; class scores are computed in float32.

    Endpoints: the last map of each stage (conv1_2, conv2_2, conv3_3, conv4_3), c1, c2
    .. (what c{i}_score reads) and aux_logits_1, aux_logits_2 .. [N, H, W, K].

    Raises:
      UserError: a bad field value, or an image side that is not valid; names the
        nearest valid sides.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512)
    convs: tuple[int, ...] = (2, 2, 3, 3)
    taps: tuple[int, ...] = (2, 3, 4)
    branch_channels: int = 64
    upsampling: str = "transposed"
    kernel_factor: int = 2
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "unit"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_positive(self, "widths", minimum=1)
        layers.check_positive(self, "convs", length=len(self.widths))
        layers.check_positive(self, "taps", minimum=1)
        if max(self.taps) > len(self.widths) or len(set(self.taps)) < len(self.taps):
            raise UserError(
                f"{layers.flag(self, 'taps')} "
                f"is {tuple(self.taps)}, expected different stages "
                f"from 1 to {len(self.widths)}"
            )
        layers.check_integers(self, "branch_channels", "kernel_factor")
        layers.check_choice(self, "upsampling", ("transposed", "bilinear"))
        layers.check_common(self)
        super().__post_init__()

    coarse_scores = None

    @property
    def tiling(self) -> geometry.Tiling:
        """Sides that every pooling halves; the output is as large as the image."""
        step = 2 ** (len(self.widths) - 1)
        return geometry.Tiling(step, offset=0, margin=0, minimum=step)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        full = geometry.sides(images)
        geometry.check_sides(self.tiling, full, model="DeepContextual")
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)

        def up(x, name, grid):
            stride = int(grid.step)
            if stride == 1:
                return x
            if self.upsampling == "bilinear":
                return resize.resize_bilinear(x, full, align_corners=False)
            size = self.kernel_factor * stride
            full_grid = geometry.deconv(grid, size, stride=stride)
            x = layers.ConvTranspose(
                self.branch_channels,
                size,
                stride,
                padding=geometry.crop_offset(
                    full_grid, geometry.Grid(), source_name=name, target_name="image"
                ),
                use_bias=self.norm == "none",
                # He's: an output has kernel_factor^2 incoming locations.
                kernel_init=nn.initializers.variance_scaling(
                    2.0 / self.kernel_factor**2,
                    "fan_in",
                    "normal",
                    batch_axis=(0, 1),
                ),
                dtype=self.dtype,
                name=name,
            )(x)
            if self.norm == "batch":
                name = f"{name}_bn"
                x = layers.batch_norm(
                    x,
                    name,
                    train=train,
                    momentum=self.bn_momentum,
                    unbiased=self.bn_unbiased,
                    dtype=self.dtype,
                )
            return nn.relu(x)

        endpoints, stages = {}, []
        x = image.normalize(images, self.image_stats, self.dtype)
        grid = geometry.Grid()
        for stage, (features, count) in enumerate(
            zip(self.widths, self.convs, strict=True), start=1
        ):
            if stage > 1:
                x = pool.max_pool(x, 2, stride=2)
                grid = geometry.conv(grid, kernel=2, stride=2)
            for index in range(1, count + 1):
                x = conv_bn_relu(x, f"conv{stage}_{index}", features, padding=1)
            endpoints[f"conv{stage}_{count}"] = x
            stages.append((x, grid))

        class_maps = []
        for branch, tap in enumerate(self.taps, start=1):
            x, grid = stages[tap - 1]
            x = up(x, f"c{branch}_up", grid)
            x = conv_bn_relu(x, f"c{branch}_conv", self.branch_channels, padding=1)
            endpoints[f"c{branch}"] = x
            x = layers.Conv(
                self.num_classes,
                1,
                kernel_init=layers.score_normal,
                name=f"c{branch}_score",
            )(x)
            endpoints[f"aux_logits_{branch}"] = x
            class_maps.append(x)
        return functools.reduce(jnp.add, class_maps), endpoints
