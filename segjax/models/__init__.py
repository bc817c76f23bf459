"""The networks, one file per paper, and how a configuration names them.

``model.apply(variables, images, train=bool) -> (logits, endpoints)``: images
[N, H, W, C], RGB 0..255; logits [N, h, w, K] float32; endpoints a dict of arrays.
"""

import dataclasses
from typing import Any

from flax import linen as nn

from segjax import errors
from segjax.models.cfm import CFM
from segjax.models.contextual import DeepContextual
from segjax.models.crfrnn import CRFRNN
from segjax.models.deconvnet import DeconvNet
from segjax.models.deeplab import DeepLab
from segjax.models.dilation import Dilation
from segjax.models.fcn import FCN
from segjax.models.frrn import FRRN
from segjax.models.fusionnet import FusionNet
from segjax.models.hypercolumn import Hypercolumn
from segjax.models.pspnet import PSPNet
from segjax.models.unet import UNet
from segjax.models.zoomout import Zoomout

MODELS: dict[str, type[nn.Module]] = {
    "cfm": CFM,
    "contextual": DeepContextual,
    "crfrnn": CRFRNN,
    "deconvnet": DeconvNet,
    "deeplab": DeepLab,
    "dilation": Dilation,
    "fcn": FCN,
    "frrn": FRRN,
    "fusionnet": FusionNet,
    "hypercolumn": Hypercolumn,
    "pspnet": PSPNet,
    "unet": UNet,
    "zoomout": Zoomout,
}


def model_fields(name: str) -> dict[str, Any]:
    """The fields of model `name` with their defaults, without `num_classes`.

    Raises:
      UserError: no model of that name.
    """
    if name not in MODELS:
        raise errors.unknown("--config.model_name", name, MODELS)
    hidden = ("num_classes", "parent", "name")
    fields = dataclasses.fields(MODELS[name])
    return {field.name: field.default for field in fields if field.name not in hidden}


def build(config: Any, num_classes: int) -> nn.Module:
    """The model that `config.model_name` names, with the fields of `config.model`.

    Raises:
      UserError: an unknown model or field (names the nearest), or a bad field value.
    """
    known = model_fields(config.model_name)
    fields = {}
    for field, value in config.model.items():
        if field not in known:
            raise errors.unknown(f"--config.model ({config.model_name})", field, known)
        # Sequences that went through JSON come back as lists.
        fields[field] = tuple(value) if isinstance(value, list) else value
    return MODELS[config.model_name](num_classes=num_classes, **fields)
