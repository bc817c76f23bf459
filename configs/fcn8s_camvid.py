"""FCN-8s at once (PAMI 2017) on VGG16 with batch normalization, CamVid at 360x480.

    python -m experiments.train --config configs/fcn8s_camvid.py --workdir /tmp/run \\
        --config.data.root=/path/to/CamVid

From scratch, where the papers start from ImageNet weights; batch normalization is what
makes that possible, and the skips are not scaled then.  Published with ImageNet
weights: 59.56 mIoU on the CamVid test set for FCN at 360x480 (SegNet, PAMI 2017; from
memory).
"""

from experiments.shared import recipes
from segjax.config import make


def get_config(arg: str = ""):
    del arg
    base = recipes.FCN_FROM_SCRATCH
    return make(
        model_name="fcn",
        eval_every=500,
        **base
        | {
            "model": base["model"] | {"skips": 8},
            "augment": base["augment"] | recipes.COLORS,
        },
    )
