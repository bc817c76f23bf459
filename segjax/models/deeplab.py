"""DeepLab (Chen et al., ICLR 2015) and DeepLab v2 (Chen et al., TPAMI 2018).

The fields of DeepLab are what tells its published networks apart, which are rows of
segjax/published.py. Choices where the papers and the authors' networks differ or are
silent:

* v1 describes its multi-scale features as concatenated in front of the classifier;
  the networks sum one classifier per feature, which is the same.
* The first network pools 2x2, later ones 3x3 (`pool_kernel`), which is what puts the
  locations of the map on pixels 8i. The field-of-view table varies fc6 only, so its
  rows up to LargeFOV get the poolings of the first. The average pooling behind pool5 is
  LargeFOV's only.
* v2 shows losses on the fused scores and on every scale. The network trains scale 0.5
  at its own coarser locations, and the others at those of the fused map:
  `scale_logits`.
* The ResNet is the Caffe one (strides in 1x1 convolutions, new rate in a stage's first
  block too); its batch normalization was frozen in training (`frozen_bn`).
"""

import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import backbones, layers, network, vgg
from segjax.models.dropout import Dropout
from segjax.ops import geometry, image, pool, resize

# Where the multi-scale features branch off.
_SIDES = ("image", "pool1", "pool2", "pool3", "pool4")


# Gaussian of deviation 0.01, for class scores.
_score_init = nn.initializers.normal(0.01)


class Head(nn.Module):
    """Features [N, h, w, C] -> class scores [N, h, w, K], float32.

    The sum over branches, one per rate: fc6 (kernel x kernel at that rate), fc7 and
    fc8 (1x1) with dropout in between or, where `channels` is 0, one convolution fc1.
    Several branches are numbered: fc6_1, fc6_2 ..
    """

    num_classes: int
    rates: tuple[int, ...]
    kernel: int
    channels: int
    dropout: float
    norm: str
    bn_momentum: float
    bn_unbiased: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, train_norm: bool) -> jax.Array:
        def score(x, name, size, padding=0, rate=1):
            return layers.Conv(
                self.num_classes,
                size,
                padding=padding,
                dilation=rate,
                kernel_init=_score_init,
                name=name,
            )(x)

        conv_bn_relu = layers.bind_conv_bn_relu(self, train_norm)

        def hidden(x, name, size, padding=0, rate=1):
            window = dict(padding=padding, dilation=rate)
            x = conv_bn_relu(x, name, self.channels, size, **window)
            return Dropout(self.dropout, deterministic=not train)(x)

        branches = []
        for index, rate in enumerate(self.rates, start=1):
            suffix = f"_{index}" if len(self.rates) > 1 else ""
            wide = self.kernel, rate * (self.kernel - 1) // 2, rate
            if self.channels:
                y = hidden(x, f"fc6{suffix}", *wide)
                y = hidden(y, f"fc7{suffix}", 1)
                branches.append(score(y, f"fc8{suffix}", 1))
            else:
                branches.append(score(x, f"fc1{suffix}", *wide))
        return functools.reduce(jnp.add, branches)


class SideBranches(nn.Module):
    """The multi-scale features of v1: maps of the trunk -> class scores [N, h, w, K].

    Every map passes 3x3 (strided to the locations of the scores), 1x1 and 1x1
    convolutions {map}_ms1 .. {map}_ms3; the results are summed.
    """

    num_classes: int
    channels: int
    norm: str
    bn_momentum: float
    bn_unbiased: bool
    dtype: str

    @nn.compact
    def __call__(
        self, maps: dict[str, tuple[jax.Array, int]], train_norm: bool
    ) -> jax.Array:
        conv_bn_relu = layers.bind_conv_bn_relu(self, train_norm)
        branches = []
        for name, (x, stride) in maps.items():
            x = conv_bn_relu(x, f"{name}_ms1", self.channels, stride=stride, padding=1)
            x = conv_bn_relu(x, f"{name}_ms2", self.channels, 1)
            score = layers.Conv(
                self.num_classes, 1, kernel_init=_score_init, name=f"{name}_ms3"
            )
            branches.append(score(x))
        return functools.reduce(jnp.add, branches)


class DeepLab(nn.Module):
    """Images [N, H, W, 3] of any size -> logits [N, H, W, K].

    Images are extended at the bottom and right by the mean color until locations lie on
    both ends (sides 8k + 1), and scores are interpolated from their locations.
    Kernels of the trunk start He-normal; the papers start it from ImageNet weights.

    Attributes:
      num_classes: K.
      backbone: "resnet101" or another of backbones.DILATED.
      stage_sizes: blocks per stage of the ResNet, 0 for none; () takes the backbone's.
      width: channels of the backbone's first layer (64); not of VGG16.
      stem, stride_in_1x1, first_block_dilation: see resnet.ResNet.
      packed: computes the stem of a ResNet on pairs of pixels, for TPUs: see
        ops/packed.py. The same parameters, and the same scores but for rounding.
      widths: channels of the five stages of VGG16.
      pool_kernel: of VGG16's first four poolings: 3, or 2 (the first network).
      average_pool: adds the 3x3 average pooling pool5a behind VGG16's pool5.
      output_stride: 8 (the papers), 16 or 32. The rates of fc6 are not adapted.
      rates: dilation of the head's branches, one each: (12,) is LargeFOV,
        (6, 12, 18, 24) is ASPP-L. In locations of the map at the output stride.
      fc6_kernel: side of the branches' first convolution.
      fc6_channels: of the branches' hidden layers fc6 and fc7; 0: none, the branches
        are one convolution to the scores (v2's ResNet).
      side_branches: v1's multi-scale features: scores of the image and pool1 .. pool4
        are added (VGG16 with `pool_kernel` 3).
      side_channels: of their hidden layers.
      scales: of the image; all go through the network, their scores are fused by the
        maximum. Must contain 1.0.
      half_pixel: resizes the image to its scales, and all scores, with half-pixel
        centers (deeplab-pytorch) instead of aligned corners (Caffe). Then the image is
        not extended, the pooling behind the stem keeps an incomplete last window, and
        all scales are interpolated to the locations of scale 1.
      dropout: rate after fc6 and fc7.
      norm: "none" (the papers) or "batch", for training from scratch; with a ResNet,
        in fc6 and fc7 only.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      frozen_bn: training uses and keeps the running statistics, as the papers do with
        their pretrained ResNet. To keep scale and offset too, set their learning rate
        to zero: optim.lr_mult=("bn=0",).
      image_stats: see ops/image.py.
      dtype: compute type; class scores are computed in float32.

    Endpoints: those of the backbone at scale 1, pool5a, scores [N, h, w, K] (fused, at
    the output stride) and, with several scales, scale_logits: a list in the order of
    `scales`. Entry i is compared with the labels at multiples of `scale_strides[i]`
    pixels, by a loss of the same weight as that of `scores` with the labels at
    multiples of `output_stride`.

    Raises:
      UserError: a bad field value.
    """

    num_classes: int
    backbone: str = "resnet101"
    stage_sizes: tuple[int, ...] = ()
    width: int = 64
    stem: str = "plain"
    packed: bool = False
    stride_in_1x1: bool = True
    first_block_dilation: bool = True
    widths: tuple[int, ...] = vgg.WIDTHS
    pool_kernel: int = 3
    average_pool: bool = False
    output_stride: int = 8
    rates: tuple[int, ...] = (6, 12, 18, 24)
    fc6_kernel: int = 3
    fc6_channels: int = 0
    side_branches: bool = False
    side_channels: int = 128
    scales: tuple[float, ...] = (1.0,)
    half_pixel: bool = False
    dropout: float = 0.5
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    frozen_bn: bool = False
    image_stats: str = "caffe"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        backbones.check(self, backbones.DILATED)
        layers.check_choice(self, "pool_kernel", (2, 3))
        layers.check_positive(self, "rates", minimum=1)
        layers.check_positive(self, "widths", length=len(vgg.STAGES))
        layers.check_integers(self, "fc6_kernel", "side_channels")
        layers.check_integers(self, "fc6_channels", minimum=0)
        odd = [rate for rate in self.rates if rate * (self.fc6_kernel - 1) % 2]
        if odd:
            raise UserError(
                f"{layers.flag(self, 'rates')}: "
                f"{odd[0]} with an fc6_kernel of {self.fc6_kernel} "
                f"cannot be padded evenly; expected even rates or an odd kernel"
            )
        if 1 not in self.scales or min(self.scales) <= 0:
            raise UserError(
                f"{layers.flag(self, 'scales')} "
                f"is {self.scales}, expected positive factors, one of "
                f"them 1.0"
            )
        if self.side_branches and (self.backbone, self.pool_kernel) != ("vgg16", 3):
            raise UserError(
                f"{layers.flag(self, 'side_branches')}: "
                f"backbone {self.backbone!r} with pool_kernel "
                f"{self.pool_kernel}, expected 'vgg16' with 3"
            )
        if self.average_pool and self.backbone != "vgg16":
            raise UserError(
                f"{layers.flag(self, 'average_pool')} is for the backbone 'vgg16', not "
                f"{self.backbone!r}"
            )
        layers.check_choice(self, "packed", (False, True))
        layers.check_choice(self, "half_pixel", (False, True))
        if self.half_pixel and not self.backbone.startswith("resnet"):
            raise UserError(
                f"{layers.flag(self, 'half_pixel')} "
                f"is for ResNets, not {self.backbone!r}"
            )
        layers.check_common(self)
        super().__post_init__()

    @property
    def tiling(self) -> geometry.Tiling:
        """Any size in, the same size out."""
        return geometry.ANY_SIZE

    @property
    def grid(self) -> geometry.Grid:
        """Where the locations of the scores lie in the image."""
        return backbones.build_dilated(self, parent=None).grid

    @property
    def coarse_scores(self) -> network.CoarseScores:
        """The labels of DeepLab's networks: those at or behind the locations' centers.

        Multiples of the output stride and, with 2x2 poolings, one pixel further.
        """
        start = self.grid.start
        return network.CoarseScores(
            self.output_stride, start, math.ceil(start), self.scale_strides
        )

    @property
    def scale_strides(self) -> tuple[int, ...]:
        """Pixels between the locations of each entry of the endpoint scale_logits.

        The locations of a scale 1 / n coincide with every n-th one of scale 1, so its
        scores are not interpolated; those of other scales are, to the locations of
        scale 1.
        """
        strides = []
        for scale in map(_fraction, self.scales):
            resized = self.half_pixel or scale.numerator > 1
            factor = 1 if resized else scale.denominator
            strides.append(self.output_stride * factor)
        return tuple(strides)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        train_norm = train and not self.frozen_bn
        norms: dict[str, Any] = dict(
            bn_momentum=self.bn_momentum, bn_unbiased=self.bn_unbiased, dtype=self.dtype
        )
        step = self.output_stride
        options = {"ceil_pool": True} if self.half_pixel else {}
        backbone = backbones.build_dilated(self, **options)
        last = backbone.remainder
        head = Head(
            num_classes=self.num_classes,
            rates=self.rates,
            kernel=self.fc6_kernel,
            channels=self.fc6_channels,
            dropout=self.dropout,
            norm=self.norm,
            **norms,
            name="head",
        )
        sides = SideBranches(
            num_classes=self.num_classes,
            channels=self.side_channels,
            norm=self.norm,
            **norms,
            name="sides",
        )

        def run(x):
            if not self.half_pixel:
                missing = [(last - side) % step for side in x.shape[1:3]]
                x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
            endpoints = backbone(x, train_norm)
            features = endpoints[backbones.features(self)]
            if self.average_pool:
                features = pool.avg_pool(features, 3, stride=1, padding=1)
                endpoints["pool5a"] = features
            scores = head(features, train, train_norm)
            if self.side_branches:
                maps = {"image": x, **endpoints}
                strides = [max(step // 2**i, 1) for i in range(len(_SIDES))]
                maps = {n: (maps[n], s) for n, s in zip(_SIDES, strides, strict=True)}
                scores += sides(maps, train_norm)
            endpoints["scores"] = scores
            return endpoints

        x = image.normalize(images, self.image_stats, self.dtype)
        endpoints = run(x)
        grid, pixels = self.grid, geometry.Grid()
        fused = endpoints["scores"]
        map_size = geometry.sides(fused)
        scale_logits = []
        for scale, stride in zip(map(_fraction, self.scales), self.scale_strides):
            scores = endpoints["scores"]
            if scale != 1 and self.half_pixel:
                height, width = (int(side * scale) for side in x.shape[1:3])
                scaled = geometry.Grid(1 / scale, (1 / scale - 1) / 2)
                resized = resize.interpolate(
                    x, pixels, target=scaled, size=(height, width)
                )
                raw = run(resized)["scores"]
                scores = resize.resize_bilinear(raw, map_size, align_corners=False)
                fused = pool.maximum(fused, scores)
            elif scale != 1:
                height, width = (int((side - 1) * scale) + 1 for side in x.shape[1:3])
                scaled = geometry.Grid(1 / scale)
                resized = resize.interpolate(
                    x, pixels, target=scaled, size=(height, width)
                )
                raw = run(resized)["scores"]
                scaled = geometry.Grid(grid.step / scale, grid.start / scale)
                scores = resize.interpolate(raw, scaled, target=grid, size=map_size)
                fused = pool.maximum(fused, scores)
            scale_logits.append(scores if stride == step else raw)
        endpoints["scores"] = fused
        if len(self.scales) > 1:
            endpoints["scale_logits"] = scale_logits
        size = geometry.sides(images)
        if self.half_pixel:
            return resize.resize_bilinear(fused, size, align_corners=False), endpoints
        return resize.interpolate(fused, grid, target=pixels, size=size), endpoints


def _fraction(scale: float) -> Fraction:
    """0.75 -> 3/4; sizes and positions are exact then."""
    return Fraction(scale).limit_denominator(1000)
