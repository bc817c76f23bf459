"""FCN as its papers train it (CVPR 2015; PAMI 2017), on CamVid at 360x480.

    python -m experiments.chain --config configs/fcn_camvid.py:fcn8s \\
        --workdir runs/fcn --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.train --config configs/fcn_camvid.py:fcn8s-atonce \\
        --workdir runs/atonce --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors

The first trains fcn32s from a classifier, fcn16s from that and fcn8s from that. Such
chains are also fcn16s-learned and fcn8s-learned, whose 2x upsamplings are learned as in
the CVPR paper, and crfrnn, CRF-RNN (ICCV 2015), which starts from fcn8s-learned.
fcn8s-atonce, fcn-alexnet, fcn-googlenet, fcn32s-fixed, in which only class scores
learn, and fcn-pool5, fcn-pool4 and fcn-pool3, with the scores of one layer, start from
a classifier, like fcn32s (docs/weights.md).

From the papers' networks: one whole image per step, no augmentation, momentum 0.99, the
loss summed over pixels, biases at twice the rate and not decayed; AlexNet with batches
of 20 and the mean over pixels; GoogLeNet with the batches and the rate of the CVPR
paper, which does not say how its loss is normalized. The rates are those of VOC:
CamVid has 172,800 pixels where VOC has 187,500 at most. The number of steps is VOC's
too, or as many images in batches of 20: 272 epochs of CamVid (817 for 8s at once).
CRF-RNN's paper gives no number of steps.

Published on the 736 images of VOC 2011 (mIoU): 32s 63.6, 16s 65.0, 8s 65.5, 8s at once
65.4, AlexNet 48.0, uncertain pool5 50.0, pool4 22.4, pool3 9.2; of the CVPR paper
GoogLeNet 42.5, 32s fixed 45.4, 32s 59.4, 16s learned 62.4, 8s learned 62.7; not on
CamVid. Estimated memory: 3 GB, 5 GB for AlexNet's and 12 GB for GoogLeNet's batches.
"""

from experiments.shared import recipes
from segjax.config import make, variant_name
from segjax.published import NETWORKS

_VGG = {"batch_size": 1, "total_steps": 100_000}
_ONE_BY_ONE = {"lr": 1e-10, "momentum": 0.99, "lr_mult": ("bias=2",)}
_SUM = {"normalize": "images"}
_TWENTY = {"batch_size": 20, "total_steps": 5000}
_ONE_LAYER = {"optim": _ONE_BY_ONE, "loss": _SUM, **_VGG}
_CLASS_SCORES = ("backbone=0", "bias=2")
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
    "fcn16s-learned": {
        "model": {"learn_upsampling": True},
        "optim": _ONE_BY_ONE | {"lr": 1e-12},
        "loss": _SUM,
        **_VGG,
    },
    "fcn8s-learned": {
        "model": {"learn_upsampling": True},
        "optim": _ONE_BY_ONE | {"lr": 1e-14},
        "loss": _SUM,
        **_VGG,
    },
    "crfrnn": {
        "model_name": "crfrnn",
        "model": {"base_options": ("skips=8", "learn_upsampling=True")},
        "optim": recipes.CRFRNN_OPTIM,
        "loss": _SUM,
        **_VGG,
    },
    "fcn32s-fixed": {
        "optim": _ONE_BY_ONE | {"lr_mult": _CLASS_SCORES},
        "loss": _SUM,
        **_VGG,
    },
    "fcn-pool5": {"model": {"skips": 32, "only": "pool5"}, **_ONE_LAYER},
    "fcn-pool4": {"model": {"skips": 16, "only": "pool4"}, **_ONE_LAYER},
    "fcn-pool3": {"model": {"skips": 8, "only": "pool3"}, **_ONE_LAYER},
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
STARTS_FROM = {
    "fcn16s": "fcn32s",
    "fcn8s": "fcn16s",
    "fcn16s-learned": "fcn32s",
    "fcn8s-learned": "fcn16s-learned",
    "crfrnn": "fcn8s-learned",
}


def get_config(arg: str = ""):
    name = variant_name(arg, VARIANTS)
    fields = dict(VARIANTS[name])
    published = NETWORKS.get(name.removesuffix("-learned").removesuffix("-fixed"))
    if published:
        fields["model"] = published.fields | fields.get("model", {})
    optim = {
        "name": "caffe_sgd",
        "momentum": 0.9,
        "schedule": "constant",
        "weight_decay": 5e-4,
    }
    return make(
        data={"name": "camvid"},
        augment={"flip": 0.0},
        optim=optim | fields.pop("optim"),
        eval_every=2000,
        save_every=2000,
        **{"model_name": "fcn", **fields},
    )
