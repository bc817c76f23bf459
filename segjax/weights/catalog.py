"""The networks that were published with all their layers, and their fields of ours."""

from collections.abc import Sequence
from typing import Any

from segjax import errors

# name -> (model, fields). Files are not part of this package.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "fcn-alexnet": ("fcn", {"backbone": "alexnet", "skips": 32}),
    "fcn32s": ("fcn", {"skips": 32}),
    "fcn16s": ("fcn", {"skips": 16}),
    "fcn8s": ("fcn", {"skips": 8}),
    "fcn8s-atonce": ("fcn", {"skips": 8, "at_once": True}),
    "fcn8s-cvpr": ("fcn", {"skips": 8, "learn_upsampling": True}),
    "crfrnn-voc": (
        "crfrnn",
        {"base_options": ("skips=8", "learn_upsampling=True")},
    ),
    "deconvnet": ("deconvnet", {}),
    "dilation8-voc": (
        "dilation",
        {"context": "large", "context_padding": "once", "upsampling": "interp"},
    ),
    "dilation8-camvid": ("dilation", {"upsampling": "interp"}),
    "dilation7-kitti": (
        "dilation",
        {"context_rates": (1, 1, 2, 4, 8, 1), "upsampling": "interp"},
    ),
    "dilation10-cityscapes": (
        "dilation",
        {"context_rates": (1, 1, 2, 4, 8, 16, 32, 64, 1), "upsampling": "deconv"},
    ),
    "deeplab-largefov": (
        "deeplab",
        {
            "backbone": "vgg16",
            "fc6_channels": 1024,
            "rates": (12,),
            "average_pool": True,
        },
    ),
    "deeplab-v2-vgg16": (
        "deeplab",
        {"backbone": "vgg16", "fc6_channels": 1024, "rates": (6, 12, 18, 24)},
    ),
    "deeplab-v2-resnet101": ("deeplab", {"scales": (1.0, 0.75, 0.5)}),
    "pspnet50-ade20k": (
        "pspnet",
        {"backbone": "resnet50", "stride_in_1x1": True, "image_stats": "caffe"},
    ),
    "pspnet101-voc": ("pspnet", {"backbone": "resnet101", "image_stats": "caffe"}),
    "pspnet101-cityscapes": (
        "pspnet",
        {"backbone": "resnet101", "image_stats": "caffe"},
    ),
    "unet-carvana": (
        "unet",
        {"padding": "same", "norm": "batch", "dropout": 0.0},
    ),
    "frrn-a-cityscapes": ("frrn", {"variant": "a"}),
    "frrn-b-cityscapes": ("frrn", {"variant": "b"}),
    "pspnet50-semseg": ("pspnet", {"backbone": "resnet50"}),
    "pspnet101-semseg": ("pspnet", {"backbone": "resnet101"}),
}


def published(name: str, models: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The model and fields of a published network, or (name, {}) for one of `models`.

    Raises:
      UserError: neither; names the nearest.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name in models:
        return name, {}
    raise errors.unknown("--model", name, {*PUBLISHED, *models})
