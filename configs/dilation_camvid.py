"""Dilation8 (ICLR 2016), front end and then joint with its context module, on CamVid.

    python -m experiments.chain --config configs/dilation_camvid.py:joint \\
        --workdir runs/dilation8 --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.train --config configs/dilation_camvid.py:front_end \\
        --workdir runs/front_end --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors

The first trains front_end and then joint from it; with crf_rnn behind the colon,
CRF-RNN (ICCV 2015) on top of both follows as a third stage, by its paper's recipe.

From the paper and its code: images extended by reflection by 186 pixels; first crops of
628, 8 per step, rate 1e-4, momentum 0.99, 20,000 steps; then the context module from
the identity, one image per step, rate 1e-5, momentum 0.9. The loss is the mean over the
cells, compared with every eighth pixel; biases learn at twice the rate.

Adapted: the paper has images of 480x640 and a joint crop of 852; the images of SegNet's
split have 360x480, which the second stage takes whole (732x852 with their margin). The
paper does not give the steps of the second stage: 20,000 here, those of its KITTI. The
third stage, which the paper has on VOC 2012 only and without a schedule, takes whole
images and as many steps. The mean color is that of the authors' CamVid network.

Published: 65.3 mIoU on the test set at 480x640. Estimated memory: 8 GB, 3 GB jointly.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_DILATION = {
    "model_name": "dilation",
    "loss": {"resolution": "output_stride"},
}
_MEAN = "105.41212523,108.77808759,110.70313206"
_FIELDS = {"padding": "valid", "upsampling": "interp", "image_stats": _MEAN}
_BASE = _FIELDS | {"context": "basic", "padding": "reflect"}
VARIANTS = {
    "front_end": {
        **_DILATION,
        "model": _FIELDS | {"context": "none"},
        "augment": {"crop": (628, 628)},
        "batch_size": 8,
        "optim": {"lr": 1e-4, "momentum": 0.99},
    },
    "joint": {
        **_DILATION,
        "model": _FIELDS | {"context": "basic"},
        "augment": {"crop": (732, 852)},
        "batch_size": 1,
        "optim": {"lr": 1e-5, "momentum": 0.9},
    },
    "crf_rnn": {
        "model_name": "crfrnn",
        "model": {
            "base": "dilation",
            "base_options": tuple(f"{key}={value}" for key, value in _BASE.items()),
        },
        "loss": {"normalize": "images"},
        "augment": {},
        "batch_size": 1,
        "optim": recipes.CRFRNN_OPTIM,
    },
}
STARTS_FROM = {"joint": "front_end", "crf_rnn": "joint"}


def get_config(arg: str = ""):
    stage = dict(variant(arg, VARIANTS))
    optim = {
        "name": "caffe_sgd",
        "schedule": "constant",
        "weight_decay": 5e-4,
        "lr_mult": ("bias=2",),
    }
    return make(
        data={"name": "camvid"},
        augment={"flip": 0.5, "border": "reflect"} | stage.pop("augment"),
        total_steps=20_000,
        optim=optim | stage.pop("optim"),
        eval_every=1000,
        eval_batch_size=1,
        save_every=1000,
        **stage,
    )
