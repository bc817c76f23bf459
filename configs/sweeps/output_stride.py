"""Sweep over the output stride of PSPNet: 32, 16 and 8.

    python -m experiments.sweep --config configs/sweeps/output_stride.py:quick \\
        --workdir runs/output_stride --seeds 3
    python -m experiments.sweep --config configs/sweeps/output_stride.py --seeds 3 \\
        --workdir runs/output_stride_camvid --config.data.root=/path/to/CamVid
    python -m experiments.sweep --config configs/sweeps/output_stride.py:animals \\
        --workdir runs/output_stride_animals --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors --seeds 3

Strides beyond the output stride become dilation: the same weights, the same theoretical
receptive field, more cells.  The full form is PSPNet-50 from scratch on CamVid at
360x480, by the recipe of configs/pspnet50_camvid.py; quick has 96x96 scenes and a
narrow backbone of four blocks, animals six animals of VOC at 128x128 and SqueezeNet,
whose stride is 16.
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
            "aux": False,
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
            "aux": False,
        },
        **recipes.animals(128, 600),
    },
}


def get_config(arg: str = ""):
    return make(model_name="pspnet", **variant(arg, VARIANTS))


def sweep(arg: str = ""):
    for stride in (16, 8) if arg == "animals" else (32, 16, 8):
        yield {"model.output_stride": stride}
