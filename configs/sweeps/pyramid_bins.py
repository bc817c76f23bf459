"""Sweep over PSPNet's pyramid: bins, average or maximum, with or without reduction.

    python -m experiments.sweep --config configs/sweeps/pyramid_bins.py:quick \\
        --workdir runs/bins --seeds 3
    python -m experiments.sweep --config configs/sweeps/pyramid_bins.py --seeds 3 \\
        --workdir runs/bins_camvid --config.data.root=/path/to/CamVid
    python -m experiments.sweep --config configs/sweeps/pyramid_bins.py:animals \\
        --workdir runs/bins_animals --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors --seeds 3

The full form is table 2 of the paper, on CamVid at 360x480 from scratch, with PSPNet-50
and the recipe of configs/pspnet50_camvid.py: no pyramid, one global bin, (1, 2, 3, 6)
and others, each with average and maximum pooling, reduced to 512 channels or not.

quick asks whether the pyramid sees the whole scene, on procedural scenes of 96x96
pixels: the backbone ends at its second stage and sees 55 pixels, less than from a tent
to the balloon that tells the two kinds of tents apart.  6x6 bins do not reach the
balloon either, 3x3 ones touch its tip, a single bin sees all.  quick_pool compares
averages and maxima, with and without reduction.  A run takes a minute on two CPU cores.
animals asks all of this on six animals of VOC at 128x128, with SqueezeNet.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_QUICK = {
    "model": {
        "stage_sizes": (1, 1, 0, 0),
        "width": 16,
        "pyramid_channels": 16,
        "head_channels": 32,
        "bins": (),
        "aux": False,
        "dropout": 0.0,
        "image_stats": "unit",
    },
    **recipes.quick(16, 200, lr=5e-3),
}
VARIANTS = {
    "camvid": recipes.PSPNET50_FROM_SCRATCH | {"eval_every": 1000},
    "quick": _QUICK,
    "quick_pool": _QUICK,
    "animals": {
        "model": {
            "backbone": "squeezenet",
            "pyramid_channels": 128,
            "head_channels": 128,
            "bins": (),
            "aux": False,
        },
        **recipes.animals(128, 600),
    },
}


def get_config(arg: str = ""):
    return make(model_name="pspnet", **variant(arg, VARIANTS))


def sweep(arg: str = ""):
    if arg == "quick":
        for bins in ((), (6,), (3,), (1,), (1, 2, 3, 6)):
            yield {"model.bins": bins}
        return
    if arg == "animals":
        for bins in ((), (1,), (1, 2, 3, 6)):
            yield {"model.bins": bins}
        yield {"model.bins": (1, 2, 3, 6), "model.pool": "max"}
        yield {"model.bins": (1, 2, 3, 6), "model.reduce": False}
        return
    yield {"model.bins": ()}
    sets = ((1,), (1, 2, 3, 6))
    if arg != "quick_pool":
        sets += ((6,), (1, 2), (2, 3, 6))
    for bins in sets:
        for pool in ("avg", "max"):
            for reduce in (True, False):
                yield {
                    "model.bins": bins,
                    "model.pool": pool,
                    "model.reduce": reduce,
                }
