"""Sweep over the first weights of a backbone: none, ImageNet's kept fixed, fine-tuned.

    python -m experiments.sweep --config configs/sweeps/first_weights.py --seeds 3 \\
        --workdir runs/first_weights --config.data.root=/path/to/VOCdevkit
    python -m experiments.compare runs/first_weights --checkpoint=latest

DeepLab v2 on six animals of VOC at 128x128 with SqueezeNet, for two CPU cores; the
weights are weights/squeezenet.safetensors (docs/weights.md).  From scratch the backbone
learns at the rate of the other layers, fine-tuned at a quarter of it, and a fixed one
not at all.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {
    "animals": {
        "model": {
            "backbone": "squeezenet",
            "fc6_channels": 128,
            "rates": (2, 4, 6, 8),
            "dropout": 0.2,
        },
        "loss": {"resolution": "output_stride"},
        **recipes.animals(128, 900),
    },
}
WEIGHTS = "weights/squeezenet.safetensors"


def get_config(arg: str = ""):
    return make(model_name="deeplab", **variant(arg, VARIANTS))


def sweep():
    yield {"optim.lr_mult": ()}
    yield {"init_from": WEIGHTS, "optim.lr_mult": ("^backbone=0",)}
    yield {"init_from": WEIGHTS, "optim.lr_mult": ("^backbone=0.25",)}
