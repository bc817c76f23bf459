"""DeconvNet (ICCV 2015) in its two stages, on CamVid at 360x480.

    python -m experiments.train --config configs/deconvnet_camvid.py:stage1 \\
        --workdir runs/deconvnet1 --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.chain --config configs/deconvnet_camvid.py:stage2 \\
        --workdir runs/deconvnet --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors

The second command trains stage1 and then stage2 from it.

From the authors' solvers: crops of 224, mirrored, 64 per step, batch normalization over
8 of them, momentum 0.9, rate 0.01 divided by 10 every 9,000 of 20,000 steps and then
every 10,000 of 40,000, biases at twice the rate. Their decay of 0.0005 counts once for
the sum over the 8 parts: 6.25e-5 of their mean.

Adapted: the paper's first stage shows crops around one object, its second stage crops
of proposals. CamVid has neither; here the first stage takes crops at one scale and the
second at scales from 0.5 to 2.

Published on the test set of VOC 2012: 69.6 mIoU, over 50 proposals per image; nothing
on CamVid. Estimated memory: 7 GB.
"""

from segjax.config import make, variant

VARIANTS = {
    "stage1": {"scale": (1.0, 1.0), "step_every": 9000, "total_steps": 20_000},
    "stage2": {"scale": (0.5, 2.0), "step_every": 10_000, "total_steps": 40_000},
}
STARTS_FROM = {"stage2": "stage1"}


def get_config(arg: str = ""):
    stage = variant(arg, VARIANTS)
    return make(
        model_name="deconvnet",
        data={"name": "camvid"},
        augment={"crop": (224, 224), "scale": stage["scale"], "flip": 0.5},
        batch_size=64,
        grad_accum_steps=8,
        total_steps=stage["total_steps"],
        workers=8,
        optim={
            "name": "caffe_sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "schedule": "step",
            "step_every": stage["step_every"],
            "weight_decay": 6.25e-5,
            "lr_mult": ("bias=2",),
        },
        eval_every=1000,
        eval_batch_size=4,
        save_every=1000,
    )
