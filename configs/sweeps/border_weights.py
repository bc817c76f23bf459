"""Sweep over U-Net's weights of borders, on nuclei that touch.

    python -m experiments.sweep --config configs/sweeps/border_weights.py:quick \\
        --workdir runs/border_weights --seeds 3 --config.data.root=/path/to/dsb2018
    for run in runs/border_weights/*/seed*; do python -m experiments.evaluate \\
        --workdir $run --checkpoint latest --metrics=objects; done

Rows: masks as they are, touching nuclei cut apart, and cut apart with the weights of
the paper (w0 = 10, sigma = 5 px).  quick has a narrow network and few steps.
"""

import runpy
from pathlib import Path

_BASE = runpy.run_path(str(Path(__file__).parent.parent / "unet_dsb2018.py"))


def get_config(arg: str = ""):
    config = _BASE["get_config"]("small" if arg == "quick" else arg)
    if arg == "quick":
        config.total_steps = config.eval_every = config.save_every = 240
        config.eval_images = 0
    return config


def sweep():
    yield {}
    yield {"augment.separate": 1}
    yield {"augment.separate": 1, "loss.border_weight": 10.0}
