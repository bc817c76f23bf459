"""FRRN A and B (CVPR 2017), from scratch, on CamVid at 360x480.

    python -m experiments.train --config configs/frrn_camvid.py:frrn-a \\
        --workdir runs/frrn_a --config.data.root=/path/to/CamVid
    python -m experiments.train --config configs/frrn_camvid.py:frrn-b \\
        --workdir runs/frrn_b --config.data.root=/path/to/CamVid

From the authors' code: cross-entropy over the 512 x 64 worst pixels of every image,
Adam with a rate of 1e-3 divided by 1.25 every 5,000 steps, not below 5e-5 (reached at
70,000 steps), batches of 3; shifts by up to an eighth of the height, mirrored at
the border, and gamma.

Adapted: images of 352x480, where the paper reduces Cityscapes to 256x512 (A) and
512x1024 (B): the worst pixels are 1/5 of all, there 1/4 and 1/16. The code has no last
step: 30,000 here, 245 epochs. Gamma is drawn from their range by our law.

Published on the test set of Cityscapes: A 63.0 (from memory), B 71.8 mIoU; nothing on
CamVid. Estimated memory: 10 GB, less with --config.model.remat=True.
"""

from segjax.config import make, variant
from segjax.published import NETWORKS

VARIANTS = {name: NETWORKS[name].fields for name in ("frrn-a", "frrn-b")}


def get_config(arg: str = ""):
    return make(
        model_name="frrn",
        model=variant(arg, VARIANTS),
        data={"name": "camvid"},
        augment={
            "crop": (352, 480),
            "flip": 0.0,
            "translate": 0.12,
            "border": "reflect",
            "gamma": 0.23,
        },
        batch_size=3,
        total_steps=30_000,
        workers=8,
        loss={"name": "hard_pixels", "hard_pixels": 512 * 64},
        optim={
            "name": "adam",
            "lr": 1e-3,
            "schedule": "step",
            "step_every": 5000,
            "step_factor": 0.8,
            "lr_floor": 5e-5,
            "weight_decay": 0.0,
        },
        eval_every=500,
        eval_batch_size=4,
        save_every=500,
    )
