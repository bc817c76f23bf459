"""PSPNet-50 (CVPR 2017) on CamVid at 360x480, from scratch.

    python -m experiments.train --config configs/pspnet50_camvid.py \\
        --workdir /tmp/run --config.data.root=/path/to/CamVid

The recipe of section 5.1 (poly 0.9, SGD, batch 16, auxiliary weight 0.4) with a higher
rate and more epochs, since nothing is pre-trained.  Published with Cityscapes or
ImageNet weights, for scale only: PSPNet50 69.1 mIoU on the test set at 720x960 (from
memory).
"""

from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="pspnet",
        model={"backbone": "resnet50", "dtype": "bfloat16"},
        data={"name": "camvid"},
        augment={
            "crop": (353, 473),
            "scale": (0.5, 2.0),
            "rotate": 10.0,
            "rotate_prob": 0.5,
            "flip": 0.5,
            "blur_prob": 0.5,
        },
        batch_size=16,
        total_steps=12000,
        workers=8,
        optim={
            "name": "sgd",
            "lr": 0.02,
            "momentum": 0.9,
            "schedule": "poly",
            "weight_decay": 1e-4,
            "warmup_steps": 200,
        },
        eval_every=500,
        save_every=500,
    )
