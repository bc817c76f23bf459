"""The published networks: names, and the fields that make our models equal to them.

One table, and one spelling of the names, for ``experiments.import_weights --model``,
``experiments.summarize``, the benchmarks and the config files. What is known of the
networks is in analysis/published.py; files of weights are not part of this package.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from segjax import errors


class Network(NamedTuple):
    """A published network: a model, its fields, and an image to describe it for."""

    model: str  # a key of segjax.models.MODELS
    fields: dict[str, Any]
    classes: int
    image: tuple[int, int, int]  # (H, W, C)


_VGG, _LARGE, _SMALL = (500, 500, 3), (513, 513, 3), (514, 514, 3)


def _deeplab(image: tuple[int, int, int], **fields: Any) -> Network:
    return Network("deeplab", fields, 21, image)


# The first network pools 2x2 and has 4,096 channels in fc6, later ones 3x3 and 1,024.
_FIRST = dict(backbone="vgg16", fc6_channels=4096, pool_kernel=2)
_LARGEFOV = dict(backbone="vgg16", fc6_channels=1024, rates=(12,), average_pool=True)
_ASPP = dict(backbone="vgg16", fc6_channels=1024)
# Caffe and PyTorch keep unbiased running variances.
_PSPNET = dict(image_stats="vgg", bn_unbiased=True)
_SEMSEG = dict(bn_unbiased=True)
_R101 = dict(backbone="resnet101")

NETWORKS: dict[str, Network] = {
    "fcn-alexnet": Network("fcn", dict(backbone="alexnet", skips=32), 21, _VGG),
    "fcn32s": Network("fcn", dict(skips=32), 21, _VGG),
    "fcn16s": Network("fcn", dict(skips=16), 21, _VGG),
    "fcn8s": Network("fcn", dict(skips=8), 21, _VGG),
    "fcn8s-atonce": Network("fcn", dict(skips=8, at_once=True), 21, _VGG),
    "fcn8s-cvpr": Network("fcn", dict(skips=8, learn_upsampling=True), 21, _VGG),
    "fcn-googlenet": Network("fcn", dict(backbone="googlenet", skips=32), 21, _VGG),
    "deconvnet": Network("deconvnet", {}, 21, (224, 224, 3)),
    # v1: the four rows of its field-of-view table and the multi-scale features (MSc).
    "deeplab-7x7": _deeplab(_SMALL, **_FIRST, fc6_kernel=7, rates=(4,)),
    "deeplab-v1": _deeplab(_SMALL, **_FIRST, fc6_kernel=4, rates=(4,)),
    "deeplab-4x4": _deeplab(_SMALL, **_FIRST, fc6_kernel=4, rates=(8,)),
    "deeplab-largefov": _deeplab(_LARGE, **_LARGEFOV),
    "deeplab-msc": _deeplab(
        _LARGE,
        backbone="vgg16",
        fc6_channels=4096,
        fc6_kernel=4,
        rates=(4,),
        side_branches=True,
    ),
    "deeplab-msc-largefov": _deeplab(_LARGE, **_LARGEFOV, side_branches=True),
    # v2: the rows of its two ablations of ASPP, and the released network.
    "deeplab-v2-vgg16-aspp-s": _deeplab(_LARGE, **_ASPP, rates=(2, 4, 8, 12)),
    "deeplab-v2-vgg16-aspp-l": _deeplab(_LARGE, **_ASPP, rates=(6, 12, 18, 24)),
    "deeplab-v2-resnet101-largefov": _deeplab(_LARGE, rates=(12,)),
    "deeplab-v2-resnet101": _deeplab(
        _LARGE, rates=(6, 12, 18, 24), scales=(1.0, 0.75, 0.5)
    ),
    "dilation-frontend": Network(
        "dilation", dict(context="none", padding="valid"), 21, (900, 900, 3)
    ),
    "dilation8-voc": Network(
        "dilation",
        dict(context="large", context_padding="once", upsampling="interp"),
        21,
        _VGG,
    ),
    "dilation8-camvid": Network(
        "dilation", dict(upsampling="interp"), 11, (480, 640, 3)
    ),
    "dilation7-kitti": Network(
        "dilation",
        dict(context_rates=(1, 1, 2, 4, 8, 1), upsampling="interp"),
        11,
        (370, 1226, 3),
    ),
    "dilation10-cityscapes": Network(
        "dilation",
        dict(context_rates=(1, 1, 2, 4, 8, 16, 32, 64, 1), upsampling="deconv"),
        19,
        (1024, 1024, 3),
    ),
    "crfrnn-voc": Network(
        "crfrnn",
        dict(
            base_options=("skips=8", "learn_upsampling=True", "image_stats=vgg"),
            color_order="caffe",
        ),
        21,
        _VGG,
    ),
    "unet": Network("unet", {}, 2, (572, 572, 1)),
    "unet-released": Network("unet", dict(layout="released"), 2, (572, 572, 1)),
    "unet-carvana": Network(
        "unet", dict(padding="same", norm="batch", dropout=0.0), 2, (512, 512, 3)
    ),
    "unet-camvid": Network("unet", dict(padding="same"), 12, (368, 480, 3)),
    "fusionnet": Network("fusionnet", {}, 1, (640, 640, 1)),
    "fusionnet-released": Network(
        "fusionnet",
        dict(layout="released", residual_depth=2, dropout=0.25),
        1,
        (640, 640, 1),
    ),
    "contextual": Network("contextual", {}, 2, (480, 480, 1)),
    "frrn-a": Network("frrn", dict(variant="a"), 19, (256, 512, 3)),
    "frrn-b": Network("frrn", dict(variant="b"), 19, (512, 1024, 3)),
    "cfm-a": Network("cfm", {}, 21, _VGG),
    "cfm-b": Network("cfm", dict(design="b"), 21, _VGG),
    "hypercolumn": Network("hypercolumn", {}, 21, _VGG),
    "pspnet50-ade20k": Network(
        "pspnet", dict(**_PSPNET, stride_in_1x1=True), 150, (473, 473, 3)
    ),
    "pspnet101-voc": Network("pspnet", _PSPNET | _R101, 21, (473, 473, 3)),
    "pspnet101-cityscapes": Network("pspnet", _PSPNET | _R101, 19, (713, 713, 3)),
    "pspnet50-semseg": Network("pspnet", _SEMSEG, 150, (473, 473, 3)),
    "pspnet101-semseg": Network("pspnet", _R101 | _SEMSEG, 19, (713, 713, 3)),
    "pspnet50-mmseg": Network(
        "pspnet",
        dict(stem="plain", first_block_dilation=False),
        19,
        (1024, 2048, 3),
    ),
    "zoomout": Network("zoomout", {}, 21, _VGG),
    "zoomout-linear": Network("zoomout", dict(hidden=()), 21, _VGG),
}


def find(name: str, address: str, models: Sequence[str] = ()) -> Network:
    """The published network of this name, or one of `models` with its defaults.

    Args:
      address: the flag that the name was given to, for the message: ``--model``.

    Raises:
      UserError: neither; names the nearest.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if name in models:
        return Network(name, {}, 21, _VGG)
    raise errors.unknown(address, name, sorted({*NETWORKS, *models}))
