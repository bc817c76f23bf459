"""Sweep over DeepLab's dilation rates: one branch, ASPP-S, ASPP-L and other sets.

    python -m experiments.sweep --config configs/sweeps/rates.py:quick \\
        --workdir runs/rates --seeds 3
    python -m experiments.sweep --config configs/sweeps/rates.py --seeds 3 \\
        --workdir runs/rates_camvid --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.sweep --config configs/sweeps/rates.py:animals \\
        --workdir runs/rates_animals --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors --seeds 3

The full form is table 3 of DeepLab v2 (LargeFOV, ASPP-S, ASPP-L) with a few single
rates and sets beside it, on CamVid at 360x480 and by the recipe of
configs/deeplab_camvid.py:deeplab-v2-vgg16-aspp-l.

quick asks which rates reach the context, on procedural scenes of 64x64 pixels: without
its head the network sees 39 pixels, less than from a tent to the balloon that tells the
two kinds of tents apart; a 3x3 branch of rate r has eight more such windows, 8 r pixels
away.  A run takes a minute on two CPU cores.  animals are six animals of VOC at 128x128
on SqueezeNet, with half the rates of LargeFOV, ASPP-S and ASPP-L.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {
    "camvid": {
        "model": {"backbone": "vgg16", "fc6_channels": 1024, "rates": (6, 12, 18, 24)},
        "augment": {"crop": (321, 321), "flip": 0.5},
        "batch_size": 10,
        "total_steps": 20_000,
        "optim": recipes.DEEPLAB_V2_OPTIM,
        "eval_every": 1000,
        **recipes.DEEPLAB,
    },
    "quick": {
        "model": {
            "backbone": "resnet50",
            "stage_sizes": (1, 1, 0, 0),
            "width": 16,
            "stem": "deep",
            "stride_in_1x1": False,
            "fc6_channels": 32,
            "norm": "batch",
            "dropout": 0.0,
            "rates": (1,),
            "image_stats": "unit",
        },
        **recipes.quick(8, 400, lr=5e-3, size=64),
        # Tents are a fifteenth of the pixels.
        "loss": {"class_weights": (1.0,) * 7 + (4.0, 4.0)},
    },
}
VARIANTS["animals"] = {
    "model": {"backbone": "squeezenet", "fc6_channels": 128, "dropout": 0.2},
    "loss": {"resolution": "output_stride"},
    **recipes.animals(128, 600),
}
_ROWS = {
    "camvid": (
        (1,),
        (6,),
        (12,),  # LargeFOV
        (24,),
        (2, 4, 8, 12),  # ASPP-S
        (6, 12, 18, 24),  # ASPP-L
        (6, 12),
    ),
    "quick": ((1,), (2,), (4,), (2, 4, 6)),
    "animals": ((6,), (1, 2, 4, 6), (3, 6, 9, 12)),
}


def get_config(arg: str = ""):
    return make(model_name="deeplab", **variant(arg, VARIANTS))


def sweep(arg: str = ""):
    for rates in _ROWS[arg or "camvid"]:
        yield {"model.rates": rates}
