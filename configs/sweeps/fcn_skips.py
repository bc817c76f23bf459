"""Sweep over the skips of FCN: 32s, 16s and 8s, each trained at once.

    python -m experiments.sweep --config configs/sweeps/fcn_skips.py:quick \\
        --workdir runs/fcn_skips --seeds 3
    python -m experiments.sweep --config configs/sweeps/fcn_skips.py --seeds 3 \\
        --workdir runs/fcn_skips_camvid --config.data.root=/path/to/CamVid
    python -m experiments.sweep --config configs/sweeps/fcn_skips.py:animals \\
        --workdir runs/fcn_skips_animals --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors --seeds 3

The full form is on CamVid at 360x480, from scratch with batch normalization, by the
recipe of configs/fcn8s_camvid.py; the papers start each network from the coarser one.
quick has 96x96 scenes and narrow layers, animals six animals of VOC at 128x128 and
SqueezeNet, whose stride of 16 has no 32s and whose padded layers need no padding of
100 pixels.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {
    "camvid": recipes.FCN_FROM_SCRATCH | {"eval_every": 1000},
    "quick": {
        "model": {
            "widths": (8, 16, 16, 24, 24),
            "fc_channels": 32,
            "pad": 81,  # the least that 32s takes
            "norm": "batch",
            "dropout": 0.0,
        },
        **recipes.quick(8),
    },
    "animals": {
        "model": {
            "backbone": "squeezenet",
            "pad": 20,
            "dropout": 0.2,
            "at_once": True,
        },
        **recipes.animals(128, 600),
    },
}


def get_config(arg: str = ""):
    return make(model_name="fcn", **variant(arg, VARIANTS))


def sweep(arg: str = ""):
    for skips in (16, 8) if arg == "animals" else (32, 16, 8):
        yield {"model.skips": skips}
