"""U-Net with valid convolutions on ISBI 2012 (MICCAI 2015): elastic, overlap-tile.

    python -m experiments.train --config configs/unet_isbi2012.py --workdir /tmp/isbi \\
        --config.data.root=/path/to/membrane
    python -m experiments.train --config configs/unet_isbi2012.py:quick --workdir ... \\
        (a narrow net on small tiles: minutes on two CPU cores)

572-px tiles give 388-px predictions; the crop may reach the margin of 92 px out of the
image, which is mirrored there.  SGD with momentum 0.99 and one tile per step as in the
paper (section 3); the learning rate is ours, the paper gives none.  Evaluation and
prediction use tiles of the same size.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {"paper": {"quick": False}, "quick": {"quick": True}}


def get_config(arg: str = ""):
    quick = variant(arg, VARIANTS)["quick"]
    side = 252 if quick else 572
    return make(
        model_name="unet",
        model={
            "padding": "valid",
            "widths": (12, 24, 48, 96) if quick else (64, 128, 256, 512, 1024),
            "dropout": 0.2 if quick else 0.5,
            "norm": "batch" if quick else "none",
        },
        data={"name": "isbi2012"},
        augment={"crop": (side, side), **recipes.MEMBRANE_AUGMENT},
        batch_size=4 if quick else 1,
        total_steps=400 if quick else 20000,
        optim=(
            recipes.adam(2e-3)
            if quick
            else {
                "name": "sgd",
                "lr": 1e-3,
                "momentum": 0.99,
                "schedule": "constant",
                "weight_decay": 0.0,
            }
        ),
        tile=side,
        eval_batch_size=1,
        eval_images=2,
        eval_every=100 if quick else 1000,
        save_every=100 if quick else 1000,
    )
