"""Zoom-out features (CVPR 2015) on VGG16, on CamVid at 360x480.

    python -m experiments.train --config configs/zoomout_camvid.py:zoomout \\
        --workdir runs/zoomout --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.train --config configs/zoomout_camvid.py:zoomout-linear \\
        --workdir runs/zoomout_linear --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors

VGG16 stays as it was trained on ImageNet; the classifier of the superpixels trains,
of two hidden layers or linear. The loss is weighted by the frequencies of the classes
(the median-frequency weights of docs/data.md), without which rare classes are lost.

Published on VOC 2012 (mIoU): 64.4 on the test set; on the validation set about 52
linear and 58 to 59 with hidden layers (from memory). No paper reports CamVid.

From the paper: momentum 0.9, a rate that falls from 1e-4 to 1e-6 (here polynomially,
and of a mean over pixels), mirrored images. The number of steps is 100 epochs.

Each image needs 495 passes of VGG16 over its sub-scenes at 256x256: 10 TMACs, and in
training no more, since nothing flows back into VGG16. Estimated memory: 8 GB; lower
--config.model.subscene_batch if that is too much.
"""

from segjax.config import make, variant
from segjax.published import NETWORKS

VARIANTS = {name: NETWORKS[name].fields for name in ("zoomout", "zoomout-linear")}
# Sky, Building, Pole, Road, Pavement, Tree, SignSymbol, Fence, Car, Pedestrian,
# Bicyclist.
_WEIGHTS = (
    *(0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747),
    8.8587,
)


def get_config(arg: str = ""):
    return make(
        model_name="zoomout",
        model=variant(arg, VARIANTS),
        data={"name": "camvid"},
        augment={"flip": 0.5},
        batch_size=4,
        total_steps=9200,
        workers=8,
        loss={"class_weights": _WEIGHTS},
        optim={
            "name": "caffe_sgd",
            "lr": 1e-4,
            "momentum": 0.9,
            "schedule": "poly",
            "lr_floor": 1e-6,
            "weight_decay": 0.0,
        },
        eval_every=1000,
        eval_batch_size=4,
        save_every=500,
    )
