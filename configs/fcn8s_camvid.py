"""FCN-8s at once (PAMI 2017) on VGG16 with batch normalization, CamVid at 360x480.

    python -m experiments.train --config configs/fcn8s_camvid.py --workdir /tmp/run \\
        --config.data.root=/path/to/CamVid

From scratch, where the papers start from ImageNet weights; batch normalization is what
makes that possible, and the skips are not scaled then.  Published with ImageNet
weights: 59.56 mIoU on the CamVid test set for FCN at 360x480 (SegNet, PAMI 2017; from
memory).

:gpu, the default, is for one GPU; :v5e_16 for 16 chips of TPU v5e (docs/pods.md): batch
128, as many epochs, the rate scaled with the batch (experiments/shared/pods.py). The
latter has not been trained.
"""

from experiments.shared import pods, recipes
from segjax.config import make, variant

VARIANTS = {"gpu": {}, "v5e_16": {"chips": 16}}


def get_config(arg: str = ""):
    base = recipes.FCN_FROM_SCRATCH
    config = make(
        model_name="fcn",
        eval_every=500,
        **base
        | {
            "model": base["model"] | {"skips": 8},
            "augment": base["augment"] | recipes.COLORS,
        },
    )
    return pods.scaled(config, **variant(arg, VARIANTS))
