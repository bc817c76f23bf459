"""Which published files fit which of our models, and what they call the layers.

``SOURCES`` lists the kinds of files, ``PUBLISHED`` the networks that were published
with all their layers, with the fields that describe them. Layers of ours that a source
has no name for are left as they are initialised: the heads, when the file is an
ImageNet classifier.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from segjax.errors import UserError
from segjax.weights import backbones, convert
from segjax.weights.backbones import affine, caffe, keras, psp_norm, torch, torch_norm
from segjax.weights.convert import Conv, Images, Norm, Table

# Means are in RGB order here, whatever order the network takes.
ILSVRC = Images(1.0, (122.67892, 116.66877, 104.00699), bgr=True)
VGG = Images(1.0, (123.68, 116.779, 103.939), bgr=True)  # also PSPNet's and Keras'
GOOGLENET = Images(1.0, (123.0, 117.0, 104.0), bgr=True)
DEEPLAB = Images(1.0, (122.675, 116.669, 104.008), bgr=True)
TORCHVISION = Images(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

VGG_MODELS = ("classifier", "contextual", "deconvnet", "deeplab", "dilation", "fcn")
RESNET_MODELS = ("classifier", "deeplab", "pspnet")
RESNETS = ("resnet50", "resnet101")


class Target(NamedTuple):
    """The model to fill, and what the file holds."""

    model: str
    fields: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    names: Set[str]


class Source(NamedTuple):
    """One kind of published file."""

    title: str
    models: tuple[str, ...]
    backbones: tuple[str, ...]
    signature: str  # an array that it has: a regular expression
    layer: Callable[[str, Target], Conv | Norm | None]
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
    fitting = [
        source
        for source in SOURCES
        if target.model in source.models and backbone in source.backbones
    ]
    for source in fitting:
        pattern = re.compile(source.signature)
        if any(pattern.fullmatch(name) for name in target.names):
            return _table(source, target)
    some = ", ".join(sorted(target.names)[:4])
    known = ", ".join(source.title for source in fitting) or "none"
    raise UserError(
        f"arrays like {some} are of no known source for model {target.model!r} with "
        f"backbone {backbone!r}; known: {known}"
    )


def _table(source: Source, target: Target) -> Table:
    named = {layer: source.layer(layer, target) for layer in layers(target.shapes)}
    entries = {layer: entry for layer, entry in named.items() if entry}
    fresh = tuple(layer for layer, entry in named.items() if not entry)
    for layer in fresh:
        before = layer.removesuffix("_bn")
        if before in entries and f"params/{before}/bias" not in target.shapes:
            raise UserError(
                f"{source.title} has no batch normalisation {layer}; set model.norm to "
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
        first=next((layer for layer in _FIRST if layer in entries), ""),
        fresh=fresh,
        ignored=tuple(n for n in target.names if re.fullmatch(source.ignored, n)),
        notes=tuple(notes),
        **source.extra(target),
    )


# Our layers that see the image.
_FIRST = ("backbone/conv1", "backbone/conv1_1", "backbone/conv1_7x7_s2", "conv1_1")


def layers(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Our layers, in order, from names such as "params/backbone/conv1_1/kernel"."""
    names = (name.partition("/")[2].rpartition("/")[0] for name in shapes)
    return tuple(dict.fromkeys(names))


def _part(layer: str) -> str:
    return layer.removeprefix("backbone/")


# --- networks published with their heads ---


def _fcn_caffe(layer: str, target: Target) -> Conv:
    return caffe(_part(layer), "IOHW" if layer.startswith("upscore") else "OIHW")


def _fcn_extra(target: Target) -> dict[str, Any]:
    skips = 32 - 16 * ("score_pool4[0]" in target.names)
    skips -= 8 * ("score_pool3[0]" in target.names)
    _expect(target, "skips", skips)
    if skips != 32:
        _expect(target, "at_once", "scale_pool4[0]" in target.names)
    learned = target.fields.get("learn_upsampling", False)
    fixed = {"upscore[0]", "upscore16[0]", "upscore8[0]"}
    if not learned:
        fixed |= {"upscore2[0]", "upscore_pool4[0]"}
    checks = dict.fromkeys(fixed, convert.bilinear)
    checks["scale_pool4[0]"] = convert.constant(0.01)
    checks["scale_pool3[0]"] = convert.constant(0.0001)
    return {"checks": checks}


_CVPR = {
    "score_fr": "score-fr",
    "upscore2": "score2",
    "score_pool4": "score-pool4",
    "upscore_pool4": "score4",
    "score_pool3": "score-pool3",
}


def _fcn_cvpr(layer: str, target: Target) -> Conv | None:
    if layer in _CVPR:
        layout = "IOHW" if layer.startswith("upscore") else "OIHW"
        return caffe(_CVPR[layer], layout)
    return backbones.vgg16_caffe(_part(layer), target.names)


def _fcn_cvpr_extra(target: Target) -> dict[str, Any]:
    _expect(target, "skips", 8)
    _expect(target, "at_once", False)
    _expect(target, "learn_upsampling", True)
    # The first learned upsampling has a bias. Its output is added to score_pool4.
    return {
        "checks": {"upsample[0]": convert.bilinear},
        "added": {"score2[1]": "params/score_pool4/bias"},
    }


def _expect(target: Target, field: str, value: Any) -> None:
    if target.fields.get(field, value) != value:
        raise UserError(
            f"the file is of a network with {field}={value!r}, the model has "
            f"{target.fields[field]!r}: set model.{field} to {value!r}"
        )


def _psp_caffe(layer: str, target: Target) -> Conv | Norm | None:
    norm, name = layer.endswith("_bn"), layer.removesuffix("_bn")
    if bins := re.fullmatch(r"pyramid(\d+)", name):
        name = f"conv5_3_pool{bins[1]}_conv"
    elif name not in ("conv5_4", "conv6"):
        # The auxiliary head was not released.
        return backbones.resnet_psp(_part(layer), target.names)
    if norm:
        return psp_norm(f"{name}/bn")
    return caffe(name)._replace(inputs=_psp_inputs(target) if name == "conv5_4" else ())


def _psp_inputs(target: Target) -> tuple[int, ...]:
    """conv5_4 reads the backbone, then the levels: ours as in `bins`, Caffe's from the
    finest to the coarsest."""
    bins = target.fields["bins"]
    first = f"params/pyramid{bins[0]}/kernel" if bins else ""
    if first not in target.shapes:
        return ()
    level = target.shapes[first][3]
    backbone = target.shapes["params/conv5_4/kernel"][2] - len(bins) * level
    order = sorted(bins, reverse=True)
    starts = [backbone + level * order.index(bin) for bin in bins]
    return (
        *range(backbone),
        *(start + channel for start in starts for channel in range(level)),
    )


def _psp_semseg(layer: str, target: Target) -> Conv | Norm | None:
    head = {
        "conv5_4": torch("cls.0"),
        "conv5_4_bn": torch_norm("cls.1"),
        "conv6": torch("cls.4"),
        "aux_conv": torch("aux.0"),
        "aux_conv_bn": torch_norm("aux.1"),
        "aux_score": torch("aux.4"),
    }
    for index, bins in enumerate(target.fields["bins"]):
        head[f"pyramid{bins}"] = torch(f"ppm.features.{index}.1")
        head[f"pyramid{bins}_bn"] = torch_norm(f"ppm.features.{index}.2")
    if layer.startswith("aux_") and "aux.0.weight" not in target.names:
        return None
    return head.get(layer) or backbones.resnet_semseg(_part(layer), target.names)


def _experiment(target: Target, layer: str) -> str:
    """What DeepLab's class scores are called after: "voc12" in fc8_voc12_1."""
    pattern = rf"{layer}_(\w+?)(_c?\d)?\[0\]"
    matches = (re.fullmatch(pattern, name) for name in sorted(target.names))
    return next((match[1] for match in matches if match), "voc12")


def _deeplab_resnet(layer: str, target: Target) -> Conv | Norm | None:
    if match := re.fullmatch(r"head/fc1(?:_(\d+))?", layer):
        branch = f"_c{int(match[1]) - 1}" if match[1] else ""
        return caffe(f"fc1_{_experiment(target, 'fc1')}{branch}")
    return backbones.resnet_caffe(_part(layer), target.names)


def _deeplab_vgg(layer: str, target: Target) -> Conv | None:
    if match := re.fullmatch(r"head/(fc[678])(_\d+)?", layer):
        experiment = _experiment(target, "fc8") if match[1] == "fc8" else ""
        return caffe("_".join(filter(None, (match[1], experiment))) + (match[2] or ""))
    part = _part(layer)
    return caffe(part) if re.fullmatch(r"conv\d_\d", part) else None


def _deeplab_kazuto(layer: str, target: Target) -> Conv | Norm | None:
    if match := re.fullmatch(r"head/fc1(?:_(\d+))?", layer):
        prefix = backbones.kazuto_prefix(target.names) + "aspp."
        old = any(".stages." in name for name in target.names)
        branch = int(match[1] or 1) - 1
        return torch(f"{prefix}{'stages.' if old else ''}c{branch}")
    return backbones.resnet_kazuto(_part(layer), target.names)


def _dilation(layer: str, target: Target) -> Conv | None:
    voc = "fc-final[0]" in target.names
    context = "ct" if voc else "ctx"
    count = len(target.fields["context_rates"])
    if layer == "final":
        return caffe("fc-final" if voc else "final")
    if layer == "context/final":
        return caffe(f"{context}_final")
    if match := re.fullmatch(r"context/conv(\d+)", layer):
        index = int(match[1])
        name = f"conv{index - 1}_1" if index > 2 else f"conv1_{index}"
        return caffe(f"{context}_{'fc1' if index == count else name}")
    return backbones.vgg16_caffe(_part(layer), target.names)


# RGB means of the data sets, by the 3x3 layers in their context modules.
_DILATION_MEANS = {
    6: (91.34692262, 95.55136972, 96.19429688),  # KITTI
    7: (105.41212523, 108.77808759, 110.70313206),  # CamVid
    9: (73.16, 82.91, 72.39),  # Cityscapes
}
_DILATION_VOC_MEAN = (116.52, 111.36, 102.93)


def _dilation_images(target: Target) -> Images:
    context = [n for n in target.names if re.fullmatch(r"ctx_(conv\d_\d|fc1)\[0\]", n)]
    mean = _DILATION_MEANS.get(len(context), _DILATION_VOC_MEAN)
    return Images(1.0, mean, bgr=True)


_DECONVNET = {"fc6_deconv": "fc6-deconv", "seg_score": "seg-score-voc"}


def _deconvnet(layer: str, target: Target) -> Conv | Norm:
    if layer.endswith("_bn"):
        name = layer.removesuffix("_bn")
        if name == "fc6_deconv":
            norm = "fc6-deconv-bn"
        else:  # conv1_1: bn1_1, deconv1_1: debn1_1, fc6: bnfc6
            norm = name.replace("conv", "bn") if "conv" in name else f"bn{name}"
        return affine(norm, target.fields["bn_epsilon"])
    layout = "IOHW" if "deconv" in layer else "OIHW"
    return caffe(_DECONVNET.get(layer, layer), layout)


# --- ImageNet classifiers, for any model on that backbone ---


def _classifier(
    trunk: backbones.Naming, scores: Mapping[str, Conv] = {}
) -> Callable[[str, Target], Conv | Norm | None]:
    """`scores`: our score layers of model "classifier"."""

    def layer(name: str, target: Target) -> Conv | Norm | None:
        if target.model == "classifier" and name in scores:
            return scores[name]
        return trunk(_part(name), target.names)

    return layer


_GOOGLENET_SCORES = {
    f"loss{i}_{kind}": caffe(f"loss{i}/{kind}")
    for i in (1, 2, 3)
    for kind in ("conv", "fc", "classifier")
}
_AS_TORCHVISION = {"stride_in_1x1": False}
_AS_MSRA = {"stem": "plain", "stride_in_1x1": True}
_DEEPLAB_RESNET = dict(_AS_MSRA, first_block_dilation=True, output_stride=8)
_PSPNET = {"stem": "deep", "first_block_dilation": True, "output_stride": 8}

# The first whose signature is in the file is taken.
SOURCES = (
    Source(
        "FCN (Caffe, PAMI names)",
        ("fcn",),
        ("vgg16", "alexnet"),
        r"score_fr\[0\]",
        _fcn_caffe,
        ILSVRC,
        extra=_fcn_extra,
    ),
    Source(
        "FCN-8s (Caffe, CVPR names)",
        ("fcn",),
        ("vgg16",),
        r"score-fr\[0\]",
        _fcn_cvpr,
        ILSVRC,
        extra=_fcn_cvpr_extra,
    ),
    Source(
        "Dilation (Caffe)",
        ("dilation",),
        ("vgg16",),
        r"(fc-)?final\[0\]",
        _dilation,
        _dilation_images,
        extra=lambda target: {"checks": {"ctx_upsample[0]": convert.bilinear}},
    ),
    Source(
        "DeconvNet (Caffe)",
        ("deconvnet",),
        ("vgg16",),
        r"seg-score-voc\[0\]",
        _deconvnet,
        ILSVRC,
    ),
    Source(
        "DeepLab VGG16 (Caffe)",
        ("deeplab",),
        ("vgg16",),
        r"fc8_\w+\[0\]",
        _deeplab_vgg,
        DEEPLAB,
    ),
    Source(
        "DeepLab v2 ResNet (Caffe)",
        ("deeplab",),
        RESNETS,
        r"fc1_\w+\[0\]",
        _deeplab_resnet,
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
        _deeplab_kazuto,
        DEEPLAB,
        ignored=r".*\.num_batches_tracked",
        fields=_DEEPLAB_RESNET,
    ),
    Source(
        "PSPNet (Caffe)",
        ("pspnet",),
        RESNETS,
        r"conv1_1_3x3_s2\[0\]",
        _psp_caffe,
        VGG,
        fields=_PSPNET,
    ),
    Source(
        "PSPNet (semseg)",
        ("pspnet",),
        RESNETS,
        r"layer0\.0\.weight",
        _psp_semseg,
        TORCHVISION,
        ignored=r".*\.num_batches_tracked|aux\..*",
        fields=_PSPNET | _AS_TORCHVISION,
    ),
    Source(
        "VGG16 (Caffe)",
        VGG_MODELS,
        ("vgg16",),
        r"conv1_1\[0\]",
        _classifier(backbones.vgg16_caffe, {"fc8": caffe("fc8")}),
        VGG,
        ignored=r"fc[678]\[[01]\]",
    ),
    Source(
        "VGG16 (torchvision)",
        VGG_MODELS,
        ("vgg16",),
        r"features\.0\.weight",
        _classifier(backbones.vgg16_torch, {"fc8": torch("classifier.6")}),
        TORCHVISION,
        ignored=r"classifier\.[036]\.(weight|bias)",
    ),
    Source(
        "VGG16 (Keras)",
        VGG_MODELS,
        ("vgg16",),
        r"block1_conv1/kernel",
        _classifier(backbones.vgg16_keras, {"fc8": keras("predictions")}),
        VGG,
        ignored=r"(fc1|fc2|predictions)/.*",
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
        "ResNet (torchvision, semseg)",
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

# name -> (model, fields). Files are not part of this package.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "fcn-alexnet": ("fcn", {"backbone": "alexnet", "skips": 32}),
    "fcn32s": ("fcn", {"skips": 32}),
    "fcn16s": ("fcn", {"skips": 16}),
    "fcn8s": ("fcn", {"skips": 8}),
    "fcn8s-atonce": ("fcn", {"skips": 8, "at_once": True}),
    "fcn8s-cvpr": ("fcn", {"skips": 8, "learn_upsampling": True}),
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
    known = sorted({*PUBLISHED, *models})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"--model={name}: unknown; {hint}")
