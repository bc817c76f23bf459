"""The kinds of published files that are known, and which of our models they fit."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from segjax.image_stats import IMAGE_STATS
from segjax.weights import checks
from segjax.weights.convert import Entry
from segjax.weights.images import Images
from segjax.weights.names import backbones, frrn, networks, unet
from segjax.weights.names.backbones import caffe, keras, torch
from segjax.weights.names.networks import Target

# Means are in RGB order here, whatever order the network takes.
ILSVRC = Images(*IMAGE_STATS["caffe"], bgr=True)
VGG = Images(*IMAGE_STATS["vgg"], bgr=True)  # also PSPNet's and Keras'
GOOGLENET = Images(1.0, (123.0, 117.0, 104.0), bgr=True)
DEEPLAB = Images(1.0, (122.675, 116.669, 104.008), bgr=True)
GRAY_OR_RGB = Images(1 / 255, (0.0,), (1.0,))  # 0 to 1
TORCHVISION = Images(*IMAGE_STATS["imagenet"])

VGG_MODELS = (
    *("classifier", "contextual", "deconvnet", "deeplab", "dilation", "fcn"),
    *("cfm", "hypercolumn", "zoomout"),
)
RESNET_MODELS = ("classifier", "deeplab", "fcn", "pspnet")
BOTTLENECKS = ("resnet50", "resnet101", "resnet152", "resnet269")
SQUEEZENET_MODELS = ("classifier", "deeplab", "fcn", "pspnet")


class Source(NamedTuple):
    """One kind of published file."""

    title: str
    models: tuple[str, ...]
    backbones: tuple[str, ...]
    signature: str  # an array that it has: a regular expression
    layer: Callable[[str, Target], Entry | None]
    images: Images | Callable[[Target], Images]
    ignored: str = ""  # arrays that may be left over: a regular expression
    extra: Callable[[Target], dict[str, Any]] = lambda target: {}  # of the Table
    fields: Mapping[str, Any] = {}  # what else describes the published network


# --- ImageNet classifiers, for any model on that backbone ---


def _classifier(
    trunk: backbones.Naming, scores: Mapping[str, Entry] = {}
) -> Callable[[str, Target], Entry | None]:
    """`scores`: our score layers of model "classifier"."""

    def layer(name: str, target: Target) -> Entry | None:
        if target.model == "classifier" and name in scores:
            return scores[name]
        return trunk(networks.part(name), target.names)

    return layer


def _vgg16(
    trunk: backbones.Naming, scores: Entry
) -> Callable[[str, Target], Entry | None]:
    """VGG16 with fully-connected layers, of which DeepLab keeps a part (v1, 4.1)."""
    layer = _classifier(trunk, {"fc8": scores})

    def named(name: str, target: Target) -> Entry | None:
        if target.model == "deeplab" and name.startswith("head/"):
            return networks.deeplab_hidden(name, target, trunk=trunk)
        return layer(name, target)

    return named


_GOOGLENET_SCORES = {
    f"loss{i}_{kind}": caffe(f"loss{i}/{kind}")
    for i in (1, 2, 3)
    for kind in ("conv", "fc", "classifier")
}
# PyTorch's and Caffe's running variances are n / (n - 1) of a batch's.
_UNBIASED = {"bn_unbiased": True}
_AS_TORCHVISION = {"stem": "plain", "stride_in_1x1": False} | _UNBIASED
_BASIC_BLOCKS = ("resnet18", "resnet34")  # without a 1x1 convolution to stride in
_AS_MSRA = {"stem": "plain", "stride_in_1x1": True}
_AS_MSRA_CAFFE = _AS_MSRA | _UNBIASED
_DEEPLAB_RESNET = dict(_AS_MSRA_CAFFE, first_block_dilation=True, output_stride=8)
_PSPNET = dict(_UNBIASED, stem="deep", first_block_dilation=True, output_stride=8)

# The first whose signature is in the file is taken.
SOURCES = (
    Source(
        "U-Net (milesial/Pytorch-UNet)",
        ("unet",),
        ("",),
        r"up1\.up\.weight",
        unet.unet_milesial,
        GRAY_OR_RGB,
        ignored=r".*\.num_batches_tracked",
        extra=unet.unet_milesial_extra,
        fields=_UNBIASED,
    ),
    Source(
        "U-Net (Caffe, phseg_v5)",
        ("unet",),
        ("",),
        r"conv_d0a-b\[0\]",
        unet.unet_caffe,
        GRAY_OR_RGB,
        extra=unet.unet_caffe_extra,
        fields={"layout": "released"},
    ),
    Source(
        "FRRN (Lasagne)",
        ("frrn",),
        ("",),
        r"arr_0",
        frrn.frrn,
        GRAY_OR_RGB,
        fields={"unpooling": "bilinear_origin"},
    ),
    Source(
        "CRF-RNN (crfasrnn_pytorch)",
        ("crfrnn",),
        ("vgg16",),
        r"crfrnn\.spatial_ker_weights",
        networks.crfrnn_torch,
        VGG,
        extra=networks.crfrnn_torch_extra,
        fields={"color_order": "caffe"},
    ),
    Source(
        "CRF-RNN (Caffe)",
        ("crfrnn",),
        ("vgg16",),
        r"inference1\[0\]",
        networks.crfrnn,
        VGG,
        extra=networks.fcn_cvpr_extra,
        fields={"color_order": "caffe"},
    ),
    Source(
        "FCN (Caffe, PAMI names)",
        ("fcn",),
        ("vgg16", "alexnet"),
        r"score_fr\[0\]",
        networks.fcn_caffe,
        ILSVRC,
        extra=networks.fcn_extra,
    ),
    Source(
        "FCN-8s (Caffe, CVPR names)",
        ("fcn",),
        ("vgg16",),
        r"score-fr\[0\]",
        networks.fcn_cvpr,
        ILSVRC,
        extra=networks.fcn_cvpr_extra,
    ),
    Source(
        "Dilation (Caffe)",
        ("dilation",),
        ("vgg16",),
        r"(fc-)?final\[0\]",
        networks.dilation,
        networks.dilation_images,
        extra=lambda target: {"checks": {"ctx_upsample[0]": checks.bilinear}},
    ),
    Source(
        "DeconvNet (Caffe)",
        ("deconvnet",),
        ("vgg16",),
        r"seg-score-voc\[0\]",
        networks.deconvnet,
        ILSVRC,
        fields=_UNBIASED,
    ),
    Source(
        "DeepLab VGG16 (Caffe)",
        ("deeplab",),
        ("vgg16",),
        r"fc8_\w+\[0\]",
        networks.deeplab_vgg,
        DEEPLAB,
    ),
    Source(
        "DeepLab v2 ResNet (Caffe)",
        ("deeplab",),
        BOTTLENECKS,
        r"fc1_\w+\[0\]",
        networks.deeplab_resnet,
        DEEPLAB,
        # The copies of the layers that see the image at the other scales, and the class
        # scores of the network that was trained on COCO to start from.
        ignored=r".*_res0\d+\[\d\]|fc1_[A-Za-z0-9]+\[[01]\]",
        fields=_DEEPLAB_RESNET | {"half_pixel": False},
    ),
    Source(
        "DeepLab v2 ResNet (deeplab-pytorch)",
        ("deeplab",),
        BOTTLENECKS,
        r"(.*\.)?layer1\.conv1\.conv\.weight",
        networks.deeplab_kazuto,
        DEEPLAB,
        ignored=r".*\.num_batches_tracked|(.*\.)?fc\.(weight|bias)",
        fields=_DEEPLAB_RESNET | {"half_pixel": True},
    ),
    Source(
        "PSPNet (Caffe)",
        ("pspnet",),
        BOTTLENECKS,
        r"conv1_1_3x3_s2\[0\]",
        networks.psp_caffe,
        VGG,
        fields=_PSPNET,
    ),
    Source(
        "PSPNet (semseg)",
        ("pspnet",),
        BOTTLENECKS,
        r"layer0\.0\.weight",
        networks.psp_semseg,
        TORCHVISION,
        ignored=r".*\.num_batches_tracked|aux\..*",
        fields=_AS_TORCHVISION | _PSPNET,
    ),
    Source(
        "VGG16 (Caffe)",
        VGG_MODELS,
        ("vgg16",),
        r"conv1_1\[0\]",
        _vgg16(backbones.vgg16_caffe, caffe("fc8")),
        VGG,
        ignored=r"(conv5_\d|fc[678])\[[01]\]",
    ),
    Source(
        "VGG16 with batch normalization (torchvision)",
        VGG_MODELS,
        ("vgg16",),
        r"features\.38\.running_mean",
        _classifier(backbones.vgg16_bn_torch),
        TORCHVISION,
        ignored=r"classifier\.[036]\.(weight|bias)|.*\.num_batches_tracked"
        r"|features\.(3[4-9]|4[0-9])\..*",
        extra=networks.vgg16_bn_extra,
        fields=_UNBIASED,
    ),
    Source(
        "SqueezeNet 1.1 (torchvision)",
        SQUEEZENET_MODELS,
        ("squeezenet",),
        r"features\.12\.squeeze\.weight",
        _classifier(backbones.squeezenet_torch, {"conv10": torch("classifier.1")}),
        TORCHVISION,
        ignored=r"classifier\.1\.(weight|bias)",
    ),
    Source(
        "SqueezeNet 1.1 (Keras)",
        SQUEEZENET_MODELS,
        ("squeezenet",),
        r"fire2/squeeze1x1/kernel",
        _classifier(backbones.squeezenet_keras, {"conv10": keras("conv10")}),
        VGG,
        ignored=r"conv10/.*",
    ),
    Source(
        "VGG16 (torchvision)",
        VGG_MODELS,
        ("vgg16",),
        r"features\.28\.weight",
        _vgg16(backbones.vgg16_torch, torch("classifier.6")),
        TORCHVISION,
        ignored=r"(features\.2[468]|classifier\.[036])\.(weight|bias)",
    ),
    Source(
        "VGG16 (Keras)",
        VGG_MODELS,
        ("vgg16",),
        r"block1_conv1/kernel",
        _vgg16(backbones.vgg16_keras, keras("predictions")),
        VGG,
        ignored=r"(block5_conv\d|fc1|fc2|predictions)/.*",
    ),
    Source(
        "AlexNet (Caffe)",
        ("classifier", "fcn"),
        ("alexnet",),
        r"conv1\[0\]",
        _classifier(backbones.alexnet_caffe, {"fc8": caffe("fc8")}),
        ILSVRC,
        ignored=r"fc8\[[01]\]",
        extra=networks.alexnet_extra,
    ),
    Source(
        "GoogLeNet (Caffe)",
        ("classifier", "fcn"),
        ("googlenet",),
        r"conv1/7x7_s2\[0\]",
        _classifier(backbones.googlenet_caffe, _GOOGLENET_SCORES),
        GOOGLENET,
        ignored=r"loss\d/.*",
    ),
    Source(
        "ResNet (torchvision, of a segmentation network)",
        RESNET_MODELS,
        BOTTLENECKS,
        r"backbone\.conv1\.weight",
        _classifier(backbones.resnet_torch),
        TORCHVISION,
        ignored=r"(aux_)?classifier\..*|.*\.num_batches_tracked",
        fields=_AS_TORCHVISION | {"first_block_dilation": False, "output_stride": 8},
        extra=networks.torchvision_extra,
    ),
    Source(
        "ResNet with a deep stem (semseg)",
        RESNET_MODELS,
        BOTTLENECKS,
        r"conv3\.weight",
        _classifier(backbones.resnet_torch, {"fc": torch("fc")}),
        TORCHVISION,
        ignored=r"fc\..*|.*\.num_batches_tracked",
        fields=_AS_TORCHVISION | {"stem": "deep"},
    ),
    Source(
        "ResNet (torchvision)",
        RESNET_MODELS,
        BOTTLENECKS,
        r"conv1\.weight",
        _classifier(backbones.resnet_torch, {"fc": torch("fc")}),
        TORCHVISION,
        ignored=r"fc\..*|.*\.num_batches_tracked",
        fields=_AS_TORCHVISION,
    ),
    Source(
        "ResNet (torchvision)",
        RESNET_MODELS,
        _BASIC_BLOCKS,
        r"conv1\.weight",
        _classifier(backbones.resnet_torch, {"fc": torch("fc")}),
        TORCHVISION,
        ignored=r"fc\..*|.*\.num_batches_tracked",
        fields={"stem": "plain"} | _UNBIASED,
    ),
    Source(
        "ResNet (Caffe, MSRA)",
        RESNET_MODELS,
        BOTTLENECKS,
        r"bn_conv1\[0\]",
        _classifier(backbones.resnet_caffe, {"fc": caffe("fc1000")}),
        ILSVRC,
        ignored=r"fc1000\[[01]\]",
        fields=_AS_MSRA_CAFFE,
    ),
    Source(
        "ResNet (Keras)",
        RESNET_MODELS,
        BOTTLENECKS,
        r"conv1_conv/kernel",
        _classifier(backbones.resnet_keras, {"fc": keras("predictions")}),
        VGG,
        ignored=r"(probs|predictions)/.*",
        fields=_AS_MSRA,
    ),
    Source(
        "ResNet50 (Keras, before 2019)",
        RESNET_MODELS,
        BOTTLENECKS,
        r"res2a_branch2a/kernel",
        _classifier(backbones.resnet_keras_old, {"fc": keras("fc1000")}),
        VGG,
        ignored=r"fc1000/.*",
        fields=_AS_MSRA,
    ),
)
