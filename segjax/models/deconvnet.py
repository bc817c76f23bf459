"""DeconvNet (Noh, Hong, Han, ICCV 2015): a VGG16 and its mirror image that unpools.

Where the paper is silent, the authors' networks decide: convolutions keep their biases
in front of the batch normalization (redundant, but counted in the published 252M), its
epsilon is 1e-9 and its offset starts at 0.001, the decoder's kernels start Gaussian of
deviation 0.01. The authors keep no running statistics: they average those of 501
batches after training and fold them into the weights. Here running averages take their
place, as everywhere in this library.
"""

import jax
from flax import linen as nn

from segjax.models import layers, vgg
from segjax.ops import geometry, image, unpool


class DeconvNet(nn.Module):
    """Images [N, H, W, 3] -> logits [N, H, W, K]; sides are multiples of 32.

    Every convolution and transposed convolution but the last is followed by batch
    normalization and a ReLU. There is no dropout. The last transposed convolution of
    a decoder stage already has the channels of the stage above.

    Attributes:
      num_classes: K.
      widths: channels of the five stages.
      fc_channels: channels of fc6 and fc7.
      fc6_kernel: side of fc6 and of its transpose, 7. The smallest image has
        32 * fc6_kernel pixels, 224 in the paper.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      bn_epsilon: 1e-9 (the authors).
      image_stats: see ops/image.py.
      dtype: compute type; class scores are computed in float32.

    Endpoints: conv1_2, pool1 .. conv5_3, pool5, fc6, fc7, fc6_deconv, and unpool5,
    deconv5_3 .. unpool1, deconv1_2.

    fc6 and fc7 of a single 224-px image are one location, which has no variance to
    normalize by in training: the running statistics are used there instead.

    Raises:
      UserError: a bad field value, or an image side that is not valid; names the
        nearest valid sides.
    """

    num_classes: int
    widths: tuple[int, ...] = vgg.WIDTHS
    fc_channels: int = 4096
    fc6_kernel: int = 7
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    bn_epsilon: float = 1e-9
    image_stats: str = "caffe"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_positive(self, "widths", length=len(vgg.STAGES))
        layers.check_integers(self, "fc_channels", "fc6_kernel")
        layers.check_range(self, "bn_epsilon", lowest=0, highest=1)
        layers.check_common(self)
        super().__post_init__()

    coarse_scores = None

    @property
    def tiling(self) -> geometry.Tiling:
        """Multiples of 32 that leave fc6 at least one location; the same size out."""
        step = 2 ** len(vgg.STAGES)
        return geometry.Tiling(step, 0, 0, minimum=step * self.fc6_kernel)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        geometry.check_sides(self.tiling, geometry.sides(images), model="DeconvNet")
        decoder_init = nn.initializers.normal(0.01)

        def normalize(x, name):
            several = x.shape[0] * x.shape[1] * x.shape[2] > 1
            x = layers.batch_norm(
                x,
                f"{name}_bn",
                train=train and several,
                momentum=self.bn_momentum,
                unbiased=self.bn_unbiased,
                dtype=self.dtype,
                epsilon=self.bn_epsilon,
                bias_init=nn.initializers.constant(0.001),
            )
            return nn.relu(x)

        def conv(x, name, features, size, padding):
            x = layers.Conv(
                features, size, padding=padding, dtype=self.dtype, name=name
            )(x)
            return normalize(x, name)

        def deconv(x, name, features, size, stride, padding):
            x = layers.ConvTranspose(
                features,
                size,
                stride,
                padding,
                kernel_init=decoder_init,
                dtype=self.dtype,
                name=name,
            )(x)
            return normalize(x, name)

        endpoints, switches = {}, {}
        x = image.normalize(images, self.image_stats, self.dtype)
        plan = list(enumerate(zip(vgg.STAGES, self.widths, strict=True), start=1))
        for stage, (count, width) in plan:
            for i in range(1, count + 1):
                x = conv(x, f"conv{stage}_{i}", width, 3, padding=1)
            endpoints[f"conv{stage}_{count}"] = x
            x, switches[stage] = unpool.max_pool_switches(x, 2)
            endpoints[f"pool{stage}"] = x

        size = self.fc6_kernel
        x = endpoints["fc6"] = conv(x, "fc6", self.fc_channels, size, padding=0)
        x = endpoints["fc7"] = conv(x, "fc7", self.fc_channels, 1, padding=0)
        # The stride between locations; a single one has none, and with a stride of the
        # kernel's side the layer is the matrix product that it is for one location.
        stride = size if x.shape[1:3] == (1, 1) else 1
        x = deconv(x, "fc6_deconv", self.widths[-1], size, stride, padding=0)
        endpoints["fc6_deconv"] = x

        for stage, (count, width) in reversed(plan):
            unpooled = geometry.sides(endpoints[f"conv{stage}_{count}"])
            x = unpool.unpool(x, switches[stage], kernel=2, size=unpooled)
            endpoints[f"unpool{stage}"] = x
            for i in range(1, count + 1):
                if i == count:
                    width = self.widths[max(stage - 2, 0)]
                x = deconv(x, f"deconv{stage}_{i}", width, 3, stride=1, padding=1)
            endpoints[f"deconv{stage}_{count}"] = x
        scores = layers.Conv(
            self.num_classes, 1, kernel_init=decoder_init, name="seg_score"
        )
        return scores(x), endpoints
