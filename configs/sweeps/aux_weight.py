"""Sweep over the weight of PSPNet's auxiliary loss: 0, 0.3, 0.4, 0.6 and 0.9.

    python -m experiments.sweep --config configs/sweeps/aux_weight.py:quick \\
        --workdir runs/aux_weight --seeds 3
    python -m experiments.sweep --config configs/sweeps/aux_weight.py --seeds 3 \\
        --workdir runs/aux_weight_camvid --config.data.root=/path/to/CamVid
    python -m experiments.sweep --config configs/sweeps/aux_weight.py:animals \\
        --workdir runs/aux_weight_animals --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors --seeds 3

The weights of the paper's table.  The full form is PSPNet-50 from scratch on CamVid at
360x480, by the recipe of configs/pspnet50_camvid.py; quick has 96x96 scenes and a
narrow backbone of four blocks, animals six animals of VOC at 128x128 and SqueezeNet.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {
    "camvid": recipes.PSPNET50_FROM_SCRATCH | {"eval_every": 1000},
    "quick": {
        "model": {
            "stage_sizes": (1, 1, 1, 1),
            "width": 8,
            "bins": (1, 2),
            "pyramid_channels": 8,
            "head_channels": 32,
            "dropout": 0.0,
            "image_stats": "unit",
        },
        **recipes.quick(16),
    },
    "animals": {
        "model": {
            "backbone": "squeezenet",
            "pyramid_channels": 128,
            "head_channels": 128,
        },
        **recipes.animals(128, 600),
    },
}


def get_config(arg: str = ""):
    return make(model_name="pspnet", **variant(arg, VARIANTS))


def sweep():
    for weight in (0.0, 0.3, 0.4, 0.6, 0.9):
        yield {"loss.aux_weight": weight}
