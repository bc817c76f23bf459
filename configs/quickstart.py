"""A small U-Net on procedural scenes: minutes on two CPU cores.

    make quickstart
    python -m experiments.train --config configs/quickstart.py --workdir /tmp/run

Same-size ("same") U-Net with batch normalization on 96x96 scenes; docs/scenes.md says
what each class of the scenes tests.
"""

from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (16, 32, 64, 128, 128)},
        data={"name": "scenes", "scenes_size": (96, 96), "scenes_train": 1200},
        augment={"flip": 0.5, "brightness": 0.1},
        batch_size=16,
        total_steps=300,
        optim={"name": "adam", "lr": 3e-3, "schedule": "poly", "weight_decay": 0.0},
        eval_every=100,
        eval_batch_size=20,
        save_every=100,
    )
