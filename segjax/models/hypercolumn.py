"""Hypercolumns (Hariharan, Arbelaez, Girshick, Malik, CVPR 2015) on VGG16.

A pixel is described by the activations above it in several layers, each interpolated to
the pixel, and a linear classifier reads all of them. Interpolation and classifier are
both linear, so the classifier is applied to each layer at the layer's own resolution,
and its scores are interpolated and added (section 3 of the paper).

The paper classifies the pixels of a detected box as object or not: the box is warped to
a square, fc7 is one vector for all of it, and the masks of the boxes are pasted into
the semantic segmentation. Here the same layers and classifiers see whole images and
score K classes at each pixel, which needs no boxes. docs/systems/hypercolumn.md has the
differences.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax import errors
from segjax.errors import UserError
from segjax.models import backbones, layers, vgg
from segjax.ops import geometry, image, resize

# fc6 is padded by half its kernel, so that an image of any size has an fc7 above it.
_FC6_PADDING = 3
_GRIDS = vgg.grids(1, _FC6_PADDING)


def upsample_located(
    scores: jax.Array,
    source: geometry.Grid,
    *,
    grid: int,
    size: tuple[int, int],
) -> jax.Array:
    """Interpolates the scores of grid x grid classifiers and mixes them at each pixel.

    The classifiers sit at the centers of the parts of the image that a regular grid
    cuts it into. A pixel takes the four nearest ones, weighted bilinearly; outside of
    the outermost centers it takes the nearest ones alone.

    Args:
      scores: [N, h, w, grid * grid * K], of the classifiers row by row.
      source: where the locations of `scores` lie in the image.
      grid: classifiers along each axis.
      size: (H, W) of the image.

    Returns:
      [N, H, W, K].
    """
    batch, height, width, channels = scores.shape
    parts = scores.reshape(batch, height, width, grid, grid, channels // grid**2)
    # Weights of the classifiers and of the interpolation are both separable, so that
    # one product along each axis does both, and no map of grid^2 K channels is made.
    parts = parts.transpose(0, 3, 1, 4, 2, 5)
    parts = parts.reshape(batch, grid * height, grid * width, -1)
    matrices = []
    for side, count in zip((height, width), size, strict=True):
        near = resize.bilinear_matrix(grid, count, align_corners=False)
        to_pixel = resize.interpolation_matrix(
            source, side, target=geometry.Grid(), count=count
        )
        product = near[:, :, None] * to_pixel[:, None, :]
        matrices.append(np.reshape(product, (count, grid * side)))
    return resize.separable_product(parts, *matrices)


class Hypercolumn(nn.Module):
    """Images [N, H, W, C] of any size -> logits [N, H, W, K].

    Score layers start at zero and have one bias together, that of the first layer: they
    are one linear classifier of the stacked activations.

    Attributes:
      num_classes: K.
      layers: what is stacked: names of pool1 .. pool5, conv1_1 .. conv5_3, fc6, fc7.
        pool2, conv4_3 and fc7 are the paper's pool2, conv4 and fc7 of AlexNet moved to
        VGG16.
      kernel: side of the classifiers' kernels, 1 or 3, in locations of each layer.
      grid: classifiers along each axis, 1 for one that is the same everywhere. The
        paper's classifiers depend on where a pixel lies in its box, here in the image
        or window that the network sees: see :func:`upsample_located`.
      widths: channels of the five stages; () takes the published ones.
      fc_channels: channels of fc6 and fc7.
      dropout: rate after fc6 and fc7.
      norm: "none" (the paper) or "batch", in the trunk.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py.
      dtype: of the trunk; scores are computed in float32.

    Endpoints: those of the trunk (pool1 .. pool5, fc6, fc7 and the `layers`) and
    score_LAYER, the scores of each layer at its resolution [N, h, w, grid^2 K].

    Raises:
      UserError: a bad field value.
    """

    num_classes: int
    layers: tuple[str, ...] = ("pool2", "conv4_3", "fc7")
    kernel: int = 1
    grid: int = 1
    widths: tuple[int, ...] = ()
    fc_channels: int = 4096
    dropout: float = 0.5
    norm: str = "none"
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "caffe"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_layers(self)
        layers.check_choice(self, "kernel", (1, 3))
        layers.check_integers(self, "grid", "fc_channels")
        backbones.check(self, ("vgg16",))
        layers.check_common(self)
        super().__post_init__()

    backbone = "vgg16"
    coarse_scores = None

    @property
    def tiling(self) -> geometry.Tiling:
        """Any size in, the same size out."""
        return geometry.ANY_SIZE

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        size = geometry.sides(images)
        trunk = backbones.build(self, fc6_padding=_FC6_PADDING, convolutions=True)
        found = trunk(image.normalize(images, self.image_stats, self.dtype), train)
        endpoints = {
            name: x
            for name, x in found.items()
            if name not in vgg.CONVOLUTIONS or name in self.layers
        }
        parts = []
        for index, name in enumerate(self.layers):
            scores = layers.Conv(
                self.grid**2 * self.num_classes,
                self.kernel,
                padding=self.kernel // 2,
                use_bias=index == 0,
                kernel_init=nn.initializers.zeros,
                name=f"score_{name}",
            )(endpoints[name])
            endpoints[f"score_{name}"] = scores
            parts.append(
                upsample_located(scores, _GRIDS[name], grid=self.grid, size=size)
            )
        return functools.reduce(jnp.add, parts), endpoints


def _check_layers(model: Hypercolumn) -> None:
    chosen = model.layers
    if not isinstance(chosen, Sequence) or isinstance(chosen, str) or not chosen:
        raise UserError(
            f"{layers.flag(model, 'layers')} is {chosen!r}, expected names of layers "
            "such as 'pool2', 'conv4_3', 'fc7'"
        )
    for name in chosen:
        if name not in _GRIDS:
            raise errors.unknown(layers.flag(model, "layers"), name, _GRIDS)
    if len({*chosen}) < len(chosen):
        raise UserError(
            f"{layers.flag(model, 'layers')} is {chosen!r}, expected different values"
        )
