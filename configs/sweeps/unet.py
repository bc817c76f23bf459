"""Sweep over depth and widths of U-Net.

    python -m experiments.sweep --config configs/sweeps/unet.py:quick \\
        --workdir runs/unet --seeds 3
    python -m experiments.sweep --config configs/sweeps/unet.py --seeds 3 \\
        --workdir runs/unet_camvid --config.data.root=/path/to/CamVid

Two to five levels of the same first width, then five levels that are half and a quarter
as wide.  The full form is the same-size U-Net of configs/unet_camvid.py, from scratch
on CamVid at 360x480; quick is an eighth as wide, on 96x96 scenes.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_MODEL = {"padding": "same", "norm": "batch"}
VARIANTS = {
    "camvid": {
        "model": _MODEL | {"dtype": "bfloat16"},
        "data": {"name": "camvid"},
        "augment": {
            "crop": (352, 480),
            "scale": (0.5, 2.0),
            "rotate": 10.0,
            "rotate_prob": 0.5,
            "flip": 0.5,
        },
        "batch_size": 8,
        "total_steps": 12000,
        "workers": 8,
        "optim": recipes.adam(1e-3),
        "eval_every": 1000,
        "save_every": 500,
    },
    "quick": {
        "model": _MODEL | {"dropout": 0.0},
        **recipes.quick(8),
    },
}


def get_config(arg: str = ""):
    return make(model_name="unet", **variant(arg, VARIANTS))


def sweep(arg: str = ""):
    first = 8 if arg == "quick" else 64
    for width, levels in (
        *((first, levels) for levels in (2, 3, 4, 5)),
        (first // 2, 5),
        (first // 4, 5),
    ):
        yield {"model.widths": tuple(width * 2**level for level in range(levels))}
