"""U-Net (MICCAI 2015), same-size with batch normalization, on CamVid at 360x480.

    python -m experiments.train --config configs/unet_camvid.py --workdir /tmp/run \\
        --config.data.root=/path/to/CamVid

From scratch.  Published, for scale only: 71.95 mIoU on validation for a U-Net of
31.03 M parameters at 368x480 with median-frequency weights (OpenVINO model zoo,
unet-camvid-onnx-0001).  Sized for one GPU of 16 GB with model.dtype=bfloat16.

:gpu, the default, is for one GPU; :v5e_16 for 16 chips of TPU v5e (docs/pods.md): batch
128, as many epochs, the rate scaled with the batch (experiments/shared/pods.py). The
latter has not been trained.
"""

from experiments.shared import pods, recipes
from segjax.config import make, variant

VARIANTS = {"gpu": {}, "v5e_16": {"chips": 16}}


def get_config(arg: str = ""):
    config = make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "dtype": "bfloat16"},
        data={"name": "camvid"},
        augment={
            "crop": (352, 480),
            "scale": (0.5, 2.0),
            "rotate": 10.0,
            "rotate_prob": 0.5,
            "flip": 0.5,
            **recipes.COLORS,
        },
        batch_size=8,
        total_steps=12000,
        workers=8,
        optim=recipes.adam(1e-3),
        eval_every=500,
        save_every=500,
    )
    return pods.scaled(config, **variant(arg, VARIANTS))
