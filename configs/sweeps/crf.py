"""Sweep over the mean-field iterations of CRF-RNN: none, 1, 2 and the paper's 5.

    python -m experiments.sweep --config configs/sweeps/crf.py:quick \\
        --workdir runs/crf --seeds 3
    python -m experiments.sweep --config configs/sweeps/crf.py --seeds 3 \\
        --workdir runs/crf_camvid --config.data.root=/path/to/CamVid

A network with no iteration is its base network alone.  All are trained from scratch and
end to end, with twice as many iterations at test from 5 on, as in the paper.  The full
form is on top of FCN-8s with batch normalization, on CamVid at 360x480; quick on top of
a small DeepLab that scores every 8th pixel, on 64x64 scenes, as in
configs/crfrnn_scenes.py.  For a CRF behind any trained network, see evaluate --crf.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_DEEPLAB = (
    "backbone=resnet50",
    "stage_sizes=(1, 1, 1, 1)",
    "width=16",
    "rates=(1, 2, 4)",
    "image_stats=unit",
)
VARIANTS = {
    "camvid": {
        "model": {"base": "fcn", "base_options": ("skips=8", "norm=batch")},
        "data": {"name": "camvid"},
        "augment": {"crop": (320, 320), "scale": (0.5, 2.0), "flip": 0.5},
        "batch_size": 8,
        "total_steps": 12000,
        "workers": 8,
        "optim": recipes.adam(1e-3),
        "eval_every": 1000,
        "eval_batch_size": 2,
        "save_every": 500,
    },
    "quick": {
        "model": {
            "base": "deeplab",
            "base_options": _DEEPLAB,
            "theta_alpha": 20.0,
            "theta_beta": 20.0,
            "theta_gamma": 1.0,
            "capacity": 0.25,
            "spatial_filter": "separable",
        },
        **recipes.quick(8, size=64),
    },
}


def get_config(arg: str = ""):
    return make(model_name="crfrnn", **variant(arg, VARIANTS))


def sweep():
    for train, test in ((0, 0), (1, 1), (2, 2), (5, 10)):
        yield {"model.iterations_train": train, "model.iterations_test": test}
