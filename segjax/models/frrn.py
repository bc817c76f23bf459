"""FRRN A and B (Pohlen, Hermans, Mathias, Leibe, CVPR 2017).

Two streams: the *pooling stream* is an ordinary encoder-decoder, the *residual stream*
stays at full resolution and is only ever added to. Every FRRU reads both and feeds
both.

Where the authors' code is more specific than the paper, the code is followed: residual
units and the split have no ReLU at their end, the residual stream is written by a
nearest unpooling and the pooling stream unpooled bilinearly. That bilinear rule puts
location i on pixel 2i, half a location off the pooled windows; ``unpooling="bilinear"``
is the aligned one. The code divides images by 255 and no more: behind the normalization
of conv1 that equals ``image_stats="unit"`` but for the value of the zero padding. It
normalizes with an eps of 1e-4 (1e-5 here).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import layers
from segjax.ops import geometry, image, pool, resize


class Stages(NamedTuple):
    """One value per stage of FRRUs: their number, their channels, their scale."""

    units: tuple[int, ...]
    channels: tuple[int, ...]
    scales: tuple[int, ...]


# The authors' code; 17.7 and 24.8 million parameters, as the paper says.
VARIANTS = {
    "a": Stages(
        units=(3, 4, 2, 2, 2, 2, 2),
        channels=(96, 192, 384, 384, 192, 192, 96),
        scales=(2, 4, 8, 16, 8, 4, 2),
    ),
    "b": Stages(
        units=(3, 4, 2, 2, 2, 2, 2, 2, 2),
        channels=(96, 192, 384, 384, 384, 192, 192, 192, 96),
        scales=(2, 4, 8, 16, 32, 16, 8, 4, 2),
    ),
}

UNPOOLING = ("bilinear_origin", "bilinear", "nearest")

# He et al. 2015 with a uniform distribution, before a ReLU and elsewhere (the code's).
_he_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
_linear_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def unpool(x: jax.Array, ratio: int, rule: str) -> jax.Array:
    """Enlarges `x` [N, H, W, C] by the whole factor `ratio`.

    Args:
      rule: "bilinear_origin": location i lies on output ratio * i, and what lies beyond
        the last location repeats it (Theano's bilinear upsampling, as in the authors'
        code); "bilinear": half-pixel centers; "nearest".
    """
    size = x.shape[1] * ratio, x.shape[2] * ratio
    if rule == "nearest":
        return resize.resize_nearest(x, size)
    if rule == "bilinear":
        return resize.resize_bilinear(x, size, align_corners=False)
    for axis in (1, 2):
        side = x.shape[axis]
        last = jax.lax.slice_in_dim(x, side - 1, side, axis=axis)
        after = jax.lax.slice_in_dim(x, 1, side, axis=axis)
        after = jnp.concatenate([after, last], axis)
        parts = [x + (after - x) * (k / ratio) for k in range(ratio)]
        shape = list(x.shape)
        shape[axis] *= ratio
        x = jnp.stack(parts, axis + 1).reshape(shape)
    return x


def max_pool(x: jax.Array, size: int) -> jax.Array:
    """Maximum of the size x size blocks of `x` [N, H, W, C]; `size` divides H and W.

    ops.pool takes a slice per position in the window and axis, which for the many 32x32
    windows here triples the time to compile.
    """
    n, h, w, c = x.shape
    x = pool.max_over_axis(x.reshape(n, h // size, size, w, c), 2)
    x = pool.max_over_axis(x.reshape(n, h // size, w // size, size, c), 3)
    return x.reshape(n, h // size, w // size, c)


def _bind_layers(model: nn.Module, train: bool) -> Callable[..., jax.Array]:
    """A function that makes conv{suffix}, bn{suffix} and, with `relu`, a ReLU."""
    conv_bn_relu = layers.bind_conv_bn_relu(model, train)

    def unit(x, suffix, channels, size=3, relu=True):
        return conv_bn_relu(
            x,
            f"conv{suffix}",
            channels,
            size,
            padding=size // 2,
            kernel_init=_he_uniform if relu else _linear_uniform,
            norm_name=f"bn{suffix}",
            relu=relu,
        )

    return unit


class RU(nn.Module):
    """Residual unit: x + conv-norm(conv-norm-ReLU(x)); no ReLU behind the sum.

    Where `x` has other than `channels` channels it is projected by the 1x1 `project`.
    """

    channels: int
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        unit = _bind_layers(self, train)
        y = unit(unit(x, "1", self.channels), "2", self.channels, relu=False)
        if x.shape[-1] != self.channels:
            x = layers.Conv(
                self.channels,
                1,
                use_bias=False,
                kernel_init=_linear_uniform,
                dtype=self.dtype,
                name="project",
            )(x)
        return x + y


class FRRU(nn.Module):
    """Full-resolution residual unit: (y, z) -> (y', z').

    The residual stream z [N, H, W, R] is max-pooled by `scale` to the size of the
    pooling stream y [N, H / scale, W / scale, C] and joined behind it. Two
    convolutions make y', whose 1x1 convolution `residual` (with bias) is unpooled
    (nearest) and added to z.
    """

    channels: int
    scale: int
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, y: jax.Array, z: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        unit = _bind_layers(self, train)
        y = jnp.concatenate([y, max_pool(z, self.scale)], axis=-1)
        y = unit(unit(y, "1", self.channels), "2", self.channels)
        residual = layers.Conv(
            z.shape[-1],
            1,
            kernel_init=_linear_uniform,
            dtype=self.dtype,
            name="residual",
        )(y)
        return y, z + resize.resize_nearest(residual, geometry.sides(z))


class FRRN(nn.Module):
    """Images [N, H, W, C] -> logits [N, H, W, K]; sides are multiples of `tiling.step`.

    Layers: conv1 (5x5) and bn1; residual units ru1, ru2 ..; conv_split and bn_split,
    which start the residual stream; frru{stage}_{unit}; behind the merge of the two
    streams the residual units ru_out1, ru_out2 .. and the 1x1 `classifier`.

    Attributes:
      num_classes: K.
      variant: "a" (the paper's for images reduced 4 times) or "b" (for 2 times).
      stage_units, stage_channels, stage_scales: FRRUs per stage, their channels, and
        the factor by which the pooling stream is then smaller than the image; one value
        per stage, () takes the variant's. From a stage to the next, and before the
        first and behind the last one (scale 1), the pooling stream is max-pooled or
        unpooled by the ratio of the scales, which must be whole.
      width: channels of conv1 and of the residual units.
      residual_channels: of the residual stream.
      first_units, last_units: residual units before the split and behind the merge.
      unpooling: of the pooling stream: "bilinear_origin" (the authors' code),
        "bilinear" or "nearest", see :func:`unpool`.
      remat: recomputes the insides of every unit in the backward pass instead of
        storing them: less memory, more time, the same numbers. (The authors trained in
        blocks for that reason.)
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py; "unit" takes any number of channels.
      dtype: compute type; class scores are computed in float32.

    Endpoints: pooling0 and residual0, the streams at the split; pooling1, residual1 ..
    behind each stage; merged, the concatenation [pooling, residual] at full resolution.

    Raises:
      UserError: a bad field value, or an image side that is not valid; names the
        nearest valid sides.
    """

    num_classes: int
    variant: str = "a"
    stage_units: tuple[int, ...] = ()
    stage_channels: tuple[int, ...] = ()
    stage_scales: tuple[int, ...] = ()
    width: int = 48
    residual_channels: int = 32
    first_units: int = 3
    last_units: int = 3
    unpooling: str = "bilinear_origin"
    remat: bool = False
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "unit"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_choice(self, "variant", tuple(VARIANTS))
        layers.check_choice(self, "unpooling", UNPOOLING)
        for field in ("stage_units", "stage_channels", "stage_scales"):
            layers.check_positive(self, field)
        lengths = [len(values) for values in self.stages]
        if len(set(lengths)) > 1:
            raise UserError(
                f"{layers.flag(self, 'stage_units')}, "
                f"stage_channels and stage_scales have {lengths} values "
                f"(where empty, those of variant {self.variant!r}), expected as many "
                f"of each"
            )
        scales = 1, *self.stages.scales, 1
        for one, other in zip(scales[:-1], scales[1:], strict=True):
            if max(one, other) % min(one, other):
                raise UserError(
                    f"{layers.flag(self, 'stage_scales')} "
                    f"is {scales[1:-1]}, expected that of two "
                    f"successive scales one divides the other, unlike {one} and {other}"
                )
        layers.check_integers(self, "width", "residual_channels")
        layers.check_integers(self, "first_units", "last_units", minimum=0)
        layers.check_common(self)
        super().__post_init__()

    @property
    def stages(self) -> Stages:
        """The stages, with those of the variant in the place of empty fields."""
        default = VARIANTS[self.variant]
        return Stages(
            tuple(self.stage_units) or default.units,
            tuple(self.stage_channels) or default.channels,
            tuple(self.stage_scales) or default.scales,
        )

    coarse_scores = None

    @property
    def tiling(self) -> geometry.Tiling:
        """Sides that all scales divide; the output is as large as the image."""
        step = math.lcm(*self.stages.scales)
        return geometry.Tiling(step, offset=0, margin=0, minimum=step)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        geometry.check_sides(self.tiling, geometry.sides(images), model="FRRN")
        options: dict[str, Any] = {
            "bn_momentum": self.bn_momentum,
            "bn_unbiased": self.bn_unbiased,
            "dtype": self.dtype,
        }
        ru, frru = RU, FRRU
        if self.remat:  # `train` is the argument that stays a Python value
            ru = nn.remat(RU, static_argnums=(2,))
            frru = nn.remat(FRRU, static_argnums=(3,))

        def rescale(y, scale, target):
            if target > scale:
                return max_pool(y, target // scale)
            if target < scale:
                return unpool(y, scale // target, self.unpooling)
            return y

        x = image.normalize(images, self.image_stats, self.dtype)
        unit = _bind_layers(self, train)
        y = unit(x, "1", self.width, size=5)
        for index in range(1, self.first_units + 1):
            y = ru(self.width, **options, name=f"ru{index}")(y, train)
        z = unit(y, "_split", self.residual_channels, size=1, relu=False)
        endpoints = {"pooling0": y, "residual0": z}

        scale = 1
        for stage, (units, channels, target) in enumerate(
            zip(*self.stages, strict=True), start=1
        ):
            y, scale = rescale(y, scale, target), target
            for index in range(1, units + 1):
                name = f"frru{stage}_{index}"
                y, z = frru(channels, scale, **options, name=name)(y, z, train)
            endpoints[f"pooling{stage}"], endpoints[f"residual{stage}"] = y, z

        x = jnp.concatenate([rescale(y, scale, 1), z], axis=-1)
        endpoints["merged"] = x
        for index in range(1, self.last_units + 1):
            x = ru(self.width, **options, name=f"ru_out{index}")(x, train)
        logits = layers.Conv(
            self.num_classes, 1, kernel_init=_linear_uniform, name="classifier"
        )(x)
        return logits, endpoints
