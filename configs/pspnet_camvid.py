"""PSPNet-50 and 101 (CVPR 2017) from ImageNet weights, on CamVid at 360x480.

    python -m experiments.train --config configs/pspnet_camvid.py:pspnet50 \\
        --workdir runs/pspnet50 --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/resnet50.safetensors
    python -m experiments.train --config configs/pspnet_camvid.py:pspnet101 \\
        --workdir runs/pspnet101 --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/resnet101.safetensors

From the paper and its author's code: SGD of 16 crops, rate 0.01 polynomial with power
0.9, 10 times that for the new layers, momentum 0.9, decay 1e-4, auxiliary loss of
weight 0.4; scale, rotation, blur and mirror.

Adapted: crops of 353x473, the largest that CamVid holds, where they have 473 or 713;
4,600 steps, the 200 epochs of their Cityscapes. configs/pspnet50_camvid.py trains from
scratch.

Published (mIoU, single scale): ADE20K 41.68 (50) and 41.96 (101), VOC 2012 test 82.6
(101); nothing on CamVid. Estimated memory: 19 and 34 GB, half of it with
--config.model.dtype=bfloat16.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {
    "pspnet50": {"backbone": "resnet50"},
    "pspnet101": {"backbone": "resnet101"},
}


def get_config(arg: str = ""):
    return make(
        model_name="pspnet",
        model=variant(arg, VARIANTS),
        data={"name": "camvid"},
        augment=recipes.PSPNET_AUGMENT,
        batch_size=16,
        total_steps=4600,
        workers=8,
        loss={"aux_weight": 0.4},
        optim={
            "name": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "schedule": "poly",
            "power": 0.9,
            "weight_decay": 1e-4,
            "lr_mult": ("^(pyramid|conv5_4|conv6|aux)=10",),
        },
        eval_every=200,
        eval_batch_size=4,
        save_every=200,
    )
