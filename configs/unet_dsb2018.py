"""U-Net on nuclei of the 2018 Data Science Bowl: nucleus against background.

    python -m experiments.train --config configs/unet_dsb2018.py --workdir /tmp/dsb \\
        --config.data.root=/path/to/dsb2018
    python -m experiments.train --config configs/unet_dsb2018.py:small \\
        --workdir /tmp/dsb --config.data.root=/path/to/dsb2018
        (narrow, on crops of half the side: minutes on two CPU cores)

full, the default, is sized for a GPU.

The smallest images have 256x256 pixels, which is the crop.  Fluorescent images are
bright on black, stained ones dark on white or in color, so brightness and contrast
vary; cells have no upright position, so crops are turned and mirrored.  No paper
reports this setting.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {
    "full": {
        "widths": (32, 64, 128, 256, 512),
        "crop": 256,
        "batch_size": 16,
        "steps": 5000,
        "every": 500,
    },
    "small": {
        "widths": (8, 16, 32, 64, 64),
        "crop": 128,
        "batch_size": 8,
        "steps": 400,
        "every": 200,
    },
}


def get_config(arg: str = ""):
    size = variant(arg, VARIANTS)
    return make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": size["widths"]},
        data={"name": "dsb2018"},
        augment={
            "crop": (size["crop"], size["crop"]),
            "scale": (0.5, 1.5),
            "rotate": 180.0,
            "rotate_prob": 0.5,
            "flip": 0.5,
            "rot90": True,
            "elastic_sigma": 8.0,
            "border": "reflect",
            "brightness": 0.2,
            "contrast": 0.3,
        },
        batch_size=size["batch_size"],
        total_steps=size["steps"],
        optim=recipes.adam(2e-3),
        eval_every=size["every"],
        eval_batch_size=4,
        save_every=size["every"],
    )
