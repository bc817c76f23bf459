"""DeepLab v1 (ICLR 2015) and v2 (TPAMI 2018) as published, on CamVid at 360x480.

    python -m experiments.train --config configs/deeplab_camvid.py:deeplab-largefov \\
        --workdir runs/largefov --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.chain \\
        --config configs/deeplab_camvid.py:deeplab-msc-largefov \\
        --workdir runs/msc --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.train \\
        --config configs/deeplab_camvid.py:deeplab-v2-resnet101 \\
        --workdir runs/resnet101 --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/resnet101.safetensors

The networks are those of segjax/published.py. Published on the validation set of
VOC 2012 before the CRF (mIoU):

  deeplab-largefov               62.25    deeplab-7x7                     64.38
  deeplab-v1                     59.80    deeplab-4x4                     63.41
  deeplab-msc                    61.30    deeplab-msc-largefov            64.21
  deeplab-v2-vgg16-aspp-s        66.98    deeplab-v2-vgg16-aspp-l         68.96
  deeplab-v2-resnet101           76.35    deeplab-v2-resnet101-largefov   (75.54,
                                          with its three scales)

DeepLab-LargeFOV has 61.6 on CamVid at 480x640 (as Dilation's paper reports).

From the authors' solvers: the loss on the network's cells, compared with every eighth
pixel; mirrored crops; momentum 0.9, decay 5e-4 but not of biases, which learn at twice
the rate; class scores at 10 times. v1: fc6 and fc7 from a part of VGG16's
(docs/weights.md), rate 1e-3 divided by 10 every 2,000 of 6,000 steps, batches of 20
(LargeFOV 30), and for the multi-scale features (MSc) the trained network held fixed.
v2: polynomial from 1e-3 (ResNet 2.5e-4) over 20,000 steps of 10 crops; the ResNet with
its normalization frozen, crops at five scales from 0.5 to 1.5 and a loss on each scale
of its input as well as on their maximum.

Adapted: the number of steps is VOC's; that of CamVid's epochs is many times higher.
The v2 ResNet starts from COCO there, from ImageNet here.

Estimated memory: 10 GB, 22 GB for deeplab-v2-resnet101, which
--config.grad_accum_steps=10 divides by ten (the authors did that, too).
"""

from experiments.shared import recipes
from segjax.config import make, variant_name
from segjax.published import NETWORKS

_V1 = {
    "crop": (321, 321),
    "batch_size": 20,
    "total_steps": 6000,
    "optim": recipes.DEEPLAB_V1_OPTIM,
}
_FIRST = _V1 | {"crop": (306, 306)}  # its poolings need another size
_LARGEFOV = _V1 | {"batch_size": 30}
_V2 = {
    "crop": (321, 321),
    "batch_size": 10,
    "total_steps": 20_000,
    "optim": recipes.DEEPLAB_V2_OPTIM,
}
_RESNET = _V2 | {
    "model": {"frozen_bn": True},
    "scales": (0.5, 0.75, 1.0, 1.25, 1.5),
    "optim": recipes.DEEPLAB_OPTIM
    | {
        "schedule": "poly",
        "lr": 2.5e-4,
        "lr_mult": ("head=10", "head/.*bias=2", "bn=0"),
    },
}


def _held(recipe: dict, *rules: str) -> dict:
    """The recipe with other multipliers: what was trained before has a rate of 0."""
    return recipe | {"optim": recipe["optim"] | {"lr_mult": (*rules, "bias=2")}}


VARIANTS = {
    "deeplab-largefov": _LARGEFOV,
    "deeplab-v1": _FIRST,
    "deeplab-4x4": _FIRST,
    "deeplab-7x7": _FIRST,
    "deeplab-msc": _held(_V1, "backbone=0", "fc[67]=0"),
    "deeplab-msc-largefov": _held(_LARGEFOV, "backbone=0", "head=0"),
    "deeplab-v2-vgg16-aspp-s": _V2,
    "deeplab-v2-vgg16-aspp-l": _V2,
    "deeplab-v2-resnet101": _RESNET,
    "deeplab-v2-resnet101-largefov": _RESNET,
}
# deeplab-msc has the poolings of LargeFOV, and no published stage of its own before it.
STARTS_FROM = {"deeplab-msc-largefov": "deeplab-largefov"}


def get_config(arg: str = ""):
    name = variant_name(arg, VARIANTS)
    recipe = VARIANTS[name]
    return make(
        model_name="deeplab",
        model=NETWORKS[name].fields | recipe.get("model", {}),
        augment={
            "crop": recipe["crop"],
            "scales": recipe.get("scales", ()),
            "flip": 0.5,
        },
        batch_size=recipe["batch_size"],
        total_steps=recipe["total_steps"],
        optim=recipe["optim"],
        eval_every=500,
        **recipes.DEEPLAB,
    )
