"""Dilated convolutions (Yu and Koltun, ICLR 2016): front end and context module.

Where the paper and the authors' networks differ, or their networks among themselves:

* Labels and upsampling. The VOC, CamVid and KITTI scripts put location i of the
  stride-8 map on pixel 8i and interpolate probabilities; the Cityscapes network
  upsamples scores by a fixed transposed convolution, which puts it on pixel 8i + 3.5,
  the center of its receptive field. Field `upsampling`; the default is the one that is
  centered.
* Context padding. The VOC network pads the context module's input once, the others
  every layer: different values near the border. Field `context_padding`.
* The Basic identity initialization is without noise in the paper and with noise of
  deviation 0.01 in the code. Field `context_noise`.
* The authors subtract the mean of each data set: `image_stats` takes its numbers.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.models import layers, network, vgg
from segjax.models.backbone import dilate
from segjax.models.dropout import Dropout
from segjax.ops import conv, geometry, image, pool, resize

# Poolings 4 and 5 are removed; what follows them dilates by the strides it lost.
RATES = tuple(step.rate_before for step in dilate((2,) * 5, output_stride=8))
POOLS = ((2, 2, 0), (2, 2, 0), (2, 2, 0), (), ())
# Below this a probability counts as this much: its logarithm has a finite gradient.
_SMALLEST = 1e-20


def identity_init(groups: int, noise: float) -> nn.initializers.Initializer:
    """Identity of `groups` class maps, each in equally many channels (equation 5).

    The center tap from channel a to channel b is groups / c_out if the two belong to
    the same group, floor(a groups / c_in) = floor(b groups / c_out). All other entries
    are Gaussian of deviation `noise` times that.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        size, _, inputs, outputs = shape
        gain = groups / outputs
        kernel = noise * gain * jax.random.normal(key, shape, dtype)
        group_in = np.arange(inputs)[:, None] * groups // inputs
        group_out = np.arange(outputs)[None, :] * groups // outputs
        center = kernel[size // 2, size // 2]
        center = jnp.where(group_in == group_out, gain, center)
        return kernel.at[size // 2, size // 2].set(center)

    return init


class Context(nn.Module):
    """The context module: class scores [N, h, w, K] -> the same, and its maps.

    A 3x3 convolution, ReLU, per rate, and a 1x1 convolution without (table 1). Starts
    as the identity of non-negative scores.

    Attributes:
      form: "basic", K channels throughout, or "large", 2K channels for every unit of
        the largest rate so far (2K, 2K, 4K .. 32K, 32K in the paper).
      rates: one layer each.
      padding: "layers" pads zeros around every layer, "once" around the input.
      noise: see identity_init.
      dtype: compute type of the hidden layers.
    """

    form: str = "basic"
    rates: tuple[int, ...] = (1, 1, 2, 4, 8, 16, 1)
    padding: str = "layers"
    noise: float = 0.01
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        classes = x.shape[-1]
        init = identity_init(classes, self.noise)
        endpoints = {}
        if self.padding == "once":
            around = sum(self.rates)
            x = jnp.pad(x, ((0, 0), (around, around), (around, around), (0, 0)))
        largest = 1
        for index, rate in enumerate(self.rates, start=1):
            largest = max(largest, rate)
            x = layers.Conv(
                features=classes if self.form == "basic" else 2 * classes * largest,
                padding=rate if self.padding == "layers" else 0,
                dilation=rate,
                kernel_init=init,
                dtype=self.dtype,
                name=f"conv{index}",
            )(x)
            x = endpoints[f"ctx_conv{index}"] = nn.relu(x)
        x = layers.Conv(classes, 1, kernel_init=init, name="final")(x)
        return x, endpoints


class Dilation(nn.Module):
    """Images [N, H, W, 3] -> logits [N, h, w, K], the image's size if it is padded.

    The front end is a VGG16 without padding and without its last two poolings: it
    needs `margin(fc6_rate)` pixels (186) around what it predicts, at locations 8 pixels
    apart. Its class scores `final` feed the context module.

    Attributes:
      num_classes: K.
      context: "none" (front end alone), "basic" or "large", see Context.
      context_rates: dilation of each 3x3 layer of the context module.
      context_padding: "layers" or "once", see Context.
      context_noise: of the context module's initialization, relative to its taps.
      fc6_rate: dilation of the 7x7 layer fc6, 4 in the paper.
      padding: how images get their margin: "reflect" about the border pixels (the
        authors), "zero" (mean color), or "valid": not at all, so the logits are
        smaller than the image, whose sides are 4 mod 8 from 380 up. That is how the
        authors train: on crops of images that have been padded.
      upsampling: "deconv", a fixed bilinear 16x16 transposed convolution of stride 8
        of the scores (border pixels are not renormalized, as in Caffe), or "interp":
        interpolates the probabilities, location i on pixel 8i; the logits are
        logarithms.
      widths, fc_channels: channels of the trunk's five stages and of fc6 and fc7.
      dropout: rate after fc6 and fc7.
      norm: "none" (the paper, from ImageNet weights) or "batch", for training from
        scratch, in the front end.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py.
      dtype: compute type; class scores are computed in float32.

    Endpoints: those of the trunk, fc6, fc7, final (scores of the front end), ctx_conv1
    .. (hidden layers of the context module) and scores, the last scores at stride 8.
    With "interp" the authors train on ``labels[:, ::8, ::8]``, the pixels under the
    locations of `scores`, whose last row and column may lie beyond the image.

    Raises:
      UserError: a bad field value, or an image side that is not valid; names the
        nearest valid sides.
    """

    num_classes: int
    context: str = "basic"
    context_rates: tuple[int, ...] = (1, 1, 2, 4, 8, 16, 1)
    context_padding: str = "layers"
    context_noise: float = 0.01
    fc6_rate: int = 4
    padding: str = "reflect"
    upsampling: str = "deconv"
    widths: tuple[int, ...] = vgg.WIDTHS
    fc_channels: int = 4096
    dropout: float = 0.5
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "caffe"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_choice(self, "context", ("none", "basic", "large"))
        layers.check_positive(self, "context_rates")
        layers.check_choice(self, "context_padding", ("layers", "once"))
        layers.check_choice(self, "padding", ("reflect", "zero", "valid"))
        layers.check_choice(self, "upsampling", ("deconv", "interp"))
        layers.check_positive(self, "widths", length=len(vgg.STAGES))
        layers.check_integers(self, "fc6_rate", "fc_channels")
        layers.check_range(self, "context_noise", lowest=0, highest=1)
        layers.check_common(self)
        super().__post_init__()

    @property
    def grid(self) -> geometry.Grid:
        """Where the locations of the scores lie in the padded image."""
        trunk = vgg.DilatedVGG(RATES, POOLS, same=False, parent=None)
        return geometry.conv(trunk.grid, kernel=7, dilation=self.fc6_rate)

    @property
    def margin(self) -> int:
        """Pixels the front end loses on each side: 186 with the paper's fc6."""
        step = int(self.grid.step)
        upsampled = geometry.deconv(self.grid, 2 * step, stride=step, padding=step // 2)
        return geometry.crop_offset(
            geometry.Grid(),
            upsampled,
            source_name="the image",
            target_name="the logits",
        )

    @property
    def tiling(self) -> geometry.Tiling:
        """Any size; with "valid" padding only sides that the strides divide evenly."""
        if self.padding != "valid":
            return geometry.ANY_SIZE
        step, lost = int(self.grid.step), 2 * self.margin
        return geometry.Tiling(step, lost % step, self.margin, lost + step)

    @property
    def coarse_scores(self) -> network.CoarseScores:
        """With "deconv" the labels at or behind the centers of the receptive fields.

        The authors' scripts that interpolate ("interp") put location i on pixel 8i,
        whatever its receptive field.
        """
        centered = self.upsampling == "deconv"
        start = self.grid.start - self.margin if centered else Fraction(0)
        return network.CoarseScores(int(self.grid.step), start, math.ceil(start))

    def _pad(self, x: jax.Array, step: int) -> jax.Array:
        """Pads by the margin, and at the bottom and right to full steps."""
        widths = [(0, 0)]
        for side in x.shape[1:3]:
            locations = -(side // -step)
            if self.upsampling == "interp":  # up to one at or behind the last pixel
                locations = -((side - 1) // -step) + 1
            widths.append((self.margin, self.margin + locations * step - side))
        mode = "reflect" if self.padding == "reflect" else "constant"
        return jnp.pad(x, (*widths, (0, 0)), mode=mode)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        step = int(self.grid.step)
        x = image.normalize(images, self.image_stats, self.dtype)
        if self.padding == "valid":
            geometry.check_sides(self.tiling, geometry.sides(images), model="Dilation")
            height, width = geometry.sides(images)
            size = height - 2 * self.margin, width - 2 * self.margin
        else:
            size = geometry.sides(images)
            x = self._pad(x, step)
        endpoints = vgg.DilatedVGG(
            rates=RATES,
            pools=POOLS,
            same=False,
            widths=self.widths,
            norm=self.norm,
            bn_momentum=self.bn_momentum,
            bn_unbiased=self.bn_unbiased,
            dtype=self.dtype,
            name="backbone",
        )(x, train)
        x = endpoints["conv5_3"]
        conv_bn_relu = layers.bind_conv_bn_relu(self, train)
        for name, kernel, rate in (("fc6", 7, self.fc6_rate), ("fc7", 1, 1)):
            x = conv_bn_relu(x, name, self.fc_channels, kernel, dilation=rate)
            x = Dropout(self.dropout, deterministic=not train)(x)
            endpoints[name] = x
        scores = layers.Conv(
            self.num_classes,
            1,
            kernel_init=nn.initializers.normal(0.001),
            name="final",
        )(x)
        endpoints["final"] = scores
        if self.context != "none":
            scores, maps = Context(
                form=self.context,
                rates=self.context_rates,
                padding=self.context_padding,
                noise=self.context_noise,
                dtype=self.dtype,
                name="context",
            )(scores)
            endpoints.update(maps)
        endpoints["scores"] = scores

        if self.upsampling == "deconv":
            logits = conv.bilinear_upsample(
                scores, 2 * step, stride=step, offset=step // 2, crop=size
            )
        else:
            source, pixels = geometry.Grid(self.grid.step), geometry.Grid()  # i on 8i
            p = resize.interpolate(nn.softmax(scores), source, target=pixels, size=size)
            logits = jnp.log(pool.maximum(p, jnp.full_like(p, _SMALLEST)))
        return logits, endpoints
