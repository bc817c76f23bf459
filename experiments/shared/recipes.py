"""Parts of training recipes that several files of configs/ share.

They live here because a config may be run, and copied, from any folder; this package is
importable wherever the programs are.
"""

from typing import Any

COLORS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}

# Photographs and microscopy alike.
OWN_AUGMENT = {
    "scale": (0.75, 1.5),
    "rotate": 10.0,
    "flip": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
}

# U-Net (MICCAI 2015), section 3.1: membranes have no upright position.
MEMBRANE_AUGMENT = {
    "rotate": 180.0,
    "flip": 0.5,
    "rot90": True,
    "elastic_sigma": 10.0,
    "border": "reflect",
    "brightness": 0.1,
    "contrast": 0.2,
}

# PSPNet (CVPR 2017), section 5.1: the augmentation, and training with more steps and a
# higher rate than there, because nothing is pre-trained.
PSPNET_AUGMENT = {
    "crop": (353, 473),
    "scale": (0.5, 2.0),
    "rotate": 10.0,
    "rotate_prob": 0.5,
    "flip": 0.5,
    "blur_prob": 0.5,
}
PSPNET50_FROM_SCRATCH = {
    "model": {"backbone": "resnet50", "dtype": "bfloat16"},
    "data": {"name": "camvid"},
    "augment": PSPNET_AUGMENT,
    "batch_size": 16,
    "total_steps": 12000,
    "workers": 8,
    "optim": {
        "name": "sgd",
        "lr": 0.02,
        "momentum": 0.9,
        "schedule": "poly",
        "weight_decay": 1e-4,
        "warmup_steps": 200,
    },
    "save_every": 500,
}

# FCN-8s at once with batch normalization instead of ImageNet weights.
FCN_FROM_SCRATCH = {
    "model": {"norm": "batch", "dtype": "bfloat16"},
    "data": {"name": "camvid"},
    "augment": {"crop": (360, 480), "scale": (0.5, 2.0), "flip": 0.5},
    "batch_size": 8,
    "total_steps": 12000,
    "workers": 8,
    "optim": {
        "name": "sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "schedule": "poly",
        "weight_decay": 5e-4,
        "lr_mult": ("bias=2",),
    },
    "save_every": 500,
}

# DeepLab v1 and v2, from the authors' solvers; class scores learn at 10 times the rate.
DEEPLAB = {
    "data": {"name": "camvid"},
    "workers": 8,
    "loss": {"resolution": "output_stride"},
    "eval_batch_size": 4,
    "save_every": 500,
}
DEEPLAB_OPTIM = {"name": "caffe_sgd", "momentum": 0.9, "weight_decay": 5e-4}
_VGG16 = DEEPLAB_OPTIM | {"lr": 1e-3, "lr_mult": ("fc8=10", "bias=2")}
DEEPLAB_V1_OPTIM = _VGG16 | {"schedule": "step", "step_every": 2000}
DEEPLAB_V2_OPTIM = _VGG16 | {"schedule": "poly"}

# CRF-RNN (ICCV 2015), end to end: whole images one by one, the loss summed over pixels.
CRFRNN_OPTIM = {
    "lr": 1e-13,
    "momentum": 0.99,
    "lr_mult": ("bias=2", "ker_weights=1e4", "compatibility_matrix=1e3"),
}


def adam(lr: float) -> dict[str, Any]:
    """``config.optim``: Adam, polynomial from ``lr``, without weight decay."""
    return {"name": "adam", "lr": lr, "schedule": "poly", "weight_decay": 0.0}


def camvid_cpu(crop: tuple[int, int], steps: int) -> dict[str, Any]:
    """CamVid at 180x240, for two CPU cores."""
    return {
        "data": {"name": "camvid", "resize": (180, 240)},
        "augment": {
            "crop": crop,
            "scale": (0.7, 1.4),
            "rotate": 5.0,
            "flip": 0.5,
            **COLORS,
        },
        "batch_size": 8,
        "total_steps": steps,
        "optim": adam(2e-3),
        "eval_every": 250,
        "eval_batch_size": 8,
        "save_every": 250,
    }


def camvid_strong(steps: int) -> dict[str, Any]:
    """``camvid_cpu`` for images of other days: stronger augmentation, class weights.

    The weights are ENet's (Paszke et al. 2016), 1 / ln(1.02 + share of the class), of
    the training images, with a mean of 1 over the pixels.
    """
    recipe = camvid_cpu((144, 192), steps)
    augment = {"scale": (0.5, 2.0)} | dict.fromkeys(COLORS, 0.3)
    weights = (
        *(0.80, 0.61, 4.79, 0.48, 2.21, 1.25),  # Sky, .., Tree
        *(4.50, 4.57, 1.83, 5.43, 6.27),  # SignSymbol, .., Bicyclist
    )
    return recipe | {
        "augment": recipe["augment"] | augment,
        "loss": {"class_weights": weights},
        "eval_every": 500,
        "save_every": 500,
    }


def quick(
    batch_size: int, steps: int = 300, *, lr: float = 3e-3, size: int = 96
) -> dict[str, Any]:
    """A minute on procedural scenes, for two CPU cores; evaluated twice."""
    return {
        "data": {"name": "scenes", "scenes_size": (size, size), "scenes_train": 1200},
        "augment": {"flip": 0.5, "brightness": 0.1},
        "batch_size": batch_size,
        "total_steps": steps,
        "optim": adam(lr),
        "eval_every": steps // 2,
        "eval_batch_size": 20,
        "save_every": steps // 2,
    }


ANIMALS = ("background", "cat", "cow", "dog", "horse", "person", "sheep")


def animals(size: int, steps: int) -> dict[str, Any]:
    """Animals of VOC 2012 at ``size`` x ``size``, for two CPU cores.

    For a network with ``backbone="squeezenet"`` that starts from ImageNet weights
    (``config.init_from``); its other layers learn at four times the rate.
    """
    return {
        "data": {"name": "voc2012", "resize": (size, size), "keep_classes": ANIMALS},
        "augment": {"crop": (size, size), "scale": (0.75, 1.25), "flip": 0.5},
        "batch_size": 8,
        "total_steps": steps,
        "optim": adam(2e-3) | {"lr_mult": ("^backbone=0.25",)},
        "eval_every": 0,
        "eval_batch_size": 8,
        "eval_images": 4,
        "save_every": 300,
    }


def weak_animals(
    data: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    steps: int = 1800,
) -> dict[str, Any]:
    """A narrow DeepLab-LargeFOV on animals of VOC at 128x128, for two CPU cores."""
    recipe = animals(128, steps)
    return recipe | {
        "model_name": "deeplab",
        "model": {
            "backbone": "squeezenet",
            "rates": (2,),
            "fc6_channels": 128,
            "dropout": 0.2,
        },
        "data": recipe["data"] | (data or {}),
        "loss": {"resolution": "output_stride", **(loss or {})},
        "crf": {
            "smoothness_weight": 1.0,
            "smoothness_sigma": 1.0,
            "appearance_weight": 5.0,
            "appearance_sigma_xy": 10.0,
        },
    }


def _nuclei(*, widths: tuple[int, ...], crop: int, batch_size: int, steps: int) -> dict:
    """U-Net on the nuclei of dsb2018; configs/unet_dsb2018.py says why so."""
    every = steps // 10 if steps > 1000 else steps // 2
    return {
        "model": {"padding": "same", "norm": "batch", "widths": widths},
        "data": {"name": "dsb2018"},
        "augment": {
            "crop": (crop, crop),
            "scale": (0.5, 1.5),
            "rotate": 180.0,
            "rotate_prob": 0.5,
            "flip": 0.5,
            "rot90": True,
            "elastic_sigma": 8.0,
            "border": "reflect",
            "brightness": 0.2,
            "contrast": 0.3,
        },
        "batch_size": batch_size,
        "total_steps": steps,
        "optim": adam(2e-3),
        "eval_every": every,
        "eval_batch_size": 4,
        "save_every": every,
    }


NUCLEI = {
    "full": _nuclei(
        widths=(32, 64, 128, 256, 512), crop=256, batch_size=16, steps=5000
    ),
    "small": _nuclei(widths=(8, 16, 32, 64, 64), crop=128, batch_size=8, steps=400),
}
