"""Sweep on ISBI 2012: U-Net with and without elastic deformation, and FusionNet.

    python -m experiments.sweep --config configs/sweeps/em.py:quick \\
        --workdir runs/em --seeds 3 --config.data.root=/path/to/membrane
    for run in runs/em/*/seed*; do python -m experiments.evaluate \\
        --workdir $run --checkpoint latest --metrics=em; done
    python -m experiments.sweep --config configs/sweeps/em.py \\
        --workdir runs/em --seeds 3 --config.data.root=/path/to/membrane

The full form trains each network by the recipe of its own paper.  quick has one recipe
for narrow networks of about as many multiply-adds (1.3 and 1.2 G), on crops of 256x256
pixels: U-Net with padded convolutions, and FusionNet.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_UNET = {"padding": "same", "norm": "batch", "widths": (12, 24, 48, 96), "dropout": 0.2}
_FUSIONNET = {"widths": (10, 20, 40, 80), "residual_depth": 1}
VARIANTS = {
    "paper": {"data": {"name": "isbi2012"}},
    "quick": {
        "data": {"name": "isbi2012"},
        "augment": {"crop": (256, 256), **recipes.MEMBRANE_AUGMENT},
        "batch_size": 2,
        "total_steps": 500,
        "optim": recipes.adam(2e-3),
        "eval_batch_size": 1,
        "eval_images": 2,
        "eval_every": 500,
        "save_every": 250,
    },
}


def get_config(arg: str = ""):
    return make(model_name="unet", **variant(arg, VARIANTS))


def sweep(arg: str = ""):
    if arg != "quick":
        unet = {"config": "configs/unet_isbi2012.py"}
        yield unet
        yield unet | {"augment.elastic_sigma": 0.0}
        yield {"config": "configs/fusionnet_isbi2012.py:paper"}
        return
    unet = {f"model.{field}": value for field, value in _UNET.items()}
    yield unet
    yield unet | {"augment.elastic_sigma": 0.0}
    yield {"model_name": "fusionnet"} | {
        f"model.{field}": value for field, value in _FUSIONNET.items()
    }
