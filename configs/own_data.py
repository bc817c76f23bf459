"""U-Net on your own images and masks; everything else by overrides.

    python -m experiments.train --config configs/own_data.py --workdir /tmp/run \\
        --config.data.root=FOLDER --config.augment.crop=256,256

FOLDER holds images/ and masks/ (docs/data.md).  It is checked first, and the class
frequencies and suggested class weights are printed; the weights can be used with
--config.loss.class_weights=1.0,2.5.
"""

from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (32, 64, 128, 256, 256)},
        data={"name": "folder"},
        augment={
            "crop": (256, 256),
            "scale": (0.75, 1.5),
            "rotate": 10.0,
            "flip": 0.5,
            "brightness": 0.2,
            "contrast": 0.2,
        },
        batch_size=8,
        total_steps=2000,
        optim={"name": "adam", "lr": 1e-3, "schedule": "poly", "weight_decay": 0.0},
        eval_every=250,
        save_every=250,
    )
