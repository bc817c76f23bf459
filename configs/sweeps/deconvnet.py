"""Sweep of an FCN and a DeconvNet for their ensemble, by experiments.evaluate.

    python -m experiments.sweep --config configs/sweeps/deconvnet.py:quick \\
        --workdir runs/deconvnet --seeds 3
    for n in 0 1 2; do python -m experiments.evaluate --checkpoint latest \\
        --workdir $(echo runs/deconvnet/deconvnet-*/seed$n) \\
        --ensemble $(echo runs/deconvnet/fcn-*/seed$n); done
    python -m experiments.sweep --config configs/sweeps/deconvnet.py --seeds 3 \\
        --workdir runs/deconvnet_animals --config.data.root=/path/to/VOCdevkit
    python -m experiments.sweep --config configs/sweeps/deconvnet.py:crops \\
        --workdir runs/deconvnet_crops --seeds 3
    for run in runs/deconvnet_crops/*/seed*; do for n in 1 5 20 50; do
        python -m experiments.evaluate --workdir $run --checkpoint latest \\
            --proposals $n --output $run/evaluation/$n; done; done

quick trains both on whole scenes of 64x64 pixels, an FCN-8s on a narrow ResNet.
crops trains the DeconvNet alone, on crops of 64x64 pixels around objects of scenes of
128x128, to be evaluated with few and many proposals.
The full form are the small networks of configs/deconvnet_voc_animals.py, the DeconvNet
in its second stage alone, on crops around proposals: evaluate it with --proposals.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_DECONVNET = {
    "widths": (8, 16, 32, 48, 48),
    "fc_channels": 128,
    "fc6_kernel": 2,
    "image_stats": "unit",
}
NETWORKS = {
    "fcn": {
        "backbone": "resnet50",
        "stage_sizes": (1, 1, 1, 1),
        "widths": (16,),
        "pad": 3,
        "image_stats": "unit",
    },
    "deconvnet": _DECONVNET,
}
_FILE = "configs/deconvnet_voc_animals.py"
VARIANTS = {
    "animals": {"data": {"name": "voc2012", "keep_classes": recipes.ANIMALS}},
    "quick": recipes.quick(8, 600, size=64),
    "crops": recipes.quick(16, 1500, size=128)
    | {
        "model_name": "deconvnet",
        "model": _DECONVNET,
        "augment": {"crop": (64, 64), "flip": 0.5, "brightness": 0.1},
        "eval_every": 0,  # whole images say little of what is trained on crops
        "eval_batch_size": 4,
    },
}


def get_config(arg: str = ""):
    return make(**variant(arg, VARIANTS))


def sweep(arg: str = ""):
    if arg == "crops":
        yield {"data.objects": "stage2", "data.object_side": 72}
        return
    if arg != "quick":
        yield {"config": f"{_FILE}:fcn"}
        yield {"config": f"{_FILE}:small2"}
        return
    for name, fields in NETWORKS.items():
        model = {f"model.{field}": value for field, value in fields.items()}
        yield {"model_name": name} | model
