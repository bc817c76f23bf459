"""A small U-Net on procedural scenes: minutes on two CPU cores.

    make quickstart
    python -m experiments.train --config configs/quickstart.py --workdir /tmp/run

Same-size ("same") U-Net with batch normalization on 96x96 scenes; docs/scenes.md says
what each class of the scenes tests.
"""

from experiments.shared import recipes
from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (16, 32, 64, 128, 128)},
        **recipes.quick(16) | {"eval_every": 100, "save_every": 100},
    )
