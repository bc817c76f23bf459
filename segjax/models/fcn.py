"""FCN-32s, 16s and 8s (Long, Shelhamer, Darrell, CVPR 2015; PAMI 2017).

Published on VGG16, and on AlexNet and GoogLeNet as 32s only; here on every backbone.
Where the papers and the authors' networks differ, or are silent:

* CVPR learns the 2x upsamplings, from bilinear; the released networks fix them, and
  report no difference. Field `learn_upsampling`; the default is fixed.
* A deployed network of the time of CVPR has a bias in the first learned upsampling.
  Here there is none: the score layers beside it have one already.
* GoogLeNet's network was never released: this is the paper's text, without the final
  average pooling. The receptive field of 907 pixels that the paper prints is that with
  it; without, it is 715.
* AlexNet's base layers are CaffeNet's, which pools before it normalizes: `lrn_first`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from segjax.errors import UserError
from segjax.models import backbones, layers
from segjax.models.dropout import Dropout
from segjax.ops import conv, geometry, image

_PIXELS = geometry.Grid()
# Layers of VGG16 whose scores alone are in PAMI's table of skips, and their strides.
_ALONE = {"pool5": 32, "pool4": 16, "pool3": 8}
# Scales of the skips, from coarse to fine, in all-at-once training.
_AT_ONCE = (0.01, 0.0001)


def _bilinear_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32):
    """Bilinear interpolation of each channel into itself, zero between channels."""
    del key
    taps = jnp.asarray(conv.bilinear_kernel(shape[0]), dtype)
    return taps[:, :, None, None] * jnp.eye(shape[2], shape[3], dtype=dtype)


def _check_covers(
    rows: int, columns: int, *, offset: int, size: tuple[int, int], name: str
) -> None:
    height, width = size
    if rows < offset + height or columns < offset + width:
        raise UserError(
            f"FCN: {name} has {rows} x {columns} pixels, a crop of {height} x {width} "
            f"at {offset} does not fit; increase --config.model.pad"
        )


def upsampling_size(
    grid: geometry.Grid, stride: int, target: geometry.Grid = _PIXELS
) -> int:
    """Kernel side of the upsampling by `stride` of scores on `grid` to `target`.

    Twice the stride, as in FCN-VGG16, or one less where that would put the upsampled
    scores between the pixels of `target`, by default the image (AlexNet, GoogLeNet).
    """
    size = 2 * stride
    distance = geometry.deconv(grid, size, stride=stride).start - target.start
    return size - 1 if (distance / target.step).denominator > 1 else size


def _align(
    up: jax.Array, up_grid: geometry.Grid, *, skip: jax.Array, skip_grid: geometry.Grid
) -> tuple[jax.Array, jax.Array, geometry.Grid]:
    """Crops both maps to what they have in common, and the grid of that.

    With unpadded layers behind `skip` it is the larger one (VGG16); a network of padded
    layers is upsampled to one row beyond its own map.
    """
    late = (up_grid.start - skip_grid.start) / up_grid.step
    if up_grid.step != skip_grid.step or late.denominator != 1:
        raise UserError(
            f"FCN: scores at {up_grid} cannot be added to those at {skip_grid}"
        )
    shift = int(late)
    starts = max(-shift, 0), max(shift, 0)
    grid = geometry.Grid(up_grid.step, max(up_grid.start, skip_grid.start))
    height, width = (
        min(up.shape[axis] - starts[0], skip.shape[axis] - starts[1]) for axis in (1, 2)
    )
    up, skip = (
        x[:, start : start + height, start : start + width]
        for x, start in zip((up, skip), starts, strict=True)
    )
    return up, skip, grid


def stage_from(
    params_coarse: Mapping[str, Any], params_fine: Mapping[str, Any]
) -> dict[str, Any]:
    """Starts FCN-16s from a trained FCN-32s, or 8s from 16s (CVPR section 4.2).

    Args:
      params_coarse: parameters of the trained, coarser network.
      params_fine: those of the finer one as initialized.

    Returns:
      Parameters of the finer network: what the coarse one has, by name, and the rest
      of `params_fine`: the new score layer, at zero, so that the new network starts
      with the scores of the coarse one (upsampled in one step more), and the learned
      upsampling, where there is one, at bilinear.

    Batch statistics can be staged in the same way, by another call or in one tree.

    Raises:
      UserError: the coarse network has a layer that the fine one lacks, or that has
        another shape there.
    """
    coarse = traverse_util.flatten_dict(params_coarse)
    fine = traverse_util.flatten_dict(params_fine)
    for path, value in coarse.items():
        found = fine[path].shape if path in fine else "missing"
        if found != value.shape:
            raise UserError(
                f"stage_from: {'/'.join(path)} is {value.shape} in the coarse network "
                f"and {found} in the fine one; give the parameters of the coarser "
                f"network first, both with the same other fields"
            )
    return traverse_util.unflatten_dict({**fine, **coarse})


class FCN(nn.Module):
    """Images [N, H, W, 3] of any size -> logits [N, H, W, K].

    The first layer pads 100 pixels so that any image gives a map; scores are upsampled
    by bilinear transposed convolutions and cropped back, by offsets that follow from
    the layers (PAMI section 4). Score layers start at zero, and other kernels
    He-normal: the paper starts them from ImageNet weights; training from scratch needs
    ``norm="batch"``.

    Attributes:
      num_classes: K.
      skips: the output stride: 32, 16 (adds pool4) or 8 (adds pool4 and pool3). The
        ResNets add block3 and block2; SqueezeNet has 16 and 8 (adds fire5), AlexNet
        and GoogLeNet 32.
      only: "pool5", "pool4" or "pool3" of VGG16: scores of this layer alone, without
        those of coarser ones (rows of PAMI's table of skips); `skips` is then its
        stride. "": all of them.
      at_once: scales the skipped features by 0.01 and 0.0001, for training FCN-8s in
        one go from ImageNet weights; no effect with 32.
      learn_upsampling: the 2x upsamplings are dense learned kernels that start
        bilinear (CVPR); otherwise they are fixed (the released nets) and no
        parameters. The last upsampling is always fixed, so no effect with 32.
      pad: padding of the first layer in pixels; with VGG16 at least 81 for 32 (73 and
        69 for 16 and 8), with AlexNet 82 and with GoogLeNet 2, or the final crop would
        be negative. The ResNets, whose layers are padded, need 3.
      framed: computes what the padding gives far from the image once per batch, with
        VGG16: see vgg.VGG16; no effect with the others.
      backbone: "vgg16" or another of backbones.BACKBONES.
      widths: channels of the five stages of VGG16, the five convolutions of AlexNet, or
        of the first layer of the others; () takes the published ones.
      fc_channels: channels of fc6 and fc7 of VGG16 and AlexNet.
      stage_sizes, stride_in_1x1: of the ResNets, see resnet.ResNet; () takes the
        backbone's blocks.
      lrn_first: see alexnet.AlexNet; no effect with the others.
      dropout: rate after fc6 and fc7, or before the scores of GoogLeNet and SqueezeNet;
        the ResNets have none.
      norm: "none" (the paper) or "batch", in the trunk; no effect on the ResNets.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py.
      dtype: of the trunk; scores are computed in float32.
      packed: computes stage 1 of VGG16, or the stem of a ResNet, on pairs of pixels,
        for TPUs: see ops/packed.py. The same parameters, and the same scores but for
        rounding; no effect on the other backbones.

    Endpoints: those of the trunk (pool1 .. pool5, fc6, fc7), score_fr and, per skip,
    the upsampled scores (upscore2, upscore_pool4) and the sum (fuse_pool4, fuse_pool3);
    with `only` no fc6 and fc7, and the scores of that layer (score_pool5).

    Raises:
      UserError: a bad field value, or a `pad` that leaves a map too small.
    """

    num_classes: int
    skips: int = 8
    only: str = ""
    at_once: bool = False
    learn_upsampling: bool = False
    pad: int = 100
    framed: bool = True
    backbone: str = "vgg16"
    widths: tuple[int, ...] = ()
    fc_channels: int = 4096
    stage_sizes: tuple[int, ...] = ()
    stride_in_1x1: bool = False
    lrn_first: bool = False
    dropout: float = 0.5
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "caffe"
    dtype: str = "float32"
    packed: bool = False

    def __post_init__(self) -> None:
        layers.check_choice(self, "skips", (32, 16, 8))
        backbones.check(self)
        entry = backbones.BACKBONES[self.backbone]
        strides = (entry.stride, *entry.skips)
        if self.skips not in strides:
            raise UserError(
                f"{layers.flag(self, 'skips')} is {self.skips}, expected "
                f"{' or '.join(map(str, strides))} with the backbone "
                f"{self.backbone!r}; set skips to {strides[0]} or backbone to 'vgg16'"
            )
        _check_only(self)
        layers.check_integers(self, "fc_channels")
        layers.check_integers(self, "pad", minimum=0)
        layers.check_choice(self, "packed", (False, True))
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
        height, width = images.shape[1:3]
        entry = backbones.BACKBONES[self.backbone]
        trunk = backbones.build(self, pad_first=self.pad)
        top = self.only or entry.top
        without_fc = {"fc": False} if self.only else {}
        x = image.normalize(images, self.image_stats, self.dtype)
        endpoints = trunk(x, train, **without_fc)
        features = endpoints[top]
        if 0 in features.shape:
            raise UserError(
                f"FCN: an image of {height} x {width} with a padding of {self.pad} is "
                f"too small for {top}; increase --config.model.pad"
            )
        if entry.dropout:
            features = Dropout(self.dropout, deterministic=not train)(features)
        grids = entry.grids(self.pad)

        def score(features, name):
            zeros = nn.initializers.zeros
            return layers.Conv(self.num_classes, 1, kernel_init=zeros, name=name)(
                features
            )

        def upsample(scores, size, name):
            if not self.learn_upsampling:
                return conv.bilinear_upsample(scores, size=size, stride=2)
            return layers.ConvTranspose(
                self.num_classes,
                size=size,
                stride=2,
                use_bias=False,
                kernel_init=_bilinear_init,
                name=name,
            )(scores)

        name = f"score_{self.only}" if self.only else "score_fr"
        scores = endpoints[name] = score(features, name)
        grid, up = grids[top], "upscore2"
        for (stride, skip), scale in zip(entry.skips.items(), _AT_ONCE):
            if stride < self.skips or self.only:
                break
            size = upsampling_size(grid, 2, grids[skip])
            scores = endpoints[up] = upsample(scores, size, up)
            grid = geometry.deconv(grid, size, stride=2)
            # Cropped before the 1x1 score layer: the same numbers from fewer pixels.
            scores, features, grid = _align(
                scores, grid, skip=endpoints[skip], skip_grid=grids[skip]
            )
            if self.at_once:
                features = features * scale
            scores = scores + score(features, f"score_{skip}")
            endpoints[f"fuse_{skip}"] = scores
            up = f"upscore_{skip}"

        stride = int(grid.step)
        size = upsampling_size(grid, stride)
        grid = geometry.deconv(grid, size, stride=stride)
        offset = geometry.crop_offset(
            grid, _PIXELS, source_name="the logits", target_name="the image"
        )
        rows, columns = (
            geometry.deconv_size(side, size, stride=stride)
            for side in scores.shape[1:3]
        )
        _check_covers(
            rows, columns, offset=offset, size=(height, width), name="the map of logits"
        )
        logits = conv.bilinear_upsample(
            scores, size, stride=stride, offset=offset, crop=(height, width)
        )
        return logits, endpoints


def _check_only(model: "FCN") -> None:
    layers.check_choice(model, "only", ("", *_ALONE))
    if model.only and model.backbone != "vgg16":
        raise UserError(
            f"{layers.flag(model, 'only')} is {model.only!r}, which is a layer of "
            f"'vgg16', not of {model.backbone!r}; expected ''"
        )
    if model.only and model.skips != _ALONE[model.only]:
        raise UserError(
            f"{layers.flag(model, 'skips')} is {model.skips}, expected "
            f"{_ALONE[model.only]}, the stride of only={model.only!r}"
        )
