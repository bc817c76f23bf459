"""Sweep over the context module of Dilation: none, basic, large, and its rates.

    python -m experiments.sweep --config configs/sweeps/context.py:quick \\
        --workdir runs/context --seeds 3
    python -m experiments.sweep --config configs/sweeps/context.py --seeds 3 \\
        --workdir runs/context_camvid --config.data.root=/path/to/CamVid
    python -m experiments.sweep --config configs/sweeps/context.py:stages --seeds 3 \\
        --workdir runs/context_stages \\
        --config.init_from=$(echo runs/context/context=none-*/seed0)
    python -m experiments.sweep --config configs/sweeps/context.py:camvid_cpu \\
        --workdir runs/context_camvid_cpu --seeds 3 --config.data.root=/path/to/CamVid

The full form is on CamVid at 360x480.  It trains front end and context module together
and from scratch, with batch normalization, where the paper trains the front end from
ImageNet weights first.  Rates: those of table 1, the shorter ones of the network for
KITTI, and as many layers without dilation.  quick has 96x96 scenes, narrow layers and
the rates of table 1 alone; stages trains the context module on the front end of a quick
run, which stays as it is.  camvid_cpu and camvid_cpu_stages are the same on CamVid at
180x240, for two CPU cores.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_NARROW = {
    "model": {
        "widths": (8, 16, 16, 24, 24),
        "fc_channels": 32,
        "fc6_rate": 1,
        "norm": "batch",
        "dropout": 0.0,
    }
}
_QUICK = _NARROW | recipes.quick(8)
_CAMVID_CPU = _NARROW | recipes.camvid_cpu(crop=(144, 192), steps=500)
_FRONT_END_FIXED = ("^(?!context)=0",)


def _stages(recipe):
    return recipe | {"optim": recipe["optim"] | {"lr_mult": _FRONT_END_FIXED}}


VARIANTS = {
    "camvid": {
        "model": {"norm": "batch", "dtype": "bfloat16"},
        "data": {"name": "camvid"},
        "augment": {"crop": (353, 473), "scale": (0.5, 2.0), "flip": 0.5},
        "batch_size": 8,
        "total_steps": 12000,
        "workers": 8,
        "optim": {"name": "sgd", "lr": 0.01, "schedule": "poly", "weight_decay": 5e-4},
        "eval_every": 1000,
        "eval_batch_size": 4,
        "save_every": 500,
    },
    "quick": _QUICK,
    "stages": _stages(_QUICK),
    "camvid_cpu": _CAMVID_CPU,
    "camvid_cpu_stages": _stages(_CAMVID_CPU),
}


def get_config(arg: str = ""):
    return make(model_name="dilation", **variant(arg, VARIANTS))


def sweep(arg: str = ""):
    for context in ("none", "basic", "large"):
        yield {"model.context": context}
    if arg not in ("", "camvid"):
        return
    for rates in ((1, 1, 2, 4, 8, 1), (1, 1, 1, 1, 1, 1, 1)):
        yield {"model.context": "basic", "model.context_rates": rates}
