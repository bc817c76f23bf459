"""CRF-RNN on procedural scenes at 64x64, for two CPU cores: base network, then jointly.

    python -m experiments.chain --config configs/crfrnn_scenes.py:joint \\
        --workdir runs/crfrnn
    python -m experiments.train --config configs/crfrnn_scenes.py:base \\
        --workdir runs/base

The first trains base and then joint from it.

The base is a small DeepLab that scores every 8th pixel and interpolates, so that its
boundaries are coarse.  In two stages as in the paper: the network alone, then network
and CRF end to end, from its weights; "joint" by experiments.train without init_from
trains both from scratch.  The kernels are narrower than the paper's, whose images are
eight times as wide, and not as narrow in color, for the noise of the scenes.  No paper
reports this setting.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_BASE = {
    "backbone": "resnet50",
    "stage_sizes": (1, 1, 1, 1),
    "width": 16,
    "rates": (1, 2, 4),
    "image_stats": "unit",
}
_JOINT = {
    "base": "deeplab",
    "base_options": tuple(f"{field}={value}" for field, value in _BASE.items()),
    "theta_alpha": 20.0,
    "theta_beta": 20.0,
    "theta_gamma": 1.0,
    "capacity": 0.25,
    "spatial_filter": "separable",
}
VARIANTS = {
    "base": {
        "model_name": "deeplab",
        "model": _BASE,
        "optim": recipes.adam(3e-3),
        "total_steps": 600,
    },
    "joint": {
        "model_name": "crfrnn",
        "model": _JOINT,
        "optim": recipes.adam(1e-3) | {"lr_mult": ("crfrnn=10",)},
        "total_steps": 300,
    },
}
STARTS_FROM = {"joint": "base"}


def get_config(arg: str = ""):
    return make(
        data={
            "name": "scenes",
            "scenes_size": (64, 64),
            "scenes_train": 1200,
            "scenes_validation": 200,
        },
        augment={"flip": 0.5, "brightness": 0.1},
        batch_size=16,
        eval_every=100,
        eval_batch_size=20,
        save_every=100,
        **variant(arg, VARIANTS),
    )
