"""Sweep over the skips of FCN: 32s, 16s and 8s, each trained at once.

    python -m experiments.sweep --config configs/sweeps/fcn_skips.py:quick \\
        --workdir runs/fcn_skips --seeds 3
    python -m experiments.sweep --config configs/sweeps/fcn_skips.py --seeds 3 \\
        --workdir runs/fcn_skips_camvid --config.data.root=/path/to/CamVid

The full form is on CamVid at 360x480, from scratch with batch normalization, by the
recipe of configs/fcn8s_camvid.py; the papers start each network from the coarser one.
quick has 96x96 scenes and narrow layers.
"""

from segjax.config import make, variant

VARIANTS = {
    "camvid": {
        "model": {"norm": "batch", "dtype": "bfloat16"},
        "data": {"name": "camvid"},
        "augment": {"crop": (360, 480), "scale": (0.5, 2.0), "flip": 0.5},
        "batch_size": 8,
        "total_steps": 12000,
        "workers": 8,
        "optim": {
            "name": "sgd",
            "lr": 0.01,
            "schedule": "poly",
            "weight_decay": 5e-4,
            "lr_mult": ("bias=2",),
        },
        "eval_every": 1000,
        "save_every": 500,
    },
    "quick": {
        "model": {
            "widths": (8, 16, 16, 24, 24),
            "fc_channels": 32,
            "pad": 81,  # the least that 32s takes
            "norm": "batch",
            "dropout": 0.0,
        },
        "data": {"name": "scenes", "scenes_size": (96, 96), "scenes_train": 1200},
        "augment": {"flip": 0.5, "brightness": 0.1},
        "batch_size": 8,
        "total_steps": 300,
        "optim": {"name": "adam", "lr": 3e-3, "schedule": "poly", "weight_decay": 0.0},
        "eval_every": 150,
        "eval_batch_size": 20,
        "save_every": 150,
    },
}


def get_config(arg: str = ""):
    return make(model_name="fcn", **variant(arg, VARIANTS))


def sweep():
    for skips in (32, 16, 8):
        yield {"model.skips": skips}
