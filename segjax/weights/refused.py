"""Well-known networks that are not ours: recognized, and refused by name."""

from typing import NamedTuple


class Refused(NamedTuple):
    """A network that is well known and not one of ours."""

    title: str
    arrays: tuple[str, ...]  # which it has, all of them
    why: str
    without: str = ""  # an array that it does not have


REFUSED = (
    Refused(
        "torchvision's AlexNet",
        ("features.3.weight", "features.10.weight", "classifier.1.weight"),
        "it has other widths than Caffe's, which is imported, no groups and no "
        "response normalization",
    ),
    Refused(
        "torchvision's GoogLeNet",
        ("conv1.conv.weight", "inception3a.branch1.conv.weight"),
        "it has batch normalization and 3x3 for 5x5 kernels, unlike Caffe's, which is "
        "imported",
    ),
    Refused(
        "VGG19",
        ("features.0.weight", "features.34.weight", "features.32.weight"),
        "of the VGG networks, VGG16 is known",
    ),
    Refused(
        "VGG19 with batch normalization",
        ("features.0.weight", "features.49.weight"),
        "of the VGG networks, VGG16 is known",
    ),
    Refused(
        "VGG11",
        ("features.0.weight", "features.16.weight", "features.18.weight"),
        "of the VGG networks, VGG16 is known",
    ),
    Refused(
        "VGG13",
        ("features.0.weight", "features.20.weight", "features.22.weight"),
        "of the VGG networks, VGG16 is known",
    ),
    Refused(
        "SqueezeNet 1.0",
        ("features.3.squeeze.weight", "features.5.squeeze.weight"),
        "SqueezeNet 1.1 is known",
    ),
    Refused(
        "milesial/Pytorch-UNet with bilinear upsampling",
        ("inc.double_conv.0.weight", "up1.conv.double_conv.0.weight"),
        "it resizes without a convolution; its form with bilinear=False is known",
        without="up1.up.weight",
    ),
    Refused(
        "FusionNet of Keras",
        ("deconvolution2d_1/kernel", "batchnormalization_1/gamma"),
        "its batch normalization runs over the rows of the image instead of channels",
    ),
)
