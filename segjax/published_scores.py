"""Scores that papers report, beside which `experiments.compare` shows measured ones.

IoUs in percent as they are printed. They are of the published weights by the protocol
of their authors: another split, size or training does not compare.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Score(NamedTuple):
    """What is published of a method on a data set."""

    method: str
    split: str
    """Of the data set, and the size of the images where it is not their own."""
    miou: float
    """Percent, mean over all classes of the data set."""
    source: str
    note: str = ""
    """Other training data, or what was done at test time."""
    classes: tuple[float, ...] = ()
    """IoU of each class in percent, in the order of CLASSES; () if only the mean is
    printed."""


CLASSES: dict[str, tuple[str, ...]] = {
    "camvid": (
        *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol"),
        *("Fence", "Car", "Pedestrian", "Bicyclist"),
    ),
    "cityscapes": (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
        *("traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
        *("truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    "voc2012": (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
        *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
        *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
}
"""The classes of the data sets, by name of the data set, in the order of the ids."""

UNKNOWN = float("nan")
"""A class that is not printed, such as VOC's background in most papers."""

_COCO = "COCO images in training"
_CRF = "CRF"
_SCALES = "six scales, mirrored"
_FCN = "FCN, CVPR 2015"
_FCN_JOURNAL = "FCN, PAMI 2017, and the authors' repository"
_DEEPLAB_V1, _DEEPLAB_V2 = "DeepLab, ICLR 2015", "DeepLab v2, PAMI 2018"
_CRFRNN = "CRF-RNN, ICCV 2015"
_DECONVNET = "DeconvNet, ICCV 2015"
_DILATION = "Dilation, ICLR 2016"
_PSPNET = "PSPNet, CVPR 2017"
_PSPNET_CAFFE = "PSPNet's Caffe repository"
_SEMSEG = "hszhao/semseg, by PSPNet's author"
_CAMVID_TEST = "test, 480x640"
_FCN_VAL = "VOC 2011 val without SBD's training images (736)"
_CRFRNN_VAL = "val without SBD's images (346)"

# fmt: off
SCORES: dict[str, tuple[Score, ...]] = {
    "camvid": (
        Score("Dilation8", _CAMVID_TEST, 65.3, _DILATION, classes=(
            89.9, 82.6, 23.4, 92.2, 75.3, 76.2, 46.9, 35.8, 84.0, 56.3, 55.5)),
        Score("DeepLab-LargeFOV", _CAMVID_TEST, 61.6, _DILATION, classes=(
            89.0, 81.5, 14.3, 92.2, 75.4, 74.6, 42.3, 27.2, 82.2, 48.4, 50.1)),
        Score("SegNet", _CAMVID_TEST, 46.4, _DILATION, classes=(
            87.0, 68.7, 16.0, 86.2, 60.5, 52.0, 13.4, 17.9, 58.5, 25.3, 24.8)),
        Score("U-Net", "val, 368x480", 71.95,
              "OpenVINO model zoo, unet-camvid-onnx-0001",
              "median-frequency weights"),
    ),
    "cityscapes": (
        Score("PSPNet-101", "test", 80.2, _PSPNET, "coarse masks in training"),
        Score("PSPNet-101", "test", 78.4, _PSPNET),
        Score("FRRN-B", "test, 512x1024", 71.8, "FRRN, CVPR 2017"),
        Score("DeepLab v2 ResNet-101", "test", 70.4, _DEEPLAB_V2, _CRF),
        Score("Dilation10", "test", 67.1, _DILATION, classes=(
            97.6, 79.2, 89.9, 37.3, 47.6, 53.2, 58.6, 65.2, 91.8, 69.4, 93.7, 78.9,
            55.0, 93.3, 45.5, 53.4, 47.7, 52.2, 66.0)),
        Score("PSPNet-101", "val", 80.91, _PSPNET_CAFFE, _SCALES),
        Score("PSPNet-101", "val", 79.70, _PSPNET_CAFFE),
        Score("PSPNet-101", "val", 78.63, _SEMSEG),
        Score("PSPNet-50", "val", 77.30, _SEMSEG),
        Score("Dilation10", "val", 68.7, _DILATION, classes=(
            97.2, 79.5, 90.4, 44.9, 52.4, 55.1, 56.7, 69.0, 91.0, 58.7, 92.6, 75.7,
            50.0, 92.2, 56.2, 72.6, 54.3, 46.2, 70.1)),
    ),
    "voc2012": (
        Score("PSPNet-101", "test", 85.4, _PSPNET, f"{_COCO}, {_SCALES}"),
        Score("PSPNet-101", "test", 82.6, _PSPNET),
        Score("DeepLab v2 ResNet-101", "test", 79.7, _DEEPLAB_V2, f"{_COCO}, {_CRF}"),
        Score("Dilation context + CRF-RNN", "test", 75.3, _DILATION, _COCO, classes=(
            UNKNOWN, 91.7, 39.6, 87.8, 63.1, 71.8, 89.7, 82.9, 89.8, 37.2, 84.0, 63.0,
            83.3, 89.0, 83.8, 85.1, 56.8, 87.6, 56.0, 80.2, 64.7)),
        Score("CRF-RNN", "test", 74.7, _CRFRNN, _COCO, classes=(
            UNKNOWN, 90.4, 55.3, 88.7, 68.4, 69.8, 88.3, 82.4, 85.1, 32.6, 78.5, 64.4,
            79.6, 81.9, 86.4, 81.8, 58.6, 82.4, 53.5, 77.4, 70.1)),
        Score("Dilation context", "test", 73.5, _DILATION, _COCO, classes=(
            UNKNOWN, 89.1, 39.1, 86.8, 62.6, 68.9, 88.2, 82.6, 87.7, 33.8, 81.2, 59.2,
            81.8, 87.2, 83.3, 83.6, 53.6, 84.9, 53.7, 80.5, 62.9)),
        Score("EDeconvNet", "test", 72.5, _DECONVNET, f"ensemble with FCN-8s, {_CRF}"),
        Score("CRF-RNN", "test", 72.0, _CRFRNN),
        Score("DeepLab-MSc-LargeFOV", "test", 71.6, _DEEPLAB_V1, _CRF),
        Score("DeconvNet", "test", 70.5, _DECONVNET, _CRF),
        Score("DeepLab-LargeFOV", "test", 70.3, _DEEPLAB_V1, _CRF),
        Score("DeconvNet", "test", 69.6, _DECONVNET),
        Score("Dilation front end", "test", 67.6, _DILATION, classes=(
            UNKNOWN, 82.2, 37.4, 72.7, 57.1, 62.7, 82.8, 77.8, 78.9, 28.0, 70.0, 51.6,
            73.1, 72.8, 81.5, 79.1, 56.6, 77.1, 49.9, 75.3, 60.9)),
        Score("FCN-8s", "test", 67.2, _FCN_JOURNAL),
        Score("DeepLab", "test", 66.4, _DEEPLAB_V1, _CRF),
        Score("FCN-8s", "test", 62.2, _FCN, classes=(
            91.2, 76.8, 34.2, 68.9, 49.4, 60.3, 75.3, 74.7, 77.6, 21.4, 62.5, 46.8,
            71.8, 63.9, 76.5, 73.9, 45.2, 72.4, 37.4, 70.9, 55.1)),
        Score("PSPNet-101", "val", 79.07, _SEMSEG),
        Score("DeepLab v2 ResNet-101", "val", 77.69, _DEEPLAB_V2, f"{_COCO}, {_CRF}"),
        Score("PSPNet-50", "val", 77.05, _SEMSEG),
        Score("DeepLab v2 ResNet-101", "val", 76.35, _DEEPLAB_V2, _COCO),
        Score("Dilation context", "val", 72.1, _DILATION, _COCO),
        Score("DeepLab v2 VGG16 ASPP-L", "val", 68.96, _DEEPLAB_V2),
        Score("DeepLab v2 VGG16 ASPP-S", "val", 66.98, _DEEPLAB_V2),
        Score("DeepLab-MSc-LargeFOV", "val", 64.21, _DEEPLAB_V1),
        Score("DeepLab-LargeFOV", "val", 62.25, _DEEPLAB_V1),
        Score("DeepLab", "val", 59.80, _DEEPLAB_V1),
        Score("FCN-8s", _FCN_VAL, 65.5, _FCN_JOURNAL),
        Score("FCN-16s", _FCN_VAL, 65.0, _FCN_JOURNAL),
        Score("FCN-32s", _FCN_VAL, 63.6, _FCN_JOURNAL),
        Score("CRF-RNN", _CRFRNN_VAL, 69.6, _CRFRNN),
    ),
}
# fmt: on
"""By name of the data set (`config.data.name`), best first within a split."""


# Other forms of a data set: CamVid at its original size, VOC with SBD, own folders.
_FORMS = {
    "camvid720": ("camvid",),
    "voc2012_aug": ("voc2012",),
    "folder": tuple(CLASSES),
}


def of(name: str, classes: Sequence[str]) -> tuple[Score, ...]:
    """The published scores of a data set; () if there are none, or of other classes.

    Args:
      name: ``config.data.name``. An own folder is taken for the data set whose classes
        it has, in their order.
      classes: of the data set.
    """
    for form in _FORMS.get(name, (name,)):
        if tuple(classes) == CLASSES.get(form):
            return SCORES[form]
    return ()
