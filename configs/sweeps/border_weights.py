"""Sweep over U-Net's weights of borders, on nuclei that touch.

    python -m experiments.sweep --config configs/sweeps/border_weights.py:quick \\
        --workdir runs/border_weights --seeds 3 --config.data.root=/path/to/dsb2018
    for run in runs/border_weights/*/seed*; do python -m experiments.evaluate \\
        --workdir $run --checkpoint latest --metrics=objects; done

Rows: masks as they are, touching nuclei cut apart, and cut apart with the weights of
the paper (w0 = 10, sigma = 5 px).  quick has a narrow network and few steps.
"""

from experiments.shared.recipes import NUCLEI
from segjax.config import make, variant

_STEPS = 1000
VARIANTS = {
    "full": NUCLEI["full"],
    "quick": NUCLEI["small"]
    | {"total_steps": _STEPS, "eval_every": _STEPS, "save_every": _STEPS}
    | {"eval_images": 0},
}


def get_config(arg: str = ""):
    return make(model_name="unet", **variant(arg, VARIANTS))


def sweep():
    yield {}
    yield {"augment.separate": 1}
    yield {"augment.separate": 1, "loss.border_weight": 10.0}
