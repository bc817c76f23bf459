"""PSPNet (Zhao et al., CVPR 2017): pyramid pooling behind a dilated ResNet.

Where the authors' networks (Caffe, and semseg, their later PyTorch) differ:

* The stride of a ResNet stage is in a 3x3 convolution, except in the Caffe network of
  PSPNet-50 for ADE20K, which has it in the 1x1 one: `stride_in_1x1`.
* Levels are concatenated in the order of `bins`, behind the backbone's map, as in
  semseg; Caffe has the finest level first.
* Dropout is element-wise, as in Caffe; semseg drops channels.
* Bins are adaptive, as in semseg. Caffe's fixed windows are the same for crops of 473
  and 713 pixels.
* Logits have the resolution of the image, and so has their loss, as in semseg; Caffe
  compared scores with labels at an eighth of it.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import backbones, layers
from segjax.models.dropout import Dropout
from segjax.ops import geometry, image, pool, resize


class PSPNet(nn.Module):
    """Images [N, H, W, C] of any size -> logits [N, H, W, K].

    Maps are resized with aligned corners, which is exact for sides 8k + 1 (473, 713);
    other sizes are stretched by a fraction of a location. Kernels start He-normal; the
    papers start the backbone from ImageNet weights.

    Attributes:
      num_classes: K.
      backbone: "resnet50" or another of backbones.PYRAMID.
      stage_sizes: blocks per stage, 0 for none; () takes the backbone's.
      width: channels of the backbone's first layer, 64.
      stem: "deep" (the paper) or "plain".
      packed: computes the stem of a ResNet on pairs of pixels, for TPUs: see
        ops/packed.py. The same parameters, and the same scores but for rounding.
      output_stride: of the backbone: 8 (the paper), 16 or 32.
      stride_in_1x1, first_block_dilation: see resnet.ResNet.
      bins: pyramid levels, each pooled to b x b; () is the dilated baseline.
      pool: "avg" or "max".
      reduce: 1x1 convolution (with batch normalization, ReLU) of every level to
        `pyramid_channels` (the paper's DR); otherwise levels are concatenated raw.
      pyramid_channels, head_channels: 512 both.
      folded: computes conv5_4 of the levels before they are resized, in half of the
        head's operations; False resizes and concatenates them first, as the authors'
        networks do. The same parameters, and the same scores but for rounding.
      aux: auxiliary head on block3 of a ResNet, fire7 of SqueezeNet (section 4.1). Its
        parameters are always made; it is computed in training only.
      dropout: rate before the classifiers, element-wise.
      norm: of a backbone that was published without batch normalization: "none" or
        "batch"; no effect on the ResNets.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py.
      dtype: compute type; class scores are computed in float32.

    Endpoints: those of the backbone, pyramid (the concatenation), conv5_4, conv6
    (scores before resizing) and, with `aux` in training, aux_logits [N, H, W, K].

    A level of one bin has N values per channel to normalize over. In training with a
    single image that would be one value, which has no variance: the running statistics
    are used instead. Small batches work but make that level noisy.

    Raises:
      UserError: a bad field value.
    """

    num_classes: int
    backbone: str = "resnet50"
    stage_sizes: tuple[int, ...] = ()
    width: int = 64
    stem: str = "deep"
    packed: bool = False
    output_stride: int = 8
    stride_in_1x1: bool = False
    first_block_dilation: bool = True
    bins: tuple[int, ...] = (1, 2, 3, 6)
    pool: str = "avg"
    reduce: bool = True
    pyramid_channels: int = 512
    head_channels: int = 512
    folded: bool = True
    aux: bool = True
    dropout: float = 0.1
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "imagenet"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        backbones.check(self, backbones.PYRAMID)
        layers.check_choice(self, "pool", ("avg", "max"))
        layers.check_choice(self, "packed", (False, True))
        layers.check_positive(self, "bins")
        layers.check_integers(self, "pyramid_channels", "head_channels")
        if len(set(self.bins)) != len(self.bins):
            raise UserError(
                f"{layers.flag(self, 'bins')} is {self.bins}, expected different values"
            )
        layers.check_common(self)
        super().__post_init__()

    coarse_scores = None

    @property
    def tiling(self) -> geometry.Tiling:
        """Any size in, the same size out."""
        return geometry.ANY_SIZE

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        # The head always normalizes, whatever the backbone does.
        conv_bn_relu = functools.partial(
            layers.bind_conv_bn_relu(self, train), batch=True
        )

        def classify(x, name):
            x = Dropout(self.dropout, deterministic=not train)(x)
            return layers.Conv(
                self.num_classes, 1, kernel_init=layers.score_normal, name=name
            )(x)

        entry = backbones.dilated(self.backbone)
        backbone = backbones.build_dilated(self)
        x = image.normalize(images, self.image_stats, self.dtype)
        endpoints = backbone(x, train)
        features = endpoints[entry.features]
        size = geometry.sides(features)

        levels, resized = [features], [features]
        if self.pool == "avg":
            pooled = pool.adaptive_avg_pools(features, self.bins)
        else:
            pooled = [pool.adaptive_max_pool(features, bins) for bins in self.bins]
        for bins, level in zip(self.bins, pooled, strict=True):
            if self.reduce:
                name, channels = f"pyramid{bins}", self.pyramid_channels
                several = level.shape[0] * bins * bins > 1
                level = conv_bn_relu(level, name, channels, 1, train=train and several)
            levels.append(level)
            resized.append(resize.resize_bilinear(level, size, align_corners=True))
        # Where the folded form does not need it, the compiler leaves it out.
        x = endpoints["pyramid"] = jnp.concatenate(resized, axis=-1)
        form = {"layer": layers.ConvOfResized} if self.folded else {}
        x = endpoints["conv5_4"] = conv_bn_relu(
            levels if self.folded else x,
            "conv5_4",
            self.head_channels,
            padding=1,
            **form,
        )
        scores = endpoints["conv6"] = classify(x, "conv6")
        full = geometry.sides(images)
        if self.aux and (train or self.is_initializing()):
            x = endpoints[entry.aux]
            x = conv_bn_relu(x, "aux_conv", x.shape[-1] // 4, padding=1)
            aux = classify(x, "aux_score")
            endpoints["aux_logits"] = resize.resize_bilinear(aux, full, True)
        return resize.resize_bilinear(scores, full, align_corners=True), endpoints
