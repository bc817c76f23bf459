"""ImageNet classifiers as fully convolutional networks (FCN, CVPR 2015, section 3).

An image of the side a classifier was trained on gives class scores at one location, a
larger one a map of them, a location every 32 pixels. Here too are the two other pieces
of that section: fully-connected kernels as convolutions, and shift-and-stitch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import backbones, googlenet, layers
from segjax.models.dropout import Dropout
from segjax.ops import geometry, image, pool

# GoogLeNet's auxiliary heads: name and the endpoint they read.
_AUX = (("loss1", "inception_4a"), ("loss2", "inception_4d"))


class Classifier(nn.Module):
    """Images [N, H, W, 3] -> class scores [N, h, w, K], float32.

    h = w = 1 for the image side of training, ``BACKBONES[backbone].crop``. Average
    poolings (7x7 in GoogLeNet and the ResNets) have stride 1, so that they give maps
    too. With padded convolutions a location of a map is not exactly what its
    window alone would give; without, it is.

    The parameters of the trunk are those of ``params["backbone"]`` in FCN with the same
    backbone.

    Attributes:
      num_classes: K, 1000 for ImageNet.
      backbone: a key of backbones.BACKBONES.
      widths: channels: of the five stages of VGG16, the five convolutions of AlexNet,
        or of the first layer of the others; () takes the published ones.
      fc_channels: of fc6 and fc7 of AlexNet and VGG16.
      dropout: rate after fc6 and fc7, or before the scores of GoogLeNet (published:
        0.4) and SqueezeNet (0.5); the ResNets have none.
      norm: "none" (as published) or "batch"; no effect on the ResNets.
      lrn_first: see alexnet.AlexNet; no effect on the others.
      aux: GoogLeNet's two auxiliary heads (published: True, their losses weighing
        0.3); no effect on the others. Their parameters are always made; they are
        computed in training only.
      stage_sizes, stem, stride_in_1x1: of the ResNets, see resnet.ResNet; () takes
        the backbone's blocks.
      bn_momentum: fraction of the old running statistics kept at a step.
      bn_unbiased: see layers.batch_norm.
      image_stats: see ops/image.py; "caffe" is for Caffe's weights, torchvision's
        ResNets take "imagenet".
      dtype: compute type; class scores are computed in float32.

    Endpoints: those of the trunk, pool5 where the head is an average pooling, the
    logits under the published name (fc8, loss3_classifier, fc) and, with `aux` in
    training, loss1_classifier and loss2_classifier.

    Raises:
      UserError: a bad field value, or an image too small for scores at one location.
    """

    num_classes: int
    backbone: str = "vgg16"
    widths: tuple[int, ...] = ()
    fc_channels: int = 4096
    dropout: float = 0.5
    norm: str = "none"
    lrn_first: bool = False
    aux: bool = False
    stage_sizes: tuple[int, ...] = ()
    stem: str = "plain"
    stride_in_1x1: bool = False
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    image_stats: str = "caffe"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        backbones.check(self)
        layers.check_integers(self, "fc_channels")
        layers.check_common(self)
        super().__post_init__()

    @property
    def tiling(self) -> geometry.Tiling:
        """Any side from that of training; the output is a coarse map, not an image."""
        side = backbones.BACKBONES[self.backbone].crop
        return geometry.Tiling(step=1, offset=0, margin=0, minimum=side)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        entry = backbones.BACKBONES[self.backbone]
        trunk = backbones.build(self)
        endpoints = trunk(image.normalize(images, self.image_stats, self.dtype), train)
        x = endpoints[entry.top]
        if 0 in x.shape or min(x.shape[1:3]) < entry.average:
            height, width = images.shape[1:3]
            raise UserError(
                f"Classifier: an image of {height} x {width} is too small for "
                f"{self.backbone!r}; resize it to {entry.crop} x {entry.crop} or more"
            )
        if entry.average and not entry.average_scores:
            x = endpoints["pool5"] = pool.avg_pool(x, entry.average, stride=1)

        def dropped(x, rate):
            return Dropout(rate, deterministic=not train)(x)

        def classify(x, name):
            init = layers.score_normal
            x = layers.Conv(self.num_classes, 1, kernel_init=init, name=name)(x)
            endpoints[name] = x
            return x

        if entry.dropout:
            x = dropped(x, self.dropout)
        aux = self.aux and self.backbone == "googlenet"
        if aux and (train or self.is_initializing()):
            width = (self.widths or (googlenet.WIDTH,))[0]
            for name, source in _AUX:
                y = pool.avg_pool(endpoints[source], 5, stride=3, ceil=True)
                for layer, features, size in (("conv", 128, 1), ("fc", 1024, 4)):
                    y = layers.Conv(
                        googlenet.scaled(features, width),
                        size,
                        dtype=self.dtype,
                        name=f"{name}_{layer}",
                    )(y)
                    y = nn.relu(y)
                classify(dropped(y, 0.7), f"{name}_classifier")
        x = classify(x, entry.score)
        if entry.average_scores:
            x = endpoints["pool10"] = pool.avg_pool(nn.relu(x), entry.average, stride=1)
        return x, endpoints


def dense_to_conv(
    kernel: jax.Array | np.ndarray, size: tuple[int, int], layout: str
) -> jax.Array | np.ndarray:
    """A fully-connected kernel over a map of `size` (h, w) as a convolution's.

    Args:
      layout: how `kernel` is stored. "caffe" (also PyTorch): [O, I * h * w], the map
        flattened channels first. "keras" (also Flax): [h * w * I, O], channels last.

    Returns:
      The kernel [h, w, I, O] of the convolution without padding that computes the same
      scores for a map of h x w, and on a larger one those of every window.

    Raises:
      UserError: an unknown layout, or inputs that are no multiple of h * w.
    """
    _check_layout(layout)
    height, width = size
    inputs = kernel.shape[0 if layout == "keras" else 1]
    if inputs % (height * width):
        raise UserError(
            f"a {layout} kernel of shape {kernel.shape} has {inputs} inputs, expected "
            f"a multiple of {height} x {width}; check the layout and the size"
        )
    if layout == "keras":
        return kernel.reshape(height, width, -1, kernel.shape[1])
    return kernel.reshape(kernel.shape[0], -1, height, width).transpose(2, 3, 1, 0)


def conv_to_dense(
    kernel: jax.Array | np.ndarray, layout: str
) -> jax.Array | np.ndarray:
    """The inverse of :func:`dense_to_conv` for a `kernel` [h, w, I, O].

    Raises:
      UserError: an unknown layout.
    """
    _check_layout(layout)
    outputs = kernel.shape[3]
    if layout == "keras":
        return kernel.reshape(-1, outputs)
    return kernel.transpose(3, 2, 0, 1).reshape(outputs, -1)


def _check_layout(layout: str) -> None:
    if layout not in ("caffe", "keras"):
        raise UserError(
            f"unknown kernel layout {layout!r}, expected 'caffe' (also PyTorch) or "
            f"'keras' (also Flax)"
        )


def shift_and_stitch(
    predict: Callable[[jax.Array], jax.Array], stride: int
) -> Callable[[jax.Array], jax.Array]:
    """A dense map from a network of output stride `stride` (section 3.2).

    The network sees the image shifted by 0 .. stride - 1 pixels along both axes, and
    the maps are interlaced. Without padding that is what dilating it gives: every
    layer after a stride s that became 1 dilated by s.

    Args:
      predict: images [N, H, W, C] -> map [N, h, w, K], of any H and W.

    Returns:
      A function images [N, H, W, C] -> [N, h * stride, w * stride, K], with h and w of
      images of H - stride + 1 and W - stride + 1. Location (i, j) reads the window of
      `predict` that starts at pixel (i, j). It runs `predict` stride^2 times in turn.

    Raises:
      UserError: a stride below 1; when called, an image smaller than the stride.
    """
    if stride < 1:
        raise UserError(f"shift_and_stitch: stride is {stride}, expected 1 or more")

    def stitched(images: jax.Array) -> jax.Array:
        n, height, width, channels = images.shape
        if min(height, width) < stride:
            raise UserError(
                f"shift_and_stitch: an image of {height} x {width} is smaller than the "
                f"stride {stride}"
            )
        # Equal sizes, so that `predict` is compiled once for all shifts.
        size = (n, height - stride + 1, width - stride + 1, channels)

        def shifted(shift):
            corner = (0, *shift, 0)
            return predict(jax.lax.dynamic_slice(images, corner, size))

        grid = np.indices((stride, stride)).reshape(2, -1)
        maps = jax.lax.map(shifted, tuple(jnp.asarray(grid)))
        _, n, h, w, k = maps.shape
        maps = maps.reshape(stride, stride, n, h, w, k).transpose(2, 3, 0, 4, 1, 5)
        return maps.reshape(n, h * stride, w * stride, k)

    return stitched
