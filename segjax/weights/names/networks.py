"""What published files call the layers of whole networks, heads included.

Every function takes the name of one of our layers and a :class:`Target`. It returns
the layer's arrays, or None for a layer that such files do not have. Those that end in
``extra`` return what else of a Table the network needs.
"""

import re
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from segjax.errors import UserError
from segjax.weights import checks
from segjax.weights.convert import Arrays, Check, Conv, Entry, Thinned
from segjax.weights.images import Images
from segjax.weights.names import backbones
from segjax.weights.names.backbones import affine, caffe, psp_norm, torch, torch_norm
from segjax.weights.thinning import taps


class Target(NamedTuple):
    """The model to fill, and what the file holds."""

    model: str
    fields: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    names: Set[str]
    leave: str = ""  # layers to initialize newly, whatever the file has: a regex


def part(layer: str) -> str:
    return layer.removeprefix("backbone/")


def fcn_caffe(layer: str, target: Target) -> Conv:
    return caffe(part(layer), "IOHW" if layer.startswith("upscore") else "OIHW")


def fcn_extra(target: Target) -> dict[str, Any]:
    skips = 32 - 16 * ("score_pool4[0]" in target.names)
    skips -= 8 * ("score_pool3[0]" in target.names)
    expect(target, "skips", skips)
    if skips != 32:
        expect(target, "at_once", "scale_pool4[0]" in target.names)
    learned = target.fields.get("learn_upsampling", False)
    fixed = {"upscore[0]", "upscore16[0]", "upscore8[0]"}
    if not learned:
        fixed |= {"upscore2[0]", "upscore_pool4[0]"}
    fixed_arrays: dict[str, Check] = dict.fromkeys(fixed, checks.bilinear)
    fixed_arrays["scale_pool4[0]"] = checks.constant(0.01)
    fixed_arrays["scale_pool3[0]"] = checks.constant(0.0001)
    return {"checks": fixed_arrays}


_CVPR = {
    "score_fr": "score-fr",
    "upscore2": "score2",
    "score_pool4": "score-pool4",
    "upscore_pool4": "score4",
    "score_pool3": "score-pool3",
}


_CVPR_FIELDS = (("skips", 8), ("at_once", False), ("learn_upsampling", True))


def fcn_cvpr(layer: str, target: Target) -> Conv | None:
    if layer in _CVPR:
        layout = "IOHW" if layer.startswith("upscore") else "OIHW"
        return caffe(_CVPR[layer], layout)
    return backbones.vgg16_caffe(part(layer), target.names)


def fcn_cvpr_extra(target: Target) -> dict[str, Any]:
    for field, value in _CVPR_FIELDS:
        expect(target, field, value)
    # The first learned upsampling has a bias. Its output is added to score_pool4.
    return {
        "checks": {"upsample[0]": checks.bilinear},
        "added": {"score2[1]": "params/score_pool4/bias"},
    }


_CRF = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")


def crfrnn(layer: str, target: Target) -> Entry | None:
    """The CVPR net of FCN-8s, then the CRF: three matrices over classes."""
    if layer == "crfrnn":
        return Arrays({name: f"inference1[{i}]" for i, name in enumerate(_CRF)})
    return fcn_cvpr(layer, target)


def expect(target: Target, field: str, value: Any) -> None:
    """Raises a UserError if a field of the model is not that of the file."""
    if target.fields.get(field, value) != value:
        raise UserError(
            f"the file is of a network with {field}={value!r}, the model has "
            f"{target.fields[field]!r}: set --config.model.{field} to {value!r}"
        )


_CRFASRNN = {
    layer: torch(layer) for layer in ("score_fr", "score_pool4", "score_pool3")
} | {
    layer: torch(layer)._replace(layout="IOHW")
    for layer in ("upscore2", "upscore_pool4")
}


def crfrnn_torch(layer: str, target: Target) -> Entry | None:
    """crfasrnn_pytorch: the CVPR net of FCN-8s with the names of the later one.

    Its CRF adds the messages that it has multiplied by the compatibility matrix, where
    the paper and our network subtract them.
    """
    if layer == "crfrnn":
        names = {name: f"crfrnn.{name}" for name in _CRF}
        return Arrays(names, negated=("compatibility_matrix",))
    if layer in _CRFASRNN:
        return _CRFASRNN[layer]
    return torch(part(layer)) if layer.startswith("backbone/") else None


def crfrnn_torch_extra(target: Target) -> dict[str, Any]:
    for field, value in _CVPR_FIELDS:
        expect(target, field, value)
    return {
        "checks": {"upscore8.weight": checks.bilinear},
        "added": {"upscore2.bias": "params/score_pool4/bias"},
    }


def alexnet_extra(target: Target) -> dict[str, Any]:
    if target.fields.get("lrn_first"):
        kind = "bvlc_alexnet (lrn_first=True; CaffeNet normalizes behind the pooling)"
    else:
        kind = "CaffeNet (for bvlc_alexnet set --config.model.lrn_first=True)"
    return {"notes": (f"the arrays do not tell: taken to be those of {kind}",)}


def torchvision_extra(target: Target) -> dict[str, Any]:
    head = "DeepLabV3" if "classifier.0.convs.0.0.weight" in target.names else "FCN"
    return {
        "notes": (
            f"the head of torchvision's {head} is not one of ours: only its backbone "
            "is used",
        )
    }


def vgg16_bn_extra(target: Target) -> dict[str, Any]:
    expect(target, "norm", "batch")
    return {}


def psp_caffe(layer: str, target: Target) -> Entry | None:
    norm, name = layer.endswith("_bn"), layer.removesuffix("_bn")
    if bins := re.fullmatch(r"pyramid(\d+)", name):
        name = f"conv5_3_pool{bins[1]}_conv"
    elif name not in ("conv5_4", "conv6"):
        # The auxiliary head was not released.
        return backbones.resnet_psp(part(layer), target.names)
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


def psp_semseg(layer: str, target: Target) -> Entry | None:
    head: dict[str, Entry] = {
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
    return head.get(layer) or backbones.resnet_semseg(part(layer), target.names)


def _experiment(target: Target, layer: str) -> str:
    """What DeepLab's class scores are called after: "voc12" in fc8_voc12_1."""
    pattern = rf"{layer}_(\w+?)(_c?\d)?\[0\]"
    matches = (re.fullmatch(pattern, name) for name in sorted(target.names))
    return next((match[1] for match in matches if match), "voc12")


def _coco_start(target: Target) -> bool:
    """Whether the file is the start of DeepLab v2, without the branches of its head."""
    return not any(
        re.fullmatch(r"fc1_\w+_c\d\[0\]|(.*\.)?aspp\..*", name) for name in target.names
    )


def deeplab_resnet(layer: str, target: Target) -> Entry | None:
    if match := re.fullmatch(r"head/fc1(?:_(\d+))?", layer):
        branch = f"_c{int(match[1]) - 1}" if match[1] else ""
        name = f"fc1_{_experiment(target, 'fc1')}{branch}"
        # The start that was trained on COCO has one 1x1 convolution instead.
        if branch and f"{name}[0]" not in target.names and _coco_start(target):
            return None
        return caffe(name)
    return backbones.resnet_caffe(part(layer), target.names)


def deeplab_vgg(layer: str, target: Target) -> Conv | None:
    if match := re.fullmatch(r"head/(fc[678])(_\d+)?", layer):
        experiment = _experiment(target, "fc8") if match[1] == "fc8" else ""
        return caffe("_".join(filter(None, (match[1], experiment))) + (match[2] or ""))
    name = part(layer)
    return caffe(name) if re.fullmatch(r"conv\d_\d", name) else None


def deeplab_hidden(
    layer: str, target: Target, *, trunk: backbones.Naming
) -> Thinned | None:
    """fc6 and fc7 of a branch of DeepLab's head, from those of VGG16.

    None where they cannot be: with batch normalization, or a kernel whose taps are not
    evenly spaced among those of the 7x7 one.
    """
    match = re.fullmatch(r"head/(fc[67])(_\d+)?", layer)
    suffix = (match[2] or "") if match else ""
    kernel = target.shapes.get(f"params/head/fc6{suffix}/kernel", (0,))
    if not match or not taps(7, kernel[0]):
        return None
    conv = trunk(match[1], target.names)
    if not isinstance(conv, Conv) or f"params/{layer}/bias" not in target.shapes:
        return None
    if match[1] == "fc6":
        return Thinned(conv, side=7, draw=6)
    return Thinned(conv, side=1, draw=7, inputs=6)


def deeplab_kazuto(layer: str, target: Target) -> Entry | None:
    if match := re.fullmatch(r"head/fc1(?:_(\d+))?", layer):
        if _coco_start(target):
            return None
        prefix = backbones.kazuto_prefix(target.names) + "aspp."
        old = any(".stages." in name for name in target.names)
        branch = int(match[1] or 1) - 1
        return torch(f"{prefix}{'stages.' if old else ''}c{branch}")
    return backbones.resnet_kazuto(part(layer), target.names)


def dilation(layer: str, target: Target) -> Conv | None:
    voc = "fc-final[0]" in target.names
    context = "ct" if voc else "ctx"
    if layer.startswith("context/") and f"{context}_final[0]" not in target.names:
        return None  # a front end
    count = len(target.fields["context_rates"])
    if layer == "final":
        return caffe("fc-final" if voc else "final")
    if layer == "context/final":
        return caffe(f"{context}_final")
    if match := re.fullmatch(r"context/conv(\d+)", layer):
        index = int(match[1])
        name = f"conv{index - 1}_1" if index > 2 else f"conv1_{index}"
        return caffe(f"{context}_{'fc1' if index == count else name}")
    return backbones.vgg16_caffe(part(layer), target.names)


# RGB means of the data sets, by the 3x3 layers in their context modules.
_DILATION_MEANS = {
    6: (91.34692262, 95.55136972, 96.19429688),  # KITTI
    7: (105.41212523, 108.77808759, 110.70313206),  # CamVid
    9: (73.16, 82.91, 72.39),  # Cityscapes
}
_DILATION_VOC_MEAN = (116.52, 111.36, 102.93)


def dilation_images(target: Target) -> Images:
    context = [n for n in target.names if re.fullmatch(r"ctx_(conv\d_\d|fc1)\[0\]", n)]
    mean = _DILATION_MEANS.get(len(context), _DILATION_VOC_MEAN)
    return Images(1.0, mean, bgr=True)


_DECONVNET = {"fc6_deconv": "fc6-deconv", "seg_score": "seg-score-voc"}


def deconvnet(layer: str, target: Target) -> Entry:
    if layer.endswith("_bn"):
        name = layer.removesuffix("_bn")
        if name == "fc6_deconv":
            norm = "fc6-deconv-bn"
        else:  # conv1_1: bn1_1, deconv1_1: debn1_1, fc6: bnfc6
            norm = name.replace("conv", "bn") if "conv" in name else f"bn{name}"
        return affine(norm, target.fields["bn_epsilon"])
    layout = "IOHW" if "deconv" in layer else "OIHW"
    return caffe(_DECONVNET.get(layer, layer), layout)
