"""FCN as its papers train it (CVPR 2015; PAMI 2017), on CamVid at 360x480.

    python -m experiments.train --config configs/fcn_camvid.py:fcn32s \\
        --workdir runs/fcn32s --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.train --config configs/fcn_camvid.py:fcn16s \\
        --workdir runs/fcn16s --config.data.root=/path/to/CamVid \\
        --config.init_from=runs/fcn32s
    python -m experiments.train --config configs/fcn_camvid.py:fcn8s \\
        --workdir runs/fcn8s --config.data.root=/path/to/CamVid \\
        --config.init_from=runs/fcn16s

fcn8s-atonce, fcn-alexnet and fcn-googlenet start from a classifier, like fcn32s
(docs/weights.md).

From the papers' networks: one whole image per step, no augmentation, momentum 0.99, the
loss summed over pixels, biases at twice the rate and not decayed; AlexNet with batches
of 20 and the mean over pixels; GoogLeNet with the batches and the rate of the CVPR
paper, which does not say how its loss is normalized. The rates are those of VOC:
CamVid has 172,800 pixels where VOC has 187,500 at most. The number of steps is VOC's
too, or as many images in batches of 20: 272 epochs of CamVid (817 for 8s at once).

Published on the 736 images of VOC 2011 (mIoU): 32s 63.6, 16s 65.0, 8s 65.5, 8s at once
65.4, AlexNet 48.0, GoogLeNet 42.5 (CVPR); not on CamVid. Estimated memory: 3 GB, 5 GB
for AlexNet's and 12 GB for GoogLeNet's batches.
"""

from segjax.config import make, variant_name
from segjax.published import NETWORKS

_VGG = {"batch_size": 1, "total_steps": 100_000}
_ONE_BY_ONE = {"lr": 1e-10, "momentum": 0.99, "lr_mult": ("bias=2",)}
_SUM = {"normalize": "images"}
_TWENTY = {"batch_size": 20, "total_steps": 5000}
VARIANTS = {
    "fcn32s": {"optim": _ONE_BY_ONE, "loss": _SUM, **_VGG},
    "fcn16s": {
        "optim": _ONE_BY_ONE | {"lr": 1e-12},
        "loss": _SUM,
        **_VGG,
    },
    "fcn8s": {
        "optim": _ONE_BY_ONE | {"lr": 1e-14},
        "loss": _SUM,
        **_VGG,
    },
    "fcn8s-atonce": {
        "optim": _ONE_BY_ONE,
        "loss": _SUM,
        **_VGG,
        "total_steps": 300_000,
    },
    "fcn-alexnet": {
        # The backbone's biases are decayed, at the rate of its kernels.
        "optim": {
            "lr": 1e-4,
            "lr_mult": ("score_fr/bias=2",),
            "decay_exclude": ("score_fr/bias",),
        },
        **_TWENTY,
    },
    "fcn-googlenet": {
        "optim": {"lr": 5e-5, "lr_mult": ("bias=2",)},
        **_TWENTY,
    },
}


def get_config(arg: str = ""):
    name = variant_name(arg, VARIANTS)
    fields = dict(VARIANTS[name])
    optim = {
        "name": "caffe_sgd",
        "momentum": 0.9,
        "schedule": "constant",
        "weight_decay": 5e-4,
    }
    return make(
        model_name="fcn",
        model=NETWORKS[name].fields,
        data={"name": "camvid"},
        augment={"flip": 0.0},
        optim=optim | fields.pop("optim"),
        eval_every=2000,
        save_every=2000,
        **fields,
    )
