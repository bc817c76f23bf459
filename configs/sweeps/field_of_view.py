"""Sweep over the four field-of-view rows of DeepLab v1: kernel and rate of fc6.

    python -m experiments.sweep --config configs/sweeps/field_of_view.py:quick \\
        --workdir runs/field_of_view --seeds 3
    python -m experiments.sweep --config configs/sweeps/field_of_view.py --seeds 3 \\
        --workdir runs/field_of_view_camvid --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.sweep --config configs/sweeps/field_of_view.py:animals \\
        --workdir runs/field_of_view_animals --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors --seeds 3

The rows are DeepLab (4x4 at rate 4), -4x4 (rate 8), -7x7 (rate 4) and -LargeFOV (3x3 at
rate 12), as published; the recipe of the full form is that of
configs/deeplab_camvid.py:deeplab-7x7, with crops of 306 or 321 pixels, as the poolings
want.  quick has 96x96 scenes and narrow layers, animals six animals of VOC at 128x128,
SqueezeNet and half the rates.
"""

from experiments.shared import recipes
from segjax.config import make, variant
from segjax.published import NETWORKS

VARIANTS = {
    "camvid": {
        "model": NETWORKS["deeplab-v1"].fields,
        "augment": {"crop": (306, 306), "flip": 0.5},
        "batch_size": 20,
        "total_steps": 6000,
        "optim": recipes.DEEPLAB_V1_OPTIM,
        "eval_every": 500,
        **recipes.DEEPLAB,
    },
    "quick": {
        "model": {
            **NETWORKS["deeplab-v1"].fields,
            "widths": (8, 16, 16, 24, 24),
            "norm": "batch",
            "dropout": 0.0,
        },
        **recipes.quick(8),
        "augment": {"crop": (90, 90), "flip": 0.5, "brightness": 0.1},
    },
    "animals": {
        "model": {"backbone": "squeezenet", "fc6_channels": 128, "dropout": 0.2},
        "loss": {"resolution": "output_stride"},
        **recipes.animals(128, 600),
    },
}


def get_config(arg: str = ""):
    return make(model_name="deeplab", **variant(arg, VARIANTS))


def sweep(arg: str = ""):
    if arg == "animals":
        for kernel, rate in ((4, 2), (4, 4), (7, 2), (3, 6)):
            yield {"model.fc6_kernel": kernel, "model.rates": (rate,)}
        return
    for name in ("deeplab-v1", "deeplab-4x4", "deeplab-7x7", "deeplab-largefov"):
        fields = dict(NETWORKS[name].fields)
        row = {"model.average_pool": False, "model.pool_kernel": 3}
        row |= {f"model.{key}": value for key, value in fields.items()}
        if arg == "quick":
            row["model.fc6_channels"] //= 64
        elif row["model.pool_kernel"] == 3:
            row["augment.crop"] = (321, 321)
        row.setdefault("model.fc6_kernel", 3)
        yield row
