"""Dilation8 (ICLR 2016), front end and then joint with its context module, on CamVid.

    python -m experiments.train --config configs/dilation_camvid.py:front_end \\
        --workdir runs/front_end --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.train --config configs/dilation_camvid.py:joint \\
        --workdir runs/dilation8 --config.data.root=/path/to/CamVid \\
        --config.init_from=runs/front_end

From the paper and its code: images extended by reflection by
186 pixels; first crops of 628, 8 per step, rate 1e-4, momentum 0.99, 20,000 steps; then
the context module from the identity, one image per step, rate 1e-5, momentum 0.9. The
loss is the mean over the cells, compared with every eighth pixel; biases learn at twice
the rate.

Adapted: the paper has images of 480x640 and a joint crop of 852; the images of SegNet's
split have 360x480, which the second stage takes whole (732x852 with their margin). The
paper does not give the steps of the second stage: 20,000 here, those of its KITTI. The
mean color is ImageNet's.

Published: 65.3 mIoU on the test set at 480x640. Estimated memory: 8 GB, 3 GB jointly.
"""

from segjax.config import make, variant

VARIANTS = {
    "front_end": {
        "model": {"context": "none"},
        "crop": (628, 628),
        "batch_size": 8,
        "optim": {"lr": 1e-4, "momentum": 0.99},
    },
    "joint": {
        "model": {"context": "basic"},
        "crop": (732, 852),
        "batch_size": 1,
        "optim": {"lr": 1e-5, "momentum": 0.9},
    },
}


def get_config(arg: str = ""):
    stage = variant(arg, VARIANTS)
    return make(
        model_name="dilation",
        model={"padding": "valid", "upsampling": "interp", **stage["model"]},
        data={"name": "camvid"},
        augment={"crop": stage["crop"], "flip": 0.5, "border": "reflect"},
        batch_size=stage["batch_size"],
        total_steps=20_000,
        loss={"resolution": "output_stride"},
        optim={
            "name": "caffe_sgd",
            "schedule": "constant",
            "weight_decay": 5e-4,
            "lr_mult": ("bias=2",),
            **stage["optim"],
        },
        eval_every=1000,
        eval_batch_size=1,
        save_every=1000,
    )
