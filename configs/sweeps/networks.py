"""Sweep over networks: the same images and training for all, or each with its recipe.

    python -m experiments.sweep --config configs/sweeps/networks.py:quick \\
        --workdir runs/networks --seeds 2
    python -m experiments.compare runs/networks
    python -m experiments.sweep --config configs/sweeps/networks.py:camvid --seeds 3 \\
        --workdir runs/networks_camvid --config.data.root=/path/to/CamVid
    python -m experiments.sweep --config configs/sweeps/networks.py:camvid_cpu \\
        --workdir runs/networks_camvid_cpu --config.data.root=/path/to/CamVid

quick trains eight networks of a few channels with the same optimizer, steps and batches
on procedural scenes of 64x64 pixels; a run takes a minute or two on two CPU cores. The
widths keep the order of the published networks' stages, and rates and bins fit images
that are a seventh as large; the scores rank these small networks, not the published
ones.

camvid are whole config files: the networks that train on CamVid from scratch, each by
its own recipe. --config.FIELD=VALUE changes a field of all of them.

camvid_cpu are five networks on CamVid at 180x240 for two CPU cores, with one recipe:
three on SqueezeNet from ImageNet weights (weights/squeezenet.safetensors, see
docs/weights.md), two from scratch.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_SCRATCH = {"norm": "batch", "dropout": 0.0, "image_stats": "unit"}
_VGG = {"widths": (4, 8, 16, 32, 32), "fc_channels": 64}
_RESNET = {"backbone": "resnet50", "stage_sizes": (1, 1, 1, 1), "width": 16}
NETWORKS = {
    "fcn": _SCRATCH | _VGG | {"at_once": True},
    "deconvnet": _VGG | {"fc6_kernel": 2, "image_stats": "unit"},
    "deeplab": _SCRATCH | _RESNET | {"stem": "deep", "rates": (1, 2, 4)},
    "dilation": _SCRATCH | _VGG | {"fc6_rate": 1, "context_rates": (1, 1, 2, 1)},
    "pspnet": _SCRATCH | _RESNET | {"pyramid_channels": 16, "head_channels": 64},
    "unet": _SCRATCH | {"padding": "same", "widths": (12, 24, 48, 96)},
    "fusionnet": {"widths": (8, 16, 32, 64), "residual_depth": 1},
    "frrn": {
        "stage_units": (1, 1, 1, 1, 1),
        "stage_channels": (16, 24, 32, 24, 16),
        "stage_scales": (2, 4, 8, 4, 2),
        "width": 16,
        "residual_channels": 8,
        "first_units": 1,
        "last_units": 1,
    },
}
_FILES = (
    "configs/unet_camvid.py",
    "configs/fcn8s_camvid.py",
    "configs/pspnet50_camvid.py",
    "configs/frrn_camvid.py:frrn-a",
)
_SQUEEZENET = {"backbone": "squeezenet", "dropout": 0.2}
_START = {
    "init_from": "weights/squeezenet.safetensors",
    "optim.lr_mult": ("^backbone=0.25",),
}
CAMVID_CPU = {
    "deeplab": _SQUEEZENET | {"fc6_channels": 128, "rates": (2, 4, 6, 8)},
    "pspnet": _SQUEEZENET | {"pyramid_channels": 128, "head_channels": 128},
    "fcn": _SQUEEZENET | {"at_once": True},
    "unet": _SCRATCH | {"padding": "same", "widths": (16, 32, 64, 128, 256)},
    "frrn": {
        "stage_units": (2, 2, 2, 2),
        "stage_channels": (32, 64, 96, 64),
        "stage_scales": (2, 4, 8, 4),
        "width": 16,
        "residual_channels": 16,
        "first_units": 1,
        "last_units": 1,
    },
}
VARIANTS = {
    "camvid": {"data": {"name": "camvid"}},
    "camvid_cpu": recipes.camvid_strong(1000),
    "quick": recipes.quick(8, 200, size=64),
}


def get_config(arg: str = ""):
    return make(**variant(arg, VARIANTS))


def sweep(arg: str = ""):
    if arg in ("", "camvid"):
        for file in _FILES:
            yield {"config": file}
        return
    for name, fields in (CAMVID_CPU if arg == "camvid_cpu" else NETWORKS).items():
        model = {f"model.{field}": value for field, value in fields.items()}
        start = _START if fields.get("backbone") == "squeezenet" else {}
        yield {"model_name": name} | model | start
