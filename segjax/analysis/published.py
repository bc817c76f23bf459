"""The published networks, and what is known of them: a table of numbers.

`experiments.summarize --all` compares them with ours, docs/models.md shows the result.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from segjax.models import deeplab


class Network(NamedTuple):
    """A published network: a model, its fields, and an image to describe it for."""

    model: str  # a key of segjax.models.MODELS
    fields: Mapping[str, Any]
    classes: int
    image: tuple[int, int, int]  # (H, W, C)


class Number(NamedTuple):
    """What is known of a network. Ours is rounded like the published value.

    Quantities are "parameters", "MACs" and "FLOPs", each also "of PREFIX" for the
    layers whose names begin so; "layers", those with a kernel; "field of NAME", "stride
    of NAME" and "side of NAME" (rows) of a layer or an output.
    """

    quantity: str
    value: str
    source: str
    note: str = ""  # why ours differs


_VGG, _LARGE, _SMALL = (500, 500, 3), (513, 513, 3), (514, 514, 3)
_URBAN8 = dict(upsampling="interp")
_VOC8 = dict(context="large", context_padding="once", **_URBAN8)
_KITTI7 = dict(context_rates=(1, 1, 2, 4, 8, 1), **_URBAN8)
_CITYSCAPES10 = dict(context_rates=(1, 1, 2, 4, 8, 16, 32, 64, 1))
_RELEASED = dict(layout="released", residual_depth=2, dropout=0.25)
_R101 = dict(backbone="resnet101", aux=False)
_V1B = dict(stem="plain", first_block_dilation=False)


def _deeplab(variant: str, image: tuple[int, int, int]) -> Network:
    return Network("deeplab", deeplab.VARIANTS[variant], 21, image)


NETWORKS = {
    "FCN-AlexNet": Network("fcn", dict(backbone="alexnet", skips=32), 21, _VGG),
    "FCN-32s VGG16": Network("fcn", dict(skips=32), 21, _VGG),
    "FCN-16s VGG16": Network("fcn", dict(skips=16), 21, _VGG),
    "FCN-8s VGG16": Network("fcn", dict(skips=8), 21, _VGG),
    "FCN-GoogLeNet": Network("fcn", dict(backbone="googlenet", skips=32), 21, _VGG),
    "DeconvNet": Network("deconvnet", {}, 21, (224, 224, 3)),
    "DeepLab-7x7": _deeplab("deeplab_7x7", _SMALL),
    "DeepLab": _deeplab("deeplab", _SMALL),
    "DeepLab-4x4": _deeplab("deeplab_4x4", _SMALL),
    "DeepLab-LargeFOV": _deeplab("deeplab_largefov", _LARGE),
    "DeepLab-MSc": _deeplab("deeplab_msc", _LARGE),
    "DeepLab-MSc-LargeFOV": _deeplab("deeplab_msc_largefov", _LARGE),
    "DeepLab v2 VGG16 ASPP-S": _deeplab("deeplab_v2_vgg16_aspp_s", _LARGE),
    "DeepLab v2 VGG16 ASPP-L": _deeplab("deeplab_v2_vgg16_aspp_l", _LARGE),
    "DeepLab v2 ResNet-101 LargeFOV": _deeplab("deeplab_v2_resnet101_largefov", _LARGE),
    "DeepLab v2 ResNet-101 ASPP-L, 3 scales": _deeplab("deeplab_v2_resnet101", _LARGE),
    "Dilation, front end": Network(
        "dilation", dict(context="none", padding="valid"), 21, (900, 900, 3)
    ),
    "Dilation8 VOC (Large)": Network("dilation", _VOC8, 21, _VGG),
    "Dilation8 CamVid (Basic)": Network("dilation", _URBAN8, 11, (480, 640, 3)),
    "Dilation7 KITTI": Network("dilation", _KITTI7, 11, (370, 1226, 3)),
    "Dilation10 Cityscapes": Network("dilation", _CITYSCAPES10, 19, (1024, 1024, 3)),
    "CRF-RNN": Network("crfrnn", {}, 21, _VGG),
    "U-Net": Network("unet", {}, 2, (572, 572, 1)),
    "U-Net, padded, batch normalization": Network(
        "unet", dict(padding="same", norm="batch"), 2, (512, 512, 3)
    ),
    "U-Net, padded, CamVid": Network("unet", dict(padding="same"), 12, (368, 480, 3)),
    "FusionNet": Network("fusionnet", {}, 1, (640, 640, 1)),
    "FusionNet, released": Network("fusionnet", _RELEASED, 1, (640, 640, 1)),
    "Deep Contextual Network": Network("contextual", {}, 2, (480, 480, 1)),
    "FRRN A": Network("frrn", dict(variant="a"), 19, (256, 512, 3)),
    "FRRN B": Network("frrn", dict(variant="b"), 19, (512, 1024, 3)),
    "PSPNet-50 ADE20K": Network(
        "pspnet", dict(aux=False, stride_in_1x1=True), 150, (473, 473, 3)
    ),
    "PSPNet-50 ADE20K, with auxiliary head": Network("pspnet", {}, 150, (473, 473, 3)),
    "PSPNet-101 VOC": Network("pspnet", _R101, 21, (473, 473, 3)),
    "PSPNet-101 Cityscapes": Network("pspnet", _R101, 19, (713, 713, 3)),
    "PSPNet-50, plain stem, Cityscapes": Network("pspnet", _V1B, 19, (1024, 2048, 3)),
}

# Where numbers come from: printed in the paper; counted from the layers that the paper
# or the authors' network definitions list, without this program.
PAPER, LAYERS = "paper", "layer list"
_MMSEG = "mmsegmentation, user guide"
_OPENVINO = "OpenVINO, unet-camvid-onnx-0001"
_POOLED = "of GoogLeNet with its last 7x7 pooling, which the FCN drops"
_OTHER_COUNT = "another program's count, 0.1 % higher"
_OTHER_STEM = "10.0 G of the difference are its stem of 32, 32, 64 channels"

NUMBERS: dict[str, tuple[Number, ...]] = {
    "FCN-AlexNet": (
        Number("parameters", "57 M", PAPER),
        Number("layers", "8", PAPER),
        Number("stride of score_fr", "32", PAPER),
        Number("field of score_fr", "355", PAPER),
        Number("parameters", "56,954,261", LAYERS),
        Number("field of pool5", "195", LAYERS),
        Number("side of fc6", "16", LAYERS),
    ),
    "FCN-32s VGG16": (
        Number("parameters", "134 M", PAPER),
        Number("layers", "16", PAPER),
        Number("stride of score_fr", "32", PAPER),
        Number("field of score_fr", "404", PAPER),
        Number("parameters", "134,346,581", LAYERS),
        Number("field of pool5", "212", LAYERS),
        Number("side of fc6", "16", LAYERS),
    ),
    "FCN-16s VGG16": (
        Number("parameters", "134,357,354", LAYERS),
        Number("stride of fuse_pool4", "16", PAPER),
        Number("field of score_fr", "404", LAYERS),
    ),
    "FCN-8s VGG16": (
        Number("parameters", "134,362,751", LAYERS),
        Number("stride of fuse_pool3", "8", PAPER),
        Number("field of score_fr", "404", LAYERS),
    ),
    "FCN-GoogLeNet": (
        Number("parameters", "6 M", PAPER),
        Number("stride of score_fr", "32", PAPER),
        Number("field of score_fr", "907", PAPER, _POOLED),
        Number("parameters", "5,995,077", LAYERS),
        Number("field of score_fr", "715", LAYERS),
    ),
    "DeconvNet": (
        Number("parameters", "252 M", PAPER),
        Number("parameters", "251,805,653", LAYERS),
        Number("layers", "30", LAYERS),
        Number("side of pool5", "7", LAYERS),
        Number("side of fc6", "1", LAYERS),
        Number("field of fc6", "404", LAYERS),
        Number("stride of pool5", "32", LAYERS),
    ),
    "DeepLab-7x7": (
        Number("parameters", "134.3 M", PAPER),
        Number("parameters", "134,346,581", LAYERS),
        Number("stride of scores", "8", LAYERS),
        Number("field of head/fc6", "404", LAYERS),
    ),
    "DeepLab": (
        Number("parameters", "65.1 M", PAPER),
        Number("parameters", "65,140,565", LAYERS),
        Number("field of head/fc6", "308", LAYERS),
        Number("side of pool1", "258", LAYERS),
        Number("side of scores", "65", LAYERS),
        Number("stride of scores", "8", LAYERS),
    ),
    "DeepLab-4x4": (
        Number("parameters", "65.1 M", PAPER),
        Number("parameters", "65,140,565", LAYERS),
        Number("stride of scores", "8", LAYERS),
        Number("field of head/fc6", "404", LAYERS),
    ),
    "DeepLab-LargeFOV": (
        Number("parameters", "20.5 M", PAPER),
        Number("parameters", "20,505,429", LAYERS),
        Number("field of pool4", "115", LAYERS),
        Number("field of conv5_3", "211", LAYERS),
        Number("field of pool5a", "243", LAYERS),
        Number("field of head/fc6", "435", LAYERS),
        Number("side of scores", "65", LAYERS),
        Number("stride of scores", "8", LAYERS),
    ),
    "DeepLab-MSc": (Number("parameters", "66,346,686", LAYERS),),
    "DeepLab-MSc-LargeFOV": (
        Number("parameters", "21,711,550", LAYERS),
        Number("parameters of sides", "1,206,121", LAYERS),
    ),
    "DeepLab v2 VGG16 ASPP-S": (
        Number("parameters", "37,877,652", LAYERS),
        Number("field of head/fc6_1", "259", LAYERS),
        Number("field of head/fc6_2", "291", LAYERS),
        Number("field of head/fc6_3", "355", LAYERS),
        Number("field of head/fc6_4", "419", LAYERS),
    ),
    "DeepLab v2 VGG16 ASPP-L": (
        Number("parameters", "37,877,652", LAYERS),
        Number("parameters of head", "23,162,964", LAYERS),
        Number("stride of scores", "8", LAYERS),
        Number("field of head/fc6_1", "323", LAYERS),
        Number("field of head/fc6_2", "419", LAYERS),
        Number("field of head/fc6_3", "515", LAYERS),
        Number("field of head/fc6_4", "611", LAYERS),
    ),
    "DeepLab v2 ResNet-101 LargeFOV": (
        Number("parameters", "42,887,253", LAYERS),
        Number("field of block1", "35", LAYERS),
        Number("field of block2", "99", LAYERS),
        Number("field of block3", "835", LAYERS),
        Number("field of block4", "1027", LAYERS),
        Number("field of head/fc1", "1219", LAYERS),
        Number("stride of head/fc1", "8", LAYERS),
    ),
    "DeepLab v2 ResNet-101 ASPP-L, 3 scales": (
        Number("parameters", "44,048,532", LAYERS),
        Number("parameters of backbone", "42,500,160", LAYERS),
        Number("parameters of head", "1,548,372", LAYERS),
        Number("field of head/fc1_1", "1123", LAYERS),
        Number("field of head/fc1_2", "1219", LAYERS),
        Number("field of head/fc1_3", "1315", LAYERS),
        Number("field of head/fc1_4", "1411", LAYERS),
        Number("side of scale_logits/0", "65", LAYERS),
        Number("side of scale_logits/2", "33", LAYERS),
        Number("stride of scores", "8", LAYERS),
    ),
    "Dilation, front end": (
        Number("parameters", "134,346,581", LAYERS),
        Number("field of conv5_3", "188", LAYERS),
        Number("field of fc6", "380", LAYERS),
        Number("side of final", "66", LAYERS),
        Number("side of logits", "528", LAYERS),
        Number("stride of final", "8", LAYERS),
    ),
    "Dilation8 VOC (Large)": (
        Number("parameters of context", "6,803,139", LAYERS),
        Number("field of scores", "908", LAYERS),
        Number("parameters", "141,149,720", LAYERS),
        Number("stride of scores", "8", LAYERS),
    ),
    "Dilation8 CamVid (Basic)": (
        Number("parameters of context", "7,832", LAYERS),
        Number("field of scores", "908", LAYERS),
        Number("parameters", "134,313,443", LAYERS),
    ),
    "Dilation7 KITTI": (
        Number("parameters of context", "6,732", LAYERS),
        Number("field of scores", "652", LAYERS),
        Number("parameters", "134,312,343", LAYERS),
    ),
    "Dilation10 Cityscapes": (
        Number("parameters of context", "29,792", LAYERS),
        Number("field of scores", "2444", LAYERS),
        Number("side of scores", "128", LAYERS),
        Number("parameters", "134,368,179", LAYERS),
    ),
    "CRF-RNN": (
        Number("parameters", "134,364,074", LAYERS),
        Number("parameters of crfrnn", "1,323", LAYERS),
        Number("field of score_fr", "404", LAYERS),
        Number("field of logits", "global", LAYERS),
    ),
    "U-Net": (
        Number("parameters", "31,030,658", LAYERS),
        Number("stride of enc4", "16", LAYERS),
        Number("field of logits", "188..204", LAYERS),
        Number("layers", "23", PAPER),
        Number("side of enc4", "28", PAPER),
        Number("side of logits", "388", PAPER),
    ),
    "U-Net, padded, batch normalization": (Number("parameters", "31,037,698", LAYERS),),
    "U-Net, padded, CamVid": (
        Number("parameters", "31.03 M", _OPENVINO),
        Number("FLOPs", "260.1 G", _OPENVINO, _OTHER_COUNT),
    ),
    "FusionNet": (
        Number("parameters", "78,531,137", LAYERS),
        Number("layers", "50", LAYERS),
        Number("side of bridge", "40", LAYERS),
        Number("stride of bridge", "16", LAYERS),
    ),
    "FusionNet, released": (
        Number("parameters", "62,804,545", LAYERS),
        Number("layers", "41", LAYERS),
        Number("side of bridge", "40", LAYERS),
    ),
    "Deep Contextual Network": (
        Number("parameters of conv", "7,634,112", LAYERS),
        Number("layers", "19", LAYERS),
        Number("field of conv2_2", "14", LAYERS),
        Number("field of conv3_3", "40", LAYERS),
        Number("field of conv4_3", "92", LAYERS),
        Number("side of conv4_3", "60", LAYERS),
        Number("stride of conv4_3", "8", LAYERS),
    ),
    "FRRN A": (
        Number("parameters", "17.7 M", PAPER),
        Number("parameters", "17,746,803", LAYERS),
        Number("field of pooling1", "42", LAYERS),
        Number("field of pooling2", "108", LAYERS),
        Number("field of pooling3", "176", LAYERS),
        Number("field of pooling4", "312", LAYERS),
        Number("stride of pooling4", "16", LAYERS),
    ),
    "FRRN B": (
        Number("parameters", "24.8 M", PAPER),
        Number("parameters", "24,755,699", LAYERS),
        Number("field of pooling5", "584", LAYERS),
        Number("stride of pooling5", "32", LAYERS),
    ),
    "PSPNet-50 ADE20K": (
        Number("parameters", "46,782,550", LAYERS),
        Number("parameters of backbone", "23,631,808", LAYERS),
        Number("parameters of pyramid", "4,198,400", LAYERS),
        Number("field of block4", "487", LAYERS),
        Number("field of conv5_4", "global", LAYERS),
        Number("side of conv6", "60", LAYERS),
        Number("stride of conv6", "8", LAYERS),
    ),
    "PSPNet-50 ADE20K, with auxiliary head": (
        Number("parameters", "49,180,908", LAYERS),
        Number("MACs of backbone", "93.6 G", LAYERS),
    ),
    "PSPNet-101 VOC": (
        Number("parameters", "65,708,501", LAYERS),
        Number("MACs of backbone", "161.8 G", LAYERS),
        Number("field of block4", "1023", LAYERS),
        Number("stride of conv6", "8", LAYERS),
    ),
    "PSPNet-101 Cityscapes": (
        Number("parameters", "65,707,475", LAYERS),
        Number("MACs of backbone", "364.2 G", LAYERS),
        Number("side of conv6", "90", LAYERS),
    ),
    "PSPNet-50, plain stem, Cityscapes": (
        Number("MACs", "1,429.68 G", _MMSEG, _OTHER_STEM),
    ),
}
