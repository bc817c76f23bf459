"""What a backbone tells about itself, and the rule that turns strides into dilation.

A file of this folder describes each backbone by a :class:`Backbone`;
``backbones.BACKBONES`` lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from segjax.ops import geometry


class DilatedStep(NamedTuple):
    """A layer that strides, or did until its stride became the dilation behind it."""

    stride: int
    rate_before: int  # dilation of the map that this layer reads
    rate: int  # dilation of the convolutions behind it


def dilate(
    strides: Sequence[int], output_stride: int, *, start: int = 1
) -> tuple[DilatedStep, ...]:
    """Turns the strides beyond `output_stride` into dilation.

    Once the product of the strides has reached `output_stride`, further strides become
    1, and the rate of what follows multiplies by the stride that is lost.

    Args:
      strides: of the layers that stride, in their order.
      start: stride of the map that the first of them reads.
    """
    steps, current, rate = [], start, 1
    for stride in strides:
        before = rate
        if current * stride > output_stride:
            rate, stride = rate * stride, 1
        current *= stride
        steps.append(DilatedStep(stride, before, rate))
    return tuple(steps)


class Dilated(NamedTuple):
    """The convolutions of a backbone at an output stride to choose.

    The module that `make` returns maps normalized images [N, H, W, C] to a dict of
    endpoints and has two properties: `grid`, where the pixels of its last map sit in
    the image, and `remainder`: sides of k * output_stride + remainder put map pixels
    on both ends of the image.
    """

    make: Callable[..., nn.Module]  # its parameters are fields of the models
    output_strides: tuple[int, ...]
    features: str  # the endpoint that heads read
    aux: str = ""  # that of PSPNet's auxiliary head; "": not for PSPNet
    fixed: Mapping[str, Any] = {}  # arguments of `make` that no model chooses


class Backbone(NamedTuple):
    """A network for image classification as the trunk of others."""

    module: type[nn.Module]  # normalized images -> endpoints, strided as published
    crop: int  # side of the images that the published classifier was trained on
    widths: tuple[int, ...]  # published channels, those that can be chosen
    top: str  # the endpoint that the class scores read
    score: str  # published name of the layer of class scores
    grids: Callable[..., dict[str, geometry.Grid]]  # of the endpoints, by `pad_first`
    stride: int = 32  # of `top`
    skips: Mapping[int, str] = {}  # endpoints at finer strides, for FCN
    fixed: Mapping[str, Any] = {}  # fields of `module` that no model chooses
    dropout: bool = False  # in front of the scores, none within the module
    average: int = 0  # side of the average pooling of the classifier; 0 for none
    average_scores: bool = False  # pools rectified scores instead of features
    dilated: Dilated | None = None  # None: FCN and Classifier only
