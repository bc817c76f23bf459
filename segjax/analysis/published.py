"""A table of published numbers of the networks of segjax/published.py.

`experiments.summarize --all` compares them with ours, docs/models.md shows the result.
"""

from typing import NamedTuple


class Number(NamedTuple):
    """A published number of a network; ours is rounded like it.

    Quantities are "parameters", "MACs" and "FLOPs", each also "of PREFIX" for the
    layers whose names begin so, or "without PREFIX"; "layers", those with a kernel;
    "field of NAME", "stride of NAME" and "side of NAME" (rows) of a layer or an output.
    """

    quantity: str
    value: str
    source: str
    note: str = ""  # why ours differs


# Where numbers come from: printed in the paper; counted from the layers that the paper
# or the authors' network definitions list, without this program.
PAPER, LAYERS = "paper", "layer list"
_MMSEG = "mmsegmentation, user guide"
_OPENVINO = "OpenVINO, unet-camvid-onnx-0001"
_POOLED = "of GoogLeNet with its last 7x7 pooling, which the FCN drops"
_OTHER_COUNT = "another program's count, 0.1 % higher"
_OTHER_STEM = "10.0 G of the difference are its stem of 32, 32, 64 channels"

NUMBERS: dict[str, tuple[Number, ...]] = {
    "fcn-alexnet": (
        Number("parameters", "57 M", PAPER),
        Number("layers", "8", PAPER),
        Number("stride of score_fr", "32", PAPER),
        Number("field of score_fr", "355", PAPER),
        Number("parameters", "56,954,261", LAYERS),
        Number("field of pool5", "195", LAYERS),
        Number("side of fc6", "16", LAYERS),
    ),
    "fcn32s": (
        Number("parameters", "134 M", PAPER),
        Number("layers", "16", PAPER),
        Number("stride of score_fr", "32", PAPER),
        Number("field of score_fr", "404", PAPER),
        Number("parameters", "134,346,581", LAYERS),
        Number("field of pool5", "212", LAYERS),
        Number("side of fc6", "16", LAYERS),
    ),
    "fcn16s": (
        Number("parameters", "134,357,354", LAYERS),
        Number("stride of fuse_pool4", "16", PAPER),
        Number("field of score_fr", "404", LAYERS),
    ),
    "fcn8s": (
        Number("parameters", "134,362,751", LAYERS),
        Number("stride of fuse_pool3", "8", PAPER),
        Number("field of score_fr", "404", LAYERS),
    ),
    "fcn8s-atonce": (Number("parameters", "134,362,751", LAYERS),),
    "fcn8s-cvpr": (Number("parameters", "134,376,863", LAYERS),),
    "fcn-googlenet": (
        Number("parameters", "6 M", PAPER),
        Number("stride of score_fr", "32", PAPER),
        Number("field of score_fr", "907", PAPER, _POOLED),
        Number("parameters", "5,995,077", LAYERS),
        Number("field of score_fr", "715", LAYERS),
    ),
    "deconvnet": (
        Number("parameters", "252 M", PAPER),
        Number("parameters", "251,805,653", LAYERS),
        Number("layers", "30", LAYERS),
        Number("side of pool5", "7", LAYERS),
        Number("side of fc6", "1", LAYERS),
        Number("field of fc6", "404", LAYERS),
        Number("stride of pool5", "32", LAYERS),
    ),
    "deeplab-7x7": (
        Number("parameters", "134.3 M", PAPER),
        Number("parameters", "134,346,581", LAYERS),
        Number("stride of scores", "8", LAYERS),
        Number("field of head/fc6", "404", LAYERS),
    ),
    "deeplab-v1": (
        Number("parameters", "65.1 M", PAPER),
        Number("parameters", "65,140,565", LAYERS),
        Number("field of head/fc6", "308", LAYERS),
        Number("side of pool1", "258", LAYERS),
        Number("side of scores", "65", LAYERS),
        Number("stride of scores", "8", LAYERS),
    ),
    "deeplab-4x4": (
        Number("parameters", "65.1 M", PAPER),
        Number("parameters", "65,140,565", LAYERS),
        Number("stride of scores", "8", LAYERS),
        Number("field of head/fc6", "404", LAYERS),
    ),
    "deeplab-largefov": (
        Number("parameters", "20.5 M", PAPER),
        Number("parameters", "20,505,429", LAYERS),
        Number("field of pool4", "115", LAYERS),
        Number("field of conv5_3", "211", LAYERS),
        Number("field of pool5a", "243", LAYERS),
        Number("field of head/fc6", "435", LAYERS),
        Number("side of scores", "65", LAYERS),
        Number("stride of scores", "8", LAYERS),
    ),
    "deeplab-msc": (Number("parameters", "66,346,686", LAYERS),),
    "deeplab-msc-largefov": (
        Number("parameters", "21,711,550", LAYERS),
        Number("parameters of sides", "1,206,121", LAYERS),
    ),
    "deeplab-v2-vgg16-aspp-s": (
        Number("parameters", "37,877,652", LAYERS),
        Number("field of head/fc6_1", "259", LAYERS),
        Number("field of head/fc6_2", "291", LAYERS),
        Number("field of head/fc6_3", "355", LAYERS),
        Number("field of head/fc6_4", "419", LAYERS),
    ),
    "deeplab-v2-vgg16-aspp-l": (
        Number("parameters", "37,877,652", LAYERS),
        Number("parameters of head", "23,162,964", LAYERS),
        Number("stride of scores", "8", LAYERS),
        Number("field of head/fc6_1", "323", LAYERS),
        Number("field of head/fc6_2", "419", LAYERS),
        Number("field of head/fc6_3", "515", LAYERS),
        Number("field of head/fc6_4", "611", LAYERS),
    ),
    "deeplab-v2-resnet101-largefov": (
        Number("parameters", "42,887,253", LAYERS),
        Number("field of block1", "35", LAYERS),
        Number("field of block2", "99", LAYERS),
        Number("field of block3", "835", LAYERS),
        Number("field of block4", "1027", LAYERS),
        Number("field of head/fc1", "1219", LAYERS),
        Number("stride of head/fc1", "8", LAYERS),
    ),
    "deeplab-v2-resnet101": (
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
    "dilation-frontend": (
        Number("parameters", "134,346,581", LAYERS),
        Number("field of conv5_3", "188", LAYERS),
        Number("field of fc6", "380", LAYERS),
        Number("side of final", "66", LAYERS),
        Number("side of logits", "528", LAYERS),
        Number("stride of final", "8", LAYERS),
    ),
    "dilation8-voc": (
        Number("parameters of context", "6,803,139", LAYERS),
        Number("field of scores", "908", LAYERS),
        Number("parameters", "141,149,720", LAYERS),
        Number("stride of scores", "8", LAYERS),
    ),
    "dilation8-camvid": (
        Number("parameters of context", "7,832", LAYERS),
        Number("field of scores", "908", LAYERS),
        Number("parameters", "134,313,443", LAYERS),
    ),
    "dilation7-kitti": (
        Number("parameters of context", "6,732", LAYERS),
        Number("field of scores", "652", LAYERS),
        Number("parameters", "134,312,343", LAYERS),
    ),
    "dilation10-cityscapes": (
        Number("parameters of context", "29,792", LAYERS),
        Number("field of scores", "2444", LAYERS),
        Number("side of scores", "128", LAYERS),
        Number("parameters", "134,368,179", LAYERS),
    ),
    "crfrnn-voc": (
        Number("parameters", "134,378,186", LAYERS),
        Number("parameters of crfrnn", "1,323", LAYERS),
        Number("field of score_fr", "404", LAYERS),
        Number("field of logits", "global", LAYERS),
    ),
    "unet": (
        Number("parameters", "31,030,658", LAYERS),
        Number("stride of enc4", "16", LAYERS),
        Number("field of logits", "188..204", LAYERS),
        Number("layers", "23", PAPER),
        Number("side of enc4", "28", PAPER),
        Number("side of logits", "388", PAPER),
    ),
    "unet-released": (Number("parameters", "31,100,354", LAYERS),),
    "unet-carvana": (Number("parameters", "31,037,698", LAYERS),),
    "unet-camvid": (
        Number("parameters", "31.03 M", _OPENVINO),
        Number("FLOPs", "260.1 G", _OPENVINO, _OTHER_COUNT),
    ),
    "fusionnet": (
        Number("parameters", "78,531,137", LAYERS),
        Number("layers", "50", LAYERS),
        Number("side of bridge", "40", LAYERS),
        Number("stride of bridge", "16", LAYERS),
    ),
    "fusionnet-released": (
        Number("parameters", "62,804,545", LAYERS),
        Number("layers", "41", LAYERS),
        Number("side of bridge", "40", LAYERS),
    ),
    "contextual": (
        Number("parameters of conv", "7,634,112", LAYERS),
        Number("layers", "19", LAYERS),
        Number("field of conv2_2", "14", LAYERS),
        Number("field of conv3_3", "40", LAYERS),
        Number("field of conv4_3", "92", LAYERS),
        Number("side of conv4_3", "60", LAYERS),
        Number("stride of conv4_3", "8", LAYERS),
    ),
    "frrn-a": (
        Number("parameters", "17.7 M", PAPER),
        Number("parameters", "17,746,803", LAYERS),
        Number("field of pooling1", "42", LAYERS),
        Number("field of pooling2", "108", LAYERS),
        Number("field of pooling3", "176", LAYERS),
        Number("field of pooling4", "312", LAYERS),
        Number("stride of pooling4", "16", LAYERS),
    ),
    "frrn-b": (
        Number("parameters", "24.8 M", PAPER),
        Number("parameters", "24,755,699", LAYERS),
        Number("field of pooling5", "584", LAYERS),
        Number("stride of pooling5", "32", LAYERS),
    ),
    "cfm-a": (
        Number("parameters", "258,172,757", LAYERS),
        Number("parameters of backbone", "14,714,688", LAYERS),
        Number("field of conv5_3", "196", LAYERS),
        Number("stride of conv5_3", "16", LAYERS),
    ),
    "cfm-b": (Number("parameters", "136,443,733", LAYERS),),
    "hypercolumn": (
        Number("parameters", "134,360,021", LAYERS),
        Number("parameters of score", "99,477", LAYERS),
        Number("field of fc7", "404", LAYERS),
        Number("stride of score_pool2", "4", LAYERS),
    ),
    "pspnet50-ade20k": (
        Number("parameters without aux", "46,782,550", LAYERS),
        Number("parameters", "49,180,908", LAYERS),
        Number("parameters of backbone", "23,631,808", LAYERS),
        Number("parameters of pyramid", "4,198,400", LAYERS),
        Number("field of block4", "487", LAYERS),
        Number("field of conv5_4", "global", LAYERS),
        Number("side of conv6", "60", LAYERS),
        Number("stride of conv6", "8", LAYERS),
    ),
    "pspnet101-voc": (
        Number("parameters without aux", "65,708,501", LAYERS),
        Number("MACs of backbone", "161.8 G", LAYERS),
        Number("field of block4", "1023", LAYERS),
        Number("stride of conv6", "8", LAYERS),
    ),
    "pspnet101-cityscapes": (
        Number("parameters without aux", "65,707,475", LAYERS),
        Number("MACs of backbone", "364.2 G", LAYERS),
        Number("side of conv6", "90", LAYERS),
    ),
    "pspnet50-semseg": (
        Number("parameters", "49,180,908", LAYERS),
        Number("MACs of backbone", "93.6 G", LAYERS),
    ),
    "pspnet101-semseg": (Number("parameters without aux", "65,707,475", LAYERS),),
    "pspnet50-mmseg": (Number("MACs", "1,429.68 G", _MMSEG, _OTHER_STEM),),
    "zoomout": (
        Number("parameters", "148,046,677", LAYERS),
        Number("parameters of hidden1", "12,715,008", LAYERS),
        Number("field of backbone/conv5_3", "196", LAYERS),
        Number("field of logits", "global", LAYERS),
    ),
    "zoomout-linear": (Number("parameters", "134,521,301", LAYERS),),
}
