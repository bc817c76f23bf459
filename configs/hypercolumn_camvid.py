"""Hypercolumns on VGG16 (CVPR 2015), fully convolutional, on CamVid at 360x480.

    python -m experiments.train --config configs/hypercolumn_camvid.py:hypercolumn \\
        --workdir runs/hypercolumn --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.train \\
        --config configs/hypercolumn_camvid.py:hypercolumn-located \\
        --workdir runs/located --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors

One linear classifier of pool2, conv4_3 and fc7 at each pixel; hypercolumn-located has
10 x 10 of them, by where the pixel lies in the image. It trains and predicts whole
images, because such a classifier takes the place in a crop for the place in the image.

No paper reports this setting: the published one classifies the pixels of detected boxes
(docs/systems/hypercolumn.md). Rate, decay and batches are those of DeepLab v1's VGG16.

Estimated memory: 8 GB.
"""

from experiments.shared import recipes
from segjax.config import make, variant_name

VARIANTS = {"hypercolumn": {}, "hypercolumn-located": {"grid": 10}}
_OPTIM = recipes.DEEPLAB_V1_OPTIM | {"lr_mult": ("score_=10", "bias=2")}


def get_config(arg: str = ""):
    name = variant_name(arg, VARIANTS)
    return make(
        model_name="hypercolumn",
        model=VARIANTS[name],
        data={"name": "camvid"},
        augment={"flip": 0.5},
        batch_size=10,
        total_steps=6000,
        workers=8,
        optim=_OPTIM,
        eval_every=500,
        eval_batch_size=4,
        save_every=500,
    )
