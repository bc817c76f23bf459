"""FCN-8s at once (PAMI 2017) on VGG16 with batch normalization, CamVid at 360x480.

    python -m experiments.train --config configs/fcn8s_camvid.py --workdir /tmp/run \\
        --config.data.root=/path/to/CamVid

From scratch, where the papers start from ImageNet weights; batch normalization is what
makes that possible, and the skips are not scaled then.  Published with ImageNet
weights: 59.56 mIoU on the CamVid test set for FCN at 360x480 (SegNet, PAMI 2017; from
memory).
"""

from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="fcn",
        model={"skips": 8, "norm": "batch", "dtype": "bfloat16"},
        data={"name": "camvid"},
        augment={
            "crop": (360, 480),
            "scale": (0.5, 2.0),
            "flip": 0.5,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
        batch_size=8,
        total_steps=12000,
        workers=8,
        optim={
            "name": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "schedule": "poly",
            "weight_decay": 5e-4,
            "lr_mult": ("bias=2",),
        },
        eval_every=500,
        save_every=500,
    )
