"""U-Net on CamVid at 180x240: half an hour on two CPU cores, from scratch.

    python -m experiments.train --config configs/camvid_cpu.py --workdir /tmp/camvid \\
        --config.data.root=/path/to/CamVid

CamVid (SegNet split, 11 classes) with every image reduced to half its size, and the
median-frequency class weights of its training images (SegNet, PAMI 2017, section 4.1).
No paper reports this setting; the README has the measured numbers.
"""

from segjax.config import make

# Sky, Building, Pole, Road, Pavement, Tree;
# SignSymbol, Fence, Car, Pedestrian, Bicyclist
MEDIAN_FREQUENCY = (
    *(0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217),
    *(3.8467, 1.9736, 0.7889, 6.3747, 8.8587),
)


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
        loss={"class_weights": MEDIAN_FREQUENCY},
        optim={"name": "adam", "lr": 2e-3, "schedule": "poly", "weight_decay": 0.0},
        eval_every=250,
        eval_batch_size=8,
        save_every=250,
    )
