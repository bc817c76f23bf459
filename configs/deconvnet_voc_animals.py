"""DeconvNet (ICCV 2015) in its two stages on crops of objects: animals of PASCAL VOC.

    python -m experiments.chain --config configs/deconvnet_voc_animals.py:stage2 \\
        --workdir runs/deconvnet --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/vgg16.safetensors
    python -m experiments.recalibrate --workdir runs/deconvnet/stage2 \\
        --output runs/recalibrated --batches=501
    python -m experiments.evaluate --workdir runs/recalibrated --proposals=50

stage1 and stage2 are the paper's, sized for a GPU; small1 and small2 are the same on
crops of 64 px for two CPU cores, from scratch, and fcn is an FCN-8s of about their size
for the ensemble.  --config.data.instances=True takes the objects from
SegmentationObject; without, they are the connected parts of each class.

With --config.data.name=voc2012_aug and --config.data.keep_classes=() the stages are the
paper's, but for training on train and val together.  docs/systems/deconvnet.md has the
protocol and results.
"""

from experiments.shared import recipes
from segjax.config import make, variant

PAPER = {
    "batch_size": 64,
    "grad_accum_steps": 8,
    "workers": 8,
    "augment": {"crop": (224, 224), "flip": 0.5},
}
SMALL_OPTIM = recipes.adam(1e-3)
SMALL = {
    "model": {
        "widths": (16, 32, 48, 64, 64),
        "fc_channels": 256,
        "fc6_kernel": 2,
        "image_stats": "unit",
    },
    "batch_size": 16,
    "augment": {"crop": (64, 64), "flip": 0.5, **recipes.COLORS},
    "optim": SMALL_OPTIM,
}


def _solver(step_every: int) -> dict:
    """The authors' solvers; see configs/deconvnet_camvid.py for the decay."""
    return {
        "name": "caffe_sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "schedule": "step",
        "step_every": step_every,
        "weight_decay": 6.25e-5,
        "lr_mult": ("bias=2",),
    }


STARTS_FROM = {"stage2": "stage1", "small2": "small1"}
STAGE1, STAGE2 = {"objects": "stage1"}, {"objects": "stage2", "object_balance": 0.5}
VARIANTS = {
    "stage1": {
        **PAPER,
        "data": STAGE1,
        "optim": _solver(9000),
        "total_steps": 20_000,
    },
    "stage2": {
        **PAPER,
        "data": STAGE2,
        "optim": _solver(10_000),
        "total_steps": 40_000,
    },
    "small1": {
        **SMALL,
        "data": {**STAGE1, "object_side": 72, "resize": (144, 192)},
        "total_steps": 600,
    },
    "small2": {
        **SMALL,
        "data": {**STAGE2, "object_side": 72, "resize": (144, 192)},
        "optim": recipes.adam(2e-3),
        "total_steps": 2400,
    },
    "fcn": {
        "model_name": "fcn",
        "model": {
            "backbone": "resnet50",
            "stage_sizes": (2, 2, 2, 2),
            "widths": (16,),
            "pad": 3,
            "image_stats": "unit",
        },
        "data": {"resize": (144, 192)},
        "augment": {
            "crop": (144, 192),
            "scale": (0.75, 1.25),
            "flip": 0.5,
            **recipes.COLORS,
        },
        "batch_size": 8,
        "optim": SMALL_OPTIM,
        "total_steps": 600,
    },
}


def get_config(arg: str = ""):
    values = variant(arg, VARIANTS)
    data = {"name": "voc2012", "keep_classes": recipes.ANIMALS, **values["data"]}
    common = {
        "model_name": "deconvnet",
        "eval_every": 0,  # whole images say little of what is trained on crops
        "eval_batch_size": 4,
        "save_every": 1000,
    }
    return make(**{**common, **values, "data": data})
