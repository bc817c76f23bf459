"""FCN-32s, 16s and 8s (Long, Shelhamer, Darrell, CVPR 2015; PAMI 2017) on VGG16."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import layers, vgg
from segjax.ops import conv, geometry, image

# The skips from coarse to fine: (2x upsampling, pool layer, all-at-once scale).
_SKIPS = (("upscore2", "pool4", 0.01), ("upscore_pool4", "pool3", 0.0001))


def _bilinear_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32):
    """Bilinear interpolation of each channel into itself, zero between channels."""
    del key
    taps = jnp.asarray(conv.bilinear_kernel(shape[0]), dtype)
    return taps[:, :, None, None] * jnp.eye(shape[2], shape[3], dtype=dtype)


def _crop(x: jax.Array, offset: int, height: int, width: int, name: str) -> jax.Array:
    _check_covers(x.shape[1], x.shape[2], offset, height, width, name)
    return x[:, offset : offset + height, offset : offset + width]


def _check_covers(
    rows: int, columns: int, offset: int, height: int, width: int, name: str
) -> None:
    if rows < offset + height or columns < offset + width:
        raise UserError(
            f"FCN: {name} has {rows} x {columns} cells, a crop of {height} x {width} "
            f"at {offset} does not fit; increase FCN.pad"
        )


class FCN(nn.Module):
    """Images [N, H, W, 3] of any size -> logits [N, H, W, K].

    conv1_1 pads 100 pixels so that any image gives a map; scores are upsampled by
    bilinear transposed convolutions and cropped back, by offsets that follow from the
    layers (PAMI section 4). Score layers start at zero, and other kernels He-normal:
    the paper starts them from ImageNet weights; training from scratch needs
    ``norm="batch"``.

    Attributes:
      num_classes: K.
      skips: 32, 16 (adds pool4) or 8 (adds pool4 and pool3), the output stride.
      at_once: scales the skipped features by 0.01 and 0.0001, for training FCN-8s in
        one go from ImageNet weights; no effect with 32.
      learn_upsampling: the 2x upsamplings are dense learned kernels that start
        bilinear (CVPR); otherwise they are fixed (the released nets) and no
        parameters. The last upsampling is always fixed, so no effect with 32.
      pad: padding of conv1_1 in pixels; at least 81 for 32 (73 and 69 for 16 and 8), or
        the final crop would be negative.
      backbone: "vgg16".
      widths, fc_channels: channels of the trunk's five stages and of fc6 and fc7.
      dropout: rate after fc6 and fc7.
      norm: "none" (the paper) or "batch", in the trunk.
      bn_momentum: fraction of the old running statistics kept at a step.
      image_stats: see ops/image.py.
      dtype: of the trunk; scores are computed in float32.

    Endpoints: pool1 .. pool5, fc6, fc7, score_fr and, per skip, the upsampled scores
    (upscore2, upscore_pool4) and the sum (fuse_pool4, fuse_pool3).

    Raises:
      UserError: a bad field value, or a `pad` that leaves a map too small.
    """

    num_classes: int
    skips: int = 8
    at_once: bool = False
    learn_upsampling: bool = False
    pad: int = 100
    backbone: str = "vgg16"
    widths: tuple[int, ...] = vgg.WIDTHS
    fc_channels: int = 4096
    dropout: float = 0.5
    norm: str = "none"
    bn_momentum: float = 0.9
    image_stats: str = "caffe"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layers.check_choice(self, "skips", (32, 16, 8))
        layers.check_choice(self, "backbone", ("vgg16",))
        layers.check_choice(self, "norm", ("none", "batch"))
        layers.check_positive(self, "widths", length=len(vgg.STAGES))
        image.check_image_stats(self.image_stats)
        super().__post_init__()

    @property
    def tiling(self) -> geometry.Tiling:
        """Any size in, the same size out."""
        return geometry.ANY_SIZE

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        height, width = images.shape[1:3]
        trunk = vgg.VGG16(
            pad_first=self.pad,
            widths=self.widths,
            fc_channels=self.fc_channels,
            dropout=self.dropout,
            norm=self.norm,
            bn_momentum=self.bn_momentum,
            dtype=self.dtype,
            name="backbone",
        )
        endpoints = trunk(image.normalize(images, self.image_stats, self.dtype), train)
        if 0 in endpoints["fc7"].shape:
            raise UserError(
                f"FCN: an image of {height} x {width} with a padding of {self.pad} is "
                f"too small for fc6; increase FCN.pad"
            )
        grids = vgg.grids(self.pad)

        def score(features, name):
            zeros = nn.initializers.zeros
            return layers.Conv(self.num_classes, 1, kernel_init=zeros, name=name)(
                features
            )

        scores = endpoints["score_fr"] = score(endpoints["fc7"], "score_fr")
        grid, stride = grids["fc7"], 32
        for up, skip, scale in _SKIPS:
            if stride == self.skips:
                break
            if self.learn_upsampling:
                scores = layers.ConvTranspose(
                    self.num_classes,
                    size=4,
                    stride=2,
                    use_bias=False,
                    kernel_init=_bilinear_init,
                    name=up,
                )(scores)
            else:
                scores = conv.bilinear_upsample(scores, size=4, stride=2)
            endpoints[up] = scores
            grid, stride = geometry.deconv(grid, kernel=4, stride=2), stride // 2
            offset = geometry.crop_offset(grids[skip], grid, skip, up)
            # Cropped before the 1x1 score layer: the same numbers from fewer cells.
            features = _crop(endpoints[skip], offset, *scores.shape[1:3], skip)
            if self.at_once:
                features = features * scale
            scores = scores + score(features, f"score_{skip}")
            endpoints[f"fuse_{skip}"] = scores

        size = 2 * stride
        grid = geometry.deconv(grid, size, stride)
        offset = geometry.crop_offset(grid, geometry.Grid(), "the logits", "the image")
        rows, columns = (
            geometry.deconv_size(side, size, stride) for side in scores.shape[1:3]
        )
        _check_covers(rows, columns, offset, height, width, "the map of logits")
        logits = conv.bilinear_upsample(scores, size, stride, offset, (height, width))
        return logits, endpoints
