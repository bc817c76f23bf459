"""What published files call the layers of a backbone.

Every function takes the name of one of our layers, without the leading ``backbone/``,
and the names of all arrays of the file. It returns the layer's arrays, or None for a
layer that such files do not have.
"""

import re
from collections.abc import Callable, Set

from segjax.weights.convert import EPSILON, Conv, Entry, Norm

Naming = Callable[[str, Set[str]], Entry | None]

# --- the arrays of one layer, by program ---


def caffe(layer: str, layout: str = "OIHW") -> Conv:
    return Conv(f"{layer}[0]", f"{layer}[1]", layout)


def torch(layer: str) -> Conv:
    return Conv(f"{layer}.weight", f"{layer}.bias")


def keras(layer: str) -> Conv:
    return Conv(f"{layer}/kernel", f"{layer}/bias", "HWIO")


def caffe_norm(norm: str, scale: str) -> Norm:
    """Caffe's BatchNorm (mean, variance, their factor) with the Scale behind it."""
    return Norm(f"{scale}[0]", f"{scale}[1]", f"{norm}[0]", f"{norm}[1]", f"{norm}[2]")


def psp_norm(layer: str) -> Norm:
    """The BN of PSPNet's Caffe: slope, bias, mean, variance."""
    return Norm(f"{layer}[0]", f"{layer}[1]", f"{layer}[2]", f"{layer}[3]")


def affine(layer: str, epsilon: float) -> Norm:
    """A batch normalization whose statistics were folded into scale and offset.

    `epsilon` is that of our layer.
    """
    return Norm(f"{layer}[0]", f"{layer}[1]", "", "", excess=-epsilon)


def torch_norm(layer: str) -> Norm:
    return Norm(
        scale=f"{layer}.weight",
        bias=f"{layer}.bias",
        mean=f"{layer}.running_mean",
        var=f"{layer}.running_var",
    )


def keras_norm(layer: str, epsilon: float) -> Norm:
    return Norm(
        scale=f"{layer}/gamma",
        bias=f"{layer}/beta",
        mean=f"{layer}/moving_mean",
        var=f"{layer}/moving_variance",
        excess=epsilon - EPSILON,
    )


# --- VGG16, AlexNet, GoogLeNet ---

_VGG16 = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7"),
)
_VGG16_TORCH = dict(
    zip(
        _VGG16,
        [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
        + ["classifier.0", "classifier.3"],
        strict=True,
    )
)
# Behind every convolution a normalization and a ReLU.
_VGG16_BN_TORCH = dict(
    zip(_VGG16, (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40), strict=False)
)
_VGG16_KERAS = {
    name: "block{}_conv{}".format(*name.removeprefix("conv").split("_"))
    for name in _VGG16[:13]
} | {"fc6": "fc1", "fc7": "fc2"}
_ALEXNET = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")


def vgg16_caffe(layer: str, names: Set[str]) -> Conv | None:
    return caffe(layer) if layer in _VGG16 else None


def vgg16_torch(layer: str, names: Set[str]) -> Conv | None:
    return torch(_VGG16_TORCH[layer]) if layer in _VGG16_TORCH else None


def vgg16_bn_torch(layer: str, names: Set[str]) -> Entry | None:
    """torchvision's vgg16_bn. Its fc6 and fc7 have no normalization: not for ours."""
    name = layer.removesuffix("_bn")
    if name not in _VGG16_BN_TORCH:
        return None
    index = _VGG16_BN_TORCH[name]
    if layer.endswith("_bn"):
        return torch_norm(f"features.{index + 1}")
    return torch(f"features.{index}")


def vgg16_keras(layer: str, names: Set[str]) -> Conv | None:
    """Without top, the files end at block5."""
    name = _VGG16_KERAS.get(layer, "")
    if name.startswith("fc") and f"{name}/kernel" not in names:
        return None
    return keras(name) if name else None


def alexnet_caffe(layer: str, names: Set[str]) -> Conv | None:
    return caffe(layer) if layer in _ALEXNET else None


def googlenet_caffe(layer: str, names: Set[str]) -> Conv | None:
    """conv1/7x7_s2, inception_3a/5x5_reduce, ..: a slash for our "_"."""
    match = re.fullmatch(r"(conv[12]|inception_\d\w)_(\dx\d.*|pool_proj)", layer)
    return caffe(f"{match[1]}/{match[2]}") if match else None


# --- SqueezeNet 1.1 ---

# The fire modules among torchvision's features, where poolings have numbers, too.
_FIRES_TORCH = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}


def squeezenet_torch(layer: str, names: Set[str]) -> Conv | None:
    if layer == "conv1":
        return torch("features.0")
    match = re.fullmatch(r"fire(\d)_(squeeze1x1|expand1x1|expand3x3)", layer)
    if match is None:
        return None
    # torchvision calls the first one without its kernel.
    kind = match[2].replace("squeeze1x1", "squeeze")
    return torch(f"features.{_FIRES_TORCH[int(match[1])]}.{kind}")


def squeezenet_keras(layer: str, names: Set[str]) -> Conv | None:
    """rcmalli/keras-squeezenet, in the authors' names: a slash for our "_"."""
    if not re.fullmatch(r"conv1|fire\d_(squeeze1x1|expand1x1|expand3x3)", layer):
        return None
    return keras(layer.replace("_", "/"))


# --- ResNets ---


def _parts(layer: str) -> tuple[int, int, str, int] | None:
    """(stage, block, "conv" or "bn", index) of a layer; the stem is stage 0.

    The stem's index is 0 for the plain 7x7 convolution, 1 to 3 in a deep stem.
    """
    if match := re.fullmatch(r"block(\d+)_(\d+)/(conv|bn)([0-3])", layer):
        return int(match[1]), int(match[2]), match[3], int(match[4])
    if match := re.fullmatch(r"(conv|bn)1(?:_([123]))?", layer):
        return 0, 0, match[1], int(match[2] or 0)
    return None


def resnet_torch(layer: str, names: Set[str]) -> Entry | None:
    """torchvision, and semseg's classifiers with the deep stem conv1, conv2, conv3.

    In torchvision's segmentation networks every name starts with "backbone.".
    """
    if (parts := _parts(layer)) is None:
        return None
    stage, block, kind, index = parts
    name = "backbone." if "backbone.conv1.weight" in names else ""
    if stage == 0:
        name += f"{kind}{max(index, 1)}"
    elif index == 0:
        name += f"layer{stage}.{block - 1}.downsample.{int(kind == 'bn')}"
    else:
        name += f"layer{stage}.{block - 1}.{kind}{index}"
    return torch(name) if kind == "conv" else torch_norm(name)


def resnet_semseg(layer: str, names: Set[str]) -> Entry | None:
    """The ResNet within semseg's PSPNet: its stem is the sequence layer0."""
    if (parts := _parts(layer)) is None or parts[0]:
        return resnet_torch(layer, names)
    _, _, kind, index = parts
    position = 3 * (max(index, 1) - 1)
    if kind == "conv":
        return torch(f"layer0.{position}")
    return torch_norm(f"layer0.{position + 1}")


def _msra_branch(stage: int, block: int, *, index: int, names: Set[str]) -> str:
    """MSRA's name of a convolution behind "res" or "bn": 2a_branch1, 4b22_branch2c.

    Blocks are lettered, in the longer stages of ResNet-101 a, b1, b2, ..
    """
    letter = chr(ord("a") + block - 1)
    arrays = (f"res{stage + 1}{letter}_branch2a{end}" for end in ("[0]", "/kernel"))
    if not any(array in names for array in arrays) and block > 1:
        letter = f"b{block - 1}"
    branch = "1" if index == 0 else "2" + "abc"[index - 1]
    return f"{stage + 1}{letter}_branch{branch}"


def resnet_caffe(layer: str, names: Set[str]) -> Entry | None:
    """MSRA's and DeepLab's ResNets."""
    if (parts := _parts(layer)) is None:
        return None
    stage, block, kind, index = parts
    if stage == 0:
        conv, norm = "conv1", "_conv1"
    else:
        norm = _msra_branch(stage, block, index=index, names=names)
        conv = f"res{norm}"
    return caffe(conv) if kind == "conv" else caffe_norm(f"bn{norm}", f"scale{norm}")


def resnet_psp(layer: str, names: Set[str]) -> Entry | None:
    """PSPNet's Caffe."""
    if (parts := _parts(layer)) is None:
        return None
    stage, block, kind, index = parts
    if stage == 0:
        stem = ("1_3x3_s2", "1_3x3_s2", "2_3x3", "3_3x3")
        name = f"conv1_{stem[index]}"
    else:
        ending = ("1x1_proj", "1x1_reduce", "3x3", "1x1_increase")[index]
        name = f"conv{stage + 1}_{block}_{ending}"
    return caffe(name) if kind == "conv" else psp_norm(f"{name}/bn")


def resnet_keras(layer: str, names: Set[str]) -> Entry | None:
    """keras.applications since 2019; the shortcut is 0 as ours."""
    if (parts := _parts(layer)) is None:
        return None
    stage, block, kind, index = parts
    name = f"conv{stage + 1}_block{block}_{index}" if stage else "conv1"
    if kind == "conv":
        return keras(f"{name}_conv")
    return keras_norm(f"{name}_bn", epsilon=1.001e-5)


def resnet_keras_old(layer: str, names: Set[str]) -> Entry | None:
    """The first ResNet50 of Keras, in MSRA's names."""
    if (parts := _parts(layer)) is None:
        return None
    stage, block, kind, index = parts
    if stage == 0:
        conv, norm = "conv1", "bn_conv1"
    else:
        name = _msra_branch(stage, block, index=index, names=names)
        conv, norm = f"res{name}", f"bn{name}"
    return keras(conv) if kind == "conv" else keras_norm(norm, epsilon=1e-3)


def kazuto_prefix(names: Set[str]) -> str:
    """What deeplab-pytorch's names start with: "scale.", "base." or nothing."""
    tail = "layer1.conv1.conv.weight"
    return next((n.removesuffix(tail) for n in sorted(names) if n.endswith(tail)), "")


def resnet_kazuto(layer: str, names: Set[str]) -> Entry | None:
    """deeplab-pytorch; its older files call the shortcut "proj"."""
    if (parts := _parts(layer)) is None:
        return None
    stage, block, kind, index = parts
    name = f"{kazuto_prefix(names)}layer{stage + 1}."
    if stage == 0:
        name += "conv1"
    else:
        old = any(".proj." in array for array in names)
        shortcut = "proj" if old else "shortcut"
        name += f"block{block}." + (shortcut, "reduce", "conv3x3", "increase")[index]
    return torch(f"{name}.conv") if kind == "conv" else torch_norm(f"{name}.bn")
