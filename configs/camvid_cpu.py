"""U-Net on CamVid at 180x240: half an hour on two CPU cores, from scratch.

    python -m experiments.train --config configs/camvid_cpu.py --workdir /tmp/camvid \\
        --config.data.root=/path/to/CamVid

CamVid (SegNet split, 11 classes) with every image reduced to half its size.  No paper
reports this setting; the README has the measured numbers.
"""

from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (16, 32, 64, 128, 256)},
        data={"name": "camvid", "resize": (180, 240)},
        augment={
            "crop": (144, 192),
            "scale": (0.7, 1.4),
            "rotate": 5.0,
            "flip": 0.5,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
        batch_size=8,
        total_steps=1000,
        optim={"name": "adam", "lr": 2e-3, "schedule": "poly", "weight_decay": 0.0},
        eval_every=250,
        eval_batch_size=8,
        save_every=250,
    )
