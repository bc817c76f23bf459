"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015).

The network that the authors released is not quite the one of the paper's figure:

  ===================  ==========================  ==================================
  ..                   layout="paper"              layout="released"
  ===================  ==========================  ==================================
  up-convolution       linear                      followed by a ReLU
  concatenation        [skip, upsampled]           [upsampled, skip]
  last up-convolution  64 channels                 128 channels
  parameters           31,030,658                  31,100,354 (2 classes, gray images)
  ===================  ==========================  ==================================
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import layers, packed_layers
from segjax.models.dropout import Dropout
from segjax.ops import geometry, image, packed, pool, resize


class Plan(NamedTuple):
    """What follows from depth, padding and upsampling: see :func:`plan`."""

    crops: tuple[int, ...]  # pixels cut from each side of the skip of level 0, 1, ..
    tiling: geometry.Tiling


def _up_layers(valid: bool, upsampling: str) -> tuple[tuple[int, int], ...]:
    """(kernel, padding) of the stride-2 transposed convolution and what follows it.

    Resizing is a transposed convolution for the geometry: nearest has kernel 2,
    bilinear 4. A valid bilinear one drops the border row that would interpolate
    beyond the map (padding 2 instead of 1).
    """
    if upsampling == "transposed":
        return ((2, 0),)
    resized = (2, 0) if upsampling == "nearest" else (4, 2 if valid else 1)
    return (resized, (3, 0 if valid else 1))


def plan(levels: int, padding: str, upsampling: str) -> Plan:
    """The crops of the skips, the margin and the valid sizes of a U-Net.

    With the paper's five levels: crops 88, 40, 16, 4, margin 92, sides 12 mod 16 from
    188 up.
    """
    valid = padding == "valid"
    pad = 0 if valid else 1
    (up_kernel, up_pad), *resize_convs = _up_layers(valid, upsampling)

    grid = geometry.Grid()
    skips = []
    for level in range(levels):
        if level:
            grid = geometry.conv(grid, kernel=2, stride=2)
        for _ in range(2):
            grid = geometry.conv(grid, kernel=3, padding=pad)
        skips.append(grid)
    crops = []
    for level in reversed(range(levels - 1)):
        grid = geometry.deconv(grid, up_kernel, stride=2, padding=up_pad)
        for kernel, conv_pad in resize_convs:
            grid = geometry.conv(grid, kernel, padding=conv_pad)
        crops.append(
            geometry.crop_offset(
                skips[level],
                grid,
                source_name=f"enc{level}",
                target_name=f"dec{level}_up",
            )
        )
        for _ in range(2):
            grid = geometry.conv(grid, kernel=3, padding=pad)
    margin = geometry.crop_offset(
        geometry.Grid(), grid, source_name="the image", target_name="the logits"
    )

    # Every pooled side must be even, so all sides follow from that of the bottom map.
    # The smallest bottom map that leaves an output gives the smallest image.
    lost = 4 - 4 * pad  # by a pair of 3x3 convolutions

    def output_side(bottom: int) -> int:
        side = bottom
        for _ in range(levels - 1):
            side = geometry.deconv_size(side, up_kernel, stride=2, padding=up_pad)
            for kernel, conv_pad in resize_convs:
                side = geometry.conv_size(side, kernel, padding=conv_pad)
            side -= lost
        return side

    smallest = next(side for side in itertools.count(1) if output_side(side) > 0) + lost
    for _ in range(levels - 1):
        smallest = 2 * smallest + lost
    step = 2 ** (levels - 1)
    tiling = geometry.Tiling(step, smallest % step, margin, smallest)
    return Plan(tuple(reversed(crops)), tiling)


class UNet(nn.Module):
    """Images [N, H, W, C] -> logits [N, h, w, K]; valid sides and margin in `tiling`.

    Levels are numbered from the top, 0: enc0_conv1, enc0_conv2 .. of the contracting
    path down to the bottom map, dec0_up, dec0_conv1, dec0_conv2 .. of the expansive
    one, and the 1x1 `head`. Kernels start Gaussian with variance 2 / fan-in, biases
    zero (section 3).

    Attributes:
      num_classes: K.
      widths: channels of the levels; their number is the depth (5 in the paper).
      layout: "paper" or "released", see the module.
      padding: "valid" (the paper): the output is the center of the image, without the
        `tiling.margin` pixels whose context is missing. "same": zero padding, the
        output is as large as the image, whose sides are multiples of `tiling.step`.
      upsampling: "transposed" 2x2 convolution of stride 2 (the paper), or "nearest" or
        "bilinear" resizing by 2 and a 3x3 convolution. 3x3 because the 2x2 one that
        some ports use there shifts the map by half a location. In a valid network these
        two lose more margin; all lengths follow from the geometry.
      norm: "none" (the paper) or "batch": batch normalization after every 3x3
        convolution of the levels, whose biases it replaces.
      dropout: rate at the end of the contracting path: after the convolutions of its
        last two levels (the upper one of which is also dropped in its skip).
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py; "unit" takes any number of channels.
      dtype: compute type; class scores are computed in float32.
      packed: computes level 0 on pairs of pixels, for TPUs: see ops/packed.py. The same
        parameters, and the same scores but for rounding.

    Endpoints: enc0, enc1, .. (before pooling) and dec0, dec1, ..

    Raises:
      UserError: a bad field value, or an image side that is not valid; names the
        nearest valid sides.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    layout: str = "paper"
    padding: str = "valid"
    upsampling: str = "transposed"
    norm: str = "none"
    dropout: float = 0.5
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "unit"
    dtype: str = "float32"
    packed: bool = False

    def __post_init__(self) -> None:
        layers.check_positive(self, "widths", minimum=1)
        layers.check_choice(self, "layout", ("paper", "released"))
        layers.check_choice(self, "padding", ("valid", "same"))
        layers.check_choice(self, "upsampling", ("transposed", "nearest", "bilinear"))
        layers.check_choice(self, "packed", (False, True))
        layers.check_common(self)
        super().__post_init__()

    coarse_scores = None

    @property
    def tiling(self) -> geometry.Tiling:
        """The valid sides of an image and the margin lost on each side."""
        return plan(len(self.widths), self.padding, self.upsampling).tiling

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        geometry.check_sides(self.tiling, geometry.sides(images), model="UNet")
        depth = len(self.widths)
        crops = plan(depth, self.padding, self.upsampling).crops
        pad = 0 if self.padding == "valid" else 1
        released = self.layout == "released"
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)
        pairs = packed_layers.FORM if self.packed else {}

        def pair(x, name, level):
            for index in (1, 2):
                x = conv_bn_relu(
                    x,
                    f"{name}{level}_conv{index}",
                    self.widths[level],
                    padding=pad,
                    norm_name=f"{name}{level}_bn{index}",
                    **({} if level else pairs),
                )
            return x

        def up(x, name, features, in_pairs):
            if self.upsampling == "transposed":
                if in_pairs:
                    doubled = packed_layers.Doubled
                    return doubled(features, dtype=self.dtype, name=name)(x)
                return layers.ConvTranspose(
                    features, size=2, stride=2, dtype=self.dtype, name=name
                )(x)
            size = 2 * x.shape[1], 2 * x.shape[2]
            if self.upsampling == "nearest":
                x = resize.resize_nearest(x, size)
            else:
                x = resize.resize_bilinear(x, size, align_corners=False)
                if self.padding == "valid":
                    # The outer rows repeat the border instead of interpolating.
                    x = x[:, 1:-1, 1:-1]
            x = layers.Conv(features, padding=pad, dtype=self.dtype, name=name)(x)
            return packed.pack(x) if in_pairs else x

        def joined(x, skip, crop):
            """The maps that the first convolution of a decoder level reads."""
            if isinstance(x, packed.Packed):
                size = x.pairs.shape[1], x.width
                skip = packed.crop(skip, (crop, crop), size)
                return [jax.tree.map(nn.relu, x), skip] if released else [skip, x]
            skip = skip[:, crop : crop + x.shape[1], crop : crop + x.shape[2]]
            both = [nn.relu(x), skip] if released else [skip, x]
            return both if self.packed else jnp.concatenate(both, axis=-1)

        def unpacked(x):
            return packed.unpack(x) if isinstance(x, packed.Packed) else x

        endpoints, skips = {}, []
        x: Any = image.normalize(images, self.image_stats, self.dtype)
        for level in range(depth):
            if level == 1 and self.packed:
                x = packed.max_pool(x)
            elif level:
                x = pool.max_pool(x, 2, stride=2)
            x = pair(x, "enc", level)
            if level >= depth - 2:
                x = Dropout(self.dropout, deterministic=not train)(unpacked(x))
                if level == 0 and self.packed:
                    x = packed.pack(x)
            skips.append(x)
            endpoints[f"enc{level}"] = unpacked(x)
        for level in reversed(range(depth - 1)):
            # The released network's last up-convolution keeps the channels below.
            wide = self.widths[1 if released and level == 0 else level]
            x = up(x, f"dec{level}_up", wide, self.packed and level == 0)
            x = pair(joined(x, skips[level], crops[level]), "dec", level)
            endpoints[f"dec{level}"] = unpacked(x)
        if isinstance(x, packed.Packed):
            head = packed_layers.Conv(self.num_classes, 1, name="head")
            return packed.unpack(head([x])), endpoints
        return layers.Conv(self.num_classes, 1, name="head")(x), endpoints
