"""FusionNet (Quan, Hildebrand, Jeong, arXiv 1612.05360, 2016).

A U-Net of padded convolutions with a residual block at every level, whose skips are
summed instead of concatenated. The authors' released network is not the paper's, and
differs in five places; ``layout`` and two other fields choose:

  ===================  ==========================  ==================================
  ..                   layout="paper"              layout="released"
  ===================  ==========================  ==================================
  residual block       conv, norm, ReLU; no ReLU   norm, conv, ReLU
                       behind its last conv
  normalized           every convolution           those of the residual blocks
  up path              transposed convolution      convolution that halves the
                       that halves the channels    channels, transposed convolution
  ``residual_depth``   3 (the default)             2
  ``dropout``          0 (the default)             0.25
  ===================  ==========================  ==================================

The paper's table does not say what is normalized: there the first author's later port
is followed. Neither of two further habits of the released network is kept: its batch
normalization runs over the image rows, by mistake of an axis (channels here), and its
head is one sigmoid with a mean absolute error (K classes here).
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import layers
from segjax.models.dropout import Dropout
from segjax.ops import geometry, image, pool, resize

# He's for a 3x3 transposed convolution of stride 2, where an output has (3 / 2)^2
# incoming locations on average.
_he_normal_up = nn.initializers.variance_scaling(
    2.0 / 1.5**2, "fan_in", "normal", batch_axis=(0, 1)
)


class FusionNet(nn.Module):
    """Images [N, H, W, C] -> logits [N, H, W, K]; sides are multiples of `tiling.step`.

    Levels are numbered as in the paper: down1, down2 .. of the encoder, `bridge`, and
    .. up2, up1 of the decoder. Each is {level}_conv1, the residual block {level}_res1,
    {level}_res2 .. and {level}_conv2; up levels begin with {level}_up (and
    {level}_reduce in the released layout). The norm of layer x is x_bn. Biases are
    kept next to norms, as the published networks count them.

    Attributes:
      num_classes: K.
      widths: channels of the levels, the last one the bridge's; their number is the
        depth (5 in the paper).
      residual_depth: convolutions of a residual block: 3 (the paper), 2 (released).
      layout: "paper" or "released", see the module.
      merge: how the encoder's map, taken before pooling, joins the decoder: "sum" (the
        paper) or "concat" (U-Net's, for comparison). A released residual block then
        projects its shortcut with {level}_shortcut, a 1x1 convolution and ReLU.
      chain: number of networks in series, each with its own weights, the next one
        reading the class probabilities of the one before. Layers and endpoints of the
        second and later ones begin with net2_, net3_ ..; those of the first one do not,
        so that a trained network is the beginning of a longer chain.
      upsampling: "transposed" 3x3 convolution of stride 2 (the paper), or "nearest" or
        "bilinear" resizing by 2 and a 3x3 convolution; equal numbers of parameters.
        The transposed one shifts by half a pixel (output 2i + a from location i, a =
        0..2, the last one cut), the two others are aligned.
      norm: "batch" or "none".
      dropout: rate at the end of the down levels (and so in their skips), in the bridge
        before its last convolution, and behind the merges.
      head_size: of the last convolution, 1 or 3.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py; "unit" takes any number of channels.
      dtype: compute type; class scores are computed in float32.

    Endpoints: down1, down2 .. (before pooling), bridge, .. up2, up1 and, of a chain,
    the logits of the networks but the last one, aux_logits_1, aux_logits_2 ..

    Raises:
      UserError: a bad field value, or an image side that is not valid; names the
        nearest valid sides.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    residual_depth: int = 3
    layout: str = "paper"
    merge: str = "sum"
    chain: int = 1
    upsampling: str = "transposed"
    norm: str = "batch"
    dropout: float = 0.0
    head_size: int = 1
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "unit"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_positive(self, "widths", minimum=1)
        layers.check_integers(self, "residual_depth", "chain")
        layers.check_choice(self, "layout", ("paper", "released"))
        layers.check_choice(self, "merge", ("sum", "concat"))
        layers.check_choice(self, "upsampling", ("transposed", "nearest", "bilinear"))
        layers.check_choice(self, "head_size", (1, 3))
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
        geometry.check_sides(self.tiling, geometry.sides(images), model="FusionNet")
        released = self.layout == "released"
        normalized = self.norm == "batch"
        conv_bn_relu = functools.partial(
            layers.bind_conv_bn_relu(self, train),
            padding=1,
            keep_bias=True,
            batch=normalized and not released,
        )

        def norm(x, name):
            if not normalized:
                return x
            return layers.batch_norm(
                x,
                f"{name}_bn",
                train=train,
                momentum=self.bn_momentum,
                unbiased=self.bn_unbiased,
                dtype=self.dtype,
            )

        def residual(x, name, features):
            shortcut = x
            if x.shape[-1] != features:
                plain = dict(padding=0, batch=False)
                shortcut = conv_bn_relu(x, f"{name}_shortcut", features, 1, **plain)
            for index in range(1, self.residual_depth + 1):
                layer, last = f"{name}_res{index}", index == self.residual_depth
                if released:
                    x = conv_bn_relu(norm(x, layer), layer, features)
                else:
                    x = conv_bn_relu(x, layer, features, relu=not last)
            return shortcut + x

        def drop(x):
            return Dropout(self.dropout, deterministic=not train)(x)

        def up(x, name, features):
            if released:
                x = conv_bn_relu(x, f"{name}_reduce", features)
            name = f"{name}_up"
            size = 2 * x.shape[1], 2 * x.shape[2]
            if self.upsampling == "nearest":
                return conv_bn_relu(resize.resize_nearest(x, size), name, features)
            if self.upsampling == "bilinear":
                x = resize.resize_bilinear(x, size, align_corners=False)
                return conv_bn_relu(x, name, features)
            x = layers.ConvTranspose(
                features,
                size=3,
                stride=2,
                kernel_init=_he_normal_up,
                dtype=self.dtype,
                name=name,
            )(x)[:, : size[0], : size[1]]
            return nn.relu(x if released else norm(x, name))

        def network(x, prefix, endpoints):
            skips = []
            for level, features in enumerate(self.widths[:-1], start=1):
                name = f"{prefix}down{level}"
                x = conv_bn_relu(x, f"{name}_conv1", features)
                x = residual(x, name, features)
                x = endpoints[name] = drop(conv_bn_relu(x, f"{name}_conv2", features))
                skips.append(x)
                x = pool.max_pool(x, 2, stride=2)
            name, features = f"{prefix}bridge", self.widths[-1]
            x = conv_bn_relu(x, f"{name}_conv1", features)
            x = drop(residual(x, name, features))
            x = endpoints[name] = conv_bn_relu(x, f"{name}_conv2", features)
            for level in reversed(range(1, len(self.widths))):
                name, features = f"{prefix}up{level}", self.widths[level - 1]
                x, skip = up(x, name, features), skips[level - 1]
                if self.merge == "sum":
                    x = drop(x + skip)
                else:
                    x = drop(jnp.concatenate([skip, x], axis=-1))
                if not released:
                    x = conv_bn_relu(x, f"{name}_conv1", features)
                x = residual(x, name, features)
                x = endpoints[name] = conv_bn_relu(x, f"{name}_conv2", features)
            return layers.Conv(
                self.num_classes,
                self.head_size,
                padding=self.head_size // 2,
                kernel_init=layers.score_normal,
                name=f"{prefix}head",
            )(x)

        endpoints: dict[str, jax.Array] = {}
        x = image.normalize(images, self.image_stats, self.dtype)
        logits = network(x, "", endpoints)
        for number in range(2, self.chain + 1):
            endpoints[f"aux_logits_{number - 1}"] = logits
            logits = network(nn.softmax(logits), f"net{number}_", endpoints)
        return logits, endpoints
