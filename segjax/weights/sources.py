"""Which published files fit which of our models.

``SOURCES`` lists the kinds of files. Layers of ours that a source has no name for are
left as they are initialized: the heads, when the file is an ImageNet classifier.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from segjax.errors import UserError
from segjax.weights import convert
from segjax.weights.convert import Conv, Entry, Images, Table
from segjax.weights.names import backbones, networks
from segjax.weights.names.backbones import caffe, keras, torch
from segjax.weights.names.networks import Target

# Means are in RGB order here, whatever order the network takes.
ILSVRC = Images(1.0, (122.67892, 116.66877, 104.00699), bgr=True)
VGG = Images(1.0, (123.68, 116.779, 103.939), bgr=True)  # also PSPNet's and Keras'
GOOGLENET = Images(1.0, (123.0, 117.0, 104.0), bgr=True)
DEEPLAB = Images(1.0, (122.675, 116.669, 104.008), bgr=True)
TORCHVISION = Images(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

VGG_MODELS = ("classifier", "contextual", "deconvnet", "deeplab", "dilation", "fcn")
RESNET_MODELS = ("classifier", "deeplab", "pspnet")
RESNETS = ("resnet50", "resnet101")


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


def find(target: Target) -> Table:
    """The name table for a file and a model.

    Raises:
      UserError: no known source, or a field that contradicts the file.
    """
    backbone = target.fields.get("backbone", "vgg16")
    known = [source for source in SOURCES if _signed(source, target)]
    for source in known:
        if target.model in source.models and backbone in source.backbones:
            return _table(source, target)
    some = ", ".join(sorted(target.names)[:4])
    looks = "no known source"
    if known:
        likely = known[0]
        looks = (
            f"{likely.title}, for model {' or '.join(likely.models)} with backbone "
            f"{' or '.join(likely.backbones)}"
        )
    ours = f"model {target.model!r}"
    if "backbone" in target.fields:
        ours += f" with backbone {backbone!r}"
    raise UserError(f"arrays like {some} are of {looks}, not for {ours}")


def _signed(source: Source, target: Target) -> bool:
    pattern = re.compile(source.signature)
    return any(pattern.fullmatch(name) for name in target.names)


def _table(source: Source, target: Target) -> Table:
    named = {layer: source.layer(layer, target) for layer in layers(target.shapes)}
    entries = {layer: entry for layer, entry in named.items() if entry}
    missing = tuple(layer for layer, entry in named.items() if not entry)
    for layer in missing:
        before = layer.removesuffix("_bn")
        if before in entries and f"params/{before}/bias" not in target.shapes:
            raise UserError(
                f"{source.title} has no batch normalization {layer}; set model.norm to "
                "'none'"
            )
    notes = [
        f"the published network has {field}={value!r}, the model "
        f"{target.fields[field]!r}"
        for field, value in source.fields.items()
        if target.fields.get(field, value) != value
    ]
    images = source.images
    return Table(
        source=source.title,
        layers=entries,
        images=images if isinstance(images, Images) else images(target),
        first=next((layer for layer in convert.FIRST if layer in entries), ""),
        missing=missing,
        ignored=tuple(n for n in target.names if re.fullmatch(source.ignored, n)),
        notes=tuple(notes),
        **source.extra(target),
    )


def layers(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Our layers, in order, from names such as "params/backbone/conv1_1/kernel"."""
    names = (name.partition("/")[2].rpartition("/")[0] for name in shapes)
    return tuple(dict.fromkeys(names))


# --- ImageNet classifiers, for any model on that backbone ---


def _classifier(
    trunk: backbones.Naming, scores: Mapping[str, Conv] = {}
) -> Callable[[str, Target], Entry | None]:
    """`scores`: our score layers of model "classifier"."""

    def layer(name: str, target: Target) -> Entry | None:
        if target.model == "classifier" and name in scores:
            return scores[name]
        return trunk(networks.part(name), target.names)

    return layer


_GOOGLENET_SCORES = {
    f"loss{i}_{kind}": caffe(f"loss{i}/{kind}")
    for i in (1, 2, 3)
    for kind in ("conv", "fc", "classifier")
}
_AS_TORCHVISION = {"stem": "plain", "stride_in_1x1": False}
_AS_MSRA = {"stem": "plain", "stride_in_1x1": True}
_DEEPLAB_RESNET = dict(_AS_MSRA, first_block_dilation=True, output_stride=8)
_PSPNET = {"stem": "deep", "first_block_dilation": True, "output_stride": 8}

# The first whose signature is in the file is taken.
SOURCES = (
    Source(
        "CRF-RNN (Caffe)",
        ("crfrnn",),
        ("vgg16",),
        r"inference1\[0\]",
        networks.crfrnn,
        VGG,
        extra=networks.fcn_cvpr_extra,
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
        extra=lambda target: {"checks": {"ctx_upsample[0]": convert.bilinear}},
    ),
    Source(
        "DeconvNet (Caffe)",
        ("deconvnet",),
        ("vgg16",),
        r"seg-score-voc\[0\]",
        networks.deconvnet,
        ILSVRC,
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
        RESNETS,
        r"fc1_\w+\[0\]",
        networks.deeplab_resnet,
        DEEPLAB,
        # The copies of the layers that see the image at the other scales.
        ignored=r".*_res0\d+\[\d\]",
        fields=_DEEPLAB_RESNET,
    ),
    Source(
        "DeepLab v2 ResNet (deeplab-pytorch)",
        ("deeplab",),
        RESNETS,
        r"(.*\.)?layer1\.conv1\.conv\.weight",
        networks.deeplab_kazuto,
        DEEPLAB,
        ignored=r".*\.num_batches_tracked",
        fields=_DEEPLAB_RESNET,
    ),
    Source(
        "PSPNet (Caffe)",
        ("pspnet",),
        RESNETS,
        r"conv1_1_3x3_s2\[0\]",
        networks.psp_caffe,
        VGG,
        fields=_PSPNET,
    ),
    Source(
        "PSPNet (semseg)",
        ("pspnet",),
        RESNETS,
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
        _classifier(backbones.vgg16_caffe, {"fc8": caffe("fc8")}),
        VGG,
        ignored=r"(conv5_\d|fc[678])\[[01]\]",
    ),
    Source(
        "VGG16 (torchvision)",
        VGG_MODELS,
        ("vgg16",),
        r"features\.0\.weight",
        _classifier(backbones.vgg16_torch, {"fc8": torch("classifier.6")}),
        TORCHVISION,
        ignored=r"(features\.2[468]|classifier\.[036])\.(weight|bias)",
    ),
    Source(
        "VGG16 (Keras)",
        VGG_MODELS,
        ("vgg16",),
        r"block1_conv1/kernel",
        _classifier(backbones.vgg16_keras, {"fc8": keras("predictions")}),
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
        RESNETS,
        r"backbone\.conv1\.weight",
        _classifier(backbones.resnet_torch),
        TORCHVISION,
        ignored=r"(aux_)?classifier\..*|.*\.num_batches_tracked",
        fields=_AS_TORCHVISION | {"first_block_dilation": False, "output_stride": 8},
    ),
    Source(
        "ResNet with a deep stem (semseg)",
        RESNET_MODELS,
        RESNETS,
        r"conv3\.weight",
        _classifier(backbones.resnet_torch, {"fc": torch("fc")}),
        TORCHVISION,
        ignored=r"fc\..*|.*\.num_batches_tracked",
        fields=_AS_TORCHVISION | {"stem": "deep"},
    ),
    Source(
        "ResNet (torchvision)",
        RESNET_MODELS,
        RESNETS,
        r"conv1\.weight",
        _classifier(backbones.resnet_torch, {"fc": torch("fc")}),
        TORCHVISION,
        ignored=r"fc\..*|.*\.num_batches_tracked",
        fields=_AS_TORCHVISION,
    ),
    Source(
        "ResNet (Caffe, MSRA)",
        RESNET_MODELS,
        RESNETS,
        r"bn_conv1\[0\]",
        _classifier(backbones.resnet_caffe, {"fc": caffe("fc1000")}),
        ILSVRC,
        ignored=r"fc1000\[[01]\]",
        fields=_AS_MSRA,
    ),
    Source(
        "ResNet (Keras)",
        RESNET_MODELS,
        RESNETS,
        r"conv1_conv/kernel",
        _classifier(backbones.resnet_keras, {"fc": keras("predictions")}),
        VGG,
        ignored=r"(probs|predictions)/.*",
        fields=_AS_MSRA,
    ),
    Source(
        "ResNet50 (Keras, before 2019)",
        RESNET_MODELS,
        RESNETS,
        r"res2a_branch2a/kernel",
        _classifier(backbones.resnet_keras_old, {"fc": keras("fc1000")}),
        VGG,
        ignored=r"fc1000/.*",
        fields=_AS_MSRA,
    ),
)
